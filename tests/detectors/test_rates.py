"""Stated rates: their words and intervals from hand-made counts, and that they belong to the shipped weights."""

import re
from pathlib import Path

import pytest

from backend import weights
from backend.detectors import combination, rates, registry
from backend.detectors.rates import COMBINED, KIND_TITLES, SOURCE_TITLES, MeasuredRates, Rate
from backend.progress import finish

UNSEEN = Path(__file__).resolve().parents[3] / "shared" / "unseen"


def test_the_interval_is_wilsons_of_the_cases() -> None:
    low, high = Rate("stylegan3", 5, 10, 10).interval or (0, 0)
    assert (low, high) == pytest.approx((0.2366, 0.7634), abs=1e-4)


@pytest.mark.parametrize("called", [0, 3, 40])
def test_frames_of_one_clip_have_no_interval(called: int) -> None:
    rate = Rate("ffpp_deepfakes", called, 40, 1)
    assert rate.interval is None and "too few for an interval" in rate.interval_in_words


def test_what_is_missed_is_said_for_every_kind_that_has_enough_cases() -> None:
    measured = MeasuredRates(
        (
            Rate("stylegan_hard", 40, 100, 100),
            Rate("diffusion_sd3", 0, 50, 50),
            Rate("london_swap_poisson", 10, 20, 20),
            Rate("london_swap_feather", 0, 20, 20),
            Rate("ffpp_deepfakes", 40, 40, 1),
        ),
        (Rate("london", 5, 100, 60),),
    )
    assert measured.in_short == (
        "About 6 of 10 computer-made faces (StyleGAN), all of 10 portraits by an image generator (diffusion) and about "
        "8 of 10 face swaps. False alarms: about 5 of 100 genuine studio portraits from a new collection. "
        "Portraits by image generators and video deepfakes were not in the training data."
    )
    assert "Face swaps: 10 of 40 found (25%; 95 % interval" in " ".join(measured.in_full)


def test_the_stored_rates_belong_to_the_shipped_weights() -> None:
    stored = rates.read_rates()
    assert stored is not None
    names = registry.loadable("embedded")
    assert [name for name in stored.hashes if stored.stale(name)] == []
    assert set(names) | {COMBINED} == set(stored.answers)
    combined = combination.read_combination()
    assert combined is not None and list(combined.names) == stored.overall["members"]
    for answer in stored.answers.values():
        assert {rate.group for rate in answer.fakes} == set(KIND_TITLES)
        assert {rate.group for rate in answer.photographs} == set(SOURCE_TITLES)
    strong = {group: counts["strong"] for group, counts in stored.overall["grades"].items()}
    combined_rates = stored.answers[COMBINED]
    assert strong == {rate.group: rate.called for rate in (*combined_rates.fakes, *combined_rates.photographs)}


def test_rates_of_other_weights_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rates.rates_of("xception") is not None
    monkeypatch.setattr(rates.StoredRates, "stale", lambda _, name: name == "xception")
    assert rates.rates_of("xception") is None
    assert rates.describe_rates("xception") == rates.NOT_MEASURED


def test_no_stated_rate_can_be_taken_for_a_claim_about_a_picture() -> None:
    stored = rates.read_rates()
    assert stored is not None
    for answer in stored.answers.values():
        for text in (answer.in_short, *answer.in_full):
            assert not re.search(r"\b(?:is|are|probably) (?:real|genuine|authentic)\b", text)


@pytest.mark.skipif(not UNSEEN.is_dir(), reason="the unseen faces are not here")
def test_the_stated_rates_are_those_of_the_shipped_weights(tmp_path: Path) -> None:
    from backend.evaluate.unseen import measure_unseen

    measured, stored = finish(measure_unseen(UNSEEN)), rates.read_rates()
    assert stored is not None
    rates.write_rates(measured, tmp_path / "rates.json")
    again = rates._read(tmp_path / "rates.json")
    assert again is not None and again.data == stored.data and again.hashes == stored.hashes
    # A score at the very threshold may fall on either side where float32 is rounded otherwise.
    for name, answer in stored.answers.items():
        for before, after in zip(
            (*answer.fakes, *answer.photographs),
            (*again.answers[name].fakes, *again.answers[name].photographs),
            strict=True,
        ):
            assert (before.group, before.count, before.cases) == (after.group, after.count, after.cases)
            assert abs(before.called - after.called) <= 1, (name, before)
    assert again.overall["auc"]["value"] == pytest.approx(stored.overall["auc"]["value"], abs=1e-3)


def test_every_detector_has_an_entry_for_its_rates() -> None:
    stored = rates.read_rates()
    assert stored is not None
    assert {name: weights.find_entry(name).sha256 for name in stored.hashes} == dict(stored.hashes)
