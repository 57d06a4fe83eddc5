"""Tests of forgeries that are made while a detector learns."""

import numpy as np
import pytest
import torch

from backend.errors import UserError
from backend.training import forgeries
from backend.training.data import REAL, LabelledPictures
from backend.training.forgeries import ForgeryBatches

SIZE = 128
POINTS = torch.tensor([[[46.0, 54], [82, 54], [64, 76], [50, 94], [78, 94]]])
SHARES = {"self_blend": 0.4, "swap": 0.3, "redrawn": 0.1, "resynthesis": 0.1, "sample": 0.1}


@pytest.fixture(autouse=True)
def known_landmarks(monkeypatch):
    """Find the same face in every picture."""
    monkeypatch.setattr(
        forgeries, "find_landmarks", lambda pictures: (POINTS.expand(len(pictures), 5, 2), torch.ones(len(pictures)))
    )


def randomness(seed=0):
    return np.random.default_rng(seed)


def noise(count, seed=0):
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def toy_batches(shares=SHARES, seed=0, colours=0.15):
    smooth = torch.nn.functional.interpolate(torch.rand(9, 3, 8, 8), (SIZE, SIZE), mode="bicubic").clamp(0, 1)
    kinds = np.array([REAL] * 5 + ["reconstruction"] * 2 + ["sample"] * 2)
    origins = np.array([-1] * 5 + [0, 1] + [-1] * 2)
    sources = np.array(["celeba"] * 3 + ["ffhq"] * 2 + ["reconstruction"] * 2 + ["sample"] * 2)
    examples = LabelledPictures((smooth * 255).byte(), kinds, origins, sources)
    compared_with = {"sample": ["ffhq"]}
    return ForgeryBatches(examples, size=24, shares=shares, seed=seed, colours=colours, compared_with=compared_with)


def test_a_self_blend_differs_from_its_outside_only_within_the_mask(monkeypatch):
    monkeypatch.setattr(forgeries, "change_look", lambda pictures, _: pictures + 0.2)
    monkeypatch.setattr(forgeries, "SHIFT", (0.0, 0.0))
    monkeypatch.setattr(forgeries, "SCALE", 0.0)
    monkeypatch.setattr(forgeries, "RATIOS", (0.5,))
    pictures = noise(16) * 0.6 + 0.1
    forged, counterparts, masks = forgeries.self_blend(pictures, POINTS.expand(16, 5, 2), randomness())
    for place in range(16):
        outside = forged[place] - pictures[place]
        level = float(outside[:, masks[place, 0] == 0].mean())
        assert level == pytest.approx(0.0, abs=1e-6) or level == pytest.approx(0.2, abs=1e-6)
        sign = 1 if level < 0.1 else -1
        assert torch.allclose(outside - level, sign * 0.5 * 0.2 * masks[place].expand(3, -1, -1), atol=1e-5)
    # Half of the counterparts show the changed look all over, so that it betrays nothing.
    shifts = {round(float(shift), 3) for shift in (counterparts - pictures).mean((1, 2, 3))}
    assert shifts == {0.0, 0.2}


def test_a_swap_brings_the_source_s_landmarks_to_those_of_the_target():
    source_points = POINTS + torch.tensor([6.0, -4.0]) + (POINTS - POINTS.mean(1, keepdim=True)) * 0.2
    source = torch.zeros(1, 3, SIZE, SIZE)
    for x, y in source_points[0].round().int().tolist():
        source[..., y - 1 : y + 2, x - 1 : x + 2] = 1
    moved = forgeries.warp_each(source, forgeries._landmark_matrices(POINTS, source_points, SIZE))
    for x, y in POINTS[0].round().int().tolist():
        assert moved[0, 0, y, x] > 0.8
    assert moved.mean() < 0.01


