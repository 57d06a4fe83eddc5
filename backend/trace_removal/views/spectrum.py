"""The spectrum of a picture, and how it differs from the mean spectrum of real photographs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from backend import images
from backend.trace_removal.references import REAL, References, log_spectrum
from backend.trace_removal.views.drawing import SIGNED, STRENGTH, View, draw, joined, plain

LIMIT = 30.0  # dB, at which the colours of a difference end
WINDOW = 5  # frequencies over which a difference is averaged: one picture's spectrum scatters by 6 dB
OUTER = 0.7  # of the highest radius: what is called high frequencies


def view(pictures: Mapping[str, np.ndarray], references: References) -> View:
    """Draw log power and difference, one column a picture.

    Args:
        pictures: By label, uint8 (S, S, 3).
        references: Of the same size.
    """
    found = {label: log_spectrum(images.to_tensor(one))[0].numpy() for label, one in pictures.items()}
    differences = {label: smoothed(one - references.spectrum[REAL]) for label, one in found.items()}
    low, high = np.percentile(references.spectrum[REAL], (1, 99.9))

    def paint(figure: Any) -> None:
        grid = figure.subplots(2, len(found), squeeze=False)
        for column, label in enumerate(found):
            power = grid[0][column].imshow(found[label], cmap=STRENGTH, vmin=low, vmax=high)
            change = grid[1][column].imshow(differences[label], cmap=SIGNED, vmin=-LIMIT, vmax=LIMIT)
            plain(grid[0][column], label)
            plain(grid[1][column], f"{label} minus real")
        figure.colorbar(power, ax=list(grid[0]), label="log power, dB")
        figure.colorbar(change, ax=list(grid[1]), label="difference, dB")

    picture = draw(4.2 if len(found) > 1 else 6.4, paint)
    return View("spectrum", "Spectrum", picture, _sentence(differences))


def smoothed(values: np.ndarray) -> np.ndarray:
    """Return the local mean of (H, W) over 5 x 5 values; beyond the edge lies the other side."""
    wide = np.pad(values, WINDOW // 2, mode="wrap")
    return np.lib.stride_tricks.sliding_window_view(wide, (WINDOW, WINDOW)).mean((-2, -1))


def outer_mean(difference: np.ndarray) -> float:
    """Return the mean over high frequencies of (S, S) with frequency 0 in the middle."""
    side = difference.shape[0]
    place = torch.arange(side) - side // 2
    radius = torch.hypot(place[:, None].float(), place[None].float()).numpy()
    return float(difference[(radius >= OUTER * side / 2) & (radius < side / 2)].mean())


def _sentence(differences: Mapping[str, np.ndarray]) -> str:
    told = []
    for label, one in differences.items():
        level = outer_mean(one)
        told.append(f"{label.lower()}: {abs(level):.1f} dB {'less' if level < 0 else 'more'}")
    return (
        "Low frequencies are in the middle, fine detail is at the edge; white is like the mean of real photographs, "
        f"orange weaker, purple stronger. Power of the fine detail against real photographs, {joined(told)}."
    )
