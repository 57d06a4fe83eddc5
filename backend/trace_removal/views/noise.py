"""The noise residual of a picture, and its correlation with each stored fingerprint (TR-Net, figures 5 and 6)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from backend import images, residuals
from backend.trace_removal import fingerprints
from backend.trace_removal.references import REAL, References
from backend.trace_removal.views.drawing import LINES, View, called, draw, plain

COVERED = 99.0  # percent of the residual's values that the grey scale holds
LEVELS = 255  # a residual is told in grey levels
CLEAR = 2.0  # standard deviations of photographs above their mean, from where a match says something


def view(pictures: Mapping[str, np.ndarray], references: References) -> View:
    """Draw residuals above the correlations with every fingerprint.

    Args:
        pictures: By label, uint8 (S, S, 3).
        references: Of the same size.
    """
    noise = {label: residual(one) for label, one in pictures.items()}
    limit = max(0.5, *(float(np.percentile(np.abs(one), COVERED)) for one in noise.values()))
    found = {label: correlations(one, references) for label, one in pictures.items()}

    def paint(figure: Any) -> None:
        top, bottom = figure.subfigures(2, 1, height_ratios=(1.7 if len(noise) > 1 else 3.2, 1.7))
        grid = top.subplots(1, len(noise), squeeze=False)[0]
        for axes, (label, one) in zip(grid, noise.items(), strict=True):
            shown = axes.imshow(one, cmap="gray", vmin=-limit, vmax=limit)
            plain(axes, label)
        top.colorbar(shown, ax=list(grid), label="grey levels")
        _bars(bottom.subplots(), found, references)
        bottom.legend(loc="outside lower center", frameon=False, fontsize="small", ncols=2)

    picture = draw(4.2 if len(noise) > 1 else 5.6, paint)
    return View("noise", "Noise fingerprint", picture, _sentence(found, references))


def residual(picture: np.ndarray) -> np.ndarray:
    """Return the Wiener residual (S, S) of a uint8 picture (S, S, 3), mean of the colours, in grey levels."""
    return residuals.wiener_residual(images.to_tensor(picture))[0].mean(0).numpy() * LEVELS


def correlations(picture: np.ndarray, references: References) -> dict[str, float]:
    """Return the correlation in [-1, 1] of a uint8 picture (S, S, 3) with the fingerprint of every kind of fake."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    return {kind: float(one[0]) for kind, one in fingerprints.correlations(pixels, references.fingerprint).items()}


def _bars(axes: Any, found: Mapping[str, Mapping[str, float]], references: References) -> None:
    kinds = references.kinds
    height = 0.8 / len(found)
    for place, kind in enumerate(kinds):
        mean, deviation = references.correlation[kind][REAL]
        axes.fill_betweenx(
            (place - 0.45, place + 0.45), mean - 2 * deviation, mean + 2 * deviation, color="0.85",
            label="real photographs" if place == 0 else None,
        )  # fmt: skip
        own = references.correlation[kind][kind][0]
        axes.plot([own, own], [place - 0.45, place + 0.45], color="black", linewidth=1.5,
                  label="mean of that kind" if place == 0 else None)  # fmt: skip
    for row, (label, values) in enumerate(found.items()):
        colour, _ = LINES[row % len(LINES)]
        places = [place + (row - (len(found) - 1) / 2) * height for place in range(len(kinds))]
        axes.barh(places, [values[kind] for kind in kinds], height * 0.8, color=colour, label=label,
                  hatch=("//", "", "..", "xx")[row % 4], edgecolor="white", linewidth=0)  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_yticks(range(len(kinds)), [called(kind) for kind in kinds])
    axes.invert_yaxis()
    axes.set_xlabel("correlation with the fingerprint of")


def _sentence(found: Mapping[str, Mapping[str, float]], references: References) -> str:
    first = next(iter(found.values()))
    kind = max(first, key=lambda name: first[name])
    told = ", ".join(f"{label.lower()} {values[kind]:+.3f}" for label, values in found.items())
    mean, deviation = references.correlation[kind][REAL]
    real, own = (f"{m:+.3f} ± {d:.3f}" for m, d in (references.correlation[kind][group] for group in (REAL, kind)))
    matches = f"it matches the fingerprint of {called(kind)} best"
    if first[kind] <= mean + CLEAR * deviation:
        matches = f"it matches no fingerprint clearly, and that of {called(kind)} no better than photographs do"
    return (
        f"What is left when the picture's content is taken away; {matches}: {told}. "
        f"Real photographs reach {real}, {called(kind)} {own}."
    )
