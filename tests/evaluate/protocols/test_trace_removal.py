"""The trace-removal protocol over grey faces and toy detectors: every number computed by hand."""

import contextlib
import dataclasses
import json
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.signal import wiener

from backend import weights
from backend.attacks import registry
from backend.detectors import inference
from backend.detectors import registry as detector_registry
from backend.errors import UserError
from backend.evaluate import engines, published, report, runs
from backend.evaluate.dataset import open_data
from backend.evaluate.metrics import traces
from backend.evaluate.protocols import trace_removal
from backend.evaluate.protocols.trace_removal import TraceRemovalConfig, TraceRemovalProtocol
from backend.evaluate.store import Store, without_timings
from backend.progress import finish
from backend.trace_removal import removal
from backend.trace_removal.network import TRNet
from backend.trace_removal.references import References
from tests.toy_protocol import whole_picture, write_picture
from tests.toys import toy_detector

SIZE = 32
# Grey levels above which each toy says fake; FGSM darkens by 8.
TOYS = {"xception": 178.5, "meso4": 153.5, "patch_cnn": 175.5, "xception_plain": 185.5}
INSTALLED = {
    "none": {"xception": "xception_plain"},
    "shipped": {name: name for name in ("xception", "patch_cnn", "meso4")},
}
OWN = "the app's own defence"
REAL, FAKES = (20, 100, 177), {"swap": (190, 180), "drawn": (170,)}


def installed(defence, detectors):
    return {name: entry for name, entry in INSTALLED.get(defence, {}).items() if name in detectors}


