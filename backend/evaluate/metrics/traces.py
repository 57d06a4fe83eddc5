"""Traces in a picture, compared with real photographs: spectrum, power, noise residual and deep features.

Deep features are mapped to two dimensions by t-SNE (van der Maaten and Hinton 2008).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backend import runtime, signals, weights
from backend.detectors import registry
from backend.errors import UserError
from backend.evaluate.metrics.base import register_metric
from backend.trace_removal import references
from backend.trace_removal.discriminators import (
    Discriminator,
    FingerprintDiscriminator,
    SpatialDiscriminator,
    SpectralDiscriminator,
)

PERPLEXITY = 30.0
SPECTRUM_SIDE = 32  # of a stored spectrum; neighbouring frequencies are averaged
DISCRIMINATOR_NAMES = ("spatial", "spectral", "fingerprint")
LIU = "TR-Net (Liu et al. 2022, arXiv 2203.11433)"
CHECKPOINT_HINT = "Name the checkpoint.pt in the folder of a TR-Net's training, with its settings.json beside it."


@torch.no_grad()
def detector_features(name: str, picture: Tensor) -> np.ndarray:
    """Return a detector's Grad-CAM features (C,) of a picture (1, 3, S, S) in [0, 1], float16.

    They are the mean over all positions and, if the detector also reads the mirror image, over both.

    Raises:
        UserError: The detector has no layer for Grad-CAM.
    """
    detector = registry.load(name)
    outputs: list[Tensor] = []
    with runtime.MODEL_LOCK:  # without it, the hook would also record other callers' pictures
        hook = detector.cam_module().register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        try:
            detector.logit_fake(picture.to(detector.mean.device))
        finally:
            hook.remove()
    return outputs[0].flatten(2).mean((0, 2)).cpu().numpy().astype(np.float16)


@torch.no_grad()
def discriminator_features(checkpoint: Path, picture: Tensor) -> dict[str, np.ndarray]:
    """Return the last features of TR-Net's three discriminators by name, flattened, float16.

    They have 512 * width channels of 4 x 4, or of 8 x 8 in the finer form of the spatial one. The picture is
    (1, 3, S, S) in [0, 1], with S as in the training run.

    Raises:
        UserError: The file cannot be read.
    """
    loaded = runtime.load_once(f"discriminators {checkpoint}", lambda: _load_discriminators(checkpoint))
    picture = picture.to(runtime.device())
    with runtime.MODEL_LOCK:
        features = {name: module.backbone.features(module.inputs(picture)) for name, module in loaded.items()}
    return {name: values.flatten().cpu().numpy().astype(np.float16) for name, values in features.items()}


def checkpoint_hash(checkpoint: Path) -> str:
    """Return the SHA-256 of a checkpoint, or raise a UserError if there is no such file."""
    if not checkpoint.is_file():
        raise UserError(f"There is no checkpoint {checkpoint.name}.", CHECKPOINT_HINT)
    return weights.file_hash(checkpoint)


def tsne_map(features: np.ndarray, seed: int) -> np.ndarray:
    """Return t-SNE coordinates (N, 2) of features (N, D), N at least 4; the same seed gives the same map."""
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    method = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed, n_jobs=1)
    spread = features.astype(np.float64)
    return np.asarray(method.fit_transform(spread - spread.mean(0)))


def _load_discriminators(checkpoint: Path) -> Mapping[str, Discriminator]:
    checkpoint_hash(checkpoint)
    try:
        settings: dict[str, Any] = json.loads((checkpoint.parent / "settings.json").read_text(encoding="utf-8"))
        states = torch.load(checkpoint, map_location="cpu", weights_only=True)["modules"]
        width, norm = settings["discriminator_width"], settings["norm"]
        head = states["fingerprint"].get("source_head.3.weight")
        built: dict[str, Discriminator] = {
            "spatial": SpatialDiscriminator(width, norm, settings.get("spatial_form", "strided")),
            "spectral": SpectralDiscriminator(width, norm, settings["spectral_form"], settings["size"]),
            "fingerprint": FingerprintDiscriminator(0 if head is None else len(head), width, norm),
        }
        for name, module in built.items():
            module.load_state_dict(states[name])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        raise UserError(f"The discriminators in {checkpoint.name} cannot be loaded.", CHECKPOINT_HINT) from None
    return {key: built[key].eval().requires_grad_(requires_grad=False).to(runtime.device()) for key in built}


def small_spectrum(spectrum: Tensor) -> np.ndarray:
    """Return a spectrum (S, S) in dB averaged to at most 32 x 32, float32."""
    side = min(SPECTRUM_SIDE, *spectrum.shape)
    return F.adaptive_avg_pool2d(spectrum[None].float(), side)[0].cpu().numpy()


def picture_spectrum(picture: Tensor) -> np.ndarray:
    """Return the log power (at most 32 x 32) in dB of a picture (1, 3, S, S) in [0, 1], frequency 0 in the middle."""
    return small_spectrum(references.log_spectrum(picture)[0])


def picture_power(picture: Tensor) -> np.ndarray:
    """Return the power at each radius (S // 2,) in dB of a picture (1, 3, S, S) in [0, 1]."""
    return references.log_profile(picture)[0].cpu().numpy()


@register_metric(
    "spectrum_difference",
    "Difference of the spectrum",
    unit="dB",
    better="lower",
    sentence="How far the mean log-amplitude spectrum is from that of real photographs; few pictures never reach 0.",
    source=f"{LIU}, section 3.2 and figure 17",
)
def spectrum_difference(mean: np.ndarray, real: np.ndarray) -> float:
    """Return the mean absolute difference in dB of two mean spectra of equal shape."""
    return float(np.abs(mean - real).mean())


@register_metric(
    "power_difference",
    "Difference of the power spectral density",
    unit="dB",
    better="lower",
    sentence="How far the mean power over frequency is from that of real photographs; few pictures never reach 0.",
    source=f"{LIU}, equation 10 and figure 16",
)
def power_difference(mean: np.ndarray, real: np.ndarray) -> float:
    """Return the mean absolute difference in dB of two mean profiles (K,), frequency 0 left out."""
    return float(np.abs(mean - real)[1:].mean())


@register_metric(
    "residual_strength",
    "Noise residual",
    unit="grey levels of 255",
    better="neither",
    sentence="How strong the noise is that a Wiener filter takes away; close to that of real pictures is best.",
    source=f"{LIU}, section 3.3 and figure 17",
)
def residual_strength(picture: Tensor) -> float:
    """Return the standard deviation in grey levels of the Wiener residual of a picture (1, 3, S, S) in [0, 1]."""
    return float(signals.wiener_residual(picture).square().mean().sqrt() * 255)


@register_metric(
    "fingerprint_correlation",
    "Correlation with a fingerprint",
    better="lower",
    sentence="The largest correlation of a picture's noise with the stored fingerprints of fakes; 0 is no trace "
    "of them.",
    source=f"{LIU}, equation 3; Marra et al. 2019, arXiv 1812.11842",
)
def fingerprint_correlation(picture: Tensor, fingerprints: Mapping[str, Tensor]) -> float | None:
    """Return the largest correlation in [-1, 1] of a picture's residual with a fingerprint; None without any.

    The picture is (1, 3, S, S) in [0, 1]; the fingerprints, by kind of fake, are (3, S, S).
    """
    noise = signals.wiener_residual(picture).cpu()
    correlations = (float(signals.residual_correlation(pattern, noise)[0]) for pattern in fingerprints.values())
    return max(correlations, default=None)


@register_metric(
    "real_neighbours",
    "Real neighbours",
    unit="share of the nearest pictures in feature space",
    better="higher",
    sentence="How many of a picture's nearest neighbours among real pictures and other fakes are real.",
    source=f"a number beside {LIU}, figure 15",
)
def real_neighbours(points: np.ndarray, real: np.ndarray, fake: np.ndarray, own: np.ndarray, count: int) -> np.ndarray:
    """Return the share of real pictures among each point's nearest ones, (N,) in [0, 1].

    Args:
        points: Features (N, D).
        real: Features of real pictures (R, D).
        fake: Features of untouched fakes (K, D).
        own: For each point, the index (N,) of the fake that it was made from, which is left out.
        count: How many neighbours.
    """
    if not len(real) or len(fake) < 2:
        return np.full(len(points), np.nan)
    others = torch.from_numpy(np.concatenate([real, fake]).astype(np.float64))
    distances = torch.cdist(torch.from_numpy(points.astype(np.float64)), others).numpy()
    distances[np.arange(len(points)), len(real) + own] = np.inf
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : min(count, len(others) - 1)]
    return np.asarray((nearest < len(real)).mean(axis=1))
