"""SOBOL: total-effect indices of a grid of cells (Fel et al. 2021, arXiv 2111.04138), by Jansen's estimator."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backend.explain.base import Fill, Question, RawMap, blurred_face, neutral_colour, register_explainer, stretched
from backend.progress import Job

GRID = 8


@register_explainer(
    "sobol",
    title="SOBOL",
    about="Fades 64 squares of the face in and out and measures how much of the answer's changes each is part of.",
    signed=False,
    samples=(8, 32),  # points of the design
    passes=GRID * GRID + 1,
    fill=Fill(
        "the blurred face",
        lambda face, _, detector, as_released: neutral_colour(face, detector) if as_released else blurred_face(face),
        "the detector's neutral colour",
    ),
    released_batch=128,
    order=30,
)
def sobol(question: Question) -> Job[RawMap]:
    """Explain with one index a cell: the share of the answer's variance that this cell takes part in.

    `question.samples` is the number of points N of the design. There are (GRID^2 + 1) * N masks; the released form adds
    N that the estimator does not use.
    """
    masked, points = question.masked, question.samples
    values = sobol_design(points)
    if not question.as_released:
        values = np.concatenate([values[:points], values[2 * points :]])  # the estimate does not use B itself
    cells = torch.from_numpy(values.astype(np.float32)).reshape(-1, 1, GRID, GRID).to(masked.device)

    def masks(batch: slice) -> Tensor:
        return F.interpolate(cells[batch], size=masked.size, mode="nearest")[:, 0]

    answers = yield from masked.ask_all("SOBOL", len(cells), masks)
    indices = total_effects(answers[:points], answers[-points * GRID * GRID :].reshape(GRID * GRID, points))
    grid = indices.reshape(1, 1, GRID, GRID).float()
    saliency = F.interpolate(grid, size=masked.size, mode="bicubic", align_corners=False)[0, 0]
    return RawMap(stretched(saliency) if question.as_released else saliency.clamp(min=0), answers)


def sobol_design(points: int) -> np.ndarray:
    """Return the cells of the masks ((GRID^2 + 2) * points, GRID^2) in [0, 1): A, B, and A with one column of B each.

    The Sobol sequence is not scrambled, so nothing is random.
    """
    from scipy.stats import qmc

    cells = GRID * GRID
    sequence = qmc.Sobol(2 * cells, scramble=False).random(points)
    a, b = sequence[:, :cells], sequence[:, cells:]
    mixed = np.repeat(a[None], cells, axis=0)
    mixed[np.arange(cells), :, np.arange(cells)] = b.T
    return np.concatenate([a, b, mixed.reshape(-1, cells)])


def total_effects(of_a: Tensor, of_mixed: Tensor) -> Tensor:
    """Return the total-effect indices (cells,); 0 where the answers do not vary.

    `of_a` are the answers to A (points,), `of_mixed` those to A with one column of B (cells, points).
    """
    variance = of_a.double().var()
    differences = (of_a.double() - of_mixed.double()).square().sum(1)
    return differences / (2 * len(of_a) * variance) if variance > 0 else torch.zeros_like(differences)