@contextlib.contextmanager
def toys():
    models = {name: toy_detector(100, level / 255, name, SIZE) for name, level in TOYS.items()}
    reference = References(
        spectrum={"real": np.full((SIZE, SIZE), -70, np.float32)},
        power={"real": np.stack([np.full(SIZE // 2, -75.0), np.ones(SIZE // 2)])},
        fingerprint={"swap": torch.ones(3, SIZE, SIZE)},
        correlation={},
        attention={},
        count={"real": 5},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector_registry, "load", models.__getitem__)
        patch.setattr(detector_registry, "loadable", lambda: ["xception", "meso4", "patch_cnn"])
        patch.setattr(registry, "installed_with_defence", installed)
        patch.setattr(trace_removal, "shipped_references", lambda: reference)
        patch.setattr(trace_removal, "sample_source", whole_picture)
        yield


def write_remover(folder):
    """Write a TR-Net as training does, which returns what it is given."""
    folder.mkdir()
    weights.save_half(folder / "trnet.safetensors", TRNet(0.125, residual=True).state_dict())
    options = {"width": 0.125, "statistics": "batch", "residual": True}
    (folder / "trnet.json").write_text(json.dumps({"options": {"trnet": options}}))
    return folder / "trnet.safetensors"


@pytest.fixture(scope="module")
def traces_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traces")
    for level in REAL:
        write_picture(folder / f"data/real/{level}.png", level)
    for family, levels in FAKES.items():
        for level in levels:
            write_picture(folder / f"data/fake/{family}/{level}.png", level)
    data = open_data(folder / "data", folder)
    config = TraceRemovalConfig(
        detectors=("xception", "meso4", "patch_cnn"),
        attacks=("fgsm",),
        removers=(f"copy={write_remover(folder / 'copy')}",),
        neighbours=3,
    )
    with toys():
        evaluation = finish(runs.run_protocol(TraceRemovalProtocol(config), data, folder / "out"))
        report.write_report(evaluation, folder / "out", "command")
    return evaluation, {table.name: table for table in evaluation.tables}, folder


def keyed(traces_run, name):
    return traces_run[1][name].keyed()


def test_accuracy_by_detector_by_hand(traces_run):
    rows = keyed(traces_run, "attacks")
    row = rows[OWN, "Xception"]  # above 178.5: 190 and 180 of three; after FGSM 182 alone
    assert (row["accuracy_real"], row["accuracy_fake"], row["after_fgsm"]) == (1, pytest.approx(2 / 3), 1 / 3)
    assert row["after_copy"] == row["accuracy_fake"]
    assert rows[OWN, "Patch-CNN"]["accuracy_real"] == pytest.approx(2 / 3)  # it accuses 177
    assert rows[OWN, "Meso-4"]["after_fgsm"] == 1
    assert rows["no defence", "Xception"]["accuracy_fake"] == pytest.approx(1 / 3)
    assert rows["no defence", "Xception"]["after_fgsm"] == 0
    assert ("no defence", "Meso-4") not in rows  # not installed


@pytest.mark.parametrize("saved", [True, False])
def test_faces_are_saved_before_an_attack_and_before_a_detector_looks(tmp_path, monkeypatch, saved):
    monkeypatch.setattr(trace_removal, "like_photographs", lambda pictures: pictures - 4)
    write_picture(tmp_path / "data/real/20.png", 20)
    write_picture(tmp_path / "data/fake/swap/190.png", 190)
    config = TraceRemovalConfig(detectors=("xception",), defences=("shipped",), attacks=("fgsm",), saved=saved)
    protocol, data = TraceRemovalProtocol(config), open_data(tmp_path / "data", tmp_path)
    with toys():
        done = [finish(protocol.run_item(item, data)) for item in protocol.items(data)]
    rows = [row for rows in done for row in rows if row["label"] == "fake"]
    scores = {row["attack"]: row["p_fake"] for row in rows if row["kind"] == "verdict"}
    darker = 4 if saved else 0
    for attack, level in (("none", 190 - 2 * darker), ("fgsm", 182 - 2 * darker)):
        assert scores[attack] == pytest.approx(1 / (1 + np.exp(-100 * (level - TOYS["xception"]) / 255)), abs=1e-4)
    psnr = [row["psnr"] for row in rows if row["kind"] == "picture" and row["attack"] == "fgsm"]
    assert psnr == pytest.approx([20 * np.log10(255 / 8)], abs=1e-3)
    assert any("JPEG 90" in sentence for sentence in protocol.limits(data)) == saved


def test_mean_of_the_six_leaves_out_other_detectors(traces_run):
    rows = keyed(traces_run, "attacks")
    six = rows[OWN, "mean of the six"]  # Xception and Patch-CNN; MesoNet is none of them
    assert six["accuracy_fake"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert six["after_fgsm"] == pytest.approx(1 / 3)
    families, by_detector = keyed(traces_run, "families"), keyed(traces_run, "families_detectors")
    assert (families["face swaps", "FGSM"]["mean_shipped"], families["face swaps", "FGSM"]["mean_none"]) == (0.5, 0)
    assert families["drawn", "no attack"]["mean_shipped"] == 0
    assert by_detector["face swaps", OWN, "FGSM"]["xception"] == 0.5
    assert by_detector["face swaps", "no defence", "FGSM"]["meso4"] is None
    assert by_detector["drawn", OWN, "no attack"]["meso4"] == 1
    assert by_detector["face swaps", OWN, "FGSM"]["count"] == 2
    assert traces_run[0].tables[0].by_family


def test_quality_by_hand(traces_run):
    rows = keyed(traces_run, "quality")
    assert rows["all", "FGSM"]["psnr"] == pytest.approx(20 * np.log10(255 / 8))
    assert rows["all", "FGSM"]["unchanged"] == 0
    assert rows["all", "TR-Net copy"]["psnr"] is None
    assert (rows["all", "TR-Net copy"]["ssim"], rows["all", "TR-Net copy"]["unchanged"]) == (1, 3)
    assert rows["face swaps", "TR-Net copy"]["unchanged"] == 2


def test_traces_by_hand(traces_run):
    rows = keyed(traces_run, "traces")
    # An even picture has no power but at frequency 0: the floor of 1e-8 stands there, -80 dB.
    for name in ("real pictures", "fakes", "FGSM"):
        assert rows[name,]["power"] == pytest.approx(5, abs=1e-3)
    for name, levels in (("real pictures", REAL), ("fakes", (190, 180, 170)), ("FGSM", (182, 172, 162))):
        even = [np.full((SIZE, SIZE), float(level)) for level in levels]
        with np.errstate(divide="ignore", invalid="ignore"):  # scipy divides by a variance of zero
            noise = [picture - wiener(picture, 3) for picture in even]
        assert rows[name,]["residual"] == pytest.approx(
            np.mean([np.sqrt((residual**2).mean()) for residual in noise]), rel=1e-4
        )
    # Beyond the border lie zeros, so the residual is positive there and the all-even fingerprint finds it.
    residual = noise[0]
    assert rows["FGSM",]["correlation"] == pytest.approx(
        residual.sum() / np.sqrt(SIZE**2 * (residual**2).sum()), rel=1e-4
    )
    # The spectrum is -80 dB but for frequency 0, whose value is the sum of the pixels.
    peak = np.mean([20 * np.log10(level / 255 * SIZE**2) for level in REAL])
    expected = (10 * (SIZE**2 - 1) + abs(peak + 70)) / SIZE**2
    assert rows["real pictures",]["spectrum"] == pytest.approx(expected, rel=2e-3)


def test_neighbours_in_feature_space_by_hand(traces_run):
    rows = keyed(traces_run, "features")
    # The toys' features are the grey level. Of 20, 100, 177 and the other fakes, the three nearest to 190 are
    # 180, 177, 170; to 180: 177, 190 and 170; to 170: 177, 180 and 190: one real among three each time.
    for name in ("fakes", "TR-Net copy"):
        assert rows["Xception", name]["real_neighbours"] == pytest.approx(1 / 3)
    assert ("Xception", "FGSM") not in rows
    assert "it would be 0.60" in traces_run[1]["features"].note  # three real ones among five others
    shares = traces.real_neighbours(*(np.array([[x] for x in xs]) for xs in ([5], [4, 9], [5, 6])), np.array([0]), 2)
    assert shares.tolist() == [0.5]
    assert np.isnan(traces.real_neighbours(np.ones((1, 1)), np.empty((0, 1)), np.ones((1, 1)), np.array([0]), 2)).all()


def test_the_paper_s_numbers_stand_beside(traces_run):
    first = traces_run[1]["beside"].records()[0]
    assert (first["attack"], first["paper_none"], first["paper_weak"]) == ("no attack", 0.9089, "not printed")
    assert (first["ours_none"], first["ours_none_std"]) == (pytest.approx(1 / 3), pytest.approx(3**-0.5))
    likeness = traces_run[1]["beside_quality"].keyed()["FGSM",]
    assert (likeness["paper_psnr"], likeness["psnr"]) == (30.13, pytest.approx(20 * np.log10(255 / 8)))
    assert "differs from ours because" in traces_run[1]["beside"].note
    undefended, defended = traces_run[0].published
    for number, name in enumerate(("noise", "fgsm", "pgd", "ganprintr", "trnet"), 3):
        paper_mean = np.mean([row[number] for row in undefended.rows])
        assert paper_mean == pytest.approx(published.TRACE_REMOVAL_MEANS["none"][name], abs=1e-4)
    assert np.mean([row[1] for row in defended.rows]) == pytest.approx(0.4318, abs=1e-4)
    assert np.mean([row[3] for row in defended.rows]) == pytest.approx(0.5974, abs=1e-4)


def test_the_finding_and_what_is_missing_are_reported(traces_run):
    evaluation, tables, _ = traces_run
    assert evaluation.finding.startswith(
        "2 of the six detectors of TR-Net's paper, trained with the app's own defence, find"
    )
    assert "67% of the untouched fakes" in evaluation.finding
    assert "FGSM leaves least, 33% at a PSNR of 30.1 dB" in evaluation.finding
    missing = tables["missing"].keyed()
    assert all("python -m backend train detector NAME" in key[2] for key in missing)
    assert any(key[0] == "the weak defence" and "--defence weak" in key[2] for key in missing)
    assert {"accuracy", "families", "cost", "power", "spectra", "features_detector"} == {
        plot.name for plot in evaluation.plots
    }
    assert "FGSM 0.33" in evaluation.plots[0].alt


def test_other_strengths_are_told_apart_from_other_attacks():
    rows = []
    for attack, psnr, scores in (
        ("none", None, (0.9, 0.9)),
        ("ganprintr", 29.0, (0.1, 0.9)),
        ("trnet", 34.0, (0.9, 0.1)),
        ("trnet_most", 29.5, (0.1, 0.1)),
    ):
        common = {"label": "fake", "family": "swap", "sample": "a", "attack": attack}
        rows.append(common | {"kind": "picture", "psnr": psnr})
        for name, score in zip(("xception", "patch_cnn"), scores, strict=True):
            rows.append(common | {"kind": "verdict", "defence": "shipped", "detector": name, "p_fake": score})
    with toys():
        finding = TraceRemovalProtocol(TraceRemovalConfig(detectors=("xception", "patch_cnn"))).finding(rows)
    assert "50% after TR-Net at a PSNR of 34.0 dB; of the other attacks GANprintR leaves least, 50%" in finding
    assert finding.endswith("TR-Net, twice its change, leaves 0% at a PSNR of 29.5 dB.")
    remaining = trace_removal.without_strengths(pd.DataFrame(rows))
    assert set(remaining["attack"]) == {"none", "ganprintr", "trnet"}


def test_a_report_names_files_without_their_folders_and_gives_their_hash(traces_run):
    evaluation, _, folder = traces_run
    assert evaluation.about["settings"]["removers"] == ["copy=trnet.safetensors"]
    assert evaluation.about["weights"]["TR-Net copy"] == weights.file_hash(folder / "copy" / "trnet.safetensors")
    assert str(folder) not in (folder / "out" / report.JSON_FILE).read_text()
    assert any("shows those of the detector xception" in sentence for sentence in evaluation.limits)


def test_wrong_settings_are_refused(traces_run, tmp_path):
    data = open_data(traces_run[2] / "data", tmp_path)
    usual = TraceRemovalConfig(detectors=("xception",), attacks=("fgsm",))
    with toys():
        for wrong, sentence in (
            ({"attacks": ("fog",)}, "no attack named fog"),
            ({"defences": ("magic",)}, "no defence magic"),
            ({"defences": ("weak",)}, "No detector of these sets"),
            ({"removers": ("nothing",)}, "needs a file and a name"),
            ({"removers": ("fgsm=x",)}, "cannot be called fgsm"),
            ({"detectors": ("nobody",)}, "no detector named nobody"),
        ):
            with pytest.raises(UserError, match=sentence):
                TraceRemovalProtocol(dataclasses.replace(usual, **wrong)).items(data)
        with pytest.raises(UserError, match="no file absent"):
            TraceRemovalProtocol(dataclasses.replace(usual, removers=(f"a={tmp_path}/absent",))).hashes()
        with pytest.raises(UserError, match="no checkpoint absent"):
            TraceRemovalProtocol(dataclasses.replace(usual, checkpoint=str(tmp_path / "absent"))).hashes()
    path = write_remover(tmp_path / "broken")
    path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        removal.parse_removers((f"broken={path}",))[0].load()


def rows_of(folder):
    store = Store(folder)
    try:
        return [without_timings(row) for row in store.rows()]
    finally:
        store.close()


def same(first, second):
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.slow
def test_every_engine_and_a_resumed_run_give_equal_rows(tmp_path, monkeypatch):
    if not registry.get_attack("trnet").available():
        pytest.skip("TR-Net is not installed")
    from backend import samples

    data = open_data(samples.draw_sample_set(tmp_path / "sample"), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be used"):
        samples.draw_sample_set(tmp_path / "file" / "sample")
    config = TraceRemovalConfig(2, 1, detectors=("mesoinception4",), attacks=("noise", "pgd", "trnet"))
    config = dataclasses.replace(config, white_box="mesoinception4", features="mesoinception4")
    protocol = TraceRemovalProtocol(config)
    engines.prepare_worker(0)  # one thread, as the workers have
    for known in ("_copies", "_asked"):  # and no detector that earlier tests have compiled
        monkeypatch.setattr(inference, known, WeakKeyDictionary())
    finish(runs.run_protocol(protocol, data, tmp_path / "whole"))
    expected = rows_of(tmp_path / "whole")
    assert {row["attack"] for row in expected} == {"none", *config.attacks}
    job = runs.run_protocol(protocol, data, tmp_path / "resumed")
    for _ in range(4):
        next(job)
    job.close()
    finish(runs.run_protocol(protocol, data, tmp_path / "resumed", resume=True))
    assert same(rows_of(tmp_path / "resumed"), expected)
    finish(runs.run_protocol(protocol, data, tmp_path / "processes", engine=engines.choose_engine("local", 1)))
    assert same(rows_of(tmp_path / "processes"), expected)
    pytest.importorskip("ray", reason="ray is optional (requirements-ray.txt)")
    finish(runs.run_protocol(protocol, data, tmp_path / "ray", engine=engines.choose_engine("ray", 1)))
    assert same(rows_of(tmp_path / "ray"), expected)


def test_the_entry_of_tr_net_is_an_attack():
    assert removal.TRNET_ENTRY in registry.ATTACKS  # its pictures' features are drawn
