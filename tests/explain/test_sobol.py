import pytest
import torch

from backend.explain import sobol
from backend.explain.base import MaskedFace, Question
from backend.progress import finish
from tests.patch_toys import PATCH, face, in_patch, patch_detector, untextured

POINTS = 32


def test_golden_numbers():
    masks = torch.from_numpy(sobol.sobol_design(POINTS))
    assert masks.shape == (2112, 64)
    assert float(masks.mean()) == pytest.approx(0.484375, abs=1e-9)
    assert (masks[0] == 0).all() and masks.max() < 1
    answers = 0.7 * masks[:, 0] + 0.3 * masks[:, 3 * 8 + 3]
    indices = sobol.total_effects(answers[:POINTS], answers[2 * POINTS :].reshape(64, POINTS))
    assert float(indices[0]) == pytest.approx(0.6249516, abs=1e-6)
    assert float(indices[27]) == pytest.approx(0.1434838, abs=1e-6)
    assert float(indices.sum() - indices[0] - indices[27]) == pytest.approx(0, abs=1e-12)


def test_every_mixed_mask_takes_one_column_of_b():
    a, b, mixed = torch.from_numpy(sobol.sobol_design(4)).split([4, 4, 256])
    for cell in (0, 17, 63):
        rows = mixed.reshape(64, 4, 64)[cell]
        assert torch.equal(rows[:, cell], b[:, cell])
        others = torch.arange(64) != cell
        assert torch.equal(rows[:, others], a[:, others])


def test_no_variance_gives_zeros_and_not_nan():
    assert (sobol.total_effects(torch.full((4,), 0.3), torch.full((64, 4), 0.3)) == 0).all()


def test_cells_are_blended_softly_and_found():
    masked = MaskedFace(face(), untextured(), patch_detector(), bfloat16=False)
    raw = finish(sobol.sobol(Question(masked, torch.zeros(64, 64, dtype=torch.long), 8)))
    assert raw.saliency.shape == (64, 64) and raw.saliency.min() >= 0
    outside = raw.saliency.clone()
    outside[PATCH[0].start - 12 : PATCH[0].stop + 12, PATCH[1].start - 12 : PATCH[1].stop + 12] = 0
    assert outside.max() == 0 and in_patch(raw.saliency)
    assert masked.inferences.images == 65 * 8  # B itself is left out
    assert ((raw.answers > 0.1) & (raw.answers < 0.9)).any()  # neither face nor reference, but between them
