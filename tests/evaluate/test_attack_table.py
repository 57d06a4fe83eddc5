"""The attack table: a toy run whose accuracies can be counted by hand, its resumption, and its command."""

import contextlib
import csv
import dataclasses
import json
import sqlite3

import numpy as np
import pytest
from PIL import Image

from backend import images
from backend.attacks import registry
from backend.cli import main
from backend.detectors import registry as detectors_registry
from backend.errors import UserError
from backend.evaluate import attack_table
from backend.evaluate.dataset import open_data
from backend.evaluate.protocols import trace_removal
from backend.evaluate.protocols.base import configure_protocol
from backend.evaluate.protocols.detectors import DetectorsProtocol
from backend.evaluate.protocols.trace_removal import ATTACK_TABLE, TraceRemovalProtocol
from backend.images import like_photograph
from backend.progress import finish
from backend.trace_removal import removal
from backend.trace_removal.network import TRNet
from tests.toy_protocol import write_picture
from tests.toys import toy_detector

DARKER = 8  # grey levels by which FGSM darkens every face of these toys
# Grey levels above which each toy says fake.
SHIPPED = {"xception": 178.5, "patch_cnn": 175.5, "meso4": 200.5}
PLAIN = {"xception": 150.5}
FAKES = {"swap": (190, 185, 180), "sample": (195, 170)}
REAL = (100, 177)
SETTINGS = {"attacks": ["fgsm"], "batch": 2}


@pytest.fixture
def detectors(monkeypatch):
    """Put toys in place of the installed detectors, and return them by set and name."""
    sets = {"none": PLAIN, "shipped": SHIPPED}
    toys = {
        defence: {name: toy_detector(100.0, level / 255, name, 128) for name, level in levels.items()}
        for defence, levels in sets.items()
    }
    entries = {name + ("" if kind == "shipped" else "_plain"): toy for kind in toys for name, toy in toys[kind].items()}

    def installed(defence, _names):
        return {name: name + ("" if defence == "shipped" else "_plain") for name in toys[defence]}

    monkeypatch.setattr(detectors_registry, "load", entries.__getitem__)
    monkeypatch.setattr(registry, "installed_with_defence", installed)
    return toys


def faces(folder, brighter=0):
    for family, levels in FAKES.items():
        for number, level in enumerate(levels):
            write_picture(folder / f"fake/{family}/{number}.png", level + brighter)
    for level in REAL:
        write_picture(folder / f"real/{level}.png", level)
    return open_data(folder, folder)


def table_job(out, data=None, **changes):
    protocol = configure_protocol(TraceRemovalProtocol, ATTACK_TABLE, SETTINGS | changes)
    return attack_table.build_attack_table(protocol, data or faces(out / "faces"), out, "command")


def only(rows, **criteria):
    (row,) = [row for row in rows if all(row[name] == value for name, value in criteria.items())]
    return row


def share(levels, threshold, darker=0):
    return sum(level - darker > threshold for level in levels) / len(levels)


def test_accuracies_are_those_counted_by_hand(tmp_path, detectors):
    steps = []
    table = finish(table_job(tmp_path), steps.append)
    rows = table["rows"]
    all_levels = [*FAKES["swap"], *FAKES["sample"]]
    # By hand, shipped Xception: 190, 185, 180, 195 of five are above 178.5; after FGSM 182 and 187.
    assert only(rows, detectors="shipped", attack="none", family="all")["accuracy"]["xception"] == 0.8
    assert only(rows, detectors="shipped", attack="fgsm", family="all")["accuracy"]["xception"] == 0.4
    for kind, levels in (("shipped", SHIPPED), ("plain", PLAIN)):
        for attack, darker in (("none", 0), ("fgsm", DARKER)):
            for family, fake_levels in (FAKES | {"all": all_levels}).items():
                row = only(rows, detectors=kind, attack=attack, family=family)
                expected = {name: share(fake_levels, threshold, darker) for name, threshold in levels.items()}
                assert row["accuracy"] == pytest.approx(expected)
                assert row["count"] == len(fake_levels)
                six = [expected[name] for name in registry.TRNET_DETECTORS if name in expected]
                assert row["mean"] == pytest.approx(sum(six) / len(six))  # MesoNet is none of the six
        real = only(rows, detectors=kind, attack="real", family="all")
        assert real["accuracy"] == pytest.approx({name: 1 - share(REAL, level) for name, level in levels.items()})
        assert real["count"] == len(REAL)
        attacked = only(rows, detectors=kind, attack="fgsm", family="all")
        assert attacked["psnr"] == pytest.approx((20 * np.log10(255 / DARKER), 0), abs=1e-4)
        assert 0.9 < attacked["ssim"][0] < 1
        assert only(rows, detectors=kind, attack="none", family="all")["psnr"] is None
    assert len(rows) == 2 * (1 + 3 + 3)
    assert table["left_out"]["plain"][:2] == ["patch_cnn", "dct_a"]
    assert "xception" not in table["left_out"]["plain"]
    assert table["settings"]["each"]["fgsm"]["epsilon"] == 8 / 255
    assert table["settings"]["fakes"] == {"swap": 3, "sample": 2}
    assert table["settings"]["white_box"] == "xception"
    assert steps[-1].number == steps[-1].total
    assert "f3net" in table["summary"]
    assert (tmp_path / "report.html").is_file()


