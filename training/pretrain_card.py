"""The card of a pretrained encoder: which data it saw, which labels entered, how long, and its fingerprint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polysense.backbone.encoder import Encoder
from polysense.training.pretrain_config import SYNTHETIC, DataPlan, RunPlan

TEMPLATE = """---
library_name: polysense
license: {licence}
---
# {name}

An encoder of {depth} blocks, width {width}, {heads} heads ({size:.1f}M parameters), and the tokenizers of {senses}.
Started from `{start}`, trained for {steps} steps.

- Fingerprint (SHA-256 over names, shapes and fp32 values): `{fingerprint}`
- Use it: `polysense fit TASK DATA --out BUNDLE --encoder file:{path}`
- Labels that entered: {labels}
- Trained parts that it began with or learnt from: {origins}

| sense | data | inputs | classes | licence of the data |
|---|---|---|---|---|
{rows}

Each step takes one batch of every sense; within a sense, sets are drawn by their share, or by size to the power of
`balance`. Parts named val or test were left out.{notes}

## Configuration
```toml
{text}
```
"""


@dataclass(frozen=True, slots=True)
class SetUsed:
    """One set that was read."""

    modality: str
    plan: DataPlan
    count: int  # inputs; 0 where they are generated
    classes: int  # whose labels enter
    left_out: int = 0  # files that hold no input

    def line(self) -> str:
        what = "generated" if not self.count else f"{self.count:,} inputs"
        return (
            f"{self.modality}: {self.plan.path}, {what}"
            + (f", {self.classes} classes" if self.classes else "")
            + (f"; {self.left_out} files without any left out" if self.left_out else "")
        )


def write_card(
    folder: Path, plan: RunPlan, encoder: Encoder, sets: Sequence[SetUsed], origins: Mapping[str, str]
) -> None:
    """Writes `README.md` beside the weights; the fingerprint is that of the written, half-precision ones.

    Args:
        folder: Where `encoder.safetensors` lies.
        plan: What was asked for.
        encoder: As trained.
        sets: What was read.
        origins: Trained parts that it began with or learnt from, with their licences.
    """
    from polysense.backbone.weights import load_encoder

    path = folder / "encoder.safetensors"
    entered = [one.plan.path for one in sets if one.classes and one.plan.path != SYNTHETIC]
    parts = [f"{name} ({licence})" for name, licence in origins.items()]
    rows = "\n".join(
        f"| {one.modality} | {one.plan.path} | {one.count or 'generated'} | {one.classes or 'no labels'} "
        f"| {'generated' if one.plan.path == SYNTHETIC else one.plan.licence} |" for one in sets
    )  # fmt: skip
    text = TEMPLATE.format(
        licence=plan.card.licence, name=plan.card.name, depth=encoder.config.depth, width=encoder.config.width,
        heads=encoder.config.heads, size=sum(p.numel() for p in encoder.parameters()) / 1e6,
        senses=", ".join(stream.modality for stream in plan.streams), start=plan.encoder.start,
        steps=plan.training.steps, fingerprint=load_encoder(f"file:{path}").fingerprint(), path=path,
        labels=", ".join(entered) or "none", origins=", ".join(parts) or "none", rows=rows,
        notes=f"\n\n{plan.card.notes}" if plan.card.notes else "", text=plan.text.strip(),
    )  # fmt: skip
    (folder / "README.md").write_text(text, encoding="utf-8")
