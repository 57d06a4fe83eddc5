"""The search over the frames of a video, with toys whose searches can be computed by hand."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from backend import faces, images, video
from backend.cli import main, photo
from backend.counterfactual import video as counterfactual_video
from backend.counterfactual.search import SearchSettings
from backend.counterfactual.video import NO_FACE, NOT_REACHED, VideoSearch
from backend.detectors import registry
from backend.errors import UserError
from backend.progress import finish
from backend.settings import SETTINGS
from tests import films
from tests.counterfactual.test_photo import FACE
from tests.toys import DARKER, hooks, toy_detector, toy_inverter

SIZE = 64
SETTINGS_USED = SearchSettings(kappa=0.1, steps=40)
needs_models = pytest.mark.skipif(
    not (SETTINGS.weights_dir / "registry.toml").exists(), reason="the models are not in weights/"
)


@pytest.fixture
def detector(monkeypatch):
    """Put a toy detector in place of the registry's, and a finder that finds a face wherever it is not dark."""
    known = toy_detector(size=SIZE)
    monkeypatch.setattr(registry, "load", lambda _name: known)
    monkeypatch.setattr(registry, "loadable", lambda: ["toy"])
    monkeypatch.setattr(faces, "find_faces", lambda image: [FACE] if image.mean() > 20 else [])
    return known


def clip(*levels: int) -> video.Clip:
    frames = tuple(np.full((200, 220, 3), level, np.uint8) for level in levels)
    times = tuple(number / 5 for number in range(len(levels)))
    return video.Clip(frames, times, 5.0, 30.0, (220, 200), len(levels) / 5)


def video_search(*levels: int, settings: SearchSettings = SETTINGS_USED) -> VideoSearch:
    return VideoSearch(clip(*levels), "toy", settings, inverter=toy_inverter(SIZE))


def test_every_frame_begins_at_the_change_of_the_one_before(detector):
    result = finish(video_search(200, 200, 203, 210, 200).run())
    # A step darkens by 3, and below 176 a face passes: 200 needs 9 steps, and the others only what is left after these.
    assert [frame.steps for frame in result.frames] == [9, 0, 1, 3, 0]
    assert all(frame.flipped and frame.p_counterfactual < 0.5 < frame.p_original for frame in result.frames)
    assert [int(picture[100, 100, 0]) for picture in result.pictures] == [173, 173, 173, 174, 173]
    levels = zip(result.pictures, (200, 200, 203, 210, 200), strict=True)
    assert all((picture[:20] == level).all() for picture, level in levels)
    assert round(DARKER * 255) == 3 and hooks(detector) == 0


def test_frames_without_the_face_stay_unchanged_and_are_reported(detector):
    result = finish(video_search(200, 5, 200, 100).run())
    assert [frame.skipped for frame in result.frames] == ["", NO_FACE, "", ""]
    assert (result.pictures[1] == 5).all() and result.frames[1].p_original is None
    assert result.frames[3].steps == 0 and not result.frames[3].flipped and (result.pictures[3] == 100).all()
    assert "1 frame was skipped: the face that was followed is not seen." in result.summary
    assert "called 2 of 3 frames fake; 2 of these are below its threshold now" in result.summary
    assert not result.stopped


def test_the_saved_video_is_judged_as_it_is(detector):
    result = finish(video_search(200, 200).run())
    read = finish(video.read_video(result.mp4))
    assert len(read.frames) == 2 and read.frames[0][-6:, :20].min() < 90  # the mark
    for frame in result.frames:
        assert (
            frame.p_saved == pytest.approx(frame.p_counterfactual, abs=0.1) and frame.p_saved != frame.p_counterfactual
        )
    assert "In the saved video it is" in result.summary


def test_where_nothing_changed_there_is_no_video_and_no_mark(detector):
    result = finish(video_search(100, 100).run())
    assert result.mp4 == b"" and not result.changed and "no video was made" in result.summary
    with zipfile.ZipFile(io.BytesIO(result.zip())) as archive:
        assert np.array_equal(images.read(archive.read("frames/001.png")), result.pictures[0])


def test_the_zip_has_every_changed_frame_marked_and_the_scores(detector):
    result = finish(video_search(200, 5).run())
    with zipfile.ZipFile(io.BytesIO(result.zip())) as archive:
        assert set(archive.namelist()) == {"record.json", "summary.txt", "frames/001.png", "frames/002.png"}
        record = json.loads(archive.read("record.json"))
        first, second = (images.read(archive.read(f"frames/00{number}.png")) for number in (1, 2))
    assert np.array_equal(second, result.pictures[1])  # as it came
    assert record == json.loads(json.dumps(result.record(), allow_nan=False))
    assert record["frames"][0]["p_original"] > 0.5 and record["frames"][1]["skipped"] == NO_FACE
    assert np.array_equal(first[:180], result.pictures[0][:180]) and not np.array_equal(first, result.pictures[0])
    with zipfile.ZipFile(io.BytesIO(result.zip(marked=False))) as archive:
        assert np.array_equal(images.read(archive.read("frames/001.png")), result.pictures[0])


