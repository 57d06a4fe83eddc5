"""The full table: a toy run whose accuracies can be counted by hand, its resumption, and its command."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from backend.attacks import registry
from backend.cli import main
from backend.errors import UserError
from backend.evaluate import attack_table
from backend.evaluate.attack_table import AttackTableSettings, HeldOutFaces
from backend.images import like_photograph
from backend.progress import finish
from backend.trace_removal import removal
from backend.trace_removal.network import TRNet
from tests.toys import grey, toy_detector

DARKER = 8  # grey levels by which FGSM darkens every face of these toys
# Grey levels above which each toy says fake.
SHIPPED = {"xception": 178.5, "patch_cnn": 175.5, "meso4": 200.5}
PLAIN = {"xception": 150.5}
FAKES = {"swap": (190, 185, 180), "sample": (195, 170)}
REAL = (100, 177)
SETTINGS = AttackTableSettings(attacks=("fgsm",), batch=2)


def detectors():
    sets = {"plain": PLAIN, "shipped": SHIPPED}
    return {
        kind: {name: toy_detector(100.0, level / 255, name) for name, level in levels.items()}
        for kind, levels in sets.items()
    }


def in_bytes(*levels: int) -> torch.Tensor:
    return (grey(*levels) * 255).round().byte()


def faces() -> HeldOutFaces:
    levels = [level for family in FAKES.values() for level in family]
    families = tuple(family for family, own in FAKES.items() for _ in own)
    return HeldOutFaces(in_bytes(*levels), families, in_bytes(*REAL))


def only(rows, **wanted):
    (row,) = [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]
    return row


def share(levels, threshold, darker=0):
    return sum(level - darker > threshold for level in levels) / len(levels)


def test_accuracies_are_those_counted_by_hand(tmp_path):
    steps = []
    made = finish(attack_table.build_attack_table(faces(), tmp_path, SETTINGS, detectors()), steps.append)
    everything = [*FAKES["swap"], *FAKES["sample"]]
    # By hand, shipped Xception: 190, 185, 180, 195 of five are above 178.5; after FGSM 182 and 187.
    assert only(made.rows, detectors="shipped", attack="none", family="all").accuracy["xception"] == 0.8
    assert only(made.rows, detectors="shipped", attack="fgsm", family="all").accuracy["xception"] == 0.4
    for kind, levels in (("shipped", SHIPPED), ("plain", PLAIN)):
        for attack, darker in (("none", 0), ("fgsm", DARKER)):
            for family, own in (FAKES | {"all": everything}).items():
                row = only(made.rows, detectors=kind, attack=attack, family=family)
                expected = {name: share(own, threshold, darker) for name, threshold in levels.items()}
                assert row.accuracy == pytest.approx(expected)
                assert row.count == len(own)
                six = [expected[name] for name in registry.TRNET_DETECTORS if name in expected]
                assert row.mean == pytest.approx(sum(six) / len(six))  # MesoNet is none of the six
        real = only(made.rows, detectors=kind, attack="real", family="all")
        assert real.accuracy == pytest.approx({name: 1 - share(REAL, level) for name, level in levels.items()})
        assert real.count == len(REAL)
        attacked = only(made.rows, detectors=kind, attack="fgsm", family="all")
        assert attacked.psnr == pytest.approx((20 * np.log10(255 / DARKER), 0), abs=1e-4)
        assert 0.9 < attacked.ssim[0] < 1
        assert only(made.rows, detectors=kind, attack="none", family="all").psnr is None
    assert len(made.rows) == 2 * (1 + 3 + 3)
    assert made.left_out["plain"][:2] == ("patch_cnn", "dct_a")
    assert "xception" not in made.left_out["plain"]
    assert made.settings["each"]["fgsm"]["epsilon"] == 8 / 255
    assert made.settings["fakes"] == {"swap": 3, "sample": 2}
    assert made.settings["white_box"] == "xception"
    assert steps[-1].number == steps[-1].total
    assert "f3net" in made.summary


def test_detectors_see_saved_faces_and_likeness_is_that_of_the_attack(tmp_path, monkeypatch):
    monkeypatch.setattr(attack_table, "like_photographs", lambda pictures: pictures - 10)
    made = finish(attack_table.build_attack_table(faces(), tmp_path, SETTINGS, detectors()))
    for attack, darker in (("none", 10), ("fgsm", DARKER + 10)):
        row = only(made.rows, detectors="shipped", attack=attack, family="swap")
        expected = {name: share(FAKES["swap"], level, darker) for name, level in SHIPPED.items()}
        assert row.accuracy == pytest.approx(expected)
    assert row.psnr == pytest.approx((20 * np.log10(255 / DARKER), 0), abs=1e-4)
    assert "JPEG 90" in made.settings["saved"]


def test_both_files_say_the_same(tmp_path):
    made = finish(attack_table.build_attack_table(faces(), tmp_path, SETTINGS, detectors()))
    stored = json.loads((tmp_path / "table.json").read_text())
    assert stored["rows"][0]["accuracy"] == made.rows[0].accuracy
    assert stored["settings"] == json.loads(json.dumps(made.settings))
    with (tmp_path / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(made.rows)
    for line, row in zip(lines, made.rows, strict=True):
        assert (line["detectors"], line["attack"], line["family"]) == (row.detectors, row.attack, row.family)
        assert {name: float(line[name]) for name in row.accuracy} == pytest.approx(row.accuracy, abs=1e-4)
        assert (float(line["psnr"]) if line["psnr"] else None) == (row.psnr and pytest.approx(row.psnr[0], abs=1e-4))
    assert {line["patch_cnn"] for line in lines if line["detectors"] == "plain"} == {""}


def test_a_stopped_table_continues_and_equals_an_uninterrupted_one(tmp_path):
    settings = dataclasses.replace(SETTINGS, attacks=("noise", "fgsm"))
    whole = finish(attack_table.build_attack_table(faces(), tmp_path / "whole", settings, detectors()))
    found = detectors()
    job = attack_table.build_attack_table(faces(), tmp_path / "parts", settings, found)
    for _ in range(7):
        next(job)
    job.close()
    assert all(weight.requires_grad for kind in found.values() for one in kind.values() for weight in one.parameters())
    before = (tmp_path / "parts" / "parts" / "none.json").read_bytes()
    steps = []
    again = finish(attack_table.build_attack_table(faces(), tmp_path / "parts", settings, found), steps.append)
    assert again.rows == whole.rows
    assert steps[0].number > 3
    assert (tmp_path / "parts" / "parts" / "none.json").read_bytes() == before
    assert (
        finish(attack_table.build_attack_table(faces(), tmp_path / "parts", settings, found), steps.append).rows
        == whole.rows
    )


def test_a_folder_with_another_table_is_refused(tmp_path):
    finish(attack_table.build_attack_table(faces(), tmp_path, SETTINGS, detectors()))
    brighter = dataclasses.replace(faces(), fakes=faces().fakes + 1)
    other = detectors()
    other["plain"]["xception"].threshold = 1.0
    for changed in (
        attack_table.build_attack_table(faces(), tmp_path, dataclasses.replace(SETTINGS, seed=1), detectors()),
        attack_table.build_attack_table(brighter, tmp_path, SETTINGS, detectors()),
        attack_table.build_attack_table(faces(), tmp_path, SETTINGS, other),
    ):
        with pytest.raises(UserError, match="another folder"):
            finish(changed)


def test_what_is_not_installed_is_left_out_and_named(tmp_path, monkeypatch):
    absent = dataclasses.replace(registry.get_attack("ganprintr"), entry="absent")
    monkeypatch.setitem(registry.ATTACKS, "ganprintr", absent)
    found = detectors() | {"plain": {}}
    settings = dataclasses.replace(SETTINGS, attacks=("ganprintr", "fgsm"))
    made = finish(attack_table.build_attack_table(faces(), tmp_path, settings, found))
    assert made.left_out["attacks"] == ("ganprintr",)
    assert {row.attack for row in made.rows} == {"real", "none", "fgsm"}
    assert {row.detectors for row in made.rows} == {"shipped"}
    assert "ganprintr" in made.summary
    with pytest.raises(UserError, match="white box"):
        finish(
            attack_table.build_attack_table(faces(), tmp_path, dataclasses.replace(SETTINGS, white_box="dct_a"), found)
        )
    with pytest.raises(UserError, match="no attack"):
        finish(
            attack_table.build_attack_table(
                faces(), tmp_path, dataclasses.replace(SETTINGS, attacks=("nothing",)), found
            )
        )


def test_unchanged_faces_are_counted_and_not_measured(tmp_path, monkeypatch):
    still = dataclasses.replace(registry.get_attack("fgsm").settings, epsilon=0.0)
    monkeypatch.setitem(registry.ATTACKS, "fgsm", dataclasses.replace(registry.get_attack("fgsm"), settings=still))
    made = finish(attack_table.build_attack_table(faces(), tmp_path, SETTINGS, detectors()))
    row = only(made.rows, detectors="shipped", attack="fgsm", family="all")
    assert (row.psnr, row.ssim, row.unchanged) == (None, (1.0, 0.0), 5)


def test_the_settings_of_tr_net_are_those_of_its_network(monkeypatch):
    monkeypatch.setattr(removal, "load_trnet", lambda: TRNet(0.125, residual=True, bound=0.1, grain=2.0))
    said = registry.get_attack("trnet_half").applied()
    assert (said.width, said.residual, said.bound, said.grain, said.strength) == (0.125, True, 0.1, 2.0, 0.5)
    assert registry.get_attack("pgd").applied() is registry.get_attack("pgd").settings


def test_every_attack_of_the_table_says_what_it_needs():
    for name, one in registry.ATTACKS.items():
        assert one.name == name
        assert one.title
        assert "arXiv" in one.paper
        assert (one.entry is not None) == (one.needs == "trained weights")
        assert dataclasses.is_dataclass(one.settings)
        assert one.settings.seed == 0
    assert set(registry.COMPARED) <= set(registry.ATTACKS)
    assert len({one.title for one in registry.ATTACKS.values()}) == len(registry.ATTACKS)


def folder_of_fakes(folder):
    for family, count in (("swap", 3), ("edit", 2)):
        (folder / family).mkdir(parents=True)
        for number in range(count):
            level = 60 + 40 * number + len(family)
            Image.fromarray(np.full((128, 128, 3), level, np.uint8)).save(folder / family / f"{family}_{number}.png")


def test_held_out_faces_are_drawn_by_family_and_seed(tmp_path):
    folder_of_fakes(tmp_path / "fakes" / "val")
    real = tmp_path / "real"
    real.mkdir()
    for number in range(9):
        Image.fromarray(np.full((128, 128, 3), number, np.uint8)).save(real / f"{number}.png")
    everything = attack_table.read_held_out_faces(real, tmp_path / "fakes")
    assert everything.families == ("edit", "edit", "swap", "swap", "swap")
    assert everything.fakes.shape == (5, 3, 128, 128)
    assert len(everything.real) == 5
    some = attack_table.read_held_out_faces(real, tmp_path / "fakes" / "val", per_family=1, seed=2)
    assert some.families == ("edit", "swap")
    assert torch.equal(
        some.fakes, attack_table.read_held_out_faces(real, tmp_path / "fakes", per_family=1, seed=2).fakes
    )


def test_held_out_faces_of_both_classes_are_saved_alike(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    for picture, name in zip(pixels, ("fakes/swap/a.png", "real/b.png"), strict=True):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / name)
    found = attack_table.read_held_out_faces(tmp_path / "real", tmp_path / "fakes")
    for picture, read in zip(pixels, (found.fakes, found.real), strict=True):
        assert np.array_equal(read[0].permute(1, 2, 0).numpy(), like_photograph(picture))


def test_the_command_writes_the_table(tmp_path, capsys):
    folder_of_fakes(tmp_path / "fakes")
    out = tmp_path / "out"
    given = ["--data", str(tmp_path / "fakes"), "--fakes", str(tmp_path / "fakes"), "--out", str(out)]
    command = ["attack-table", *given, "--per-family", "1", "--attacks", "noise,fgsm", "--json"]
    assert main.main(command) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {row["attack"] for row in answer["rows"]} == {"real", "none", "noise", "fgsm"}
    assert answer["settings"]["fakes"] == {"edit": 1, "swap": 1}
    assert (out / "table.csv").is_file()
    assert (out / "table.json").is_file()
    assert main.main([*command[:-5], "--attacks", "nothing", "--json"]) == 2
    assert set(json.loads(capsys.readouterr().out)) == {"error", "hint"}
