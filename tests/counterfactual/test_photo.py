import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from backend import faces, images
from backend.alignment import locate
from backend.cli import photo as cli_photo
from backend.counterfactual import photo as counterfactual_photo
from backend.counterfactual.photo import Team, choose_team, find_counterfactual
from backend.counterfactual.search import SearchSettings
from backend.detectors import combination, predict, registry
from backend.detectors.combination import Combination, Member
from backend.errors import UserError
from backend.progress import finish
from tests.toys import hooks, toy_detector, toy_inverter

SIZE = 64
FACE = faces.Face(
    (60.0, 50.0, 140.0, 160.0),
    0.99,
    np.array([[85, 90], [115, 90], [100, 108], [88, 122], [112, 122]], dtype=np.float64),
)


@pytest.fixture
def detectors(monkeypatch):
    """Two toy detectors in place of the registry's, and a finder that always finds the same face."""
    known = {
        "toy": toy_detector(size=SIZE),
        "strict": toy_detector(threshold=0.3, name="strict", size=SIZE),
    }
    monkeypatch.setattr(registry, "loadable", lambda: list(known))
    monkeypatch.setattr(registry, "load", known.__getitem__)
    monkeypatch.setattr(faces, "find_faces", lambda image: [FACE])
    return known


def photo(level: int = 200) -> np.ndarray:
    return np.full((200, 220, 3), level, dtype=np.uint8)


def test_a_photo_from_start_to_end(detectors):
    steps = []
    result = finish(
        find_counterfactual(locate(photo()), "toy", SearchSettings(kappa=0.1), inverter=toy_inverter(SIZE)),
        steps.append,
    )
    assert result.flipped and not result.already_real
    assert (result.counterfactual == 173).all() and (result.original == 200).all()
    assert result.residual.largest == 27
    assert result.retest["strict"][0] > result.retest["strict"][1] > 0.5 and "toy" not in result.retest
    assert result.p_pasted < 0.5
    assert result.pasted.shape == photo().shape and result.pasted[0, 0, 0] == 200 and result.pasted[100, 100, 0] == 173
    assert steps[-1].number == steps[-1].total
    assert all(step.number <= step.total for step in steps)
    # The level 173 scores 0.39, for which the verdicts' word is unsure.
    assert "the detector toy is unsure about the face: p_fake went" in result.summary
    assert "Put back into the photo" in result.summary
    assert all(hooks(detector) == 0 for detector in detectors.values())


def test_a_detector_without_a_layer_says_so_in_place_of_a_map(detectors):
    detectors["toy"].card = replace(detectors["toy"].card, cam_layer="")
    result = finish(find_counterfactual(locate(photo()), "toy", SearchSettings(kappa=0.1), inverter=toy_inverter(SIZE)))
    assert result.flipped and result.cams.empty.all()
    assert "no layer whose attention could be shown" in result.record()["cam_missing"]
    assert result.cams.note == result.record()["cam_missing"]


def test_the_record_is_plain_json_with_everything_that_was_set(detectors):
    result = finish(
        find_counterfactual(locate(photo()), "toy", SearchSettings(seed=7, kappa=0.1), inverter=toy_inverter(SIZE))
    )
    record = json.loads(json.dumps(result.record(), allow_nan=False))
    assert set(record["p_fake"]) == {"original", "inversion", "counterfactual"}
    assert record["settings"]["seed"] == 7 and record["steps"] == 9 and record["level"] == "S,M,D"
    assert record["versions"]["torch"] == torch.__version__
    assert record["metrics"]["psnr"] == pytest.approx(20 * np.log10(255 / 27))
    assert set(record["retest"]["strict"]) == {"original", "counterfactual"}
    assert record["summary"] == result.summary


def test_a_team_is_searched_against_and_one_tests_it(detectors, monkeypatch):
    detectors["third"] = toy_detector(threshold=0.6, name="third", size=SIZE)
    monkeypatch.setattr(registry, "card", lambda name: detectors[name].card)
    team = Team(("third",), "strict")
    job = find_counterfactual(
        locate(photo()), "toy", SearchSettings(kappa=0.1, loss="softplus"), team=team, inverter=toy_inverter(SIZE)
    )
    result = finish(job)
    # The third passes below (0.6 - ln(55 / 45) / 20) * 255 = 150.4, which 200 - 3 * 17 = 149 is the first to reach.
    assert (result.counterfactual == 149).all() and result.flipped
    record = json.loads(json.dumps(result.record(), allow_nan=False))
    assert list(record["allies"]) == ["third"] and record["allies"]["third"]["counterfactual"] < 0.45
    assert list(record["retest"]) == ["strict"] and record["held_out"] == "strict"
    assert "searched against Toy as well; 1 of 1" in record["summary"]
    assert "Toy was kept out of the search as a test: it still sees signs" in record["summary"]


