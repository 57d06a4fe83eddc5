"""Figures of trained models on held-out photographs."""

from collections.abc import Mapping

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from backend import faces
from backend.detectors.card import Detector
from backend.generators.inversion import Inverter
from backend.saving import like_photographs
from backend.training.labelled import REAL, Examples


@torch.no_grad()
def reconstructions(inverter: Inverter, pictures: Tensor, batch: int = 32) -> Tensor:
    """Return uint8 (N, 3, S, S) inversions of uint8 pictures."""
    device = inverter.latent_average.device
    drawn = [
        inverter.synthesize(inverter.invert(part.to(device).float() / 255)).cpu() for part in pictures.split(batch)
    ]
    return (torch.cat(drawn) * 255).round().byte()


def inversion(inverter: Inverter, pictures: Tensor, *, find_faces: bool = True) -> dict[str, float]:
    """Measure the inversion of uint8 pictures: mean PSNR in dB and the share in which a face is found."""
    drawn = reconstructions(inverter, pictures)
    errors = ((drawn.float() - pictures.float()) / 255).square().flatten(1).mean(1)
    figures = {"psnr": float((-10 * torch.log10(errors)).mean()), "count": float(len(pictures))}
    if find_faces:
        found = [bool(faces.find(picture.permute(1, 2, 0).numpy())) for picture in drawn]
        figures["faces_found"] = float(np.mean(found))
    return figures


@torch.no_grad()
def log_odds(detector: Detector, pictures: Tensor, batch: int = 64) -> np.ndarray:
    """Return log-odds of fake (N,) of uint8 pictures."""
    device = detector.mean.device
    parts = [detector.logit_fake(part.to(device).float() / 255) for part in pictures.split(batch)]
    return torch.cat(parts).float().cpu().numpy() if parts else np.empty(0)


def threshold(photographs: np.ndarray, *, false_alarms: float) -> float:
    """Choose the log-odds from which a picture is called fake, as this share of these photographs (N,) will be."""
    return float(np.quantile(photographs, 1 - false_alarms))


def temperature(shifted: np.ndarray, fake: np.ndarray) -> float:
    """Choose what divides log-odds, shifted by their threshold: the log loss is least, both classes weighing alike."""
    signs = np.where(fake, 1.0, -1.0)
    weights = np.where(fake, 0.5 / max(1, fake.sum()), 0.5 / max(1, (~fake).sum()))
    candidates = np.geomspace(0.05, 20, 120) * float(np.abs(shifted).mean())  # scores may be correlations or logits
    losses = [float((weights * np.logaddexp(0, -signs * shifted / t)).sum()) for t in candidates]
    return float(candidates[int(np.argmin(losses))])


def balanced_threshold(scores: np.ndarray, fake: np.ndarray) -> float:
    """Choose the log-odds from which a picture is called fake: the mean of both accuracies is largest there.

    Args:
        scores: Raw log-odds (N,).
        fake: Which are fake (N,).
    """
    order = np.argsort(scores)
    ordered, is_fake = scores[order], fake[order]
    # Above a threshold between places i and i + 1 everything is called fake.
    real_below = np.cumsum(~is_fake) / max(1, (~fake).sum())
    fake_above = 1 - np.cumsum(is_fake) / max(1, fake.sum())
    best = int(np.argmax((real_below + fake_above)[:-1]))
    return float((ordered[best] + ordered[best + 1]) / 2)


def error_rates(detector: Detector, examples: Examples, against: Mapping[str, str]) -> list[dict[str, float | str]]:
    """Measure false alarms and, per kind of fake, the miss rate and the AUC, all ending alike.

    Args:
        detector: Calibrated; 0.5 is its threshold.
        examples: Held-out pictures.
        against: Kind of fake to the kind of real pictures it is compared with; `real` where it is not named.
    """
    scores = log_odds(detector, like_photographs(examples.pictures))
    rows: list[dict[str, float | str]] = []
    for kind in dict.fromkeys(examples.kinds.tolist()):
        own = scores[examples.kinds == kind]
        if kind == REAL or kind.endswith("_real"):
            rows.append({"kind": kind, "rate": round(float((own > 0).mean()), 4), "count": len(own)})
            continue
        other = scores[examples.kinds == against.get(kind, REAL)]
        auc = roc_auc_score([1] * len(own) + [0] * len(other), np.concatenate([own, other]))
        rows.append(
            {"kind": kind, "rate": round(float((own <= 0).mean()), 4), "count": len(own), "auc": round(float(auc), 4)}
        )
    return rows
