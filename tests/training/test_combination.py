"""The choice of the combined answer: conformal limits, held-out fakes, and the choice on toy scores."""

import numpy as np
import pytest
import torch

from backend.detectors.combination import LARGEST, Combination, Member
from backend.training import combination, held_out
from backend.training.calibration import SAME_SOURCES, SHORTCUT_CHANGES, UNCHANGED
from backend.training.combination import CombinationSettings, _Scored, lower_limit, upper_limit
from backend.training.held_out import HELD_OUT_KINDS
from tests import pictures


def test_the_upper_limit_is_the_conformal_quantile() -> None:
    # ceil((19 + 1) * 0.95) = 19: of 19 scores, the largest
    assert upper_limit(np.arange(19.0), 0.05) == 18
    assert upper_limit(np.arange(99.0), 0.05) == 94
    assert lower_limit(np.arange(99.0), 0.1) == 9


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_new_scores_pass_a_limit_no_more_often_than_promised(share: float) -> None:
    randomness = np.random.default_rng(0)
    passed = [float(randomness.normal() > upper_limit(randomness.normal(size=60), share)) for _ in range(4000)]
    assert np.mean(passed) <= share + 0.015


def scored(values: dict[str, np.ndarray], sources: str = "celeba") -> _Scored:
    count = len(next(iter(values.values())))
    return _Scored(values, np.arange(count) % 2 == 0, np.full(count, sources))


@pytest.fixture
def case() -> tuple[_Scored, dict[str, _Scored], dict[str, _Scored]]:
    """Two detectors that find different kinds, one that finds nothing, and photographs of all sources."""
    randomness = np.random.default_rng(1)

    def draw(first: float, second: float) -> dict[str, np.ndarray]:
        noise = randomness.normal(size=(3, 400))
        return {"xception": noise[0] + first, "f3net": noise[1] + second, "meso4": noise[2]}

    sources = np.resize(sorted({source for group in SAME_SOURCES.values() for source in group}), 400)
    photographs = _Scored(draw(0, 0), np.arange(400) % 2 == 0, sources)
    fakes = {kind: scored(draw(2.0, 0.2) if place % 2 else draw(0.2, 2.0)) for place, kind in enumerate(HELD_OUT_KINDS)}
    others = {kind: scored(draw(1.0, 1.0), kind) for kind in SAME_SOURCES}
    return photographs, fakes, others


def test_the_mean_of_two_detectors_is_better_than_each(case) -> None:
    photographs, fakes, others = case
    names = ["xception", "f3net", "meso4"]
    aucs = {name: combination._mean_auc(combination._single(name), photographs, fakes, others) for name in names}
    assert aucs["meso4"] < 0.6 < min(aucs["xception"], aucs["f3net"])
    members = tuple(combination._calibrate(name, photographs, fakes) for name in names[:2])
    assert all(member.scale > 0 for member in members)
    assert combination._mean_auc(Combination(members, 0, 0, 0, {}), photographs, fakes, others) > max(aucs.values())


def test_limits_keep_what_they_promise_on_every_change_of_the_photographs(case) -> None:
    photographs, fakes, _ = case
    louder = _Scored({k: v + 0.5 for k, v in photographs.log_odds.items()}, photographs.chooses, photographs.sources)
    real = dict.fromkeys(SHORTCUT_CHANGES, photographs) | {UNCHANGED: photographs, SHORTCUT_CHANGES[0]: louder}
    members = Combination((Member("xception", 1.0, 0.0, ""), Member("f3net", 1.0, 0.0, "")), 0, 0, 0, {})
    fitted = combination._with_limits(members, real, fakes, CombinationSettings())
    for change in real.values():
        scores = combination._joint(fitted, change.part(chooses=False))
        assert (scores > fitted.strong_above).mean() <= 0.05
        assert (scores >= fitted.mixed_from).mean() <= 0.2 + 1 / len(scores)
    held = np.concatenate([combination._joint(fitted, fake.part(chooses=False)) for fake in fakes.values()])
    assert (held < fitted.none_below).mean() <= 0.1
    assert fitted.none_below <= fitted.mixed_from <= fitted.strong_above


def aligned() -> tuple[np.ndarray, np.ndarray]:
    from backend.alignment import locate

    crop = locate(pictures.astronaut()).aligned("embedded", 128)
    from backend.fakes import find_landmarks

    points, _ = find_landmarks(torch.from_numpy(crop.crop.copy()).permute(2, 0, 1)[None])
    return crop.crop, points[0].double().numpy()


def test_held_out_fakes_change_the_face_and_leave_its_surroundings() -> None:
    face, points = aligned()
    other = face[:, ::-1].copy()
    mirrored = points[[1, 0, 2, 4, 3]] * (-1, 1) + (127, 0)
    swapped = held_out.multiband_swap(face, points, other, mirrored)
    assert swapped.shape == face.shape and swapped.dtype == np.uint8
    change = np.abs(swapped.astype(int) - face).mean(2)
    assert change[48:88, 40:88].mean() > 1
    assert change[:6].mean() < 0.3 * change[48:88, 40:88].mean()


def test_a_morph_of_a_face_with_itself_is_that_face() -> None:
    face, points = aligned()
    same = held_out.morph(face, points, face, points, 0.5)
    assert np.abs(same.astype(int) - face).mean() < 1.0


def test_log_odds_are_cut_off() -> None:
    assert LARGEST == 13.0