@pytest.mark.parametrize("blend", forgeries.BLENDS)
def test_a_blend_leaves_what_is_outside_the_mask(monkeypatch, blend):
    monkeypatch.setattr(forgeries, "BLENDS", (blend,))
    targets, faces = noise(4), noise(4, seed=1)
    masks = forgeries.face_masks(POINTS.expand(4, 5, 2), SIZE, randomness())
    forged, used = forgeries.blend_faces(targets, faces, masks, randomness(1))
    changed = (forged - targets).abs().amax(1, keepdim=True)
    far = torch.nn.functional.max_pool2d(used, 7, 1, 3) == 0
    # Gradients that meet at the rim shift what is far a little; a hard or soft edge leaves it alone.
    assert changed[far].mean() < (0.05 if blend == "poisson" else 1e-4)
    assert changed[used > 0.5].mean() > 0.05


def test_masks_lie_on_the_face_and_end_within_the_picture():
    masks = forgeries.face_masks(POINTS.expand(200, 5, 2), SIZE, randomness())
    assert masks.shape == (200, 1, SIZE, SIZE)
    assert masks.min() >= -1e-5 and masks.max() <= 1 + 1e-5
    top, bottom = ((masks[..., row, :].amax((1, 2)) < 0.5).float().mean() for row in (0, -1))
    assert top > 0.9 and bottom > 0.6  # the chin of a large mask ends below the picture
    mean = masks.mean(0)[0]
    assert mean[76, 64] > 0.6 > 0.1 > mean[4, 4]
    shares = (masks > 0.5).float().mean((1, 2, 3))
    assert (shares < 0.06).any()  # a part of the face
    assert (shares > 0.15).any()  # the whole face


def test_pictures_and_masks_are_framed_alike():
    masks = forgeries.face_masks(POINTS.expand(12, 5, 2), SIZE, randomness())
    framed, again = forgeries.reframe((masks, masks.expand(-1, 3, -1, -1)), randomness(3))
    assert torch.allclose(framed.expand(-1, 3, -1, -1), again)
    assert not torch.allclose(framed, masks)


def test_both_pictures_of_a_pair_are_degraded_alike(monkeypatch):
    monkeypatch.setattr(forgeries, "resynthesise", lambda pictures, _: pictures)  # nothing is forged
    batch = toy_batches({"resynthesis": 1.0}).draw(0)
    real, fake = batch.images.chunk(2)
    assert torch.equal(real, fake)


def test_a_batch_depends_on_seed_and_number_alone():
    torch.manual_seed(0)
    first = toy_batches()
    torch.manual_seed(0)
    second = toy_batches()
    second.draw(0)
    a, b = first.draw(1), second.draw(1)
    assert torch.equal(a.images, b.images)
    assert a.kinds == b.kinds
    assert not torch.equal(a.images, first.draw(2).images)


def test_a_batch_has_photographs_first_and_masks_of_the_forgeries():
    kinds = set()
    batches = toy_batches()
    for number in range(4):
        batch = batches.draw(number)
        assert batch.images.shape == (24, 3, SIZE, SIZE)
        assert batch.kinds[:12] == [REAL] * 12
        assert batch.labels.tolist() == [0.0] * 12 + [1.0] * 12
        assert batch.masks.shape == (24, 1, 16, 16)
        assert batch.masks[:12].max() == 0
        assert (batch.masks[12:].amax((1, 2, 3)) > 0.05).all()
        drawn = [place for place, kind in enumerate(batch.kinds) if kind == "sample"]
        assert (batch.masks[drawn] > 0.5).float().mean() > 0.8 if drawn else True
        kinds |= set(batch.kinds)
    assert kinds == {REAL, *SHARES}


def test_without_photographs_of_faces_there_is_nothing_to_forge():
    examples = LabelledPictures(torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8), np.array(["sample"] * 2))
    with pytest.raises(UserError, match="no photographs of faces"):
        ForgeryBatches(examples, size=4, shares=SHARES, seed=0, colours=0.0, compared_with={})


def test_resynthesis_changes_fine_detail_and_keeps_the_picture():
    pictures = torch.nn.functional.interpolate(torch.rand(12, 3, 16, 16), (SIZE, SIZE), mode="bicubic").clamp(0, 1)
    made = forgeries.resynthesise(pictures, randomness())
    difference = (made - pictures).square().mean((1, 2, 3)).sqrt()
    assert (difference > 1e-3).all()
    assert difference.median() < 0.08
