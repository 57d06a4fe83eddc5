"""The command line, run as a person runs it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.settings import ROOT
from tests import pictures


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "backend", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    Image.fromarray(pictures.hopper()).save(folder / "hopper.jpg", quality=95)
    Image.fromarray(np.full((200, 200, 3), 120, np.uint8)).save(folder / "grey.png")
    (folder / "text.jpg").write_text("this is not a picture")
    return folder


def test_detect_reports_every_picture_in_one_object(folder):
    done = run("detect", "--json", *(str(folder / name) for name in ("hopper.jpg", "grey.png", "text.jpg")))
    assert done.returncode == 0
    hopper, grey, text = json.loads(done.stdout)["results"]
    (face,) = hopper["faces"]
    assert len(face["box"]) == 4
    assert set(face["verdicts"]) >= {"xception", "efficientnet_b4", "mesoinception4"}
    for verdict in face["verdicts"].values():
        assert 0 <= verdict["p_fake"] <= 1
        assert verdict["verdict"] in {"signs", "unsure", "no_known_signs"}
    assert face["combined"]["grade"] in {"none", "few", "mixed", "strong"}
    assert set(face["combined"]["detectors"]) <= set(face["verdicts"])
    assert grey["faces"] == []
    assert "No face" in grey["note"]
    assert text["error"]
    assert text["hint"]


def test_detect_exits_with_2_only_if_nothing_could_be_read(folder):
    done = run("detect", "--json", str(folder / "text.jpg"), str(folder / "absent.png"))
    assert done.returncode == 2
    assert all("error" in result for result in json.loads(done.stdout)["results"])
    assert "Traceback" not in done.stderr


def test_an_unknown_detector_gives_one_sentence(folder):
    done = run("detect", "--json", str(folder / "hopper.jpg"), "--detector", "nobody")
    assert done.returncode == 2
    assert json.loads(done.stdout)["hint"].startswith("Choose one of")
    assert len(done.stderr.strip().splitlines()) == 1


def test_weights_verify():
    done = run("weights", "verify", "--json")
    assert done.returncode == 0
    entries = json.loads(done.stdout)["entries"]
    assert {entry["name"] for entry in entries} >= {"generator", "encoder", "xception"}
    assert all(entry["verified"] and entry["present"] and entry["bytes"] and entry["licence"] for entry in entries)


def test_counterfactual_of_a_generated_face(tmp_path):
    from backend import images
    from backend.fakes import draw_samples
    from backend.generators import inversion

    face = tmp_path / "face.png"
    face.write_bytes(
        images.encode_png(images.to_array(draw_samples(inversion.load_embedded_inverter(), 1, seed=3, truncation=0.7)))
    )
    out = tmp_path / "out"
    command = ("counterfactual", str(face), "--detector", "xception", "--out", str(out), "--steps", "40", "--json")
    done = run(*command)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert set(answer["p_fake"]) == {"original", "inversion", "counterfactual"}
    assert answer["level"] == "S,M,D"
    assert answer["epsilon"] > 0
    assert "xception" not in answer["retest"]
    for scores in answer["retest"].values():
        assert set(scores) == {"original", "counterfactual"}
    if not answer.get("already_real"):
        assert answer["flipped"] == (answer["p_fake"]["counterfactual"] < 0.5)
        assert answer["metrics"]["psnr"] > 20
        for name in answer["files"].values():
            assert Path(name).is_file()
    again = json.loads(run(*command).stdout)
    assert again["p_fake"] == answer["p_fake"]


def test_counterfactual_of_a_wrong_file_gives_one_sentence(folder, tmp_path):
    done = run("counterfactual", str(folder / "text.jpg"), "--detector", "xception", "--out", str(tmp_path), "--json")
    assert done.returncode == 2
    assert set(json.loads(done.stdout)) == {"error", "hint"}
    assert "Traceback" not in done.stderr
