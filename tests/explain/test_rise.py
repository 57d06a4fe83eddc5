import numpy as np
import pytest
import torch
from torch.nn import functional as F

from backend.explain import rise
from backend.explain.base import MaskedFace, Question
from backend.progress import finish
from tests.patch_toys import face, in_patch, patch_detector, untextured

SIZE = (64, 64)


def ask(samples, **options):
    masked = MaskedFace(face(), untextured(), patch_detector(), bfloat16=False)
    return finish(rise.rise(Question(masked, torch.zeros(SIZE, dtype=torch.long), samples, seed=4, **options)))


@pytest.mark.parametrize("as_released", [False, True])
def test_the_map_is_the_sum_of_masks_weighted_with_the_answers(as_released):
    raw = ask(70, as_released=as_released)
    drawn = rise.enlarge_masks(*rise.draw_masks(70, SIZE, 4, as_released=as_released), SIZE).double()
    detector = patch_detector()
    answers = detector.p_fake((drawn[:, None] * face() + (1 - drawn[:, None]) * untextured()).float()).double()
    assert (raw.answers - answers).abs().max() < 1e-5
    plain = sum(answer * mask for answer, mask in zip(answers, drawn, strict=True)) / (
        70 * (0.1 if as_released else 0.5)
    )
    if as_released:
        expected = (plain - plain.min()) / (plain.max() - plain.min())
    else:  # the mean answer, and what chance showed is taken off
        expected = plain - answers.mean() * (drawn.mean(0) / 0.5 - 1)
    assert (raw.saliency - expected).abs().max() < 1e-5


def test_masks_are_those_of_the_reference_program():
    cells, offsets = rise.draw_masks(5, (48, 64), seed=1)
    masks = rise.enlarge_masks(cells, offsets, (48, 64))
    assert masks.shape == (5, 48, 64)
    assert offsets[:, 0].max() < 7 and offsets[:, 1].max() < 10  # less than one cell
    for cell, (row, column), mask in zip(cells, offsets.tolist(), masks, strict=True):
        large = F.interpolate(cell[None, None], size=(8 * 7, 8 * 10), mode="bilinear", align_corners=False)[0, 0]
        assert torch.equal(mask, large[row : row + 48, column : column + 64])


def test_masks_show_half_of_the_face_or_more_as_released():
    cells, offsets = rise.draw_masks(4000, (224, 224), seed=0, as_released=True)
    assert float(cells.mean()) == pytest.approx(0.5398, abs=0.003)  # the normal distribution at 0.1, and not 0.1
    assert float(rise.enlarge_masks(cells[:400], offsets[:400], (224, 224)).mean()) == pytest.approx(0.5398, abs=0.01)
    assert float(rise.draw_masks(4000, (224, 224), seed=0)[0].mean()) == pytest.approx(0.5, abs=0.003)


def test_equal_answers_leave_no_trace_of_chance():
    cells, offsets = rise.draw_masks(50, SIZE, seed=0)
    drawn = rise.enlarge_masks(cells, offsets, SIZE).double()
    flat = rise.centred_map(0.9 * drawn.sum(0), drawn.sum(0), torch.full((50,), 0.9, dtype=torch.float64))
    assert np.allclose(flat, 0.9)


def test_the_patch_is_found_with_few_masks():
    assert in_patch(ask(300).saliency)
