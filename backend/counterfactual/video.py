"""The counterfactual of a short video: one face is followed, and each batch of frames starts from the last change."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backend import alignment, faces, images, provenance, video, weights
from backend.alignment import CroppedPhoto, LocatedFace
from backend.counterfactual.search import SearchResult, SearchSettings, search
from backend.detectors import predict, registry
from backend.detectors.base import SCALE, THRESHOLD
from backend.detectors.predict import retest
from backend.errors import UserError
from backend.generators import inversion
from backend.generators.inversion import Inverter
from backend.progress import Job, Step, counted, finish
from backend.runtime import MODEL_LOCK, device, frozen
from backend.video import Clip

NO_FACE = "The face that was followed is not seen."
NOT_REACHED = "The search was stopped before this frame."
VIDEO_STEPS = 40  # maximum of a batch; most batches begin near their end
FRAME_BATCH = 5  # frames that are searched together: one second
FrameScores = dict[str, tuple[float, float]]  # p_fake before and after of one frame, by detector


@dataclass(frozen=True)
class VideoFrame:
    """One frame; what was not measured is None.

    Args:
        number: From 1.
        time: In seconds from the first frame.
        skipped: Why it was not searched, in one sentence; empty where it was.
        p_original: p_fake of the face.
        p_counterfactual: p_fake of the face after the search, before it was saved.
        p_saved: p_fake of the face cut out of the saved video, after compression and with the mark if there is one.
        steps: Updates until it passed, or all that were made.
        flipped: Called fake before and real after.
    """

    number: int
    time: float
    skipped: str = ""
    p_original: float | None = None
    p_counterfactual: float | None = None
    p_saved: float | None = None
    steps: int | None = None
    flipped: bool = False


@dataclass(frozen=True)
class FakeShare:
    """How many of the searched frames a detector calls fake, before and after the search but before saving."""

    detector: str
    frames: int  # number of frames that it judged
    fake_before: float  # share called fake, in [0, 1]
    fake_after: float
    p_before: float  # mean p_fake
    p_after: float

    @classmethod
    def of(cls, detector: str, scores: Sequence[tuple[float, float]]) -> "FakeShare":
        """Return the shares from p_fake before and after, frame by frame."""
        sides = list(zip(*scores, strict=True))
        shares = (round(mean(score >= THRESHOLD for score in side), 4) for side in sides)
        means = (round(mean(side), 6) for side in sides)
        return cls(detector, len(scores), *shares, *means)


@dataclass(frozen=True, eq=False)
class VideoCounterfactual:
    """The result for one video and one detector.

    Args:
        pictures: The frames with the changed face in them, uint8 (H, W, 3), without a mark; those that were not
            searched are unchanged.
        mp4: The same as an MP4 file, marked unless the caller declined; empty where no frame was changed.
        rate: Frames per second.
        source: Seconds, frames per second, width and height of the file.
        retested: How the detectors that were not attacked judge the same frames.
        lengths: Step in every open row.
        batch: How many frames were searched together.
        stopped: Whether the search ended before the last frame.
        weights: SHA-256 of the model files used, by registry name.
        versions: Versions of the main packages.
    """

    frames: tuple[VideoFrame, ...]
    pictures: tuple[np.ndarray, ...] = field(repr=False)
    mp4: bytes = field(repr=False)
    rate: float
    source: dict[str, float]
    retested: tuple[FakeShare, ...]
    detector: str
    generator: str
    epsilon: float
    lengths: tuple[float, ...]
    settings: SearchSettings
    batch: int
    stopped: bool
    weights: dict[str, str]
    versions: dict[str, str]
    seconds: float

    @property
    def searched(self) -> list[VideoFrame]:
        """The frames that were searched, or below the threshold at the start."""
        return [frame for frame in self.frames if not frame.skipped]

    @property
    def changed(self) -> list[VideoFrame]:
        """The frames that were called fake at the start, and so were changed."""
        return [frame for frame in self.searched if (frame.p_original or 0) >= THRESHOLD]

    @property
    def searched_against(self) -> FakeShare:
        """The shares of the detector that was attacked."""
        scores = [(frame.p_original or 0.0, frame.p_counterfactual or 0.0) for frame in self.searched]
        return FakeShare.of(self.detector, scores)

    @property
    def summary(self) -> str:
        """The result in one paragraph."""
        searched, changed = self.searched, self.changed
        count, size = len(self.frames), self.pictures[0].shape
        how = f"{self.rate:.2g} a second, {size[1]} by {size[0]} pixels"
        parts = [
            f"Of {self.source['seconds']:.1f} seconds, {count} frames were taken ({how}).",
            "The largest face was followed through them.",
        ]
        skipped = Counter(frame.skipped for frame in self.frames if frame.skipped)
        parts += [
            f"{_frames_in_words(count)} skipped: {_after_colon(reason)}" for reason, count in skipped.most_common(3)
        ]
        if not changed:
            parts.append(
                f"The detector {self.detector} called none of the other frames fake, so nothing changed and no video "
                "was made."
            )
            return " ".join(parts)
        flipped = sum(frame.flipped for frame in searched)
        parts.append(
            f"The detector {self.detector} called {len(changed)} of {len(searched)} frames fake; "
            f"{flipped} of these are below its threshold now."
        )
        means = [mean(values) for values in self._scores(changed)]
        if len(means) > 1:
            parts.append(f"For them the mean of p_fake went from {means[0]:.2f} to {means[1]:.2f} {SCALE}.")
        if len(means) > 2:
            parts.append(f"In the saved video it is {means[2]:.2f}, after compression and with any mark.")
        parts.append(self._retested_in_words())
        return " ".join(parts)

    def _retested_in_words(self) -> str:
        before = [share for share in self.retested if share.fake_before >= THRESHOLD]
        still = sum(share.fake_after >= THRESHOLD for share in before)
        if not self.retested:
            return "There is no other detector to ask."
        if not before:
            return "No other detector called most of the frames fake to begin with."
        others = "1 other detector" if len(before) == 1 else f"{len(before)} other detectors"
        return f"Of {others} that called most of the frames fake, {still} still {'does' if still == 1 else 'do'} so."

    def record(self) -> dict[str, Any]:
        """Return the result as plain values for JSON, for programs and for saved pictures."""
        return {
            "detector": self.detector,
            "generator": self.generator,
            "frames": [asdict(frame) for frame in self.frames],
            "searched": len(self.searched),
            "flipped": sum(frame.flipped for frame in self.frames),
            "retest": {
                share.detector: {key: value for key, value in asdict(share).items() if key != "detector"}
                for share in self.retested
            },
            "stopped": self.stopped,
            "rate": self.rate,
            "source": self.source,
            "epsilon": self.epsilon,
            "lengths": list(self.lengths),
            "batch": self.batch,
            "settings": asdict(self.settings),
            "weights": self.weights,
            "versions": self.versions,
            "seconds": self.seconds,
            "summary": self.summary,
        }

    def zip(self, *, marked: bool = True) -> bytes:
        """Return a zip file with the record and every frame as PNG; `marked` puts a mark on changed frames."""
        pictures = {f"frames/{number:03d}": picture for number, picture in enumerate(self.pictures, 1)}
        changed = {f"frames/{frame.number:03d}" for frame in self.changed}
        return provenance.zip_record(self.record(), pictures, own=pictures.keys() - changed if marked else pictures)

    @staticmethod
    def _scores(frames: list[VideoFrame]) -> list[list[float]]:
        """Return the scores before, after and saved, without missing ones and empty lists."""
        columns = zip(*((frame.p_original, frame.p_counterfactual, frame.p_saved) for frame in frames), strict=True)
        lists = [[score for score in column if score is not None] for column in columns]
        return [scores for scores in lists if scores]


def _frames_in_words(count: int) -> str:
    return "1 frame was" if count == 1 else f"{count} frames were"


def _after_colon(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


@dataclass(frozen=True, eq=False)
class _FrameResult:
    """The result for one frame."""

    p_original: float
    p_counterfactual: float
    steps: int
    flipped: bool


class VideoSearch:
    """A search over a video whose results so far can be read at any time.

    The first frame with the face is searched alone, the others in batches. Every batch begins with the change of the
    codes that was found for the frame before it, so most frames need few steps, and the change hardly flickers.

    Args:
        clip: The video.
        detector: Name of the detector.
        settings: For each batch; None takes the defaults with `VIDEO_STEPS`.
        inverter: Generator and encoder; None takes the embedded ones.
        marked: Whether the saved video carries the visible mark.

    Raises:
        UserError: There is no such detector, or a setting is out of range.
    """

    def __init__(
        self,
        clip: Clip,
        detector: str,
        settings: SearchSettings | None = None,
        *,
        inverter: Inverter | None = None,
        marked: bool = True,
    ) -> None:
        self.clip = clip
        self.settings = settings or SearchSettings(steps=VIDEO_STEPS)
        self.settings.check()
        self.marked = marked
        self._detector = registry.load(detector)
        self._inverter = inverter or inversion.load_embedded_inverter()
        self._pictures: list[np.ndarray] = list(clip.frames)
        self._skipped: dict[int, str] = {}
        self._sources: dict[int, CroppedPhoto] = {}
        self._results: dict[int, _FrameResult] = {}
        self._retest_scores: dict[int, FrameScores] = {}
        self._offset: Tensor | None = None
        self._epsilon = 0.0
        self._lengths: tuple[float, ...] = ()
        self._started = time.perf_counter()

    def run(self) -> Job[VideoCounterfactual]:
        """Follow the largest face, search its frames, and put the video together.

        Yields:
            One step for every frame in which the face is sought, and the steps of every search.

        Raises:
            UserError: No frame has a face that can be used.
        """
        count = len(self.clip.frames)
        length = self.settings.total + 1  # steps of a batch, with the other detectors
        most = count + len(list(self._batched(list(range(count))))) * length + 1
        faces_of_frames = []
        for number, frame in enumerate(self.clip.frames):
            yield Step(number, most, f"Finding the face in frame {number + 1} of {count}.")
            faces_of_frames.append(faces.find_faces(frame))
        usable = self._follow(faces_of_frames)
        batches = list(self._batched(usable))
        total = count + len(batches) * length + 1
        start = count
        for batch in batches:
            yield from self._search(batch, total, start)
            start += length
        yield Step(total - 1, total, "Putting the video together and judging its frames again.")
        result = self.so_far()
        assert result is not None
        yield Step(total, total, "The video is done.")
        return result

    def frames(self) -> tuple[VideoFrame, ...]:
        """Return what is known so far, frame by frame."""
        return tuple(self._frame(number) for number in range(len(self.clip.frames)))

    def so_far(self) -> VideoCounterfactual | None:
        """Return the result so far; None where no frame has been searched yet."""
        if not self._results:
            return None
        clip = self.clip
        result = VideoCounterfactual(
            frames=self.frames(),
            pictures=tuple(self._pictures),
            mp4=b"",
            rate=clip.rate,
            source={
                "seconds": round(clip.seconds, 3),
                "rate": round(clip.source_rate, 3),
                "width": clip.source_size[0],
                "height": clip.source_size[1],
            },
            retested=self._retested(),
            detector=self._detector.card.name,
            generator=self._inverter.name,
            epsilon=self._epsilon,
            lengths=self._lengths,
            settings=self.settings,
            batch=FRAME_BATCH,
            stopped=any(frame.skipped == NOT_REACHED for frame in self.frames()),
            weights=weights.model_hashes([*self._inverter.entries, self._detector.card.name, *self._retesters()]),
            versions=weights.package_versions(),
            seconds=time.perf_counter() - self._started,
        )
        if not result.changed:
            return result
        save = provenance.marked_mp4 if self.marked else provenance.unmarked_mp4
        content = save(result.pictures, result.rate, result.record())
        saved = self._judge_saved(content)
        frames = tuple(replace(frame, p_saved=saved.get(frame.number - 1)) for frame in result.frames)
        return replace(result, frames=frames, mp4=content, seconds=time.perf_counter() - self._started)

    def _batched(self, numbers: list[int]) -> Iterator[list[int]]:
        """Yield the first number alone and the others in batches, of one frame if the detector uses its own crop."""
        card, inverter = self._detector.card, self._inverter
        size = FRAME_BATCH if (card.template, card.input_size) == (inverter.template, inverter.size) else 1
        yield numbers[:1]
        for start in range(1, len(numbers), size):
            yield numbers[start : start + size]

    def _crop(self, frame: np.ndarray, face: faces.Face) -> CroppedPhoto:
        return LocatedFace(frame, face).cropped(self._inverter.template, self._inverter.size)

    def _follow(self, faces_of_frames: list[list[faces.Face]]) -> list[int]:
        """Choose the face, record which frames are skipped, and return the others."""
        track = faces.track_largest_face(faces_of_frames)
        if not any(track):
            raise UserError(
                "No face was found in this video.",
                "Use one in which a face is upright, well lit and seen from the front.",
            )
        for number, face in enumerate(track):
            frame = self.clip.frames[number]
            problem = NO_FACE if face is None else faces.face_problem(face, frame.shape)
            if face is None or problem:
                self._skipped[number] = problem or NO_FACE
            else:
                self._sources[number] = self._crop(frame, face)
        if not self._sources:
            problem = next(reason for reason in self._skipped.values() if reason != NO_FACE)
            raise UserError(problem, "Use a video in which a face is large enough and seen from the front.")
        return list(self._sources)

    def _search(self, batch: list[int], total: int, start: int) -> Job[None]:
        crops = torch.cat([images.to_tensor(self._sources[number].aligned.crop) for number in batch])
        which = f"frame {batch[0] + 1}" if len(batch) == 1 else f"frames {batch[0] + 1} to {batch[-1] + 1}"
        card = self._detector.card
        view = self._sources[batch[0]].view(card.template, card.input_size) if len(batch) == 1 else None
        job = search(self._inverter, self._detector, crops, self.settings, view, offset=self._offset)
        prefix = f"Of {len(self.clip.frames)} frames, {which}. "
        result = yield from counted(job, total, start, prefix)
        self._epsilon, self._lengths = result.epsilon, result.row_lengths
        for place, number in enumerate(batch):
            if not result.already_real[place]:
                changed = images.to_array(result.counterfactual[place])
                aligned = self._sources[number].aligned
                self._pictures[number] = alignment.paste_back(self.clip.frames[number], changed, aligned)
                self._offset = result.codes[place] - result.codes_start[place]
            self._results[number] = _FrameResult(
                float(result.p_original[place]),
                float(result.p_counterfactual[place]),
                int(result.steps[place]),
                bool(result.flipped[place]),
            )
        self._retest_frames(batch, result)
        yield Step(start + self.settings.total, total, f"{prefix}The other detectors were asked.")

    def _retest_frames(self, batch: list[int], result: SearchResult) -> None:
        """Ask the detectors that were not attacked about frames before and after."""
        same = result.already_real[:, None, None, None]
        after = torch.where(same, result.original, result.counterfactual)
        sources = [self._sources[number] for number in batch]
        scores = retest(result.original, after, [self._detector.card.name], sources=sources)
        for place, number in enumerate(batch):
            self._retest_scores[number] = {name: (float(a[place]), float(b[place])) for name, (a, b) in scores.items()}

    def _retesters(self) -> list[str]:
        return list(dict.fromkeys(name for scores in self._retest_scores.values() for name in scores))

    def _retested(self) -> tuple[FakeShare, ...]:
        frames = self._retest_scores.values()
        return tuple(
            FakeShare.of(name, [scores[name] for scores in frames if name in scores]) for name in self._retesters()
        )

    def _frame(self, number: int) -> VideoFrame:
        seconds, result = self.clip.times[number], self._results.get(number)
        if result is None:
            return VideoFrame(number + 1, seconds, self._skipped.get(number, NOT_REACHED))
        return VideoFrame(number + 1, seconds, "", **vars(result))

    def _judge_saved(self, content: bytes) -> dict[int, float]:
        """Return p_fake of the faces as they are in the saved video, by frame."""
        saved = finish(video.read_video(content)).frames
        scores = {}
        for number in self._results:
            source = self._crop(saved[number], self._sources[number].located.face)
            crop = images.to_tensor(source.aligned.crop).to(device())
            view = predict.cut_for_detector(self._detector.card, crop, source)
            with MODEL_LOCK, frozen(self._detector), torch.no_grad():  # for each frame, so that others come in between
                scores[number] = float(self._detector.p_fake(view)[0])
        return scores
