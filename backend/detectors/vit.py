"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929) from timm, and two published checkpoints of them."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from backend.detectors.base import IMAGENET
from backend.detectors.registry import register_published
from backend.errors import UserError
from backend.weights import match_checkpoint

COMMFOR_CROP = 384
# Layers of a block as transformers names them, and as timm does.
LAYERS = {
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
ENDS = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "vit.embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "vit.layernorm.weight": "norm.weight",
    "vit.layernorm.bias": "norm.bias",
    "classifier.weight": "head.weight",
    "classifier.bias": "head.bias",
}
BLOCK = "vit.encoder.layer."
ATTENTION = "attention.attention."
TRANSFORMERS_EPSILON = 1e-12


@register_published(
    "vit_s_commfor",
    title="Community Forensics ViT-S",
    paper="Park and Owens 2025, arXiv 2411.04125",
    outputs="one logit, fake high",
    **IMAGENET,
)
class CommFor(nn.Module):
    """The community-forensics ViT-S, under its published keys (`vit.*`)."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = _create("vit_small_patch16_384", classes=1)

    def forward(self, faces: Tensor) -> Tensor:
        """Return the logit of fake (N, 1) for pictures (N, 3, 440, 440), of which it reads the middle 384 pixels."""
        margin = (faces.shape[-1] - COMMFOR_CROP) // 2
        end = margin + COMMFOR_CROP
        return self.vit(faces[..., margin:end, margin:end])


@register_published("vit_b_transformers", title="ViT-B", paper="Dosovitskiy et al. 2021, arXiv 2010.11929")
def build_vit_b() -> nn.Module:
    """Return an untrained ViT-B/16 as transformers builds it, with two logits for pictures (N, 3, 224, 224)."""
    return _create("vit_base_patch16_224", classes=2, norm_layer=partial(nn.LayerNorm, eps=TRANSFORMERS_EPSILON))


def from_commfor(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the checkpoint `commfor-model-384` into a state of `CommFor()`; errors as in `match_checkpoint`."""
    return match_checkpoint(state, CommFor, "the community-forensics ViT-S")


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn a ViT-B/16 classifier of transformers into a state of `build_vit_b()`; errors as in `match_checkpoint`."""
    renamed = {_timm_name(key): value for key, value in state.items()}
    for key in (key for key in state if f"{ATTENTION}query." in key):
        layer, _, part = key.partition(f"{ATTENTION}query.")
        names = [f"{layer}{ATTENTION}{kind}.{part}" for kind in ("query", "key", "value")]
        parts = [renamed.pop(_timm_name(name), None) for name in names]
        if any(value is None or value.shape != state[key].shape for value in parts):
            raise UserError(f"The attention of {layer} is incomplete.", "Use the published checkpoint unchanged.")
        block = layer.removeprefix(BLOCK)
        renamed[f"blocks.{block}attn.qkv.{part}"] = torch.cat([value for value in parts if value is not None])
    return match_checkpoint(renamed, build_vit_b, "a ViT-B/16 classifier")


def _timm_name(key: str) -> str:
    """Return timm's name of a tensor of transformers, or the key itself where there is none."""
    if not key.startswith(BLOCK):
        return ENDS.get(key, key)
    number, _, rest = key.removeprefix(BLOCK).partition(".")
    layer, _, part = rest.rpartition(".")
    return f"blocks.{number}.{LAYERS.get(layer, layer)}.{part}"


def _create(name: str, *, classes: int, **options: Any) -> nn.Module:
    import timm  # importing it takes seconds, and the page would have to wait

    return timm.create_model(name, pretrained=False, num_classes=classes, **options)
