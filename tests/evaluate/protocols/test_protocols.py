"""Each protocol over toy detectors, a toy generator and grey faces: every number computed by hand."""

import contextlib
import dataclasses
import json
import sys

import numpy as np
import pytest

from backend.cli import main
from backend.detectors import registry as detector_registry
from backend.errors import UserError
from backend.evaluate import metrics, protocols, report, runs
from backend.evaluate.dataset import open_data
from backend.evaluate.metrics import identity
from backend.evaluate.metrics.base import METRICS
from backend.evaluate.protocols import counterfactual, detectors
from backend.evaluate.protocols.base import PRESETS, PROTOCOLS, configure_protocol
from backend.generators import inversion
from backend.progress import finish
from tests import pictures
from tests.toy_protocol import whole_picture, write_picture
from tests.toys import toy_detector, toy_inverter

SIZE = 32


@contextlib.contextmanager
def toys():
    """Put toys where the real models and the face finder are: `first` calls 0.7 and brighter fake, `second` 0.6."""
    models = {
        "first": toy_detector(threshold=0.7, name="first", size=SIZE),
        "second": toy_detector(threshold=0.6, name="second", size=SIZE),
    }
    inverter = toy_inverter(SIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector_registry, "load", models.__getitem__)
        patch.setattr(detector_registry, "loadable", lambda: list(models))
        patch.setattr(inversion, "load_embedded_inverter", lambda: inverter)
        patch.setattr(identity, "best_recogniser", lambda: None)
        patch.setattr(detectors, "crop_face", lambda data, name, **_: whole_picture(data, name).aligned)
        patch.setattr(counterfactual, "sample_source", whole_picture)
        yield


def greys(folder, **levels):
    """Write one picture a grey level to each folder, named by its level."""
    for below, values in levels.items():
        for value in values:
            write_picture(folder / below.replace("_", "/") / f"{value}.png", value)
    return open_data(folder, folder)


def evaluated(protocol, config, data, out):
    evaluation = finish(runs.run_protocol(protocol(config), data, out))
    return evaluation, {table.name: table.keyed() for table in evaluation.tables}


@pytest.fixture(scope="module")
def detectors_run(tmp_path_factory):
    """Return the detectors protocol over reals of 80, 150 and 190, and fakes of 230, 170 and 250."""
    tmp_path = tmp_path_factory.mktemp("detectors")
    data = greys(tmp_path / "data", real_a=[80, 150], real_b=[190], fake_swap=[230, 170], fake_drawn=[250])
    config = detectors.DetectorsConfig(
        detectors=("first", "second"), corruptions=("none", "resize 0.5", "noise 5"), recalls=(0.5, 1.0)
    )
    with toys():
        return evaluated(detectors.DetectorsProtocol, config, data, tmp_path / "out")


def test_detectors_by_family_by_hand(detectors_run):
    _, tables = detectors_run
    # `first` has its threshold at 178.5: it misses 170 and accuses 190.
    swap, drawn = tables["families"]["first", "face swaps"], tables["families"]["first", "drawn"]
    assert (swap["accuracy_fake"], swap["accuracy_fake_n"]) == (0.5, 2)
    assert swap["auc"] == pytest.approx(5 / 6)  # 230 above all three, 170 above two
    assert swap["ap"] == pytest.approx((1 + 2 / 3) / 2)  # 230, then 190 comes before 170
    assert (drawn["accuracy_fake"], drawn["auc"], drawn["eer"]) == (1, 1, 0)
    assert drawn["auc_same_source"] is None  # nobody knows what the fakes were made from
    assert tables["families"]["second", "face swaps"]["accuracy_fake"] == 1  # its threshold is 153


def test_detectors_by_source_and_over_all_by_hand(detectors_run):
    evaluation, tables = detectors_run
    assert tables["sources"]["first", "a"]["accuracy_real"] == 1
    assert tables["sources"]["first", "b"]["accuracy_real"] == 0
    overall = tables["detectors"]["first",]
    assert overall["accuracy_real"] == pytest.approx(2 / 3)
    assert overall["accuracy_fake"] == pytest.approx(2 / 3)
    assert overall["auc"] == pytest.approx(8 / 9)
    assert overall["false_alarms_1"] == pytest.approx(1 / 3)  # 170 must be caught, and 190 is with it
    assert overall["false_alarms_0.5"] == 0  # two of three are 250 and 230
    log_odds = np.array([20 * (level / 255 - 0.7) for level in (80, 150, 190, 230, 170, 250)])
    p_fake = 1 / (1 + np.exp(-log_odds))
    assert overall["brier"] == pytest.approx(((p_fake - [0, 0, 0, 1, 1, 1]) ** 2).mean(), abs=1e-6)
    assert evaluation.tables[0].by_family


