"""How often the detectors and their combined answer are wrong on faces of makers and sources that none learned from.

`python -m backend rates` measures them (`backend.evaluate.unseen`) and stores counts in `weights/rates.json`; shares
and intervals follow from the counts.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from backend import weights
from backend.settings import SETTINGS

FILE = "rates.json"  # in the folder of the weights
COMBINED = "combined"  # the name of the combined answer among the detectors
SOME_CASES = 10  # with fewer, one clip or person decides, and no interval is given
# Kinds of fakes, and sources of photographs, in words for people; those of one title are counted together.
KIND_TITLES = {
    "stylegan_hard": "computer-made faces (StyleGAN)",
    "stylegan3": "newer computer-made faces (StyleGAN3)",
    "diffusion_sd3": "portraits by an image generator (diffusion)",
    "london_swap_poisson": "face swaps",
    "london_swap_feather": "face swaps",
    "ffpp_deepfakes": "frames of one video deepfake",
}
SOURCE_TITLES = {
    "london": "studio portraits from a new collection",
    "celeba": "photographs of celebrities",
    "aaf": "photographs of people of all ages",
    "ffhq": "photographs from Flickr",
    "civil": "official portraits",
    "london_original": "the studio portraits that the swaps were made from",
    "ffpp_original": "frames of the video that the deepfake was made from",
}
NEW_SOURCE = "london"
NOT_MEASURED = "How often this detector is wrong on pictures from new sources was not measured."
NEVER_LEARNED = "Portraits by image generators and video deepfakes were not in the training data."


@dataclass(frozen=True)
class Rate:
    """How many pictures of a group got an answer.

    Args:
        group: Kind of fake or source of photographs, a key of the titles above.
        called: How many pictures were called forged.
        count: How many there were.
        cases: How many of them are independent: frames of a clip are one, and so are pictures of one person.
    """

    group: str
    called: int
    count: int
    cases: int

    @property
    def share(self) -> float:
        return self.called / self.count

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the ends of the 95 % interval (Wilson 1927, of the cases); None for fewer cases than `SOME_CASES`."""
        if self.cases < SOME_CASES:
            return None
        z, n, p = 1.959964, self.cases, self.share
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        return max(0.0, middle - half), min(1.0, middle + half)

    @property
    def interval_in_words(self) -> str:
        if self.interval is None:
            return f"{self.cases} {'case' if self.cases == 1 else 'cases'}, too few for an interval"
        low, high = self.interval
        return f"95 % interval {low:.0%} to {high:.0%}"


@dataclass(frozen=True)
class MeasuredRates:
    """The rates of one detector, or of the combined answer at its grade `strong`.

    Args:
        fakes: By kind of fake.
        photographs: By source of photographs.
    """

    fakes: tuple[Rate, ...]
    photographs: tuple[Rate, ...]

    @property
    def in_short(self) -> str:
        """Say what is missed and how often photographs are called forged, in two or three sentences."""
        missed = [
            f"{_of_ten(1 - rate.share)} of 10 {KIND_TITLES[rate.group]}"
            for rate in _joined(self.fakes, KIND_TITLES)
            if rate.interval is not None
        ]
        alarms = next((rate for rate in self.photographs if rate.group == NEW_SOURCE), None)
        alarm = (
            "" if alarms is None else f" False alarms: {_of_hundred(alarms.share)} genuine {SOURCE_TITLES[NEW_SOURCE]}."
        )
        listed = f"{', '.join(missed[:-1])} and {missed[-1]}" if missed[1:] else "".join(missed)
        return f"{listed[:1].upper()}{listed[1:]}.{alarm} {NEVER_LEARNED}"

    @property
    def in_full(self) -> list[str]:
        """Return one sentence for every kind and source, with counts and intervals."""
        groups = [
            (_joined(self.fakes, KIND_TITLES), KIND_TITLES, "found"),
            (list(self.photographs), SOURCE_TITLES, "called forged"),
        ]
        return [
            f"{titles[rate.group][:1].upper()}{titles[rate.group][1:]}: {rate.called} of {rate.count} {word} "
            f"({rate.share:.0%}; {rate.interval_in_words})."
            for rates, titles, word in groups
            for rate in rates
        ]


