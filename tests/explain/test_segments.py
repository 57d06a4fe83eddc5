import numpy as np
import pytest
import torch

from backend import faces
from backend.errors import UserError
from backend.explain.segments import (
    places_in_words,
    rank_scores,
    segment_parts,
    segment_scores,
    segment_sizes,
    slic_segments,
    top_mask,
)

LANDMARKS = np.array([[47, 54], [81, 54], [64, 75], [51, 92], [77, 92]], dtype=np.float64)
LABELS = torch.tensor([[0, 0, 1], [2, 2, 1]])


def smooth(size):
    """Return a picture (3, size, size) without edges."""
    line = torch.linspace(0, 3, size)
    return torch.stack([(line[:, None] * a + line * b).sin() / 2 + 0.5 for a, b in ((1, 2), (2, 1), (1, -1))])


@pytest.mark.parametrize("size", [128, 224])
def test_slic_numbers_from_zero_without_gaps(size):
    labels = slic_segments(smooth(size))
    assert labels.shape == (size, size) and labels.dtype == torch.long
    assert 30 <= int(labels.max()) + 1 <= 60  # the paper's settings give about 42
    assert (segment_sizes(labels) > 0).all()
    assert int(slic_segments(smooth(size), 100).max()) > int(labels.max())


def test_slic_has_the_settings_of_the_paper():
    from skimage.segmentation import slic

    picture = smooth(64)
    expected = slic(picture.permute(1, 2, 0).numpy(), n_segments=50) - 1  # as the released code calls it
    assert np.array_equal(slic_segments(picture).numpy(), expected)


def test_an_even_picture_has_segments_too():
    assert int(slic_segments(torch.full((3, 64, 64), 0.5)).max()) > 10
    assert slic_segments(torch.zeros(3, 32, 32)).shape == (32, 32)


def test_a_face_of_noise_is_refused():
    noise = torch.randn(3, 128, 128, generator=torch.Generator().manual_seed(0)) * 40 / 255
    with pytest.raises(UserError, match="cannot be divided"):
        slic_segments((smooth(128) + noise).clamp(0, 1))
    assert int(slic_segments(torch.full((3, 32, 32), 0.5), 4).max()) == 3  # few segments are large anyhow


def test_a_score_is_the_mean():
    saliency = torch.tensor([[1.0, 3.0, 0.0], [-1.0, -2.0, 5.0]])
    assert segment_scores(saliency, LABELS).tolist() == [2.0, 2.5, -1.5]
    with pytest.raises(ValueError, match="does not fit"):
        segment_scores(saliency[:1], LABELS)


def test_rank_puts_the_later_of_equals_first():
    scores = torch.tensor([0.5, 2.0, 0.5, 2.0, -1.0])
    assert rank_scores(scores).tolist() == [3, 1, 2, 0, 4]
    assert rank_scores(scores).tolist() == np.flip(np.argsort(scores.numpy(), kind="stable")).tolist()


def test_the_top_is_a_union():
    order = rank_scores(torch.tensor([0.0, 2.0, 1.0]))
    assert top_mask(LABELS, order, 0).sum() == 0
    assert top_mask(LABELS, order, 1).tolist() == [[False, False, True], [False, False, True]]
    assert top_mask(LABELS, order, 2).tolist() == [[False, False, True], [True, True, True]]
    assert top_mask(LABELS, [0], 3).sum() == 2


def test_parts_divide_the_regions():
    parts, regions = faces.part_masks(LANDMARKS, (128, 128)), faces.region_masks(LANDMARKS, (128, 128))
    assert tuple(parts) == faces.FACE_PARTS and tuple(regions) == faces.FACE_REGIONS
    assert (sum(mask.astype(int) for mask in parts.values()) == 1).all()
    for name in ("eyes", "nose", "mouth"):
        assert np.array_equal(parts[name], regions[name])
    assert np.array_equal(parts["forehead"] | parts["cheeks"] | parts["chin"], regions["skin"])
    assert np.array_equal(parts["hairline"] | parts["background"], regions["surround"])


@pytest.mark.parametrize(
    ("part", "x", "y"),
    [("eyes", 47, 54), ("nose", 64, 74), ("mouth", 64, 92), ("forehead", 64, 32), ("cheeks", 42, 78)]
    + [("cheeks", 86, 78), ("chin", 64, 112), ("hairline", 64, 16), ("background", 2, 60), ("background", 64, 127)],
)
def test_where_the_parts_are(part, x, y):
    assert faces.part_masks(LANDMARKS, (128, 128))[part][y, x]


def test_parts_turn_and_grow_with_the_face():
    # Everything twice as large and turned by a quarter: (x, y) goes to (256 - 2 y, 2 x).
    turned = np.stack([256 - 2 * LANDMARKS[:, 1], 2 * LANDMARKS[:, 0]], axis=1)
    parts = faces.part_masks(turned, (256, 256))
    assert parts["forehead"][128, 256 - 64] and parts["chin"][128, 256 - 224] and parts["cheeks"][84, 100]


def test_segments_are_named_after_the_parts_they_hold():
    masks = faces.part_masks(LANDMARKS, (128, 128))
    labels = torch.zeros(128, 128, dtype=torch.long)
    labels[torch.from_numpy(masks["eyes"])] = 1
    labels[torch.from_numpy(masks["mouth"] | masks["chin"])] = 2
    parts = segment_parts(labels, LANDMARKS)
    assert parts[0][0] == "background" and parts[1] == ("eyes",)
    assert parts[2] == ("chin", "mouth")  # the chin is larger
    assert places_in_words([1, 2], parts) == "eyes; chin and mouth"


def test_a_segment_of_many_parts_has_the_largest():
    parts = segment_parts(torch.zeros(128, 128, dtype=torch.long), LANDMARKS)
    assert parts == [("background",)]
