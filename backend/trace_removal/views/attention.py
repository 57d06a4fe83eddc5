"""Where a detector looks: its Grad-CAM of a picture beside the mean over each kind of fake (TR-Net, figure 3)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from backend import images, runtime
from backend.detectors import registry
from backend.trace_removal.references import REAL, References
from backend.trace_removal.views.drawing import STRENGTH, View, called, draw, joined, plain

COLUMNS = 3
# Heights in an aligned face, in its sides, down to which a name holds.
PLACES = ((0.3, "the forehead and hair"), (0.5, "the eyes"), (0.63, "the nose"), (0.8, "the mouth"), (1.0, "the chin"))
BORDER = 0.14  # from the sides, beyond which it is no longer the face


def view(pictures: Mapping[str, np.ndarray], references: References, detector: str) -> View:
    """Draw the maps of pictures and the mean maps of all groups.

    Args:
        pictures: By label, uint8 (S, S, 3).
        references: They hold the means of those detectors that were installed when they were built.
        detector: Name of the detector.
    """
    from backend.counterfactual.cam import grad_cam

    loaded = registry.load(detector)
    batch = torch.cat([images.to_tensor(one) for one in pictures.values()]).to(runtime.device())
    found = grad_cam(loaded, batch)
    means = references.attention[detector] if references.knows(detector) else {}
    shown = {
        (label if not empty else f"{label}: nothing"): one
        for label, one, empty in zip(pictures, found.maps, found.empty, strict=True)
    }
    order = [REAL, *(kind for kind in references.kinds if kind in means)] if means else []
    shown |= {f"mean of\n{_short(group)}": means[group] for group in order}

    def paint(figure: Any) -> None:
        rows = -(-len(shown) // COLUMNS)
        grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
        for axes in grid[len(shown) :]:
            axes.set_axis_off()
        for axes, (label, one) in zip(grid, shown.items(), strict=False):
            drawn = axes.imshow(one, cmap=STRENGTH, vmin=0, vmax=1, interpolation="bilinear")
            plain(axes, label)
        figure.colorbar(drawn, ax=list(grid), location="bottom", label="strength (0 = none, 1 = largest)", aspect=40)

    height = 0.7 + 1.75 * -(-len(shown) // COLUMNS)
    return View("attention", "Attention", draw(height, paint), _sentence(loaded.card.title, pictures, found, means))


def place(strength: np.ndarray) -> str:
    """Name the part of an aligned face in which a map (H, W) is strongest."""
    row, column = np.unravel_index(int(strength.argmax()), strength.shape)
    across = (column + 0.5) / strength.shape[1]
    if not BORDER <= across <= 1 - BORDER:
        return "the sides of the picture"
    down = (row + 0.5) / strength.shape[0]
    return next(name for limit, name in PLACES if down <= limit)


def _short(group: str) -> str:
    return "real" if group == REAL else called(group).removeprefix("generator ")


def _sentence(title: str, pictures: Mapping[str, np.ndarray], found: Any, means: Mapping[str, np.ndarray]) -> str:
    told = [
        f"{label.lower()}, nothing in it speaks for fake" if empty else f"{label.lower()}, most at {place(one)}"
        for label, one, empty in zip(pictures, found.maps, found.empty, strict=True)
    ]
    sentence = f"Bright regions speak for “fake” to {title}: {'; '.join(told)}."
    groups: dict[str, list[str]] = {}
    for group, one in means.items():
        if group != REAL:
            groups.setdefault(place(one), []).append(called(group))
    if not groups:
        return f"{sentence} Its mean maps were not measured with the weights that it has now."
    fakes = "; ".join(f"at {where}, in {joined(kinds)}" for where, kinds in groups.items())
    return f"{sentence} Averaged over many fakes it looks most {fakes}."