@dataclass(frozen=True)
class StoredRates:
    """All rates, and what they were measured with.

    Args:
        answers: By detector, and of the combined answer under the name `combined`.
        overall: Of the combined answer: `auc`, `found_at_5` and `fakes_among_none`, each with `value`, `low` and
            `high`; `grades` counts pictures by group and grade; `auc_by_kind` and `auc_after` have
            areas by detector, and by kind of fake or corruption.
        hashes: Of the weights by detector, and of the combination.
        data: What was measured: counts, and a hash of the pictures.
    """

    answers: Mapping[str, MeasuredRates]
    overall: Mapping[str, Any]
    hashes: Mapping[str, str]
    data: Mapping[str, Any]

    @property
    def overall_in_words(self) -> list[str]:
        """Say how well the combined answer tells all fakes from all photographs, and what `none` is worth."""
        among, found, area = (self.overall[name] for name in ("fakes_among_none", "found_at_5", "auc"))
        none = (
            f"If half of all pictures were forged, {among['value']:.0%} of those with “no signs of forgery that we "
            f"know of” would be forgeries (95 % interval {among['low']:.0%} to {among['high']:.0%})."
        )
        ranking = (
            f"Where 5 of 100 photographs are called forged, {found['value']:.0%} of all these forgeries are found "
            f"({found['low']:.0%} to {found['high']:.0%}); the area under the ROC curve is {area['value']:.2f} "
            f"({area['low']:.2f} to {area['high']:.2f})."
        )
        return [none, ranking]

    def stale(self, name: str) -> bool:
        """Return whether the weights of a detector are not those that were measured."""
        return self.hashes.get(name) != weights.find_entry(name).sha256


def read_rates() -> StoredRates | None:
    """Return the stored rates, or None where none were measured."""
    return _read(SETTINGS.weights_dir / FILE)


def rates_of(name: str) -> MeasuredRates | None:
    """Return the rates of a detector by its name, or of the combined answer; None where its weights have none."""
    stored = read_rates()
    if stored is None or name not in stored.answers:
        return None
    members = stored.overall["members"] if name == COMBINED else [name]
    return None if any(stored.stale(member) for member in members) else stored.answers[name]


@lru_cache(maxsize=4)
def _read(path: Path) -> StoredRates | None:
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    answers = {
        name: MeasuredRates(*(tuple(Rate(**rate) for rate in rates[part]) for part in ("fakes", "photographs")))
        for name, rates in stored["answers"].items()
    }
    return StoredRates(answers, stored["overall"], stored["hashes"], stored["data"])


def overall_in_words() -> list[str]:
    """Return what the stored rates say of the combined answer as a whole."""
    stored = read_rates()
    return [] if stored is None else stored.overall_in_words


def describe_rates(name: str) -> str:
    """Say in short how often a detector is wrong on what it never learned, or that this was not measured."""
    measured = rates_of(name)
    return NOT_MEASURED if measured is None else measured.in_short


def write_rates(stored: StoredRates, path: Path) -> None:
    answers = {
        name: {part: [vars(rate) for rate in getattr(rates, part)] for part in ("fakes", "photographs")}
        for name, rates in stored.answers.items()
    }
    content = {"data": stored.data, "hashes": stored.hashes, "overall": stored.overall, "answers": answers}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _read.cache_clear()


def _joined(rates: Iterable[Rate], titles: Mapping[str, str]) -> list[Rate]:
    """Add up the rates of groups that have the same title, in the order of the titles."""
    joined: dict[str, Rate] = {}
    for rate in sorted(rates, key=lambda rate: list(titles).index(rate.group)):
        title = titles[rate.group]
        first = joined.get(title)
        joined[title] = (
            rate
            if first is None
            else Rate(first.group, first.called + rate.called, first.count + rate.count, first.cases + rate.cases)
        )
    return list(joined.values())


def _of_ten(share: float) -> str:
    count = round(10 * share)
    if count == 10:
        return "all" if share == 1 else "nearly all"
    if count == 0:
        return "none" if share == 0 else "fewer than 1"
    return f"about {count}"


def _of_hundred(share: float) -> str:
    count = round(100 * share)
    if count == 0:
        return "none of 100" if share == 0 else "fewer than 1 of 100"
    return f"about {count} of 100"
