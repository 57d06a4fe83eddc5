"""Power over frequency, beside the band of real photographs (TR-Net, figure 16)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from backend import images
from backend.trace_removal.references import REAL, References, log_profile
from backend.trace_removal.views.drawing import LINES, View, draw, joined


def view(pictures: Mapping[str, np.ndarray], references: References) -> View:
    """Draw the power at each radius, one line a picture.

    Args:
        pictures: By label, uint8 (S, S, 3).
        references: Of the same size.
    """
    found = {label: log_profile(images.to_tensor(one))[0].numpy() for label, one in pictures.items()}
    mean, deviation = references.power[REAL]
    radii = np.arange(len(mean))

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        axes.fill_between(radii, mean - deviation, mean + deviation, color="0.82", label="real: mean ± deviation")
        axes.plot(radii, mean, color="0.35", linewidth=1)
        for row, ((label, line), (colour, dashes)) in enumerate(zip(found.items(), LINES, strict=False)):
            # The first, dashed line lies on top, so that the second shows through where they agree.
            axes.plot(radii, line, color=colour, linestyle=dashes, linewidth=1.8, label=label, zorder=9 - row)
        axes.set_xlabel("cycles across the face (right: fine detail)")
        axes.set_ylabel("power, dB")
        axes.set_xlim(0, len(mean) - 1)
        axes.legend(frameon=False)

    return View("power", "Power over frequency", draw(3.0, paint), _sentence(found, mean, deviation))


def outside(line: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> int:
    """Count at how many radii a line leaves the band."""
    return int((np.abs(line - mean) > deviation).sum())


def _sentence(found: Mapping[str, np.ndarray], mean: np.ndarray, deviation: np.ndarray) -> str:
    told = [f"{label.lower()}, {outside(line, mean, deviation)} of {len(mean)}" for label, line in found.items()]
    return (
        "The grey band holds about two thirds of the real photographs; a face whose line leaves it has too little or "
        f"too much of some detail. Frequencies outside the band: {joined(told)}."
    )
