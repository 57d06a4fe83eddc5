"""The part of the page that searches a video: what is shown while it runs, when it is stopped and when it cannot."""

import io
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from backend import faces
from backend.detectors import registry
from backend.generators import inversion
from backend.settings import SETTINGS
from tabs import counterfactual_video, events
from tabs.counterfactual_video import VideoStep
from tabs.visitors import CallLimit
from tests import films
from tests.counterfactual.test_photo import FACE
from tests.counterfactual.test_video import clip, video_search
from tests.toys import toy_detector, toy_inverter

SIZE = 64
REQUEST = SimpleNamespace(session_hash="videotest", client=SimpleNamespace(host="10.0.0.1"))
pytestmark = pytest.mark.skipif(
    not (SETTINGS.weights_dir / "registry.toml").exists(), reason="the models are not in weights/"
)


@pytest.fixture
def step(monkeypatch) -> VideoStep:
    """Return the part, with toys in place of the models."""
    with gr.Blocks():
        video_step = VideoStep()
    known = toy_detector(size=SIZE)
    monkeypatch.setattr(registry, "load", lambda _name: known)
    monkeypatch.setattr(registry, "card", lambda name: replace(known.card, title=name.title()))
    monkeypatch.setattr(registry, "loadable", lambda: ["toy", "other"])
    monkeypatch.setattr(faces, "find_faces", lambda image: [FACE] if image.mean() > 20 else [])
    monkeypatch.setattr(inversion, "load_embedded_inverter", lambda: toy_inverter(SIZE))
    monkeypatch.setattr(counterfactual_video, "LIMIT", CallLimit(100, 60, "Searching a video"))
    monkeypatch.setattr(counterfactual_video, "FRAME_SECONDS", 0.0)
    return video_step


@pytest.fixture
def path(tmp_path) -> Path:
    film = tmp_path / "film.mp4"
    film.write_bytes(films.encode([frame[:200, :220] for frame in clip(*[200] * 8).frames]))
    return film


def run(step: VideoStep, path: Path) -> Iterator[dict]:
    return step._search_video(str(path), "toy", 40, REQUEST)


def test_the_result_is_a_marked_video_its_scores_and_its_frames(step, path):
    *before, last = run(step, path)
    progress = [updates[step.job.progress] for updates in before if step.job.progress in updates]
    assert any("Finding the face in frame 8 of 8" in text for text in progress)
    assert any("frames 2 to 6" in text and "<svg" in text for text in progress), "the curve grows while it runs"
    assert any(step.face in updates and updates[step.face] is not None for updates in before)
    assert last[step.search_button].interactive and not last[step.stop].interactive and last[step.result].visible
    assert "called 8 of 8 frames fake; 8 of these are below its threshold now" in last[step.summary]
    assert Path(last[step.video_out].value["path"]).read_bytes()[4:8] == b"ftyp"
    with zipfile.ZipFile(io.BytesIO(Path(last[step.download]).read_bytes())) as archive:
        assert len(archive.namelist()) == 10
    assert last[step.scores].count("<circle") == 16 and last[step.table].count('scope="row"') == 8
    assert "Toy (searched against)</th><td>100%</td><td>0%</td>" in last[step.others]
    assert "Other</th><td>100%</td><td>0%</td>" in last[step.others] and "the 8 searched frames" in last[step.others]
    assert "detector toy" in last[step.settings]


def test_a_stop_is_followed_within_a_step_and_keeps_what_is_done(step, path):
    job = run(step, path)
    for updates in job:
        if "frames 7 to 8" in str(updates.get(step.job.progress)):
            break
    assert step._ask_to_stop(REQUEST)[step.stop].interactive is False
    after = list(job)
    assert len(after) == 1
    (last,) = after
    assert (
        "2 frames were skipped: the search was stopped" in last[step.summary] and last[step.search_button].interactive
    )
    assert last[step.table].count('colspan="3"') == 2
    # Another search is not stopped by what was asked of the last one.
    assert "8 of these are below its threshold now" in list(run(step, path))[-1][step.summary]


def test_a_stop_before_anything_is_found_says_so(step, path):
    job = run(step, path)
    next(job), next(job)
    step._ask_to_stop(REQUEST)
    last = list(job)[-1]
    assert "before the first frame" in last[step.job.note] and last[step.result].visible is False


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no video", "This file is not a video"), (films.encode([clip(5).frames[0]] * 3), "No face was found in this")],
)
def test_a_video_that_cannot_be_searched_gets_a_message_on_the_page(step, tmp_path, content, message):
    (tmp_path / "film.mp4").write_bytes(content)
    last = list(run(step, tmp_path / "film.mp4"))[-1]
    assert message in last[step.refusal] and 'role="alert"' in last[step.refusal]
    assert last[step.search_button].interactive and last[step.live].visible is False


def test_a_missing_video_and_too_many_searches_give_one_sentence(step, path, monkeypatch):
    with pytest.raises(gr.Error, match="no video yet"):
        list(events.with_shown_errors(step._search_video)(None, "toy", 40, REQUEST))
    monkeypatch.setattr(counterfactual_video, "LIMIT", CallLimit(1, 3600, "Searching a video"))
    list(run(step, path))
    with pytest.raises(gr.Error, match="limited to 1 times"):
        list(events.with_shown_errors(step._search_video)(str(path), "toy", 40, REQUEST))


def test_the_plot_of_the_scores_has_gaps_and_a_name(step):
    video_job = video_search(200, 200, 5, 200)
    assert counterfactual_video.frame_curve(video_job.frames()) == ""
    for _ in video_job.run():
        pass
    drawn = counterfactual_video.frame_curve(video_job.frames())
    assert drawn.count("<polyline") == 4 and drawn.count("<circle") == 6
    assert 'aria-label="Scores of 3 of 4 frames (0 = no signs that it knows, 1 = clear signs): before, from' in drawn
