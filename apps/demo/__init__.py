"""`polysense demo`: a Gradio app over the same pipelines; see docs/demo.md."""
