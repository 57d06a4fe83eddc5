"""The counterfactual of a short video: one face is followed, and each frame begins where the last one ended."""

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
from backend.detectors.base import THRESHOLD
from backend.detectors.predict import retest
from backend.errors import UserError
from backend.generators import inversion
from backend.generators.inversion import Inverter
from backend.progress import Job, Step, counted, finish
from backend.runtime import MODEL_LOCK, device, frozen
from backend.video import Clip

NO_FACE = "The face that was followed is not seen."

NOT_REACHED = "The search was stopped before this frame."


@dataclass(frozen=True)
class VideoFrame:
    """One frame; what was not measured is None.

    Args:
        number: From 1.
        time: In seconds from the first.
        skipped: Why it was not searched, one sentence; empty where it was.
        p_original: p_fake of the face.
        p_counterfactual: p_fake of the face after the search, before it was saved.
        p_saved: p_fake of the face cut out of the saved video, after compression and with any mark.
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
    """What share of the searched frames a detector calls fake, before and after.

    Args:
        detector: Its name.
        frames: How many frames it was asked about.
        fake_before: Share of them that it called fake, in [0, 1].
        fake_after: The same after the search, before the video was saved.
        p_before: Mean of p_fake.
        p_after: The same after the search.
    """

    detector: str
    frames: int
    fake_before: float
    fake_after: float
    p_before: float
    p_after: float

    @classmethod
    def of(cls, detector: str, scores: Sequence[tuple[float, float]]) -> "FakeShare":
        """Return it from p_fake before and after, frame by frame."""
        sides = list(zip(*scores, strict=True))
        shares = (round(mean(score >= THRESHOLD for score in side), 4) for side in sides)
        means = (round(mean(side), 6) for side in sides)
        return cls(detector, len(scores), *shares, *means)


@dataclass(frozen=True, eq=False)
class VideoCounterfactual:
    """The result for one video and one detector.

    Args:
        frames: What was found, frame by frame.
        pictures: The frames with the changed face in them, uint8 (H, W, 3), without a mark; those that were not
            searched are as they were.
        mp4: The same as an MP4 file, marked unless this was not wanted; empty where no frame was changed.
        rate: Frames a second.
        source: Seconds, frames a second, width and height of the file.
        retested: What the detectors that were not searched against say of the same frames.
        detector: Name of the detector.
        generator: Name of the generator.
        epsilon: Step that was used.
        lengths: What it came to in every open row.
        settings: Settings of the search.
        batch: How many frames were searched together.
        stopped: Whether it was stopped before the last frame.
        weights: SHA-256 of the model files used, by registry name.
        versions: Versions of the packages that matter.
        seconds: Time taken.
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
        """Return the frames that were searched, or called real to begin with."""
        return [frame for frame in self.frames if not frame.skipped]

    @property
    def changed(self) -> list[VideoFrame]:
        """Return the frames that were called fake to begin with, and so were changed."""
        return [frame for frame in self.searched if (frame.p_original or 0) >= THRESHOLD]

    @property
    def searched_against(self) -> FakeShare:
        """Return the same shares for the detector that was searched against."""
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
                f"The detector {self.detector} put none of the other frames on the side of fake, so nothing changed "
                "and no video was made."
            )
            return " ".join(parts)
        flipped = sum(frame.flipped for frame in searched)
        parts.append(
            f"The detector {self.detector} put {len(changed)} of {len(searched)} frames on the side of fake; "
            f"{flipped} of these went over to the side of real."
        )
        means = [mean(values) for values in self._scores(changed)]
        if len(means) > 1:
            parts.append(
                f"For them the mean of p_fake went from {means[0]:.2f} to {means[1]:.2f} (0 = real, 1 = fake)."
            )
        if len(means) > 2:
            parts.append(f"In the saved video it is {means[2]:.2f}, after compression and with any mark.")
        parts.append(self._retested_in_words())
        return " ".join(parts)

    def _retested_in_words(self) -> str:
        """Say how many of the others call most frames fake, before and after."""
        before = [share for share in self.retested if share.fake_before >= THRESHOLD]
        still = sum(share.fake_after >= THRESHOLD for share in before)
        if not self.retested:
            return "There is no other detector to ask."
        if not before:
            return "No other detector called most of the frames fake to begin with."
        others = "1 other detector" if len(before) == 1 else f"{len(before)} other detectors"
        return f"Of {others} that called most of the frames fake, {still} still {'does' if still == 1 else 'do'} so."

    def record(self) -> dict[str, Any]:
        """Return what a program reads and what a saved picture carries, as plain values for JSON."""
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
        """Return a zip file with the record and every frame as PNG, those that were changed with a mark if wanted."""
        pictures = {f"frames/{number:03d}": picture for number, picture in enumerate(self.pictures, 1)}
        changed = {f"frames/{frame.number:03d}" for frame in self.changed}
        return provenance.zip_record(self.record(), pictures, own=pictures.keys() - changed if marked else pictures)

    @staticmethod
    def _scores(frames: list[VideoFrame]) -> list[list[float]]:
        """Return those lists of scores, before, after and saved, that are not empty."""
        lists = [
            [frame.p_original for frame in frames],
            [frame.p_counterfactual for frame in frames],
            [frame.p_saved for frame in frames],
        ]
        return [
            scores
            for scores in ([value for value in values_of_frames if value is not None] for values_of_frames in lists)
            if scores
        ]