@pytest.mark.parametrize(
    ("scores", "team"),
    [
        ({}, Team()),
        ({"b": 0.4}, Team()),  # calls it no fake
        ({"b": 0.9}, Team((), "b")),
        ({"b": 0.9, "c": 0.6}, Team(("b",), "c")),
        ({"a": 0.9, "b": 0.9, "c": 0.6, "d": 0.7, "e": 0.8, "other": 1.0}, Team(("b", "d"), "c")),
    ],
)
def test_the_strongest_other_member_is_held_out_and_two_more_are_searched_against(monkeypatch, scores, team):
    areas = {"a": 0.9, "b": 0.7, "c": 0.8, "d": 0.65, "e": 0.6}
    members = tuple(Member(name, 1.0, 0.0, "") for name in areas)
    known = Combination(members, 0.0, 0.0, 0.0, {"candidates": areas})
    monkeypatch.setattr(combination, "read_combination", lambda: known)
    assert choose_team(scores, "a") == team
    monkeypatch.setattr(combination, "read_combination", lambda: None)
    assert choose_team(scores, "a") == Team()


def test_a_real_face_is_left_alone(detectors):
    result = finish(find_counterfactual(locate(photo(100)), "toy", inverter=toy_inverter(SIZE)))
    assert result.already_real and not result.flipped
    assert np.array_equal(result.pasted, photo(100))
    assert result.record()["metrics"]["psnr"] is None
    json.dumps(result.record(), allow_nan=False)


def test_a_mistake_gives_one_sentence(detectors, monkeypatch):
    with pytest.raises(UserError, match="no detector named"):
        finish(find_counterfactual(locate(photo()), "nobody", inverter=toy_inverter(SIZE)))
    with pytest.raises(UserError, match="number 2"):
        finish(find_counterfactual(locate(photo(), 2), "toy", inverter=toy_inverter(SIZE)))
    monkeypatch.setattr(faces, "find_faces", lambda image: [])
    with pytest.raises(UserError, match="No face"):
        finish(find_counterfactual(locate(photo()), "toy", inverter=toy_inverter(SIZE)))


def test_closing_the_job_restores_the_detector(detectors):
    detector = detectors["toy"]
    detector.train()
    job = find_counterfactual(locate(photo()), "toy", inverter=toy_inverter(SIZE))
    next(job)
    assert not detector.training
    job.close()
    assert detector.training and all(weight.requires_grad for weight in detector.parameters())


def test_a_face_lost_after_pasting_is_reported(detectors, monkeypatch):
    detections = iter([[FACE], []])
    monkeypatch.setattr(faces, "find_faces", lambda image: next(detections))
    result = finish(find_counterfactual(locate(photo()), "toy", inverter=toy_inverter(SIZE)))
    assert result.p_pasted is None and "not found again" in result.summary


def test_retest_leaves_out_the_attacked_detector(detectors):
    before, after = torch.full((2, 3, 8, 8), 0.9), torch.full((2, 3, 8, 8), 0.1)
    scores = predict.retest(before, after, ["toy"])
    assert list(scores) == ["strict"] and scores["strict"][0].shape == (2,)
    plain = {name: (float(p_before[0]), float(p_after[0])) for name, (p_before, p_after) in scores.items()}
    assert predict.retest_in_words(plain) == "Of 1 other detector that saw signs of forgery, 1 no longer does."
    plain = {"a": (0.9, 0.45), "b": (0.7, 0.1), "c": (0.6, 0.1)}
    assert (
        predict.retest_in_words(plain)
        == "Of 2 other detectors that saw signs of forgery, 1 no longer does and 1 is unsure now."
    )


@pytest.mark.parametrize(
    ("level", "message"),
    [(100, "sees no signs of forgery that it knows in this face"), (175, "is unsure about this face")],
)
def test_a_face_below_the_threshold_is_described_by_its_verdict(detectors, level, message):
    result = finish(find_counterfactual(locate(photo(level)), "toy", inverter=toy_inverter(SIZE)))
    assert result.already_real and message in result.summary and "nothing to change" in result.summary


def test_the_refinement_is_reported_and_recorded(detectors):
    steps = []
    job = find_counterfactual(locate(photo()), "toy", SearchSettings(kappa=0.1, refine=2), inverter=toy_inverter(SIZE))
    result = finish(job, steps.append)
    record = json.loads(json.dumps(result.record(), allow_nan=False))
    assert record["refined"]["psnr_after"] > record["refined"]["psnr_before"]
    assert record["settings"]["refine"] == 2 and "In 2 steps, the reconstruction" in result.summary
    assert [step.number for step in steps] == sorted(step.number for step in steps)
    assert len({step.total for step in steps}) == 1 and steps[-1].number == steps[-1].total


def test_the_command_line_writes_the_pictures_of_the_zip(detectors, monkeypatch, tmp_path):
    monkeypatch.setattr("backend.counterfactual.photo.inversion.load_embedded_inverter", lambda: toy_inverter(SIZE))
    (tmp_path / "photo.png").write_bytes(images.encode_png(photo()))
    answer = cli_photo.counterfactual(image=tmp_path / "photo.png", detector="toy", out=tmp_path / "out")
    bundle = counterfactual_photo.bundle_counterfactual(
        finish(find_counterfactual(locate(photo()), "toy", inverter=toy_inverter(SIZE)))
    )
    with zipfile.ZipFile(io.BytesIO(bundle.zip())) as archive:
        zipped = {name.removesuffix(".png") for name in archive.namelist() if name.endswith(".png")}
    assert set(answer["files"]) - {"result"} == zipped == set(bundle.pictures())
    assert {"crop", "counterfactual", "residual", "cam_before", "photo"} <= zipped
    assert all(Path(file).is_file() for file in answer["files"].values())
