"""What traces a picture carries, measured against real photographs: spectrum, power, noise residual, features."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backend import residuals
from backend.evaluate.metrics.metric import Metric
from backend.trace_removal import references

SIDE = 32  # of a stored spectrum; neighbouring frequencies are averaged
LIU = "TR-Net (Liu et al. 2022, arXiv 2203.11433)"


def small(spectrum: Tensor) -> np.ndarray:
    """Return a spectrum (S, S) in dB averaged to at most 32 x 32, float32."""
    side = min(SIDE, *spectrum.shape)
    return F.adaptive_avg_pool2d(spectrum[None].float(), side)[0].cpu().numpy()


def spectrum(picture: Tensor) -> np.ndarray:
    """Return the log power (at most 32 x 32) in dB of a picture (1, 3, S, S) in [0, 1], frequency 0 in the middle."""
    return small(references.log_spectrum(picture)[0])


def power(picture: Tensor) -> np.ndarray:
    """Return the power at each radius (S // 2,) in dB of a picture (1, 3, S, S) in [0, 1]."""
    return references.log_profile(picture)[0].cpu().numpy()


def spectrum_difference(mean: np.ndarray, real: np.ndarray) -> float:
    """Return the mean absolute difference in dB of two mean spectra of equal shape."""
    return float(np.abs(mean - real).mean())


def power_difference(mean: np.ndarray, real: np.ndarray) -> float:
    """Return the mean absolute difference in dB of two mean profiles (K,), frequency 0 left out."""
    return float(np.abs(mean - real)[1:].mean())


def residual_strength(picture: Tensor) -> float:
    """Return the standard deviation in grey levels of the Wiener residual of a picture (1, 3, S, S) in [0, 1]."""
    return float(residuals.wiener_residual(picture).square().mean().sqrt() * 255)


def fingerprint_correlation(picture: Tensor, fingerprints: Mapping[str, Tensor]) -> float | None:
    """Return the largest correlation in [-1, 1] of a picture's residual with a fingerprint; None without any.

    Args:
        picture: (1, 3, S, S) in [0, 1].
        fingerprints: By kind of fake, (3, S, S).
    """
    noise = residuals.wiener_residual(picture).cpu()
    found = [float(residuals.correlation(one, noise)[0]) for one in fingerprints.values()]
    return max(found) if found else None


def real_neighbours(points: np.ndarray, real: np.ndarray, fake: np.ndarray, own: np.ndarray, count: int) -> np.ndarray:
    """Return the share of real pictures among each point's nearest ones, (N,) in [0, 1].

    Args:
        points: Features (N, D).
        real: Features of real pictures (R, D).
        fake: Features of untouched fakes (K, D).
        own: For each point, the number of the fake that it was made from, which is left out (N,).
        count: How many neighbours.
    """
    if not len(real) or len(fake) < 2:
        return np.full(len(points), np.nan)
    others = torch.from_numpy(np.concatenate([real, fake]).astype(np.float64))
    distances = torch.cdist(torch.from_numpy(points.astype(np.float64)), others).numpy()
    distances[np.arange(len(points)), len(real) + own] = np.inf
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : min(count, len(others) - 1)]
    return np.asarray((nearest < len(real)).mean(axis=1))


METRICS = (
    Metric(
        "spectrum_difference",
        "Difference of the spectrum",
        "dB",
        "lower",
        "How far the mean log-amplitude spectrum is from that of real photographs; few pictures never reach 0.",
        f"{LIU}, section 3.2 and figure 17",
        spectrum_difference,
    ),
    Metric(
        "power_difference",
        "Difference of the power spectral density",
        "dB",
        "lower",
        "How far the mean power over frequency is from that of real photographs; few pictures never reach 0.",
        f"{LIU}, equation 10 and figure 16",
        power_difference,
    ),
    Metric(
        "residual_strength",
        "Noise residual",
        "grey levels of 255",
        "neither",
        "How strong the noise is that a Wiener filter takes away; close to that of real pictures is best.",
        f"{LIU}, section 3.3 and figure 17",
        residual_strength,
    ),
    Metric(
        "fingerprint_correlation",
        "Correlation with a fingerprint",
        "",
        "lower",
        "The largest correlation of a picture's noise with the stored fingerprints of fakes; 0 is no trace of them.",
        f"{LIU}, equation 3; Marra et al. 2019, arXiv 1812.11842",
        fingerprint_correlation,
    ),
    Metric(
        "real_neighbours",
        "Real neighbours",
        "share of the nearest pictures in feature space",
        "higher",
        "How many of a picture's nearest neighbours among real pictures and other fakes are real.",
        f"a number beside {LIU}, figure 15",
        real_neighbours,
    ),
)
