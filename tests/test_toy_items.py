"""A new detector and a new attack are one file each: both are seen on the command line and on the page."""

import json
import sys

import numpy as np
import pytest
from safetensors.torch import save_file

import backend.attacks
import backend.detectors
from backend import alignment, faces, images, runtime, weights
from backend.attacks import registry as attacks
from backend.cli import main
from backend.detectors import registry as detectors
from backend.evaluate.protocols.trace_removal import ATTACK_TABLE, TraceRemovalProtocol
from backend.progress import finish
from backend.trace_removal import comparison
from backend.weights import Entry
from tabs.models import detector_choices
from tabs.trace_removal import attacks_table
from tests.detectors.test_own_crop_views import FACE
from tests.toys import toy_detector

TOY_DETECTOR = """
from torch import nn

from backend.detectors.registry import register_detector


@register_detector(
    "bright", title="Brightness", paper="This test.", outputs="one logit, fake high", mean=0.0, embedded={"width": 2}
)
class BrightnessDetector(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 1)

    def forward(self, faces):
        return self.conv(faces).mean((1, 2, 3))[:, None]
"""

TOY_ATTACK = """
import time
from dataclasses import dataclass

from backend.attacks.base import judge_attack, restore_outside
from backend.attacks.registry import register_attack
from backend.progress import Step


@dataclass(frozen=True)
class DarkenSettings:
    seed: int = 0


@register_attack("darken", title="Darkening", paper="This test.", needs="nothing", settings=DarkenSettings())
def attack(images, detector, settings=None, mask=None):
    darker = restore_outside(images * 0.9, images, mask)
    yield Step(1, 1, "Darker now.")
    return judge_attack("Darkening", images, darker, detector, settings, started=time.perf_counter())
"""


def grey_photo():
    return np.full((400, 420, 3), 99, np.uint8)


@pytest.fixture
def new_files(tmp_path, monkeypatch):
    """Add a detector and an attack, each by one file in a folder that belongs to its package."""
    kinds = ((detectors.ARCHITECTURES, backend.detectors, TOY_DETECTOR), (attacks.ATTACKS, backend.attacks, TOY_ATTACK))
    for table, package, text in kinds:
        known = set(table)
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / "toy.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.setattr(table, "_items", {name: table[name] for name in known})
        monkeypatch.setattr(table, "_complete", False)
    yield tmp_path
    for _, package, _ in kinds:
        sys.modules.pop(f"{package.__name__}.toy", None)


@pytest.fixture
def trained(new_files, monkeypatch):
    """Install weights of the new detector, as training does."""
    path = new_files / "bright.safetensors"
    network = detectors.build_embedded("bright", {})
    save_file(network.state_dict(), path)
    options = {"trained_on": "nothing", "known_failures": "everything"}
    entry = Entry("bright", "embedded", str(path), weights.file_hash(path), 0, "MIT", "This test.", options=options)
    entries = weights.read_entries() | {"bright": entry}
    monkeypatch.setattr(weights, "read_entries", lambda: entries)
    yield
    runtime._loaded.pop("detector bright", None)


def test_a_new_detector_is_built_and_listed(new_files):
    assert detectors.names()[-1] == "bright"
    assert detectors.build("bright").conv.out_channels == 8
    assert detectors.build_embedded("bright", {}).conv.out_channels == 2
    assert detectors.build_embedded("bright", {"width": 4}).conv.out_channels == 4


def test_a_new_detector_is_trained_by_name(new_files, capsys):
    command = [
        "train",
        "detector",
        "nobody",
        "--data",
        str(new_files),
        "--fakes",
        str(new_files),
        "--out",
        str(new_files / "out"),
        "--json",
    ]
    assert main.main(command) == 2
    assert json.loads(capsys.readouterr().out)["hint"].endswith("sbi, bright.")


def test_a_new_detector_with_weights_answers_on_the_command_line_and_stands_in_the_choosers(
    trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(faces, "find_faces", lambda _image: [FACE])
    photo = tmp_path / "photo.png"
    photo.write_bytes(images.encode_png(grey_photo()))
    assert main.main(["detect", str(photo), "--detector", "bright", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert 0 <= result["faces"][0]["verdicts"]["bright"]["p_fake"] <= 1
    assert main.main(["detect", str(photo), "--detector", "nobody", "--json"]) == 2
    assert "bright" in json.loads(capsys.readouterr().out)["hint"]
    assert ("Brightness", "bright") in detector_choices()


def test_a_new_attack_is_a_choice_of_the_command_line(new_files, capsys):
    assert attacks.compared_attacks()[-1] == "darken"
    assert TraceRemovalProtocol.preset(ATTACK_TABLE).attacks[-1] == "darken"
    for label in ("real", "fake/swap"):
        path = new_files / "data" / label / "one.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(images.encode_png(grey_photo()))
    arguments = [
        "--data",
        str(new_files / "data"),
        "--out",
        str(new_files / "out"),
        "--set",
        'attacks=["fog"]',
        "--json",
    ]
    assert main.main(["evaluate", "trace-removal", *arguments]) == 2
    assert json.loads(capsys.readouterr().out)["hint"].endswith("trnet_most, darken.")


def test_a_new_attack_stands_in_the_table_of_the_page(new_files, monkeypatch):
    toy = toy_detector(5, 0.3, "xception", detectors.EMBEDDED_SIZE)  # the name of the white box
    monkeypatch.setattr(detectors, "load", lambda _name: toy)
    monkeypatch.setattr(detectors, "loadable", lambda: ["xception"])
    monkeypatch.setattr(faces, "find_faces", lambda _image: [FACE])
    monkeypatch.setattr(comparison, "compared_attacks", lambda: ("noise", *attacks.compared_attacks()[-1:]))
    compared = finish(comparison.compare_attacks(alignment.locate(grey_photo())))
    assert [attack.title for attack in compared.attacks] == ["Noise", "Darkening"]
    assert "Darkening" in attacks_table(compared)
