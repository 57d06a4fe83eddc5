"""Tests of the drawings and the covered faces that code makes."""

import functools

import numpy as np
import pytest

from backend.errors import UserError
from backend.training import covers, drawings
from benchmarks import suitability as measuring
from tests import pictures

COUNT = 8  # drawings of each kind
LEAST = 6  # of them that are refused, of a kind that was learned; of all these together, 95 %


@functools.cache
def refusals(kind: str) -> int:
    """Return how many of the first drawings of a kind are called a drawing, or have no face."""
    judged = [measuring.judge(picture) for picture in measuring.draw_kind(kind, COUNT)]
    return sum(result is None or not result.checks[0].passed for result in judged)


@pytest.mark.parametrize("kind", drawings.KINDS)
def test_a_drawing_depends_on_kind_seed_and_portrait_alone(kind):
    portrait = pictures.astronaut()[:256, 100:356]
    first = drawings.make_drawing(kind, 1, portrait)
    np.random.default_rng().random(3)
    assert first.dtype == np.uint8 and first.ndim == 3 and first.shape[2] == 3
    assert np.array_equal(first, drawings.make_drawing(kind, 1, portrait.copy()))
    assert not np.array_equal(first, drawings.make_drawing(kind, 2, portrait))
    drawn_from = np.array_equal(first, drawings.make_drawing(kind, 1, np.ascontiguousarray(portrait[:, ::-1])))
    assert drawn_from == (kind in {"drawn", "render", "emoji"})


def test_four_of_ten_kinds_are_held_out():
    assert len(drawings.KINDS) == len(set(drawings.KINDS)) == len(drawings.TITLES) == 10
    assert len(drawings.HELD_OUT_KINDS) == 4 and not set(drawings.HELD_OUT_KINDS) & set(drawings.LEARNED_KINDS)


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="no kind of drawing named mosaic"):
        drawings.make_drawing("mosaic", 0, pictures.astronaut())


@pytest.mark.slow
@pytest.mark.parametrize("kind", drawings.LEARNED_KINDS)
def test_drawings_of_a_kind_are_refused(kind):
    assert refusals(kind) >= LEAST


@pytest.mark.slow
def test_drawings_are_refused_mostly_also_where_their_kind_was_not_learned():
    learned, held_out = (
        sum(map(refusals, kinds)) / (COUNT * len(kinds)) for kinds in (drawings.LEARNED_KINDS, drawings.HELD_OUT_KINDS)
    )
    assert learned >= 0.95
    assert held_out >= 0.7  # brush strokes that leave the shading of the photograph are mostly missed


@pytest.mark.parametrize("cover", covers.COVERS)
def test_a_cover_changes_a_part_of_the_face(cover):
    face = pictures.hopper()[50:400, 80:430]
    covered = covers.cover_face(cover, face, 5)
    changed = (covered.astype(int) != face).any(axis=2).mean()
    assert covered.dtype == np.uint8 and covered.shape == face.shape
    assert 0.03 < changed < 0.7
    assert np.array_equal(covered, covers.cover_face(cover, face, 5))
    assert not np.array_equal(covered, covers.cover_face(cover, face, 6))
