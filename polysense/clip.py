"""CLIP in the anchor's place: users' own weights, two towers that share a space, behind the same interface.

Words go through the text tower (`load_anchor("transformers:…")`), pictures through timm's image tower, whose last
linear map is the projection. CLAP's words can be an anchor too; its audio tower is no plain transformer.
"""

from __future__ import annotations

from typing import Any

import torch

from polysense.backbone import checkpoints
from polysense.backbone.weights import create_timm
from polysense.core.errors import InputError
from polysense.heads.meaning import MeaningConfig, MeaningHead
from polysense.pipeline import Pipeline
from polysense.tasks import TASKS
from polysense.tokenizers.image import from_timm
from polysense.words import TEMPLATES

TEMPERATURE = 0.01  # that CLIP's training ended at (Radford et al. 2021)


def clip_pictures(encoder: str, anchor: str) -> Pipeline:
    """The way of pictures into a CLIP model's space; `zero_shot("image", labels, meaning=…)` names by it.

    Args:
        encoder: A spec of `load_encoder` whose timm model ends in the projection, such as
            `timm:vit_base_patch16_clip_224.openai`.
        anchor: A spec of `load_anchor` for the same model's words, such as
            `transformers:openai/clip-vit-base-patch16`.

    Raises:
        InputError: The model cannot be had, is no plain ViT, or ends in no linear map.
    """
    model: Any = create_timm(encoder, head=True)
    projection = getattr(model, "head", None)
    if not isinstance(projection, torch.nn.Linear):
        raise InputError(encoder, "it does not end in a projection", "use a timm model whose name holds clip")
    try:
        trunk, tokenizer = checkpoints.from_timm(model), from_timm(model)
    except ValueError as error:
        raise InputError(encoder, str(error), "use a plain ViT") from error
    trunk.spec = encoder
    config = MeaningConfig(projection.out_features, ("cls",), (), scaled=False)
    head = MeaningHead(config, trunk.config.width)
    linear: Any = head.project[-1]
    linear.weight.data.copy_(projection.weight)
    linear.bias.data.copy_(0 if projection.bias is None else projection.bias)
    about = {"anchor": anchor, "templates": list(TEMPLATES["image"]), "temperature": TEMPERATURE}
    return Pipeline(TASKS["image-meaning"], tokenizer, trunk, head, about=about).eval()
