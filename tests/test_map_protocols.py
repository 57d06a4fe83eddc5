"""The two protocols that test maps, over detectors that are weighted sums of four quarters: computed by hand."""

import contextlib
import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from backend import images
from backend.detectors import registry as detector_registry
from backend.detectors.card import Detector
from backend.errors import UserError
from backend.evaluate import crops, memory, report, rows, runs
from backend.evaluate.layouts import open_data
from backend.evaluate.protocols import faithfulness, faithfulness_tables, paired, proofs
from backend.evaluate.protocols.protocol import configured
from backend.evaluate.store import Store
from backend.progress import finish
from tests.linear_toys import Weighted
from tests.test_runs import FakePool
from tests.toys import toy_detector

SIZE, PIECE = 32, 256  # four square segments of 256 pixels
LEVELS = 4
# Four colours of one brightness: blurring them, or painting a quarter in its mean colour, changes no sum.
COLOURS = np.array([[[200, 60, 60], [60, 200, 60]], [[60, 60, 200], [120, 110, 90]]])
VALUES = 320 / 255  # the sum of the three colours of a pixel
SLOPE = 0.05
NEUTRAL = 102 / 255  # what RISE hides with: a little darker, so that answers do not saturate


def quarters(values):
    """Return one value for each of four square segments, (SIZE, SIZE): 0 1 above 2 3."""
    return torch.tensor(values, dtype=torch.float32).view(2, 2).repeat_interleave(16, 0).repeat_interleave(16, 1)


def detector(weights, before, name):
    """Return a detector that gives the picture of `write` without change the log-odds `before`."""
    drawn = quarters(weights)
    card = dataclasses.replace(toy_detector(name=name, size=SIZE).card, mean=(NEUTRAL,) * 3, title=name.title())
    constant = before - PIECE * (VALUES - 3 * NEUTRAL) * sum(weights)
    return Detector(Weighted(drawn, constant), dataclasses.replace(card, cam_layer="")).eval()


