"""The pictures of a run: which are real, which are fake, of which family and source, and which belong together."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from backend.evaluate import archives
from backend.weights import file_hash

Label = Literal["real", "fake"]
FEW = 100  # pictures of a class; from fewer, reports say, nothing can be concluded
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm"}


@dataclass(frozen=True)
class Sample:
    """One picture.

    Args:
        name: Its path below the data's folder, with forward slashes.
        label: `real` or `fake`.
        family: How it was made, for a fake; empty for a real picture.
        source: Where it comes from; for a fake, where its original comes from, if that is known.
        pair: Name of the real picture that a fake was made from; empty where it is not known.
    """

    name: str
    label: Label
    family: str = ""
    source: str = ""
    pair: str = ""


@dataclass(frozen=True)
class Skipped:
    """A file that is not measured.

    Args:
        name: Its path below the data's folder.
        reason: Why, one sentence.
    """

    name: str
    reason: str


def _no_problem(_: str) -> str | None:
    return None


@dataclass(frozen=True)
class Dataset:
    """Pictures below one folder.

    Args:
        folder: The folder.
        layout: How it is laid out, for people.
        samples: The pictures, sorted by name.
        skipped: What is left out.
        note: What a reader must know of these pictures; may be empty.
    """

    folder: Path
    layout: str
    samples: tuple[Sample, ...]
    skipped: tuple[Skipped, ...] = ()
    note: str = ""

    @cached_property
    def by_name(self) -> dict[str, Sample]:
        """Return the pictures by their name."""
        return {sample.name: sample for sample in self.samples}

    @property
    def fakes(self) -> tuple[Sample, ...]:
        """Return the fakes."""
        return tuple(sample for sample in self.samples if sample.label == "fake")

    @property
    def reals(self) -> tuple[Sample, ...]:
        """Return the real pictures."""
        return tuple(sample for sample in self.samples if sample.label == "real")

    def path(self, name: str) -> Path:
        """Return the file of a picture."""
        return self.folder / name

    def select(
        self, fakes: int | None, reals: int | None, seed: int, problem: Callable[[str], str | None] = _no_problem
    ) -> "Dataset":
        """Return some of the pictures, spread evenly over families and sources; None takes all.

        Args:
            fakes: How many fakes at most.
            reals: How many real pictures at most.
            seed: Decides which; the same seed gives the same pictures.
            problem: Says why a picture cannot be used, or returns None. Where only some are taken, another takes the
                place of such a picture, which is listed as skipped.
        """
        chosen = Choice(seed, problem)
        return self._only(chosen.some(self.fakes, fakes) | chosen.some(self.reals, reals), chosen.skipped)

    def select_pairs(
        self, count: int | None, seed: int, problem: Callable[[str], str | None] = _no_problem
    ) -> "Dataset":
        """Return fakes whose original is here, spread evenly over families, with those originals; None takes all.

        Args:
            count: How many fakes at most.
            seed: Decides which.
            problem: Says why a fake cannot be used with its original, as for `select`.
        """
        paired = tuple(sample for sample in self.fakes if sample.pair in self.by_name)
        chosen = Choice(seed, problem)
        fakes = chosen.some(paired, count)
        return self._only(fakes | {self.by_name[name].pair for name in fakes}, chosen.skipped)

    def _only(self, names: set[str], skipped: Iterable[Skipped]) -> "Dataset":
        samples = tuple(sample for sample in self.samples if sample.name in names)
        return dataclasses.replace(self, samples=samples, skipped=(*self.skipped, *skipped))

    def hash(self) -> str:
        """Return one SHA-256 of all names, labels and file contents."""
        digest = hashlib.sha256()
        for sample in self.samples:
            line = "\0".join([*dataclasses.astuple(sample), file_hash(self.path(sample.name))])
            digest.update(line.encode() + b"\n")
        return digest.hexdigest()


def files(folder: Path) -> list[str]:
    """Return the paths of all files below a folder, relative and with forward slashes, sorted."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(parent).relative_to(folder)
        found += [(below / name).as_posix() for name in names if not name.startswith(".")]
    return sorted(found)


def skip_reason(name: str) -> str | None:
    """Say why a file is left out by its ending alone, or return None for a picture."""
    suffix = Path(name).suffix.lower()
    if suffix in archives.PICTURES:
        return None
    if suffix in VIDEOS:
        return "It is a video; extract its frames first."
    return "Its name does not end like a picture's."


class Choice:
    """Takes some of many pictures, one a group in turn, in an order that the seed decides.

    Args:
        seed: The seed.
        problem: Says why a picture cannot be used, or returns None.
    """

    def __init__(self, seed: int, problem: Callable[[str], str | None]) -> None:
        self.seed, self.problem = seed, problem
        self.skipped: list[Skipped] = []

    def some(self, samples: Iterable[Sample], count: int | None) -> set[str]:
        """Return the names of `count` of the samples; of all where it is None, and then unseen."""
        groups: dict[tuple[str, str], list[str]] = {}
        for sample in samples:
            groups.setdefault((sample.family, "" if sample.family else sample.source), []).append(sample.name)
        if count is None:
            return {name for names in groups.values() for name in names}
        turns = [iter(sorted(names, key=self._place)) for _, names in sorted(groups.items())]
        chosen: set[str] = set()
        while turns and len(chosen) < count:
            turn = turns.pop(0)
            name = self._next(turn)
            if name is not None:
                chosen.add(name)
                turns.append(turn)
        return chosen

    def _next(self, names: Iterable[str]) -> str | None:
        """Return the next picture of a group that can be used, or None where none is left."""
        for name in names:
            reason = self.problem(name)
            if reason is None:
                return name
            self.skipped.append(Skipped(name, reason))
        return None

    def _place(self, name: str) -> str:
        return hashlib.sha256(f"{self.seed}:{name}".encode()).hexdigest()