def _frames_in_words(count: int) -> str:
    return "1 frame was" if count == 1 else f"{count} frames were"


def _after_colon(sentence: str) -> str:
    """Return a sentence as it stands after a colon."""
    return sentence[:1].lower() + sentence[1:]


VIDEO_STEPS = 40  # of a batch at most: most of them begin near their end

FRAME_BATCH = 5  # frames that are searched together: one second


@dataclass(frozen=True, eq=False)
class _FrameResult:
    """What was found for one frame."""

    p_original: float
    p_counterfactual: float
    steps: int
    flipped: bool


FrameScores = dict[str, tuple[float, float]]  # p_fake before and after of one frame, by detector


class VideoSearch:
    """A search over a video that can be asked at any time what it has found so far.

    The first frame with the face is searched alone, the others in batches. Every batch begins at the change of the
    codes that was found for the frame before it, so most frames need few steps, and the change hardly flickers.

    Args:
        clip: The video.
        detector: Name of the detector.
        settings: Settings of the search of a batch.
        inverter: Generator and encoder; None takes the embedded ones.
        marked: Whether the saved video carries the visible mark.

    Raises:
        UserError: There is no such detector, or a setting is out of its range.
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
            One step for every frame that is looked at, and the steps of every search.

        Raises:
            UserError: No frame has a face that can be used.
        """
        count = len(self.clip.frames)
        length = self.settings.total + 1  # of a batch, with the other detectors
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
        """Return what is known of every frame now."""
        return tuple(self._frame(number) for number in range(len(self.clip.frames)))

    def so_far(self) -> VideoCounterfactual | None:
        """Put together what has been found so far; None where no frame has been searched yet."""
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
        """Yield the first number alone and the others in batches; each alone where the detector wants its own crop."""
        card, inverter = self._detector.card, self._inverter
        size = FRAME_BATCH if (card.template, card.input_size) == (inverter.template, inverter.size) else 1
        yield numbers[:1]
        for start in range(1, len(numbers), size):
            yield numbers[start : start + size]

    def _crop(self, frame: np.ndarray, face: faces.Face) -> CroppedPhoto:
        return LocatedFace(frame, face).cropped(self._inverter.template, self._inverter.size)

    def _follow(self, faces_of_frames: list[list[faces.Face]]) -> list[int]:
        """Choose the face, note which frames are skipped, and return the others."""
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
        outcome = yield from counted(job, total, start, prefix)
        self._epsilon, self._lengths = outcome.epsilon, outcome.row_lengths
        for place, number in enumerate(batch):
            if not outcome.already_real[place]:
                changed = images.to_array(outcome.counterfactual[place])
                aligned = self._sources[number].aligned
                self._pictures[number] = alignment.paste_back(self.clip.frames[number], changed, aligned)
                self._offset = outcome.codes[place] - outcome.codes_start[place]
            self._results[number] = _FrameResult(
                float(outcome.p_original[place]),
                float(outcome.p_counterfactual[place]),
                int(outcome.steps[place]),
                bool(outcome.flipped[place]),
            )
        self._retest_frames(batch, outcome)
        yield Step(start + self.settings.total, total, f"{prefix}The other detectors were asked.")

    def _retest_frames(self, batch: list[int], outcome: SearchResult) -> None:
        """Ask the detectors that were not searched against about frames before and after."""
        same = outcome.already_real[:, None, None, None]
        after = torch.where(same, outcome.original, outcome.counterfactual)
        sources = [self._sources[number] for number in batch]
        scores = retest(outcome.original, after, self._detector.card.name, sources=sources)
        for place, number in enumerate(batch):
            self._retest_scores[number] = {name: (float(a[place]), float(b[place])) for name, (a, b) in scores.items()}

    def _retesters(self) -> list[str]:
        """Return the other detectors that were asked."""
        return list(dict.fromkeys(name for scores in self._retest_scores.values() for name in scores))

    def _retested(self) -> tuple[FakeShare, ...]:
        """Return what the other detectors said of the frames that they were asked about."""
        scores_of = {
            name: [scores[name] for scores in self._retest_scores.values() if name in scores]
            for name in self._retesters()
        }
        return tuple(FakeShare.of(name, scores) for name, scores in scores_of.items())

    def _frame(self, number: int) -> VideoFrame:
        seconds, result = self.clip.times[number], self._results.get(number)
        if result is None:
            return VideoFrame(number + 1, seconds, self._skipped.get(number, NOT_REACHED))
        return VideoFrame(number + 1, seconds, "", **vars(result))

    def _judge_saved(self, content: bytes) -> dict[int, float]:
        """Return p_fake of the faces as they are in the saved video, by frame."""
        saved = finish(video.read_video(content)).frames
        scores = {}
        with MODEL_LOCK, frozen(self._detector), torch.no_grad():
            for number in self._results:
                source = self._crop(saved[number], self._sources[number].located.face)
                crop = images.to_tensor(source.aligned.crop).to(device())
                view = predict.cut_for_detector(self._detector.card, crop, source)
                scores[number] = float(self._detector.p_fake(view)[0])
        return scores