def test_detectors_see_saved_faces_and_likeness_is_that_of_the_attack(tmp_path, monkeypatch, detectors):
    monkeypatch.setattr(trace_removal, "like_photographs", lambda pictures: pictures - 10)
    table = finish(table_job(tmp_path))
    for attack, darker in (("none", 20), ("fgsm", DARKER + 20)):  # saved before the attack and before a detector looks
        row = only(table["rows"], detectors="shipped", attack=attack, family="swap")
        expected = {name: share(FAKES["swap"], level, darker) for name, level in SHIPPED.items()}
        assert row["accuracy"] == pytest.approx(expected)
    assert row["psnr"] == pytest.approx((20 * np.log10(255 / DARKER), 0), abs=1e-4)
    assert "JPEG 90" in table["settings"]["saved"]


def test_both_files_agree(tmp_path, detectors):
    table = finish(table_job(tmp_path))
    stored = json.loads((tmp_path / "table.json").read_text())
    assert stored["rows"][0]["accuracy"] == table["rows"][0]["accuracy"]
    assert stored["settings"] == json.loads(json.dumps(table["settings"]))
    with (tmp_path / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(table["rows"])
    for line, row in zip(lines, table["rows"], strict=True):
        assert (line["detectors"], line["attack"], line["family"]) == (row["detectors"], row["attack"], row["family"])
        accuracy = row["accuracy"]
        assert {name: float(line[name]) for name in accuracy} == pytest.approx(accuracy, abs=1e-4)
        psnr = row["psnr"] and pytest.approx(row["psnr"][0], abs=1e-4)
        assert (float(line["psnr"]) if line["psnr"] else None) == psnr
    assert {line["patch_cnn"] for line in lines if line["detectors"] == "plain"} == {""}


def stored_items(folder):
    with contextlib.closing(sqlite3.connect(folder / "run.sqlite")) as connection:
        return set(connection.execute("SELECT key, rows, seconds FROM items"))


def test_a_stopped_table_continues_and_equals_an_uninterrupted_one(tmp_path, detectors):
    attacks = ["noise", "fgsm"]
    data = faces(tmp_path / "faces")
    uninterrupted = finish(table_job(tmp_path / "whole", data, attacks=attacks))
    job = table_job(tmp_path / "stopped", data, attacks=attacks)
    for _ in range(7):
        next(job)
    job.close()
    assert all(
        weight.requires_grad for kind in detectors.values() for toy in kind.values() for weight in toy.parameters()
    )
    before = stored_items(tmp_path / "stopped")
    steps = []
    continued = finish(table_job(tmp_path / "stopped", data, attacks=attacks), steps.append)
    assert continued["rows"] == uninterrupted["rows"]
    assert steps[1].number > 3
    assert before < stored_items(tmp_path / "stopped")
    assert finish(table_job(tmp_path / "stopped", data, attacks=attacks))["rows"] == uninterrupted["rows"]


def test_a_folder_with_another_table_is_refused(tmp_path, monkeypatch, detectors):
    data = faces(tmp_path / "faces")
    finish(table_job(tmp_path, data))
    for job in (
        table_job(tmp_path, data, seed=1),
        table_job(tmp_path, faces(tmp_path / "brighter", brighter=1)),
    ):
        with pytest.raises(UserError, match="another folder"):
            finish(job)
    monkeypatch.setattr("backend.weights.model_hashes", lambda names: dict.fromkeys(names, "other"))
    with pytest.raises(UserError, match="another folder"):
        finish(table_job(tmp_path, data))


def test_what_is_not_installed_is_left_out_and_named(tmp_path, monkeypatch, detectors):
    absent = dataclasses.replace(registry.get_attack("ganprintr"), entry="absent")
    monkeypatch.setitem(registry.ATTACKS._items, "ganprintr", absent)
    detectors["none"].clear()
    data = faces(tmp_path / "faces")
    table = finish(table_job(tmp_path, data, attacks=["ganprintr", "fgsm"]))
    assert table["left_out"]["attacks"] == ["ganprintr"]
    assert {row["attack"] for row in table["rows"]} == {"real", "none", "fgsm"}
    assert {row["detectors"] for row in table["rows"]} == {"shipped"}
    assert "ganprintr" in table["summary"]
    with pytest.raises(UserError, match="no detector named absent"):
        finish(table_job(tmp_path / "other", data, white_box="absent"))
    with pytest.raises(UserError, match="no attack"):
        finish(table_job(tmp_path / "other", data, attacks=["nothing"]))


def test_unchanged_faces_are_counted_and_not_measured(tmp_path, monkeypatch, detectors):
    still = dataclasses.replace(registry.get_attack("fgsm").settings, epsilon=0.0)
    unmoved = dataclasses.replace(registry.get_attack("fgsm"), settings=still)
    monkeypatch.setitem(registry.ATTACKS._items, "fgsm", unmoved)
    row = only(finish(table_job(tmp_path))["rows"], detectors="shipped", attack="fgsm", family="all")
    assert (row["psnr"], row["ssim"], row["unchanged"]) == (None, [1.0, 0.0], 5)


def test_faces_that_cannot_be_measured_end_the_table(tmp_path, detectors):
    data = faces(tmp_path / "faces")
    data.path("fake/swap/0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="could not be measured"):
        finish(table_job(tmp_path, data))


def test_the_preset_belongs_to_one_protocol():
    with pytest.raises(UserError, match="no preset attack-table"):
        configure_protocol(DetectorsProtocol, ATTACK_TABLE, {})


def test_the_settings_of_tr_net_are_those_of_its_network(monkeypatch):
    monkeypatch.setattr(removal, "load_trnet", lambda: TRNet(0.125, residual=True, bound=0.1, grain=2.0))
    final = registry.get_attack("trnet_half").final_settings()
    assert (final.width, final.residual, final.bound, final.grain, final.strength) == (0.125, True, 0.1, 2.0, 0.5)
    assert registry.get_attack("pgd").final_settings() is registry.get_attack("pgd").settings


def test_every_attack_of_the_table_says_what_it_needs():
    for name, attack in registry.ATTACKS.items():
        assert attack.name == name
        assert attack.title
        assert "arXiv" in attack.paper
        assert (attack.entry is not None) == (attack.needs == "trained weights")
        assert dataclasses.is_dataclass(attack.settings)
        assert attack.settings.seed == 0
    assert set(registry.compared_attacks()) <= set(registry.ATTACKS)
    assert len({attack.title for attack in registry.ATTACKS.values()}) == len(registry.ATTACKS)


def folder_of_fakes(folder):
    for family, count in (("swap", 3), ("edit", 2)):
        (folder / family).mkdir(parents=True)
        for number in range(count):
            level = 60 + 40 * number + len(family)
            Image.fromarray(np.full((128, 128, 3), level, np.uint8)).save(folder / family / f"{family}_{number}.png")


def test_held_out_faces_are_drawn_by_family_and_seed(tmp_path):
    folder_of_fakes(tmp_path / "fakes" / "val")
    real, out = tmp_path / "real", tmp_path / "out"
    real.mkdir()
    for number in range(9):
        Image.fromarray(np.full((128, 128, 3), number, np.uint8)).save(real / f"{number}.png")
    all_faces = attack_table.collect_faces(real, tmp_path / "fakes", out)
    assert [fake.family for fake in all_faces.fakes] == ["edit", "edit", "swap", "swap", "swap"]
    assert len(all_faces.reals) == 5
    selected = attack_table.collect_faces(real, tmp_path / "fakes" / "val", out, per_family=1, seed=2)
    assert [fake.family for fake in selected.fakes] == ["edit", "swap"]
    repeated = attack_table.collect_faces(real, tmp_path / "fakes", out, per_family=1, seed=2)
    assert selected == repeated
    for per_family, drawn in ((0, all_faces), (1, selected)):  # the preset draws the same faces, and keeps those drawn
        protocol = configure_protocol(TraceRemovalProtocol, ATTACK_TABLE, {"per_family": per_family, "seed": 2})
        assert protocol.select_samples(drawn) == drawn
    with pytest.raises(UserError, match="per_family cannot be -1"):
        configure_protocol(TraceRemovalProtocol, ATTACK_TABLE, {"per_family": -1})


def test_held_out_faces_of_both_classes_are_saved_alike(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    for picture, name in zip(pixels, ("fakes/swap/a.png", "real/b.png"), strict=True):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / name)
    data = attack_table.collect_faces(tmp_path / "real", tmp_path / "fakes", tmp_path / "out")
    protocol = configure_protocol(TraceRemovalProtocol, ATTACK_TABLE, {})
    crops, sources = protocol._crops(data, data.samples)
    assert sources is None
    for picture, crop in zip(pixels, crops, strict=True):
        saved = images.to_array(protocol._as_saved(images.to_tensor(crop)))
        assert np.array_equal(saved, like_photograph(picture))


def test_the_command_writes_the_table(tmp_path, capsys):
    folder_of_fakes(tmp_path / "fakes")
    out = tmp_path / "out"
    arguments = ["--data", str(tmp_path / "fakes"), "--fakes", str(tmp_path / "fakes"), "--out", str(out)]
    command = ["attack-table", *arguments, "--per-family", "1", "--attacks", "noise,fgsm", "--json"]
    assert main.main(command) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {row["attack"] for row in answer["rows"]} == {"real", "none", "noise", "fgsm"}
    assert answer["settings"]["fakes"] == {"edit": 1, "swap": 1}
    assert (out / "table.csv").is_file()
    assert (out / "table.json").is_file()
    assert main.main([*command[:-5], "--attacks", "nothing", "--json"]) == 2
    assert set(json.loads(capsys.readouterr().out)) == {"error", "hint"}
    assert main.main(["attack-table", *arguments, "--per-family", "0", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "--per-family must be at least 1."
