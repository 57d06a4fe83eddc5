"""What a search over the frames of a video found, as numbers, pictures and words."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean
from typing import Any

import numpy as np

from backend import packing
from backend.counterfactual.search import SearchSettings
from backend.detectors.card import THRESHOLD

NO_FACE = "The face that was followed is not seen."
NOT_REACHED = "The search was stopped before this frame."


@dataclass(frozen=True)
class FilmFrame:
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
class CalledFake:
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
    def of(cls, detector: str, scores: Sequence[tuple[float, float]]) -> "CalledFake":
        """Return it from p_fake before and after, frame by frame."""
        sides = list(zip(*scores, strict=True))
        shares = (round(mean(score >= THRESHOLD for score in side), 4) for side in sides)
        means = (round(mean(side), 6) for side in sides)
        return cls(detector, len(scores), *shares, *means)


@dataclass(frozen=True, eq=False)
class Film:
    """Everything that is told about one video and one detector.

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
        hashes: SHA-256 of the model files used, by registry name.
        versions: Versions of the packages that matter.
        seconds: Time taken.
    """

    frames: tuple[FilmFrame, ...]
    pictures: tuple[np.ndarray, ...] = field(repr=False)
    mp4: bytes = field(repr=False)
    rate: float
    source: dict[str, float]
    retested: tuple[CalledFake, ...]
    detector: str
    generator: str
    epsilon: float
    lengths: tuple[float, ...]
    settings: SearchSettings
    batch: int
    stopped: bool
    hashes: dict[str, str]
    versions: dict[str, str]
    seconds: float

    @property
    def searched(self) -> list[FilmFrame]:
        """Return the frames that were searched, or called real to begin with."""
        return [frame for frame in self.frames if not frame.skipped]

    @property
    def changed(self) -> list[FilmFrame]:
        """Return the frames that were called fake to begin with, and so were changed."""
        return [frame for frame in self.searched if (frame.p_original or 0) >= THRESHOLD]

    @property
    def searched_against(self) -> CalledFake:
        """Return the same shares for the detector that was searched against."""
        scores = [(frame.p_original or 0.0, frame.p_counterfactual or 0.0) for frame in self.searched]
        return CalledFake.of(self.detector, scores)

    @property
    def summary(self) -> str:
        """Tell in one paragraph of plain words what happened."""
        found, fake = self.searched, self.changed
        taken, size = len(self.frames), self.pictures[0].shape
        how = f"{self.rate:.2g} a second, {size[1]} by {size[0]} pixels"
        parts = [
            f"Of {self.source['seconds']:.1f} seconds, {taken} frames were taken ({how}).",
            "The largest face was followed through them.",
        ]
        skipped = Counter(frame.skipped for frame in self.frames if frame.skipped)
        parts += [f"{_frames(count)} skipped: {_within(reason)}" for reason, count in skipped.most_common(3)]
        if not fake:
            parts.append(
                f"The detector {self.detector} put none of the other frames on the side of fake, so nothing changed "
                "and no video was made."
            )
            return " ".join(parts)
        flipped = sum(frame.flipped for frame in found)
        parts.append(
            f"The detector {self.detector} put {len(fake)} of {len(found)} frames on the side of fake; "
            f"{flipped} of these went over to the side of real."
        )
        means = [mean(values) for values in self._scores(fake)]
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
        before = [one for one in self.retested if one.fake_before >= THRESHOLD]
        still = sum(one.fake_after >= THRESHOLD for one in before)
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
                one.detector: {key: value for key, value in asdict(one).items() if key != "detector"}
                for one in self.retested
            },
            "stopped": self.stopped,
            "rate": self.rate,
            "source": self.source,
            "epsilon": self.epsilon,
            "lengths": list(self.lengths),
            "batch": self.batch,
            "settings": asdict(self.settings),
            "weights": self.hashes,
            "versions": self.versions,
            "seconds": self.seconds,
            "summary": self.summary,
        }

    def zip(self, *, marked: bool = True) -> bytes:
        """Return a zip file with the record and every frame as PNG, those that were changed with a mark if wanted."""
        pictures = {f"frames/{number:03d}": picture for number, picture in enumerate(self.pictures, 1)}
        changed = {f"frames/{frame.number:03d}" for frame in self.changed}
        return packing.zipped(self.record(), pictures, own=pictures.keys() - changed if marked else pictures)

    @staticmethod
    def _scores(frames: list[FilmFrame]) -> list[list[float]]:
        """Return those lists of scores, before, after and saved, that are not empty."""
        lists = [
            [frame.p_original for frame in frames],
            [frame.p_counterfactual for frame in frames],
            [frame.p_saved for frame in frames],
        ]
        return [known for known in ([value for value in one if value is not None] for one in lists) if known]


def _frames(count: int) -> str:
    return "1 frame was" if count == 1 else f"{count} frames were"


def _within(sentence: str) -> str:
    """Return a sentence as it stands after a colon."""
    return sentence[:1].lower() + sentence[1:]
