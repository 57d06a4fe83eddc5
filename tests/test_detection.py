"""What people have: folders, videos, CSV and the report."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from backend import detection
from backend.detection import DetectedPicture, DetectedVideo, combine_frames, follow_faces
from backend.detectors import combination
from backend.detectors.combination import Combination, CombinedAnswer, Member
from backend.faces import Face
from backend.progress import finish
from tests import films, pictures

TOY = Combination((Member("xception", 1.0, 0.0, ""),), -1.0, 0.0, 2.0, {})


def face(x: float, width: float = 50.0) -> Face:
    return Face((x, 0.0, x + width, width), 0.99, np.zeros((5, 2)))


def test_every_face_of_a_video_has_one_track_the_largest_first() -> None:
    big, small, passer = [face(2.0 * i, 80) for i in range(6)], [face(300 + i) for i in range(6)], face(600)
    tracks = follow_faces([[small[i], big[i], *([passer] if i == 2 else [])] for i in range(6)])
    assert tracks == [big, small]  # one that is seen in a single frame is no track


def test_a_face_that_leaves_is_missing_from_its_track() -> None:
    seen = [face(0), face(1), face(2), face(3)]
    assert follow_faces([[seen[0]], [], [seen[1]], [seen[2]], [seen[3]]]) == [[seen[0], None, *seen[1:]]]


def test_the_answer_of_a_video_is_that_of_the_mean_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combination, "read_combination", lambda: TOY)
    answers = [combination.combine({"xception": p}, TOY) for p in (0.9, 0.9, 0.9, 0.9, 0.9)]
    combined, interval = combine_frames(answers)
    assert combined is not None and answers[0] is not None
    assert combined.p_fake == pytest.approx(answers[0].p_fake, abs=1e-5) and combined.grade == answers[0].grade
    assert interval == pytest.approx((combined.p_fake, combined.p_fake))


def test_the_interval_is_students_between_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combination, "read_combination", lambda: TOY)
    scores = np.array([-1.0, 0.0, 1.0, 2.0, 3.0])  # mean 1, deviation 1.5811, 2.7764 * 1.5811 / 5 ** 0.5 = 1.9632
    answers = [CombinedAnswer("few", float(1 / (1 + np.exp(-score))), ("xception",)) for score in scores]
    combined, interval = combine_frames(answers)
    assert combined is not None and interval is not None
    assert combined.p_fake == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-5)
    assert interval == pytest.approx([1 / (1 + np.exp(-v)) for v in (1 - 1.9632, 1 + 1.9632)], abs=1e-4)


def test_few_frames_have_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combination, "read_combination", lambda: TOY)
    assert combine_frames([CombinedAnswer("few", 0.4, ("xception",))] * 4)[1] is None
    assert combine_frames([None]) == (None, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("case") / "evidence"
    (folder / "more").mkdir(parents=True)
    (folder / "a.png").write_bytes(pictures.encode(pictures.astronaut(), "PNG"))
    (folder / "more" / "=cmd.png").write_bytes(pictures.encode(pictures.hopper(), "PNG"))
    (folder / "notes.txt").write_text("not a picture")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "clip.mp4").write_bytes(films.encode([pictures.astronaut()[:320, 70:390]] * 6, rate=5))
    return folder


@pytest.fixture(scope="module")
def detected(folder: Path) -> list[DetectedPicture | DetectedVideo]:
    return finish(detection.detect_sources([str(folder)]))


def test_a_folder_is_read_as_a_whole(folder: Path, detected: list[DetectedPicture | DetectedVideo]) -> None:
    names = [Path(one.name).relative_to(folder).as_posix() for one in detected]
    assert names == ["a.png", "clip.mp4", "more/=cmd.png", "notes.txt"]
    assert [one.error is None for one in detected] == [True, True, True, False]


def test_a_video_has_an_answer_for_every_frame_and_one_for_the_face(
    detected: list[DetectedPicture | DetectedVideo],
) -> None:
    picture, film = detected[:2]
    record = film.record()
    (tracked,) = record["faces"]
    assert len(tracked["frames"]) == 6
    assert [frame["seconds"] for frame in tracked["frames"]] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0], abs=0.02)
    low, high = tracked["combined"]["interval"]
    assert low <= tracked["combined"]["p_fake"] <= high
    assert all(set(frame["p_fake"]) == set(picture.faces[0].p_fake) for frame in tracked["frames"])


def test_csv_has_a_row_for_every_face_and_file_and_runs_nothing(
    detected: list[DetectedPicture | DetectedVideo],
) -> None:
    named = [DetectedPicture("=1+1.png", faces=detected[0].faces)]  # type: ignore[arg-type]
    rows = list(csv.DictReader(io.StringIO(detection.to_csv([*detected, *named]))))
    assert len(rows) == 5
    assert rows[0]["grade"] in combination.GRADES and 0 <= float(rows[0]["xception"]) <= 1
    assert rows[1]["low"] <= rows[1]["p_fake"] <= rows[1]["high"]
    assert rows[3]["grade"] == "" and "not a picture" in rows[3]["note"]
    assert rows[4]["file"] == "'=1+1.png"


def test_the_report_holds_answer_limits_versions_and_hashes(detected: list[DetectedPicture | DetectedVideo]) -> None:
    named = DetectedPicture("<script>alert(1)</script>.png", "ab" * 32, None, detected[0].faces, detected[0].shown)  # type: ignore[arg-type]
    page = detection.report_html([*detected, named])
    assert "<script>" not in page
    assert page.count("<section>") == 5
    assert all(one.sha256 in page for one in detected if one.error is None)
    assert detected[0].faces[0].combined is not None and detected[0].faces[0].combined.title in page
    assert "What these answers miss" in page and "torch" in page