def test_the_finding_names_the_best_detector_and_the_hardest_family(detectors_run):
    evaluation, _ = detectors_run
    # `first` finds two of three fakes and `second` all, and both accuse 190; of `swap` they find three of four.
    finding = (
        "Of 2 detectors first separates these pictures best (AUC 0.89): it finds 67% of the 3 fakes and wrongly calls "
        "33% of the 3 real faces fake (95 % interval 6% to 79%"
    )
    finding += "); the hardest family is face swaps, of which all detectors find 75% on average."
    assert evaluation.finding == finding


def test_grey_faces_survive_resizing_but_not_unchanged_noise(detectors_run):
    evaluation, tables = detectors_run
    robust = tables["robustness"]
    clean, resized, noisy = (robust["first", text] for text in ("none", "resize 0.5", "noise 5"))
    assert {**clean, "corruption": ""} == {**resized, "corruption": ""}
    assert noisy["auc"] == pytest.approx(8 / 9)  # the mean of 1024 pixels hardly moves
    assert {"roc", "roc_swap", "roc_drawn", "calibration", "robustness_resize", "robustness_noise"} == {
        plot.name for plot in evaluation.plots
    }
    assert "first 0.89" in evaluation.plots[0].alt


@pytest.fixture(scope="module")
def counterfactual_run(tmp_path_factory):
    """Return the counterfactual protocol over fakes of 190, 180, 170 and 150 and a real picture that it leaves out."""
    tmp_path = tmp_path_factory.mktemp("counterfactual")
    data = greys(tmp_path / "data", real=[20], fake_swap=[190, 180], fake_drawn=[170, 150])
    config = counterfactual.CounterfactualConfig(
        reals=0,
        detectors=("first", "second"),
        attacked=("first", "second"),
        methods=("reconstruction", "transfer", "fgsm"),
        ablated=("first",),
        ablated_method="transfer",
        levels=("S", "D"),
        factors=(2.0,),
        steps=20,
        kappa=0.0,
    )
    with toys():
        return evaluated(counterfactual.CounterfactualProtocol, config, data, tmp_path / "out")


TRANSFER, RECONSTRUCTION = counterfactual.EDIT_TITLES["transfer"], counterfactual.EDIT_TITLES["reconstruction"]


def test_success_over_four_denominators_by_hand(counterfactual_run):
    evaluation, tables = counterfactual_run
    # A step darkens by 3 levels. `first` (178.5) catches 190 and 180, which become 178 and 177.
    transfer = tables["success"]["first", TRANSFER]
    assert [transfer[f"asr_{name}"] for name in ("all", "detected", "after_inversion", "both")] == [0.5, 1, 1, 1]
    # `second` (153) catches three: 190, 180, 170 become 151, 150 (153 is exactly one half) and 152.
    assert tables["success"]["second", TRANSFER]["asr_all"] == 0.75
    # The toy generator draws every face at 0.5 to 0.62, so inversion alone turns whatever was caught.
    inverted = tables["success"]["first", RECONSTRUCTION]
    assert (inverted["asr_all"], inverted["asr_detected"], inverted["asr_both"]) == (0, 0, None)
    # Artifact-Eraser's FGSM makes 8 steps of one level: 190 stays at 182, 180 becomes 172.
    assert tables["success"]["first", "FGSM"]["asr_both"] == 0.5
    assert evaluation.about["data"]["reals"] == {}


def test_transfer_by_hand(counterfactual_run):
    evaluation, tables = counterfactual_run
    # 178 and 177 are still fake to `second`; 151, 150 and 152 are real to `first`, which had caught two of them.
    assert tables["transfer"][TRANSFER, "first"]["judge_second"] == 0
    assert tables["transfer"][TRANSFER, "first"]["judge_second_n"] == 3
    assert tables["transfer"][TRANSFER, "second"]["judge_first"] == 1
    assert tables["transfer"][TRANSFER, "second"]["judge_first_n"] == 2
    assert tables["transfer"]["FGSM", "second"]["judge_first"] == 0.5
    assert "first: 1.00, 0.00" in next(plot.alt for plot in evaluation.plots if plot.name == "transfer_transfer")


def test_the_finding_and_the_paper_s_means_by_hand(counterfactual_run):
    evaluation, _ = counterfactual_run
    # FGSM turns one of the two that `first` caught (180), and none of the three of `second`.
    rates = f"{TRANSFER} 100% and 50%; FGSM 25% and 25%."
    assert (
        evaluation.finding
        == f"Verdicts of fake that an edit turns, on the attacked detector and on the others: {rates}"
    )
    beside = {
        row["method"]: row for row in next(table for table in evaluation.tables if table.name == "beside").records()
    }
    assert (beside[TRANSFER]["own"], beside[TRANSFER]["others"]) == (1, 0.5)
    assert beside[TRANSFER]["paper_own"] == pytest.approx(np.mean([0.989, 0.992, 0.906, 0.988]))
    fgsm = [17.2, 30.3, 12.3, 4.36, 7.15, 26.5, 18.0, 21.4, 32.9, 9.74, 26.0, 26.7]
    assert beside["FGSM"]["paper_others"] == pytest.approx(np.mean(fgsm) / 100)


