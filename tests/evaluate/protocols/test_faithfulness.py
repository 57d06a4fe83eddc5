"""The protocol that attacks a fake where its own map points, computed by hand."""

import numpy as np
import pandas as pd
import pytest

from backend.evaluate.dataset import open_data
from backend.evaluate.protocols import faithfulness, sufficiency
from backend.evaluate.protocols.base import configure_protocol
from tests.map_toys import (
    LEVELS,
    PIECE,
    SLOPE,
    assert_every_engine_gives_the_same_rows,
    assert_settings_are_refused,
    detector,
    evaluated,
    sigmoid,
    toys,
    write,
)
from tests.toy_runs import stored

FAITHFUL = {
    "fakes": None,
    "detectors": ["first"],
    "segments": 4,
    "reference_attack": "pgd",
    "methods": ["lime", "shap", "sobol", "rise"],
    "draws": 2,
}
# Quarter 3 speaks most for fake, then 0, then 1; quarter 2 says nothing.
WEIGHTS = [2 * SLOPE, SLOPE, 0.0, 4 * SLOPE]
BEFORE = 2.0


def first():
    return detector(WEIGHTS, BEFORE, "first")


def p_after_fall(before, *segments):
    """Return p_fake after the values of some quarters fell by LEVELS."""
    return sigmoid(before - 3 * PIECE * LEVELS / 255 * sum(WEIGHTS[segment] for segment in segments))


def faithful_data(folder):
    """Write a fake of the log-odds 2, one darker by a level, and one so dark that it is called real."""
    for family, change in (("swap", 0), ("drawn", -1), ("drawn", -3)):
        write(folder / f"fake/{family}/{-change}.png", change)
    return open_data(folder, folder)


DARKER = BEFORE - 3 * PIECE / 255 * sum(WEIGHTS)  # the log-odds of the second


@pytest.fixture(scope="module")
def faithfulness_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faithfulness")
    protocol = configure_protocol(faithfulness.FaithfulnessProtocol, "quick", FAITHFUL)
    with toys(first=first()):
        data = faithful_data(folder / "data")
        return protocol, data, folder / "out", *evaluated(protocol, data, folder / "out")


@pytest.mark.parametrize("name", ["LIME", "SHAP", "SOBOL", "RISE"])
def test_sufficiency_and_accuracy_with_the_adversarial_reference_by_hand(faithfulness_run, name):
    *_, tables = faithfulness_run
    row = tables["faithfulness"]["first", name, "adversarial"]
    for top, segments in ((1, (3,)), (2, (3, 0)), (3, (3, 0, 1))):
        pairs = [(sigmoid(log_odds), p_after_fall(log_odds, *segments)) for log_odds in (BEFORE, DARKER)]
        expected = np.mean([before - after for before, after in pairs])
        assert row[f"sufficiency_{top}"] == pytest.approx(expected, abs=1e-4)
        assert row[f"sufficiency_{top}_n"] == 2
        assert row[f"accuracy_{top}"] == np.mean([after >= 0.5 for _, after in pairs])
    assert tables["families"]["face swaps", "first", name, "adversarial"]["sufficiency_1_n"] == 1


def test_fills_that_change_nothing_make_no_map(faithfulness_run):
    *_, tables = faithfulness_run
    # The mean colour of a quarter is the quarter, and a blur keeps the brightness that the detector sums up.
    for name in ("LIME", "SHAP", "SOBOL"):
        assert tables["references"]["first", name, "original"]["empty"] == 1
        assert tables["faithfulness"]["first", name, "original"]["sufficiency_1"] is None
        assert tables["gain"]["first", name]["gain_1_n"] == 0
    # RISE hides with a darker grey, so it sees as much as with the adversarial image.
    assert tables["references"]["first", "RISE", "original"]["empty"] == 0
    assert tables["gain"]["first", "RISE"]["gain_3"] == pytest.approx(0, abs=1e-6)


