"""Judge what people have: pictures, folders of them, videos and addresses; and write CSV and a report of the answers.

In a video every face is followed through the frames. Its answer is that of the mean score; neighbouring frames are
alike, so the interval is that of the means of a few groups of consecutive frames.
"""

import base64
import csv
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from backend import images, weights
from backend.addresses import fetch_address, is_address
from backend.alignment import locate_all, locate_known
from backend.detectors import combination, predict, registry
from backend.detectors.combination import CombinedAnswer
from backend.detectors.predict import JudgedFace
from backend.detectors.rates import COMBINED, describe_rates
from backend.errors import UserError
from backend.faces import Face, find_faces, track_largest_face
from backend.markup import template_environment
from backend.origin import Origin, read_origin
from backend.progress import Job, Step
from backend.settings import SETTINGS
from backend.video import Clip, read_video

VIDEO_ENDINGS = {".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi", ".3gp"}
MAX_TRACKS = 4  # faces of a video that are followed, the largest first
LEAST_FRAMES = 3  # in which a face must be seen
GROUPS = 5  # of consecutive frames, between which an answer's interval is measured
SHOWN_SIDE = 480  # longest side in pixels of a picture in the report
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # which a spreadsheet would run
NO_FACE = "No face was found; use a photo in which a face is seen from the front."