def test_quality_by_hand(counterfactual_run):
    evaluation, tables = counterfactual_run
    quality = tables["quality"]["first", TRANSFER]
    assert quality["psnr"] == pytest.approx(np.mean([20 * np.log10(255 / 12), 20 * np.log10(255 / 3)]))
    assert (quality["psnr_n"], quality["tv"], quality["esnle_before"]) == (2, 0, pytest.approx(0, abs=1e-6))
    assert quality["identity"] is None
    assert quality["identity_retained"] is None
    note = next(table.note for table in evaluation.tables if table.name == "quality")
    assert "Identity was not measured" in note
    assert any("Identity was not measured" in sentence for sentence in evaluation.limits)


def test_levels_steps_and_codes_by_hand(counterfactual_run):
    _, tables = counterfactual_run
    # A level of 4 of 12 rows darkens by 1 level a step: 190 needs 12 steps and 180 needs 2; all rows, 4 and 1.
    assert {key[1]: row["steps"] for key, row in tables["levels"].items()} == {"S": 7, "D": 7, "S,M,D": 2.5}
    # With steps of twice the length 190 needs 2 and 180 needs 1.
    assert {key: row["steps"] for key, row in tables["epsilon"].items()} == {
        ("first", "0.1"): 2.5,
        ("first", "0.2"): 1.5,
    }
    changes = tables["latent_change"]["face swaps", "first", TRANSFER]
    # 4 steps of 0.1 and 1 of 0.1, the same in every coordinate.
    assert [changes[f"change_{level}"] for level in "SMD"] == [pytest.approx(0.25, abs=1e-6)] * 3


def test_success_by_family_comes_first(counterfactual_run):
    evaluation, tables = counterfactual_run
    assert evaluation.tables[0].name == "families"
    assert tables["families"]["drawn", "second", TRANSFER]["asr_both"] == 1
    assert tables["families"]["drawn", "second", TRANSFER]["asr_both_n"] == 1
    assert tables["families"]["drawn", "first", TRANSFER]["asr_both"] is None


def test_the_paper_s_numbers_stand_beside(counterfactual_run):
    evaluation, _ = counterfactual_run
    (table,) = evaluation.published
    assert table.keyed()["Counterfactual", "EfficientNet-B4"]["judge_RECCE"] == pytest.approx(0.54)
    assert "differs from ours because" in table.note


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_frozen_and_spell_everything_out(name, preset):
    protocol = configure_protocol(PROTOCOLS.find(name), preset, {})
    assert protocol.name == name
    assert protocol.config.detectors and set(protocol.config.detectors) <= set(detector_registry.loadable())
    assert (12 if preset == "quick" else None) in (protocol.config.fakes, protocol.config.reals)
    with pytest.raises(dataclasses.FrozenInstanceError):
        protocol.config.seed = 1


def test_settings_can_be_changed_and_wrong_ones_are_refused():
    kind = PROTOCOLS.find("counterfactual")
    changed = configure_protocol(
        kind, "quick", {"steps": 5, "factors": [1, 2.5], "methods": "pgd", "fakes": None, "kappa": 0}
    )
    assert changed.config.steps == 5
    assert changed.config.factors == (1.0, 2.5)
    assert changed.config.methods == ("pgd",)
    assert changed.config.fakes is None
    assert configure_protocol(kind, "quick", {"variant": "paper000"}).config.variant == "artifact_eraser"
    assert runs._setting_before(changed, {"variant": "paper000"}, "variant") == "artifact_eraser"  # its name once
    for wrong in ({"steps": "many"}, {"steps": True}, {"variant": "other"}, {"detectors": [1]}):
        with pytest.raises(UserError, match=r"cannot (be|contain)"):
            configure_protocol(kind, "quick", wrong)
    with pytest.raises(UserError, match="no setting colour"):
        configure_protocol(kind, "quick", {"colour": 1})
    with pytest.raises(UserError, match="no preset slow"):
        configure_protocol(kind, "slow", {})
    with pytest.raises(UserError, match="no protocol named nothing"):
        PROTOCOLS.find("nothing")


def test_detectors_that_cannot_be_used_are_refused_at_once(tmp_path):
    data = greys(tmp_path, fake=[1])
    for name in ("detectors", "counterfactual"):
        with pytest.raises(UserError, match="no detector named nobody"):
            configure_protocol(PROTOCOLS.find(name), "quick", {"detectors": ["nobody"]}).items(data)
    with pytest.raises(UserError, match="xception is attacked but is not among those that judge"):
        configure_protocol(PROTOCOLS.find("counterfactual"), "quick", {"detectors": ["mesoinception4"]}).items(data)


