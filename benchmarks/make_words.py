"""Keeps what the anchor says of the shipped bundles' class names: `python benchmarks/make_words.py`.

With polysense/weights/words.safetensors, inputs can be named by these words where the extra `text` is not installed.
"""

from __future__ import annotations

import json

from make_bundles import embedded_folder_in_checkout
from safetensors.torch import save_file

from polysense.backbone.anchor import load_anchor
from polysense.bundle import bundles, read_config
from polysense.words import TEMPLATES


def main() -> None:
    texts: set[str] = set()
    for info in bundles():
        for name in read_config(info.path)["head"]["config"].get("classes", ()):
            for word in {name, name.replace("_", " ")}:
                texts |= {template.replace("{}", word) for template in TEMPLATES.get(info.modality, ())}
    kept = sorted(texts)
    vectors = load_anchor()(kept).half()
    save_file({"vectors": vectors}, embedded_folder_in_checkout() / "words.safetensors", {"texts": json.dumps(kept)})
    print(len(kept), "texts")


if __name__ == "__main__":
    main()