def test_a_detector_with_a_crop_of_its_own_sees_it_in_every_frame(detector):
    detector.card = replace(detector.card, input_size=SIZE // 2, template="deepfakebench")
    steps = []
    result = finish(video_search(200, 200, 200).run(), steps.append)
    assert not any("frames 2 to" in step.message for step in steps)  # each frame has its own view
    assert [frame.flipped for frame in result.frames] == [True] * 3 and result.frames[1].steps == 0
    assert result.frames[0].steps > 9  # around the crop, which alone changes, the view stays bright


def test_other_detectors_are_asked_about_the_frames_that_were_searched(detector, monkeypatch):
    others = {
        "lax": toy_detector(threshold=0.75, name="lax", size=SIZE),
        "strict": toy_detector(threshold=0.5, name="strict", size=SIZE),
        "wide": toy_detector(threshold=0.5, name="wide", size=SIZE // 2),
    }
    others["wide"].card = replace(others["wide"].card, template="deepfakebench")
    monkeypatch.setattr(registry, "load", lambda name: others.get(name, detector))
    monkeypatch.setattr(registry, "loadable", lambda: ["toy", *others])
    result = finish(video_search(200, 5, 180, 100).run())
    by_detector = {retest.detector: retest for retest in result.retested}
    # Of 200, 180 and 100 of 255, 200 alone is above 0.75, and the first two are above 0.5; afterwards they are 173
    # and darker than 176 with it, which is above 0.5 still.
    assert {name: retest.frames for name, retest in by_detector.items()} == dict.fromkeys(others, 3)
    assert (by_detector["lax"].fake_before, by_detector["lax"].fake_after) == (0.3333, 0.0)
    assert (by_detector["strict"].fake_before, by_detector["strict"].fake_after) == (0.6667, 0.6667)
    # The wider crop is the frame's own: around the generator's crop nothing changed.
    assert by_detector["wide"].p_before == pytest.approx(by_detector["strict"].p_before, abs=1e-3)
    assert by_detector["wide"].p_after > by_detector["strict"].p_after + 0.005
    attacked = result.searched_against
    assert (attacked.detector, attacked.fake_before, attacked.fake_after) == ("toy", 0.6667, 0.0)
    assert result.summary.endswith("Of 2 other detectors that called most of the frames fake, 2 still do so.")
    assert result.record()["retest"]["lax"]["fake_before"] == 0.3333 and set(result.record()["retest"]) == set(others)


def test_the_summary_says_that_there_is_no_other_detector(detector):
    result = finish(video_search(200, 200).run())
    assert result.retested == () and result.summary.endswith("There is no other detector to ask.")


def test_what_was_done_before_a_stop_is_kept(detector):
    video_job = video_search(*[200] * 9)
    job = video_job.run()
    assert video_job.so_far() is None
    for step in job:
        if "frames 7 to 9" in step.message:
            break
    job.close()
    result = video_job.so_far()
    assert result.stopped and [bool(frame.skipped) for frame in result.frames] == [False] * 6 + [True] * 3
    assert result.frames[-1].skipped == NOT_REACHED and (result.pictures[-1] == 200).all()
    assert len(finish(video.read_video(result.mp4)).frames) == 9
    assert "3 frames were skipped: the search was stopped" in result.summary
    assert all(weight.requires_grad for weight in detector.parameters()) and hooks(detector) == 0


def test_steps_are_counted_to_the_end(detector):
    steps = []
    finish(video_search(*[200] * 7).run(), steps.append)
    numbers = [step.number for step in steps]
    assert numbers == sorted(numbers) and numbers[-1] == steps[-1].total
    assert any(step.preview is not None for step in steps)


@pytest.mark.parametrize(
    ("levels", "size", "message"),
    [((5, 5), None, "No face was found in this video"), ((200, 200), (20, 10), "The face is only 20 pixels wide")],
)
def test_a_video_without_a_usable_face_gives_one_sentence(detector, monkeypatch, levels, size, message):
    if size is not None:
        small = replace(FACE, box=(60.0, 50.0, 80.0, 60.0))
        monkeypatch.setattr(faces, "find_faces", lambda _image: [small])
    with pytest.raises(UserError, match=message):
        finish(video_search(*levels).run())


def test_nothing_changes_where_every_frame_is_called_real(detector):
    result = finish(video_search(100, 100).run())
    assert (
        "called none of the other frames fake, so nothing changed" in result.summary and not result.record()["flipped"]
    )


def test_the_command_line_refuses_what_it_cannot_do(tmp_path, capsys):
    for arguments in ([], ["photo.png", "--video", "film.mp4"]):
        assert main.main(["counterfactual", *arguments, "--detector", "toy", "--out", str(tmp_path)]) == 2
        assert "either a picture or a video" in capsys.readouterr().err
    with pytest.raises(UserError, match="--face belongs to a picture"):
        photo.counterfactual(video=Path("x"), detector="a", out=Path("b"), face=2)


@needs_models
def test_a_real_face_that_moves(tmp_path, capsys):
    """From start to end with the models that ship: six frames, one of them without the face, and three steps."""
    path = tmp_path / "film.mp4"
    path.write_bytes(films.encode(films.moving_face(6, hidden=(3,))))
    name = registry.loadable()[0]
    out = tmp_path / "out"
    command = ["counterfactual", "--video", str(path), "--detector", name, "--out", str(out), "--steps", "3", "--json"]
    assert main.main(command) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (
        answer["video"] == "film.mp4"
        and answer["settings"]["steps"] == 3
        and answer["batch"] == counterfactual_video.FRAME_BATCH
    )
    assert [bool(frame["skipped"]) for frame in answer["frames"]] == [False] * 3 + [True] + [False] * 2
    for frame in answer["frames"]:
        if not frame["skipped"]:
            assert 0 <= frame["p_counterfactual"] <= 1 and 0 <= frame["p_saved"] <= 1
            assert frame["p_counterfactual"] <= frame["p_original"] + 1e-6
    assert set(answer["retest"]) == set(registry.loadable()) - {name}
    assert all(retest["frames"] == 5 for retest in answer["retest"].values())
    assert {Path(file).name for file in answer["files"].values()} == {"counterfactual.mp4", "frames.zip", "result.json"}
    with av.open(answer["files"]["video"]) as container:
        assert container.streams.video[0].frames == 6
        assert json.loads(container.metadata["description"])["detector"] == name