def test_shares_and_corruptions_that_end_in_no_table_are_refused_at_once(tmp_path):
    data = greys(tmp_path, fake=[1])
    for changes, sentence in (
        ({"recalls": [95]}, "greater than 0 and at most 1"),
        ({"recalls": [0]}, "greater than 0 and at most 1"),
        ({"corruptions": ["jpeg 70"]}, "none is missing"),
    ):
        with pytest.raises(UserError, match=sentence):
            configure_protocol(PROTOCOLS.find("detectors"), "quick", changes).items(data)


def test_keys_say_all_that_an_item_depends_on(tmp_path):
    data = greys(tmp_path, fake=[1, 2])
    protocol = configure_protocol(PROTOCOLS.find("counterfactual"), "quick", {})
    items = protocol.items(data)
    assert len({item.key for item in items}) == len(items)
    assert items[0].key == "fake/1.png|detector=xception|method=transfer|level=S,M,D|factor=1.0"


def test_corruptions():
    picture = pictures.ramp(64, 64)
    assert detectors.corrupt_picture(picture, *detectors.parse_corruption("none"), 0, "a") is picture
    for text in ("jpeg 30", "blur 1", "resize 0.5", "noise 5", "h264 28"):
        changed = detectors.corrupt_picture(picture, *detectors.parse_corruption(text), 0, "a")
        assert changed.shape == picture.shape
        assert changed.dtype == np.uint8
        assert 0 < np.abs(changed.astype(int) - picture).mean() < 10
        np.testing.assert_array_equal(
            changed, detectors.corrupt_picture(picture, *detectors.parse_corruption(text), 0, "a")
        )
    noisy = detectors.corrupt_picture(np.full((256, 256, 3), 128, np.uint8), "noise", 5, 0, "a").astype(int) - 128
    assert noisy.std() == pytest.approx(5, rel=0.02)
    other = detectors.corrupt_picture(np.full((256, 256, 3), 128, np.uint8), "noise", 5, 0, "b").astype(int) - 128
    assert abs(np.corrcoef(noisy.ravel(), other.ravel())[0, 1]) < 0.02
    for wrong in ("jpeg", "jpeg 0", "jpeg 101", "resize 2", "fog 1", "blur x", "noise nan"):
        with pytest.raises(UserError, match="no corruption"):
            detectors.parse_corruption(wrong)


TOY_METRIC = """
from backend.evaluate.metrics.base import register_metric


@register_metric("brightness", "Brightness", better="higher", sentence="How bright it is.", source="This test.")
def brightness(level):
    return level / 255
"""

TOY_PROTOCOL = """
from backend.evaluate.protocols.base import register_protocol
from backend.evaluate.tables import Column, Table
from tests.toy_protocol import ToyProtocol


@register_protocol()
class BrightnessProtocol(ToyProtocol):
    name, title = "bright", "How bright pictures are"

    def tables(self, rows):
        columns = (Column("sample", "Picture"), Column("level", "Level", "brightness"))
        return [Table("bright", self.title, columns, tuple((row["sample"], row["level"]) for row in rows))]
"""


@pytest.fixture
def two_new_files(tmp_path, monkeypatch):
    """Add a metric and a protocol, each by one file in a folder that belongs to its package."""
    kinds = ((METRICS, metrics, TOY_METRIC, "brightness"), (PROTOCOLS, protocols, TOY_PROTOCOL, "bright"))
    for table, package, text, name in kinds:
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / f"toy_{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.setattr(table, "_complete", False)
    yield
    for table, package, _, name in kinds:
        table._items.pop(name), table._orders.pop(name), sys.modules.pop(f"{package.__name__}.toy_{name}")


def test_a_new_file_is_seen_on_the_command_line_and_in_the_tab(two_new_files, tmp_path, capsys):
    data = greys(tmp_path / "data", real=[11, 22], fake=[33, 44])
    arguments = ["evaluate", "bright", "--data", str(data.folder), "--out", str(tmp_path / "out")]
    assert main.main([*arguments, "--workers", "0", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {row["sample"]: row["level"] for row in answer["rows"]}["fake/44.png"] == 88
    evaluation, _ = report.load_report(tmp_path / "out")
    assert evaluation.tables[0].columns[1].heading == "Level \u2191"
    assert "How bright it is." in report.report_article(evaluation, "")
    assert main.main(["evaluate", "nothing", *arguments[2:], "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["hint"].endswith("paired, bright.")
    from tabs import evaluate

    assert list(PROTOCOLS)[-1] == "bright"
    assert evaluate._list_protocols().choices[-1] == ("How bright pictures are", "bright")