def write(path, change=0):
    """Write the four quarters, every value changed by a number of grey levels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = (COLOURS + change).astype(np.uint8).repeat(16, 0).repeat(16, 1)
    Image.fromarray(picture).save(path)


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


@contextlib.contextmanager
def toys(**models):
    """Put toys where the real models and the face finder are."""

    def read(data, name, size):
        picture = Image.fromarray(images.read(data.path(name)))
        return SimpleNamespace(crop=np.asarray(picture.resize((size, size), Image.Resampling.NEAREST)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector_registry, "load", models.__getitem__)
        patch.setattr(detector_registry, "loadable", lambda: list(models))
        patch.setattr(faithfulness, "crop", lambda data, name, size, **_: read(data, name, size))
        patch.setattr(crops, "problem", lambda data, name: None)
        pair = lambda data, name, size, **_: (read(data, data.by_name[name].pair, size), read(data, name, size))  # noqa: E731
        patch.setattr(paired, "crop_pair", pair)
        memory.forget()
        yield
        memory.forget()


def evaluated(protocol, data, out, **options):
    found = finish(runs.evaluate(protocol, data, out, **options))
    return found, {table.name: table.keyed() for table in found.tables}


def stored(out):
    store = Store(out)
    try:
        return [rows.without_timings(row) for row in store.rows()]
    finally:
        store.close()


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


def fallen(before, *segments):
    """Return p_fake after the values of some quarters fell by LEVELS."""
    return sigmoid(before - 3 * PIECE * LEVELS / 255 * sum(WEIGHTS[one] for one in segments))


def faithful_data(folder):
    """Write a fake of the log-odds 2, one darker by a level, and one so dark that it is called real."""
    for family, change in (("swap", 0), ("drawn", -1), ("drawn", -3)):
        write(folder / f"fake/{family}/{-change}.png", change)
    return open_data(folder, folder)


DARKER = BEFORE - 3 * PIECE / 255 * sum(WEIGHTS)  # the log-odds of the second


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faithfulness")
    protocol = configured(faithfulness.FaithfulnessProtocol, "quick", FAITHFUL)
    with toys(first=first()):
        data = faithful_data(folder / "data")
        return protocol, data, folder / "out", *evaluated(protocol, data, folder / "out")


@pytest.mark.parametrize("name", ["LIME", "SHAP", "SOBOL", "RISE"])
def test_sufficiency_and_accuracy_with_the_adversarial_reference_by_hand(explained, name):
    *_, tables = explained
    found = tables["faithfulness"]["first", name, "adversarial"]
    for top, segments in ((1, (3,)), (2, (3, 0)), (3, (3, 0, 1))):
        pairs = [(sigmoid(one), fallen(one, *segments)) for one in (BEFORE, DARKER)]
        expected = np.mean([before - after for before, after in pairs])
        assert found[f"sufficiency_{top}"] == pytest.approx(expected, abs=1e-4)
        assert found[f"sufficiency_{top}_n"] == 2
        assert found[f"accuracy_{top}"] == np.mean([after >= 0.5 for _, after in pairs])
    assert tables["families"]["face swaps", "first", name, "adversarial"]["sufficiency_1_n"] == 1


def test_fills_that_change_nothing_make_no_map(explained):
    *_, tables = explained
    # The mean colour of a quarter is the quarter, and a blur keeps the brightness that the detector sums up.
    for name in ("LIME", "SHAP", "SOBOL"):
        assert tables["references"]["first", name, "original"]["empty"] == 1
        assert tables["faithfulness"]["first", name, "original"]["sufficiency_1"] is None
        assert tables["gain"]["first", name]["gain_1_n"] == 0
    # RISE hides with a darker grey, so it sees as much as with the adversarial image.
    assert tables["references"]["first", "RISE", "original"]["empty"] == 0
    assert tables["gain"]["first", "RISE"]["gain_3"] == pytest.approx(0, abs=1e-6)


def test_random_segments_are_of_the_same_size_and_averaged_over_maps(explained):
    _, _, out, _, tables = explained
    row = next(row for row in stored(out) if row["method"] == "lime" and row["reference"] == "adversarial")
    before = BEFORE if row["sample"].endswith("0.png") else DARKER
    possible = [fallen(before, one) for one in range(4)]
    pairs = [(one + two) / 2 for one in possible for two in possible]  # two draws
    assert min(abs(row["random_p_after_1"] - one) for one in pairs) < 1e-4
    chance = tables["faithfulness"]["first", proofs.RANDOM, "none"]
    by_sample = {}
    for row in stored(out):
        if not row["degenerate"]:
            by_sample.setdefault(row["sample"], []).append(row["p_before"] - row["random_p_after_2"])
    assert chance["sufficiency_2"] == pytest.approx(np.mean([np.mean(values) for values in by_sample.values()]))
    assert chance["sufficiency_2_n"] == 2
    own = [row for row in stored(out) if row["method"] == "rise" and row["reference"] == "original"]
    expected = np.mean([row["random_p_after_1"] - row["p_after_1"] for row in own])
    assert tables["over_random"]["first", "RISE", "original"]["over_random_1"] == pytest.approx(expected)


def test_a_fake_that_is_called_real_is_skipped_and_another_takes_its_place(explained, tmp_path):
    protocol, data, _, found, _ = explained
    assert found.counts == {"done": 8, "skipped": 4, "failed": 0, "rows": 16}
    skipped = {name for name, reason in found.skipped if reason.startswith("First calls this fake real")}
    assert skipped == {f"fake/drawn/3.png|detector=first|method={one}" for one in FAITHFUL["methods"]}
    with toys(first=first()):
        chosen = configured(type(protocol), "quick", FAITHFUL | {"fakes": 2}).choose(data)
    assert {sample.name for sample in chosen.samples} == {"fake/swap/0.png", "fake/drawn/1.png"}


def test_cost_counts_the_attack_with_every_map_that_needs_it(explained):
    _, _, out, _, tables = explained
    adversarial, original = (tables["cost"]["first", "RISE", one] for one in ("adversarial", "original"))
    own = [row for row in stored(out) if row["method"] == "rise" and row["reference"] == "adversarial"]
    assert original["images"] == 1000
    assert adversarial["images"] == pytest.approx(1000 + np.mean([row["attack_images"] for row in own]))
    assert all(row["attack_images"] > 0 and row["flipped"] for row in own)


def test_what_faithfulness_reports_in_words(explained):
    _, _, _, found, tables = explained
    assert "RISE -0.000" in found.finding or "RISE +0.000" in found.finding
    assert any("PGD, which sees the gradient: no value moved by more" in sentence for sentence in found.limits)
    assert {plot.name for plot in found.plots} == {"sufficiency_first"}
    printed = {table.name: table for table in found.published}
    lime = printed["published_accuracy"].keyed()["Deepfakes", "LIME", "adversarial"]
    assert (lime["accuracy_0"], lime["accuracy_1"], lime["accuracy_3"]) == (0.978, 0.673, 0.205)
    assert all("differs from ours because" in printed[f"published_{one}"].note for one in ("accuracy", "sufficiency"))
    note = next(table.note for table in found.tables if table.name == "beside")
    assert "SHAP: Deepfakes; SOBOL: Deepfakes; RISE: Deepfakes, NeuralTextures)" in note
    beside = tables["beside"]["LIME", "adversarial"]
    assert beside["paper_1"] == pytest.approx(np.mean([0.673, 0.784, 0.790, 0.411]))
    assert beside["ours_1"] == tables["faithfulness"]["first", "LIME", "adversarial"]["accuracy_1"]


def test_a_picture_counts_once_in_the_finding_however_many_detectors_explain_it():
    config = configured(faithfulness.FaithfulnessProtocol, "quick", {"detectors": ["xception", "meso4"]}).config
    rows_ = [
        {"sample": sample, "detector": detector, "method": "lime", "reference": reference, "p_after_1": p_after}
        for sample, detector, original, adversarial in (
            *(("a", "xception", 0.8, 0.2), ("a", "meso4", 0.4, 0.4)),
            *(("b", "xception", 0.5, 0.4), ("b", "meso4", 0.5, None)),
        )
        for reference, p_after in (("original", original), ("adversarial", adversarial))
    ]
    # The mean of 0.6 and 0 for a, 0.1 for b: two values, not three.
    assert sorted(faithfulness_tables._differences(rows_, "p_after_1")) == pytest.approx([0.1, 0.3])
    assert "LIME +0.200 [" in faithfulness_tables.finding(rows_, config)


def test_accuracy_beside_the_paper_counts_a_picture_once():
    rows = [
        {"sample": sample, "detector": detector, "method": "lime", "reference": "original", "p_after_1": p_after}
        for sample, scores in (("a", (0.9, 0.8)), ("b", (0.9, 0.1)), ("c", (0.2, 0.1)))
        for detector, p_after in zip(("xception", "meso4"), scores, strict=True)
    ]
    (found,) = faithfulness_tables._accuracies(rows, [1])
    assert (found.value, found.count) == (0.5, 3)  # 1, 1/2 and 0, and not three of six
    assert found.low == 0 and found.high == 1


def test_stability_compares_the_map_with_that_of_a_face_that_differs_a_little(tmp_path):
    protocol = configured(faithfulness.FaithfulnessProtocol, "quick", FAITHFUL | {"stability": True, "fakes": 1})
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
        evaluated(configured(faithfulness.FaithfulnessProtocol, "quick", changes), data, tmp_path / "out")
    for row in stored(tmp_path / "out"):
        assert row["flipped"] and row["p_reference"] < 0.4
        before = BEFORE if row["sample"].endswith("0.png") else DARKER
        assert row["p_after_1"] == pytest.approx(fallen(before, 3), abs=1e-4)


# A real photo is bright in quarter 1 above all, and what was made from it is darker.
REAL_WEIGHTS = [-SLOPE, -4 * SLOPE, 0.0, -2 * SLOPE]
FAKE_BEFORE, BRIGHTER = 1.0, 3
REAL_BEFORE = FAKE_BEFORE + 3 * PIECE * BRIGHTER / 255 * sum(REAL_WEIGHTS)
PAIRED = {
    "grey_levels": LEVELS,
    "fakes": None,
    "detectors": ["first"],
    "methods": ["rise", "lime", "gradcam"],
    "resolutions": [1, 0.5],
    "segments": 4,
    "curve_steps": 1,
    "fill": "black",
}


def of_pairs():
    return detector(REAL_WEIGHTS, FAKE_BEFORE, "first")


def paired_data(folder):
    """Write two photos; of one, two fakes were made, of the other one that is as bright as its photo."""
    for name, change in (
        ("real/1", BRIGHTER),
        ("real/2", BRIGHTER),
        ("fake/swap/1", 0),
        ("fake/drawn/1", 0),
        ("fake/drawn/2", BRIGHTER),
        ("fake/drawn/alone", 0),
    ):
        write(folder / f"{name}.png", change)
    return open_data(folder, folder)


@pytest.fixture(scope="module")
def carried(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paired")
    protocol = configured(paired.PairedProtocol, "quick", PAIRED)
    with toys(first=of_pairs()):
        data = paired_data(folder / "data")
        return protocol, data, folder / "out", *evaluated(protocol, data, folder / "out")


def risen(*segments):
    """Return p_fake of the fake after the values of some quarters rose by LEVELS."""
    return sigmoid(FAKE_BEFORE + 3 * PIECE * LEVELS / 255 * sum(REAL_WEIGHTS[one] for one in segments))


def test_the_fake_is_attacked_where_the_map_of_the_real_photo_points_by_hand(carried):
    *_, tables = carried
    found = tables["paired"]["first", "1 x (32 pixels)", "RISE"]
    for top, segments in ((1, (1,)), (2, (1, 3)), (3, (1, 3, 0))):
        assert found[f"sufficiency_{top}"] == pytest.approx(sigmoid(FAKE_BEFORE) - risen(*segments), abs=1e-4)
        assert found[f"accuracy_{top}"] == (risen(*segments) >= 0.5)
        assert found[f"sufficiency_{top}_n"] == 2
    assert tables["families"]["face swaps", "first", "1 x (32 pixels)", "RISE"]["accuracy_1_n"] == 1
    # At half the size 64 pixels of four times the weight are attacked; enlarging smears a little over the edges.
    half = tables["paired"]["first", "0.5 x (16 pixels)", "RISE"]["sufficiency_1"]
    assert half == pytest.approx(found["sufficiency_1"], rel=0.1)
    assert half != pytest.approx(found["sufficiency_1"], rel=1e-4)


def test_maps_that_show_nothing_are_left_out(carried):
    _, _, out, _, tables = carried
    assert tables["paired"]["first", "1 x (32 pixels)", "LIME"]["accuracy_1"] is None
    reasons = {row["method"]: row["reason"] for row in stored(out)}
    assert "face itself" in reasons["lime"] and "no layer" in reasons["gradcam"]


def test_curves_by_hand(carried):
    *_, tables = carried
    # In one step everything is removed, so every map has the mean of both ends.
    black = REAL_BEFORE - PIECE * (VALUES + 3 * BRIGHTER / 255) * sum(REAL_WEIGHTS)
    expected = (sigmoid(-REAL_BEFORE) + sigmoid(-black)) / 2
    for method in ("RISE", proofs.RANDOM):
        for curve in ("deletion", "insertion"):
            found = tables["curves"]["first", "1 x (32 pixels)", method][curve]
            assert found == pytest.approx(expected, abs=1e-4)


def test_pairs_that_are_judged_wrongly_are_skipped_or_replaced(carried, tmp_path):
    protocol, data, _, found, _ = carried
    assert found.counts == {"done": 4, "skipped": 2, "failed": 0, "rows": 16}
    assert {reason for _, reason in found.skipped} == {"First calls the fake real."}
    assert found.about["data"]["fakes"] == {"drawn": 2, "swap": 1}  # `alone` has no photo
    with toys(first=of_pairs()):
        chosen = configured(type(protocol), "quick", PAIRED | {"fakes": 2}).choose(data)
        assert [sample.name for sample in chosen.samples] == ["fake/drawn/1.png", "fake/swap/1.png", "real/1.png"]
        write(tmp_path / "fake/1.png")
        with pytest.raises(UserError, match="No fake has its real photo"):
            evaluated(protocol, open_data(tmp_path, tmp_path), tmp_path / "out")


def test_what_paired_reports_in_words(carried):
    _, _, _, found, _ = carried
    assert "3 segments that RISE ranks highest" in found.finding
    assert any("only as a summary" in sentence for sentence in found.limits)
    assert {plot.name for plot in found.plots} == {"sufficiency_first", "deletion"}
    assert found.published == ()


def test_agreement_of_curves_and_test_by_hand():
    protocol = configured(paired.PairedProtocol, "quick", {"methods": ["sobol", "rise", "lime"], "resolutions": [1]})
    name = protocol.config.detectors[0]
    said = {"detector": name, "resolution": 1.0, "side": 8, "family": "swap", "degenerate": False, "images": 1}
    measured = {"sobol": (0.2, 0.1, 0.3), "rise": (0.4, 0.2, 0.2), "lime": (0.6, 0.3, 0.1)}  # p_after, two areas
    made = []
    for sample in ("a", "b"):
        for one, (after, deletion, insertion) in measured.items():
            row = said | {
                "sample": sample,
                "method": one,
                "p_before": 0.9,
                "deletion": deletion,
                "insertion": insertion,
            }
            row |= {f"{key}_{top}": after for top in (1, 2, 3) for key in ("p_after", "random_p_after")}
            made.append(row | {f"random_called_fake_{top}": 1.0 for top in (1, 2, 3)})
    (line,) = next(table for table in protocol.tables(made) if table.name == "agreement").records()
    assert line["deletion"] == pytest.approx(1) and line["insertion"] == pytest.approx(1)
    assert line["deletion_n"] == 2


@pytest.mark.parametrize("which", ["explained", "carried"])
def test_every_engine_and_a_resumed_run_give_the_same_rows(which, request, tmp_path):
    protocol, data, out, whole, _ = request.getfixturevalue(which)
    with toys(first=first() if which == "explained" else of_pairs()):
        deadly = protocol.items(protocol.choose(data))[1].key
        other, _ = evaluated(protocol, data, tmp_path / "pool", engine=FakePool(3, deadly, times=1))
        job = runs.evaluate(protocol, data, tmp_path / "resumed")
        for _ in range(3):
            next(job)
        job.close()
        assert 0 < len(stored(tmp_path / "resumed")) < len(stored(out))
        resumed, _ = evaluated(protocol, data, tmp_path / "resumed", resume=True)
    assert stored(tmp_path / "pool") == stored(tmp_path / "resumed") == stored(out)
    for found in (other, resumed):
        assert [table for table in found.tables if table.name != "cost"] == [
            table for table in whole.tables if table.name != "cost"
        ]
    report.write(whole, out, "command")
    again, _ = report.load(out)
    assert again.tables == whole.tables and again.finding == whole.finding


def test_another_seed_attacks_other_random_segments():
    assert proofs.own_seed(0, "a") != proofs.own_seed(1, "a") != proofs.own_seed(1, "b")
    assert proofs.own_seed(0, "a") == proofs.own_seed(0, "a") < 2**31


@pytest.mark.parametrize("protocol", [faithfulness.FaithfulnessProtocol, paired.PairedProtocol])
def test_settings_that_test_nothing_are_refused(protocol, tmp_path):
    wrong = [{"draws": 0}, {"tops": [0]}, {"grey_levels": 0.0}, {"iterations": 0}, {"methods": ["nothing"]}]
    wrong += [{"methods": ["gradcam"]}] if protocol.name == "faithfulness" else [{"resolutions": [0]}, {"segments": 1}]
    write(tmp_path / "fake/1.png")
    data = open_data(tmp_path, tmp_path)
    with toys(first=toy_detector(name="first")):
        for changes in wrong:
            with pytest.raises(UserError):
                configured(protocol, "quick", changes).items(data)
