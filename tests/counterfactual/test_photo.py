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
from backend.counterfactual.photo import find_counterfactual
from backend.counterfactual.search import SearchSettings
from backend.detectors import predict, registry
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


def test_the_whole_way_of_a_photo(detectors):
    steps = []
    story = finish(
        find_counterfactual(locate(photo()), "toy", SearchSettings(kappa=0.1), inverter=toy_inverter(SIZE)),
        steps.append,
    )
    assert story.flipped and not story.already_real
    assert (story.counterfactual == 173).all() and (story.original == 200).all()
    assert story.residual.largest == 27
    assert story.retest["strict"][0] > story.retest["strict"][1] > 0.5 and "toy" not in story.retest
    assert story.p_pasted < 0.5
    assert story.pasted.shape == photo().shape and story.pasted[0, 0, 0] == 200 and story.pasted[100, 100, 0] == 173
    assert steps[-1].number == steps[-1].total
    assert all(one.number <= one.total for one in steps)
    # The level 173 scores 0.39, for which the verdicts' word is uncertain.
    assert "the detector toy is uncertain about the face, on the side of real: p_fake went" in story.summary
    assert "Put back into the photo" in story.summary
    assert all(hooks(detector) == 0 for detector in detectors.values())


def test_a_detector_without_a_layer_says_so_in_place_of_a_map(detectors):
    detectors["toy"].card = replace(detectors["toy"].card, cam_layer="")
    story = finish(find_counterfactual(locate(photo()), "toy", SearchSettings(kappa=0.1), inverter=toy_inverter(SIZE)))
    assert story.flipped and story.cams.empty.all()
    assert "no layer whose attention could be shown" in story.record()["cam_missing"]
    assert story.cams.note == story.record()["cam_missing"]


def test_the_record_is_plain_json_with_everything_that_was_set(detectors):
    story = finish(
        find_counterfactual(locate(photo()), "toy", SearchSettings(seed=7, kappa=0.1), inverter=toy_inverter(SIZE))
    )
    record = json.loads(json.dumps(story.record(), allow_nan=False))
    assert set(record["p_fake"]) == {"original", "inversion", "counterfactual"}
    assert record["settings"]["seed"] == 7 and record["steps"] == 9 and record["level"] == "S,M,D"
    assert record["versions"]["torch"] == torch.__version__
    assert record["metrics"]["psnr"] == pytest.approx(20 * np.log10(255 / 27))
    assert set(record["retest"]["strict"]) == {"original", "counterfactual"}
    assert record["summary"] == story.summary


def test_a_real_face_is_left_alone(detectors):
    story = finish(find_counterfactual(locate(photo(100)), "toy", inverter=toy_inverter(SIZE)))
    assert story.already_real and not story.flipped
    assert np.array_equal(story.pasted, photo(100))
    assert story.record()["metrics"]["psnr"] is None
    json.dumps(story.record(), allow_nan=False)


def test_a_mistake_is_a_sentence(detectors, monkeypatch):
    with pytest.raises(UserError, match="no detector named"):
        finish(find_counterfactual(locate(photo()), "nobody", inverter=toy_inverter(SIZE)))
    with pytest.raises(UserError, match="number 2"):
        finish(find_counterfactual(locate(photo(), 2), "toy", inverter=toy_inverter(SIZE)))
    monkeypatch.setattr(faces, "find_faces", lambda image: [])
    with pytest.raises(UserError, match="No face"):
        finish(find_counterfactual(locate(photo()), "toy", inverter=toy_inverter(SIZE)))


def test_closing_the_story_closes_the_search(detectors):
    detector = detectors["toy"]
    detector.train()
    job = find_counterfactual(locate(photo()), "toy", inverter=toy_inverter(SIZE))
    next(job)
    assert not detector.training
    job.close()
    assert detector.training and all(weight.requires_grad for weight in detector.parameters())


def test_a_face_that_is_lost_after_pasting_is_said(detectors, monkeypatch):
    found = iter([[FACE], []])
    monkeypatch.setattr(faces, "find_faces", lambda image: next(found))
    story = finish(find_counterfactual(locate(photo()), "toy", inverter=toy_inverter(SIZE)))
    assert story.p_pasted is None and "not found again" in story.summary


def test_retest_leaves_out_the_attacked_one(detectors):
    before, after = torch.full((2, 3, 8, 8), 0.9), torch.full((2, 3, 8, 8), 0.1)
    scores = predict.retest(before, after, "toy")
    assert list(scores) == ["strict"] and scores["strict"][0].shape == (2,)
    plain = {name: (float(one[0]), float(other[0])) for name, (one, other) in scores.items()}
    assert predict.retest_in_words(plain) == "Of 1 other detector that called it fake, 1 now calls it real."
    plain = {"a": (0.9, 0.45), "b": (0.7, 0.1), "c": (0.6, 0.1)}
    assert (
        predict.retest_in_words(plain)
        == "Of 2 other detectors that called it fake, 1 now calls it real and 1 is uncertain."
    )


@pytest.mark.parametrize(("level", "words"), [(100, "calls this face real"), (175, "is uncertain about this face")])
def test_a_face_below_the_threshold_is_named_as_its_verdict_names_it(detectors, level, words):
    story = finish(find_counterfactual(locate(photo(level)), "toy", inverter=toy_inverter(SIZE)))
    assert story.already_real and words in story.summary and "nothing to change" in story.summary


def test_the_refinement_is_told_and_recorded(detectors):
    steps = []
    job = find_counterfactual(locate(photo()), "toy", SearchSettings(kappa=0.1, refine=2), inverter=toy_inverter(SIZE))
    story = finish(job, steps.append)
    record = json.loads(json.dumps(story.record(), allow_nan=False))
    assert record["refined"]["psnr_after"] > record["refined"]["psnr_before"]
    assert record["settings"]["refine"] == 2 and "In 2 steps, the reconstruction" in story.summary
    assert [step.number for step in steps] == sorted(step.number for step in steps)
    assert len({step.total for step in steps}) == 1 and steps[-1].number == steps[-1].total


def test_the_command_line_writes_the_pictures_of_the_zip(detectors, monkeypatch, tmp_path):
    monkeypatch.setattr("backend.counterfactual.photo.inversion.load_embedded_inverter", lambda: toy_inverter(SIZE))
    (tmp_path / "photo.png").write_bytes(images.encode_png(photo()))
    answer = cli_photo.counterfactual(image=tmp_path / "photo.png", detector="toy", out=tmp_path / "out")
    made = counterfactual_photo.bundle_counterfactual(
        finish(find_counterfactual(locate(photo()), "toy", inverter=toy_inverter(SIZE)))
    )
    with zipfile.ZipFile(io.BytesIO(made.zip())) as packed:
        zipped = {name.removesuffix(".png") for name in packed.namelist() if name.endswith(".png")}
    assert set(answer["files"]) - {"result"} == zipped == set(made.pictures())
    assert {"crop", "counterfactual", "residual", "cam_before", "photo"} <= zipped
    assert all(Path(file).is_file() for file in answer["files"].values())
