"""Deep features of pictures, and their map in two dimensions (t-SNE, van der Maaten and Hinton 2008)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backend import runtime, weights
from backend.detectors import registry
from backend.errors import UserError
from backend.trace_removal.discriminators import (
    Discriminator,
    FingerprintDiscriminator,
    SpatialDiscriminator,
    SpectralDiscriminator,
)

PERPLEXITY = 30.0
NAMES = ("spatial", "spectral", "fingerprint")
HINT = "Name the checkpoint.pt in the folder of a TR-Net's training, with its settings.json beside it."


@torch.no_grad()
def of_detector(name: str, picture: Tensor) -> np.ndarray:
    """Return the mean over the picture, and its mirror image if seen, of the layer that Grad-CAM reads, (C,) float16.

    Args:
        name: Of a detector.
        picture: (1, 3, S, S) in [0, 1].

    Raises:
        UserError: The detector has no such layer.
    """
    detector = registry.load(name)
    seen: list[Tensor] = []
    with runtime.MODEL_LOCK:  # outside of it, the hook would see what others ask of the same detector
        hook = detector.cam_module().register_forward_hook(lambda _module, _given, made: seen.append(made))
        try:
            detector.logit_fake(picture.to(detector.mean.device))
        finally:
            hook.remove()
    return seen[0].flatten(2).mean((0, 2)).cpu().numpy().astype(np.float16)


@torch.no_grad()
def of_discriminators(checkpoint: Path, picture: Tensor) -> dict[str, np.ndarray]:
    """Return the last features of TR-Net's three discriminators, flattened, float16.

    They have 512 * width channels of 4 x 4, or of 8 x 8 in the finer form of the spatial one.

    Args:
        checkpoint: `checkpoint.pt` of a training run.
        picture: (1, 3, S, S) in [0, 1], of the training's size.

    Raises:
        UserError: The file cannot be read.
    """
    loaded = runtime.loaded(f"discriminators {checkpoint}", lambda: _discriminators(checkpoint))
    picture = picture.to(runtime.device())
    with runtime.MODEL_LOCK:
        found = {name: one.backbone.features(one.inputs(picture)) for name, one in loaded.items()}
    return {name: features.flatten().cpu().numpy().astype(np.float16) for name, features in found.items()}


def checkpoint_hash(checkpoint: Path) -> str:
    """Return the SHA-256 of a checkpoint.

    Raises:
        UserError: There is no such file.
    """
    if not checkpoint.is_file():
        raise UserError(f"There is no checkpoint {checkpoint.name}.", HINT)
    return weights.file_hash(checkpoint)


def flat_map(features: np.ndarray, seed: int) -> np.ndarray:
    """Return t-SNE coordinates (N, 2) of features (N, D), N at least 4; the same seed gives the same map."""
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    method = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed, n_jobs=1)
    spread = features.astype(np.float64)
    return np.asarray(method.fit_transform(spread - spread.mean(0)))


def _discriminators(checkpoint: Path) -> Mapping[str, Discriminator]:
    checkpoint_hash(checkpoint)
    try:
        said: dict[str, Any] = json.loads((checkpoint.parent / "settings.json").read_text(encoding="utf-8"))
        states = torch.load(checkpoint, map_location="cpu", weights_only=True)["modules"]
        width, norm = said["discriminator_width"], said["norm"]
        head = states["fingerprint"].get("source_head.3.weight")
        built: dict[str, Discriminator] = {
            "spatial": SpatialDiscriminator(width, norm, said.get("spatial_form", "strided")),
            "spectral": SpectralDiscriminator(width, norm, said["spectral_form"], said["size"]),
            "fingerprint": FingerprintDiscriminator(0 if head is None else len(head), width, norm),
        }
        for name, module in built.items():
            module.load_state_dict(states[name])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        raise UserError(f"The discriminators in {checkpoint.name} cannot be loaded.", HINT) from None
    return {name: one.eval().requires_grad_(requires_grad=False).to(runtime.device()) for name, one in built.items()}