@dataclass(frozen=True)
class DetectedPicture:
    """The answers about one picture.

    Args:
        name: As it was given.
        sha256: Of the file; empty where it could not be read.
        origin: What the file says of its origin; None where it could not be read.
        error: Why it could not be read, and `hint` what to do; None where it could.
    """

    name: str
    sha256: str = ""
    origin: Origin | None = None
    faces: tuple[JudgedFace, ...] = ()
    shown: np.ndarray | None = field(default=None, repr=False, compare=False)
    error: str | None = None
    hint: str = ""

    @property
    def note(self) -> str:
        if self.error is not None or len(self.faces) == 1:
            return ""
        return f"{len(self.faces)} faces were found, the largest first." if self.faces else NO_FACE

    def record(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        if self.error is not None:
            return {"image": self.name, "error": self.error, "hint": self.hint}
        origin = None if self.origin is None else self.origin.record()
        answer: dict[str, Any] = {"image": self.name, "sha256": self.sha256, "origin": origin}
        answer["faces"] = [face.record() for face in self.faces]
        return answer | ({"note": self.note} if self.note else {})


@dataclass(frozen=True)
class FrameAnswer:
    """What is said of a face in one frame: seconds from the first frame, and p_fake in [0, 1] by detector."""

    seconds: float
    box: tuple[float, float, float, float]
    p_fake: dict[str, float]
    combined: CombinedAnswer | None


@dataclass(frozen=True)
class TrackedFace:
    """The answers about one face of a video.

    Args:
        number: From 1, the largest face first.
        combined: Of the mean score of the frames; None where there is no combination.
        interval: Ends of the 95 % interval of its p_fake, between groups of frames; None where there are too few.
    """

    number: int
    frames: tuple[FrameAnswer, ...]
    combined: CombinedAnswer | None
    interval: tuple[float, float] | None

    def record(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        combined = None if self.combined is None else self.combined.record()
        if combined is not None:
            combined["interval"] = None if self.interval is None else list(self.interval)
        frames = [
            {
                "seconds": round(frame.seconds, 3),
                "box": [round(value, 1) for value in frame.box],
                "combined": None if frame.combined is None else frame.combined.p_fake,
                "p_fake": frame.p_fake,
            }
            for frame in self.frames
        ]
        return {"track": self.number, "combined": combined, "frames": frames}


@dataclass(frozen=True)
class DetectedVideo:
    """The answers about one video; arguments as for `DetectedPicture`."""

    name: str
    sha256: str = ""
    origin: Origin | None = None
    faces: tuple[TrackedFace, ...] = ()
    seconds: float = 0.0
    frames: int = 0
    shown: np.ndarray | None = field(default=None, repr=False, compare=False)
    error: str | None = None
    hint: str = ""

    @property
    def note(self) -> str:
        if self.error is not None:
            return ""
        found = f"{len(self.faces)} {'face was' if len(self.faces) == 1 else 'faces were'} followed"
        return f"{self.frames} frames of {self.seconds:.1f} seconds were looked at, and {found}."

    def record(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        if self.error is not None:
            return {"video": self.name, "error": self.error, "hint": self.hint}
        faces = [face.record() for face in self.faces]
        origin = None if self.origin is None else self.origin.record()
        return {"video": self.name, "sha256": self.sha256, "origin": origin, "faces": faces, "note": self.note}


Detected = DetectedPicture | DetectedVideo


def detect_sources(sources: Sequence[str], detectors: list[str] | None = None) -> Job[list[Detected]]:
    """Judge pictures, videos, folders of both, and https addresses, in the order given.

    What cannot be read is part of the result, with the reason; the others go on.

    Args:
        sources: Paths and addresses.
        detectors: Names of those to list; None lists all that can be loaded.

    Raises:
        UserError: A folder holds no file at all.
    """
    names = [name for source in sources for name in _expand(source)]
    detected: list[Detected] = []
    for number, name in enumerate(names):
        yield Step(number, len(names), f"Looking at {Path(name).name}.")
        detected.append((yield from _detect(name, detectors)))
    return detected


def _expand(source: str) -> Iterator[str]:
    """Yield the files of a folder, or the source itself."""
    path = Path(source)
    if is_address(source) or not path.is_dir():
        yield source
        return
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise UserError(f"The folder {path.name} is empty.", "Name a folder of pictures or videos.")
    yield from map(str, files)


def _detect(name: str, detectors: list[str] | None) -> Job[Detected]:
    is_video = Path(name.partition("?")[0]).suffix.lower() in VIDEO_ENDINGS
    kind = DetectedVideo if is_video else DetectedPicture
    try:
        limit = SETTINGS.max_video_bytes if is_video else SETTINGS.max_bytes
        content = fetch_address(name, limit) if is_address(name) else None
        if is_video:
            return (yield from _detect_video(name, content, detectors))
        return _detect_picture(name, content, detectors)
    except UserError as error:
        return kind(name, error=error.message, hint=error.hint)


def _detect_picture(name: str, content: bytes | None, detectors: list[str] | None) -> DetectedPicture:
    source = content if content is not None else Path(name)
    photo = images.read(source)
    faces = predict.judge_faces(locate_all(photo), detectors)
    return DetectedPicture(name, _hash(name, content), read_origin(source), tuple(faces), _reduced(photo))


def _detect_video(name: str, content: bytes | None, detectors: list[str] | None) -> Job[DetectedVideo]:
    source = content if content is not None else Path(name)
    clip = yield from read_video(source)
    found = []
    for number, frame in enumerate(clip.frames, 1):
        yield Step(number, len(clip.frames), f"Finding faces in frame {number} of {len(clip.frames)}.")
        found.append(find_faces(frame))
    tracked = tuple(_judge_track(clip, track, number, detectors) for number, track in enumerate(follow_faces(found), 1))
    middle = clip.frames[len(clip.frames) // 2]
    facts = (name, _hash(name, content), read_origin(source), tracked)
    return DetectedVideo(*facts, clip.seconds, len(clip.frames), _reduced(middle))


def follow_faces(found: Sequence[Sequence[Face]]) -> list[list[Face | None]]:
    """Return the track of every face of a video, from the faces of each frame; the largest first, `MAX_TRACKS` at most.

    A track names the face in each frame, or None where it is not seen.
    """
    left = [list(faces) for faces in found]
    tracks: list[list[Face | None]] = []
    while len(tracks) < MAX_TRACKS and any(left):
        track = track_largest_face(left)
        left = [[other for other in faces if other is not face] for faces, face in zip(left, track, strict=True)]
        if sum(face is not None for face in track) >= min(LEAST_FRAMES, len(found)):
            tracks.append(track)
    return tracks


def _judge_track(clip: Clip, track: Sequence[Face | None], number: int, detectors: list[str] | None) -> TrackedFace:
    seen = [
        (seconds, locate_known(picture, [face])[0])
        for picture, seconds, face in zip(clip.frames, clip.times, track, strict=True)
        if face is not None
    ]
    judged = predict.judge_faces([located for _, located in seen], detectors)
    frames = tuple(
        FrameAnswer(seconds, located.face.box, answer.p_fake, answer.combined)
        for (seconds, located), answer in zip(seen, judged, strict=True)
    )
    return TrackedFace(number, frames, *combine_frames([frame.combined for frame in frames]))


def combine_frames(
    answers: Sequence[CombinedAnswer | None],
) -> tuple[CombinedAnswer | None, tuple[float, float] | None]:
    """Return the answer of the mean score of some frames, and the 95 % interval of its p_fake.

    The interval is Student's, of the means of `GROUPS` groups of consecutive frames, in log-odds.
    """
    known = [answer for answer in answers if answer is not None]
    chosen = combination.read_combination()
    if chosen is None or not known:
        return None, None
    scores = np.array([combination.log_odds(answer.p_fake) for answer in known])
    mean = float(scores.mean())
    grade = chosen.grade(mean + chosen.strong_above)
    answer = CombinedAnswer(grade, round(_probability(mean), 6), chosen.names)
    if len(scores) < GROUPS:
        return answer, None
    from scipy.stats import t

    means = np.array([group.mean() for group in np.array_split(scores, GROUPS)])
    half = float(t.ppf(0.975, GROUPS - 1) * means.std(ddof=1) / GROUPS**0.5)
    return answer, (round(_probability(mean - half), 6), round(_probability(mean + half), 6))


def _probability(log_odds: float) -> float:
    return float(1 / (1 + np.exp(-log_odds)))


def _hash(name: str, content: bytes | None) -> str:
    return weights.file_hash(Path(name)) if content is None else hashlib.sha256(content).hexdigest()


def _reduced(picture: np.ndarray) -> np.ndarray:
    from PIL import Image

    small = Image.fromarray(picture)
    small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return np.asarray(small)


def to_csv(detected: Iterable[Detected]) -> str:
    """Return one row a face, or a file without one; cells that a spreadsheet would run are quoted."""
    names = registry.loadable()
    columns = ["file", "face", "grade", "p_fake", "low", "high", "suitable", "origin", "note", *names]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for one in detected:
        for row in _rows(one):
            writer.writerow({name: _harmless(value) for name, value in row.items()})
    return buffer.getvalue()


def _rows(one: Detected) -> Iterator[dict[str, Any]]:
    if one.error is not None or not one.faces:
        yield {"file": one.name, "note": f"{one.error} {one.hint}" if one.error is not None else one.note}
        return
    for face in one.faces:
        combined = face.combined
        origin = "" if one.origin is None else one.origin.summary
        row: dict[str, Any] = {"file": one.name, "face": face.number, "origin": origin, "note": ""}
        if combined is not None:
            row |= {"grade": combined.grade, "p_fake": combined.p_fake}
        if isinstance(face, TrackedFace):
            row |= dict(zip(("low", "high"), face.interval or (), strict=False))
            by_detector = [frame.p_fake for frame in face.frames]
            row |= {name: round(float(np.mean([p[name] for p in by_detector])), 6) for name in by_detector[0]}
        else:
            problems = [] if face.suitability is None else [check.reason for check in face.suitability.problems]
            row |= {"suitable": "no" if problems else "yes", "note": " ".join(problems), **face.p_fake}
        yield row


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def report_html(detected: Sequence[Detected]) -> str:
    """Return a printable page with every picture, its answer, what it misses, versions and hashes."""
    return (
        template_environment("backend")
        .get_template("detection.html")
        .render(
            detected=[(one, one.shown is not None and _data_uri(one.shown), one.faces) for one in detected],
            missed=describe_rates(COMBINED),
            day=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            versions=weights.package_versions(),
            hashes=dict(sorted(weights.model_hashes(registry.loadable("embedded")).items())),
            titles={name: registry.card(name).title for name in registry.loadable()},
        )
    )


def _data_uri(picture: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(images.encode_png(picture)).decode()


def summary_lines(detected: Iterable[Detected]) -> list[str]:
    """Return the answers as lines for a terminal."""
    lines = []
    for one in detected:
        lines.append(f"{one.name}: {one.error or one.note}".rstrip(": "))
        if one.origin is not None:
            lines.append(f"  {one.origin.summary}")
        for face in one.faces if one.error is None else ():
            lines += _face_lines(face)
    return lines


def _face_lines(face: JudgedFace | TrackedFace) -> list[str]:
    lines = [f"  face {face.number}"]
    if isinstance(face, JudgedFace) and face.suitability is not None:
        lines += [
            f"    This face cannot be judged: {check.reason} {check.advice}" for check in face.suitability.problems
        ]
    if face.combined is not None:
        lines.append(f"    {face.combined.title}. {face.combined.meaning}")
        if face.combined.disagreement:
            lines.append(f"    {face.combined.disagreement}")
    scores: Mapping[str, float] = {}
    if isinstance(face, JudgedFace):
        scores = face.p_fake
    elif face.frames:
        scores = {name: float(np.mean([frame.p_fake[name] for frame in face.frames])) for name in face.frames[0].p_fake}
    return lines + [f"    {name}: {predict.describe_p_fake(score)}" for name, score in scores.items()]