def test_random_segments_are_of_the_same_size_and_averaged_over_maps(faithfulness_run):
    _, _, out, _, tables = faithfulness_run
    row = next(row for row in stored(out) if row["method"] == "lime" and row["reference"] == "adversarial")
    before = BEFORE if row["sample"].endswith("0.png") else DARKER
    possible = [p_after_fall(before, segment) for segment in range(4)]
    means = [(draw + other) / 2 for draw in possible for other in possible]  # two draws
    assert min(abs(row["random_p_after_1"] - mean) for mean in means) < 1e-4
    chance = tables["faithfulness"]["first", sufficiency.RANDOM_SEGMENTS, "none"]
    by_sample = {}
    for row in stored(out):
        if not row["degenerate"]:
            by_sample.setdefault(row["sample"], []).append(row["p_before"] - row["random_p_after_2"])
    assert chance["sufficiency_2"] == pytest.approx(np.mean([np.mean(values) for values in by_sample.values()]))
    assert chance["sufficiency_2_n"] == 2
    rise_rows = [row for row in stored(out) if row["method"] == "rise" and row["reference"] == "original"]
    expected = np.mean([row["random_p_after_1"] - row["p_after_1"] for row in rise_rows])
    assert tables["over_random"]["first", "RISE", "original"]["over_random_1"] == pytest.approx(expected)


def test_a_fake_that_is_called_real_is_skipped_and_another_takes_its_place(faithfulness_run, tmp_path):
    protocol, data, _, evaluation, _ = faithfulness_run
    assert evaluation.counts == {"done": 8, "skipped": 4, "failed": 0, "rows": 16}
    skipped = {name for name, reason in evaluation.skipped if reason.startswith("First does not call this fake fake")}
    assert skipped == {f"fake/drawn/3.png|detector=first|method={method}" for method in FAITHFUL["methods"]}
    with toys(first=first()):
        chosen = configure_protocol(type(protocol), "quick", FAITHFUL | {"fakes": 2}).select_samples(data)
    assert {sample.name for sample in chosen.samples} == {"fake/swap/0.png", "fake/drawn/1.png"}


def test_cost_counts_the_attack_with_every_map_that_needs_it(faithfulness_run):
    _, _, out, _, tables = faithfulness_run
    adversarial, original = (tables["cost"]["first", "RISE", reference] for reference in ("adversarial", "original"))
    rise_rows = [row for row in stored(out) if row["method"] == "rise" and row["reference"] == "adversarial"]
    assert original["images"] == 1000
    assert adversarial["images"] == pytest.approx(1000 + np.mean([row["attack_images"] for row in rise_rows]))
    assert all(row["attack_images"] > 0 and row["flipped"] for row in rise_rows)


def test_what_faithfulness_reports_in_words(faithfulness_run):
    _, _, _, evaluation, tables = faithfulness_run
    assert "RISE -0.000" in evaluation.finding or "RISE +0.000" in evaluation.finding
    assert any("PGD, which sees the gradient: no value moved by more" in sentence for sentence in evaluation.limits)
    assert {plot.name for plot in evaluation.plots} == {"sufficiency_first"}
    paper_tables = {table.name: table for table in evaluation.published}
    lime = paper_tables["published_accuracy"].keyed()["Deepfakes", "LIME", "adversarial"]
    assert (lime["accuracy_0"], lime["accuracy_1"], lime["accuracy_3"]) == (0.978, 0.673, 0.205)
    assert all(
        "differs from ours because" in paper_tables[f"published_{measure}"].note
        for measure in ("accuracy", "sufficiency")
    )
    note = next(table.note for table in evaluation.tables if table.name == "beside")
    assert "SHAP: Deepfakes; SOBOL: Deepfakes; RISE: Deepfakes, NeuralTextures)" in note
    beside = tables["beside"]["LIME", "adversarial"]
    assert beside["paper_1"] == pytest.approx(np.mean([0.673, 0.784, 0.790, 0.411]))
    assert beside["ours_1"] == tables["faithfulness"]["first", "LIME", "adversarial"]["accuracy_1"]


