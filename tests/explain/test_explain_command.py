import json

import numpy as np
import pytest
from PIL import Image

from backend import provenance
from backend.cli import main
from backend.settings import ROOT

FAKE = ROOT / "examples" / "generated_1.png"


def run(capsys, *arguments):
    code = main.main(["explain", *map(str, arguments), "--json"])
    output = capsys.readouterr()
    return code, json.loads(output.out), output.err


def test_a_map_is_written_with_its_pictures_and_numbers(capsys, tmp_path):
    code, answer, progress = run(
        capsys, FAKE, "--detector", "efficientnet_b4", "--method", "sobol", "--shortcut", "--proof", "--out", tmp_path
    )
    assert code == 0 and not answer["degenerate"] and answer["reference"] == "adversarial"
    saved = np.load(answer["map"])
    assert saved.dtype == np.float32 and saved.shape == (128, 128) and np.isfinite(saved).all()
    for name in ("map_picture", "overlay", "reference", "difference", "crop"):
        with Image.open(answer["files"][name]) as picture:
            assert picture.format == "PNG"
            assert (provenance.read_record((tmp_path / f"{name}.png").read_bytes()) is None) == (name == "crop")
    assert set(answer["inferences"]) >= {"images", "calls", "attack", "explanation"}
    assert answer["inferences"]["images"] == sum(answer["inferences"][of]["images"] for of in ("attack", "explanation"))
    assert answer["inferences"]["attack"]["images"] > 0 and answer["seconds"] > 0
    assert len(answer["regions"]) == 3 and all(region["parts"] for region in answer["regions"])
    assert [entry["k"] for entry in answer["proof"]["sufficiency"]] == [1, 2, 3] and answer["proof"]["attack"] == "PGD"
    assert len(answer["curves"]["deletion"]) == len(answer["curves"]["insertion"]) == 51
    assert answer["precision"]["dtype"] in {"float32", "bfloat16"} and answer["precision"]["reason"]
    assert "White-box shortcut" in answer["summary"] and "They lie here" in answer["summary"]
    assert json.loads((tmp_path / "result.json").read_text())["summary"] == answer["summary"]
    assert "pictures" in progress


def test_a_method_without_a_choice_of_reference_reports_none(capsys, tmp_path):
    _, answer, _ = run(capsys, FAKE, "--detector", "efficientnet_b4", "--method", "gradcam", "--out", tmp_path)
    assert answer["reference"] is None and answer["inferences"]["images"] == 1
    assert set(answer["files"]) == {"map", "map_picture", "crop", "overlay", "result"}


@pytest.mark.parametrize("wrong", [("--method", "none"), ("--method", "lime", "--face", "9")])
def test_a_mistake_gives_one_sentence_and_exit_code_2(capsys, tmp_path, wrong):
    code, answer, stderr = run(capsys, FAKE, "--detector", "efficientnet_b4", *wrong, "--out", tmp_path)
    assert code == 2 and answer["error"] and answer["hint"] and len(stderr.strip().splitlines()) == 1
