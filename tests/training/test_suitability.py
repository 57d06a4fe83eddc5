"""Tests of training the models for drawings and covered faces, and of the stored ones."""

import json

import numpy as np
import pytest
from PIL import Image

from backend import face_packs, suitability
from backend.cli import main
from backend.settings import SETTINGS
from backend.training import drawings
from backend.training import suitability as training
from benchmarks import suitability as measuring

QUICK = {"photographs": 60, "textures": 9, "drawings": 12, "covered": 24, "variants": 1}


@pytest.fixture(scope="module")
def portraits(tmp_path_factory):
    """Return a folder of aligned faces, all cut from two portraits in the public domain."""
    folder = tmp_path_factory.mktemp("portraits")
    randomness = np.random.default_rng(0)
    for number in range(90):
        portrait = measuring._recut(measuring.package_portraits()[number % 2], randomness)
        face = Image.fromarray(np.ascontiguousarray(portrait)).resize((128, 128), Image.Resampling.LANCZOS)
        face.save(folder / f"{number}.png")
    return folder


def train(folder, out, capsys, seed=0) -> dict:
    changes = [word for name, value in QUICK.items() for word in ("--set", f"{name}={value}")]
    command = [
        "train",
        "suitability",
        "--data",
        str(folder),
        "--out",
        str(out),
        "--seed",
        str(seed),
        *changes,
        "--json",
    ]
    assert main.main(command) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_is_repeatable_and_gives_models_that_can_be_used(portraits, tmp_path, capsys):
    report = train(portraits, tmp_path / "first.json", capsys)
    again = train(portraits, tmp_path / "again.json", capsys)
    other = train(portraits, tmp_path / "other.json", capsys, seed=1)
    first = (tmp_path / "first.json").read_bytes()
    assert first == (tmp_path / "again.json").read_bytes() != (tmp_path / "other.json").read_bytes()
    assert report["metrics"] == again["metrics"] != other["metrics"]
    content = json.loads(first)
    assert content["settings"]["photographs"] == 60 and content["settings"]["seed"] == 0
    model = suitability._read_model(content["drawing"])
    face = np.asarray(Image.open(portraits / "0.png"))
    flat = drawings.make_drawing("drawn", 5, face)[::3, ::3]
    features = np.stack([suitability.drawing_features(picture) for picture in (face, flat)])
    photograph, drawing = model.log_odds(features)
    assert photograph < 0 < drawing
    # What it was given as photographs is refused no more often than the settings allow.
    assert report["metrics"]["drawing"]["photographs"]["refused"] <= content["settings"]["drawing_alarms"]


def test_whitened_features_vary_alike_in_every_direction():
    randomness = np.random.default_rng(0)
    features = randomness.normal(size=(4000, 3)) @ randomness.normal(size=(3, 3))
    centred = features - features.mean(axis=0)
    whitened = centred @ training._whitening(centred, features.std(axis=0))
    assert np.allclose(np.cov(whitened.T), np.eye(3), atol=0.05)


def test_the_stored_models_say_what_made_them():
    content = json.loads((SETTINGS.weights_dir / suitability.FILE).read_text(encoding="utf-8"))
    assert content["source"].startswith("python -m backend train suitability, on ")
    assert set(content["settings"]) == set(training.SuitabilityTrainingSettings.__dataclass_fields__)
    assert set(content["calibration"]["drawing"]) == {
        "photographs", *training.PHOTOGRAPH_CHANGES, "textures", *drawings.LEARNED_KINDS
    }  # fmt: skip
    assert (SETTINGS.weights_dir / suitability.FILE).stat().st_size < 500_000


@pytest.mark.slow
def test_at_most_one_photograph_in_a_hundred_is_called_a_drawing(shared_folder):
    pack = face_packs.load_photographs(shared_folder / "faces", 128, face_packs.VALIDATION_PACKS)
    crops = pack.pictures.permute(0, 2, 3, 1).numpy()
    features = np.stack([suitability.drawing_features(crop) for crop in crops])
    called = suitability.load_models()["drawing"].log_odds(features) > 0
    assert len(called) > 600 and called.mean() <= 0.01