def test_a_picture_counts_once_in_the_finding_however_many_detectors_explain_it():
    protocol = configure_protocol(faithfulness.FaithfulnessProtocol, "quick", {"detectors": ["xception", "meso4"]})
    rows_ = [
        {"sample": sample, "detector": detector, "method": "lime", "reference": reference, "p_after_1": p_after}
        for sample, detector, original, adversarial in (
            *(("a", "xception", 0.8, 0.2), ("a", "meso4", 0.4, 0.4)),
            *(("b", "xception", 0.5, 0.4), ("b", "meso4", 0.5, None)),
        )
        for reference, p_after in (("original", original), ("adversarial", adversarial))
    ]
    # The mean of 0.6 and 0 for a, 0.1 for b: two values, not three.
    assert sorted(faithfulness.reference_gains(pd.DataFrame(rows_), 1)) == pytest.approx([0.1, 0.3])
    assert "LIME +0.200 [" in protocol.finding(rows_)


def test_accuracy_beside_the_paper_counts_a_picture_once():
    rows = [
        {"sample": sample, "detector": detector, "method": "lime", "reference": "original", "p_after_1": p_after}
        for sample, scores in (("a", (0.9, 0.8)), ("b", (0.9, 0.1)), ("c", (0.2, 0.1)))
        for detector, p_after in zip(("xception", "meso4"), scores, strict=True)
    ]
    (accuracy,) = faithfulness.picture_accuracies(pd.DataFrame(rows), [1])
    assert (accuracy.value, accuracy.count) == (0.5, 3)  # 1, 1/2 and 0, and not three of six
    assert accuracy.low == 0 and accuracy.high == 1


def test_stability_compares_the_map_with_that_of_a_face_that_differs_a_little(tmp_path):
    protocol = configure_protocol(
        faithfulness.FaithfulnessProtocol, "quick", FAITHFUL | {"stability": True, "fakes": 1}
    )
    with toys(first=first()):
        _, tables = evaluated(protocol, faithful_data(tmp_path / "data"), tmp_path / "out")
    # The detector is linear, so its maps are the same wherever the face is.
    for name in ("LIME", "SHAP", "SOBOL", "RISE"):
        assert tables["stability"]["first", name, "adversarial"]["stability"] > 0.95
    assert tables["stability"]["first", "LIME", "original"]["stability_n"] == 0  # that map shows nothing


def test_nes_finds_the_same_order_by_answers_alone(tmp_path):
    changes = FAITHFUL | {"reference_attack": "nes", "methods": ["lime"], "references": ["adversarial"], "margin": 0.2}
    with toys(first=first()):
        data = faithful_data(tmp_path / "data")
        evaluated(configure_protocol(faithfulness.FaithfulnessProtocol, "quick", changes), data, tmp_path / "out")
    for row in stored(tmp_path / "out"):
        assert row["flipped"] and row["p_reference"] < 0.4
        before = BEFORE if row["sample"].endswith("0.png") else DARKER
        assert row["p_after_1"] == pytest.approx(p_after_fall(before, 3), abs=1e-4)


def test_every_engine_and_a_resumed_run_give_the_same_rows(faithfulness_run, tmp_path):
    assert_every_engine_gives_the_same_rows(faithfulness_run, first(), tmp_path)


def test_settings_that_test_nothing_are_refused(tmp_path):
    assert_settings_are_refused(faithfulness.FaithfulnessProtocol, tmp_path, [{"methods": ["gradcam"]}])


def test_another_seed_attacks_other_random_segments():
    assert sufficiency.derived_seed(0, "a") != sufficiency.derived_seed(1, "a") != sufficiency.derived_seed(1, "b")
    assert sufficiency.derived_seed(0, "a") == sufficiency.derived_seed(0, "a") < 2**31
