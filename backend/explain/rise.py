"""RISE: the mean answer to random smooth masks that show a pixel (Petsiuk et al. 2018, arXiv 1806.07421).

The paper's sum of masks, weighted by the answers, also shows how often a pixel was visible by chance. Where all
answers are alike, it shows nothing else. The weights here are therefore deviations from the mean answer, which does not
change the expected map; `as_released` keeps the plain sum.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from backend.explain.base import Fill, Question, RawMap, neutral_colour, register_explainer, stretched
from backend.progress import Job, Step

GRID = 7
KEEP = 0.5
# The released code of Adv-XAI (2502.03957) asks for 0.1 but compares normal numbers with it.
RELEASED_KEEP, RELEASED_THRESHOLD = 0.1, 0.1


@register_explainer(
    "rise",
    title="RISE",
    about="Shows the face through thousands of random soft masks and averages those that the detector answers to.",
    signed=False,
    samples=(1000, 4000),  # masks
    fill=Fill("the detector's neutral colour", lambda face, _, detector, __: neutral_colour(face, detector)),
    released_batch=128,
    double_softmax=True,
    order=40,
)
def rise(question: Question) -> Job[RawMap]:
    """Explain with the mean answer to the masks that show a pixel."""
    masked, total = question.masked, question.samples
    cells, offsets = draw_masks(total, masked.size, question.seed, as_released=question.as_released)
    cells, offsets = cells.to(masked.device), offsets.to(masked.device)
    answers: list[Tensor] = []
    weighted = torch.zeros(masked.size, dtype=torch.float64)
    shown = torch.zeros_like(weighted)
    done = 0
    while done < total:
        batch = slice(done, done + masked.batch)
        masks = enlarge_masks(cells[batch], offsets[batch], masked.size)
        answers.append(masked.ask(masks))
        weighted += torch.einsum("b,bhw->hw", answers[-1].to(masks), masks).double().cpu()
        shown += masks.sum(0).double().cpu()
        done += len(masks)
        yield Step(done, total, f"RISE: {done} of {total} pictures.")
    all_answers = torch.cat(answers)
    if question.as_released:
        return RawMap(stretched(weighted / (total * RELEASED_KEEP)).float(), all_answers)
    return RawMap(centred_map(weighted, shown, all_answers).float(), all_answers)


def centred_map(weighted: Tensor, shown: Tensor, answers: Tensor) -> Tensor:
    """Estimate the mean answer where a pixel is shown, from the deviations of the answers (M,) from their mean.

    `weighted` is the sum of the masks (H, W) weighted by the answers, `shown` the plain sum.
    """
    mean = answers.double().mean()
    return mean + (weighted - mean * shown) / (len(answers) * KEEP)


def draw_masks(samples: int, size: tuple[int, int], seed: int, *, as_released: bool = False) -> tuple[Tensor, Tensor]:
    """Draw coarse masks (samples, GRID, GRID) of 0 and 1, and their shifts in pixels (samples, 2)."""
    generator = torch.Generator().manual_seed(seed)  # on the CPU, so that every device draws the same
    if as_released:
        cells = torch.randn(samples, GRID, GRID, generator=generator) < RELEASED_THRESHOLD
    else:
        cells = torch.rand(samples, GRID, GRID, generator=generator) < KEEP
    shifts = [torch.randint(0, _cell(side), (samples,), generator=generator) for side in size]
    return cells.float(), torch.stack(shifts, dim=1)


def enlarge_masks(cells: Tensor, offsets: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge coarse masks (B, GRID, GRID) bilinearly to one cell more than the face, and crop them to (B, H, W)."""
    height, width = size
    enlarged = F.interpolate(
        cells[:, None], size=((GRID + 1) * _cell(height), (GRID + 1) * _cell(width)), mode="bilinear"
    )[:, 0]
    rows = offsets[:, :1] + torch.arange(height, device=cells.device)
    columns = offsets[:, 1:] + torch.arange(width, device=cells.device)
    return enlarged[torch.arange(len(cells), device=cells.device)[:, None, None], rows[:, :, None], columns[:, None]]


def _cell(side: int) -> int:
    return math.ceil(side / GRID)
