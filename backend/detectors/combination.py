"""The combined answer of several detectors: the mean of their calibrated log-odds, graded by signs of forgery.

`python -m backend train combination` chooses members, scales and limits on photographs and on kinds of fakes that no
detector learned, and stores them in `weights/combination.json`. No grade says that a picture is real: many fakes by
unknown tools show no sign that these detectors know.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from backend import weights
from backend.detectors import registry
from backend.detectors.base import THRESHOLD, verdict
from backend.settings import SETTINGS

FILE = "combination.json"  # in the folder of the weights
LARGEST = 13.0  # log-odds; p_fake is stored with six digits, and no detector may outvote the others without limit
Grade = Literal["none", "few", "mixed", "strong"]
GRADES: tuple[Grade, ...] = get_args(Grade)
GRADE_WORDS: Mapping[Grade, str] = {
    "none": "No signs of forgery that we know of",
    "few": "Undecided: few signs of forgery",
    "mixed": "Undecided: mixed signs",
    "strong": "Strong signs of forgery",
}
GRADE_MEANINGS: Mapping[Grade, str] = {
    "none": (
        "The detectors' scores are low on average. Forgeries by tools that they do not know get this answer too, so "
        "find out where the picture comes from."
    ),
    "few": (
        "Too little was found to say anything in either direction. Forgeries get this answer too, so find out where "
        "the picture comes from."
    ),
    "mixed": (
        "Forgeries and genuine photographs both get this answer, so it does not tell which of them this is. Find out "
        "where it comes from."
    ),
    "strong": (
        "The detectors' scores are high on average. Some genuine photographs get this answer by mistake, so also find "
        "out where the picture comes from."
    ),
}
FAMILY_WORDS = {
    "pixels": "those that look at shapes and colours",
    "frequency": "those that look for regular patterns",
    "noise": "those that look at the grain of the picture",
}


@dataclass(frozen=True)
class Member:
    """One detector of the combination.

    Args:
        name: Of the detector.
        scale: Its log-odds are multiplied by this, and then `shift` is added, which calibrates them.
        sha256: Hash of the weights that this was fitted to.
    """

    name: str
    scale: float
    shift: float
    sha256: str


@dataclass(frozen=True)
class Combination:
    """Members and limits of the combined answer.

    Args:
        none_below: Mean log-odds below which the grade is `none`: at most 10 % of the fakes that set it are there.
        mixed_from: From here to `strong_above` it is `mixed`; what is lower, down to `none_below`, is `few`.
        strong_above: Above it the grade is `strong`: at most 5 % of the photographs that set it are there.
        fitted: How it was chosen: command, settings, data and what was measured.
    """

    members: tuple[Member, ...]
    none_below: float
    mixed_from: float
    strong_above: float
    fitted: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    def score(self, p_fake: Mapping[str, float]) -> float:
        """Return the mean of the members' calibrated log-odds, from p_fake in [0, 1] by detector."""
        values = [member.scale * log_odds(p_fake[member.name]) + member.shift for member in self.members]
        return sum(values) / len(values)

    def grade(self, score: float) -> Grade:
        if score > self.strong_above:
            return "strong"
        if score < self.none_below:
            return "none"
        return "mixed" if score >= self.mixed_from else "few"

    def changed_members(self) -> list[str]:
        """Return the members whose weights are missing or not those that the combination was fitted to."""
        known = weights.read_entries()
        return [
            member.name
            for member in self.members
            if member.name not in known or known[member.name].sha256 != member.sha256
        ]


@dataclass(frozen=True)
class CombinedAnswer:
    """What the members say together about one face.

    Args:
        grade: How strong the signs of forgery are.
        p_fake: In [0, 1]; above 0.5 the grade is `strong`.
        detectors: The members' names.
        disagreement: Which families of detectors say different things, in one sentence, or empty.
    """

    grade: Grade
    p_fake: float
    detectors: tuple[str, ...]
    disagreement: str = ""

    @property
    def title(self) -> str:
        return GRADE_WORDS[self.grade]

    @property
    def meaning(self) -> str:
        return GRADE_MEANINGS[self.grade]

    def record(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "grade": self.grade,
            "p_fake": self.p_fake,
            "detectors": list(self.detectors),
            "summary": " ".join(filter(None, (f"{self.title}.", self.meaning, self.disagreement))),
        }


def log_odds(p_fake: float) -> float:
    """Return the log-odds of a probability, cut off at +-`LARGEST`."""
    if p_fake in (0.0, 1.0):
        return math.copysign(LARGEST, p_fake - 0.5)
    return max(-LARGEST, min(LARGEST, math.log(p_fake / (1 - p_fake))))


def read_combination() -> Combination | None:
    """Return the combination that ships with the weights; None where there is none, or it fits other weights."""
    combination = _read(SETTINGS.weights_dir / FILE)
    return None if combination is None or combination.changed_members() else combination


@lru_cache(maxsize=4)
def _read(path: Path) -> Combination | None:
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    members = tuple(Member(**member) for member in stored.pop("members"))
    limits = {name: stored.pop(name) for name in ("none_below", "mixed_from", "strong_above")}
    return Combination(members, **limits, fitted=stored)


def write_combination(combination: Combination, path: Path) -> None:
    stored = {
        "members": [vars(member) for member in combination.members],
        "none_below": combination.none_below,
        "mixed_from": combination.mixed_from,
        "strong_above": combination.strong_above,
        **combination.fitted,
    }
    path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    _read.cache_clear()


def is_specialist(name: str) -> bool:
    """Return whether a detector finds hardly anything but drawings by this project's own generator."""
    combination = read_combination()
    if combination is None or name in combination.names:
        return False
    area = combination.fitted.get("candidates", {}).get(name)
    return area is not None and area < combination.fitted["settings"]["least_auc"]


def combine(p_fake: Mapping[str, float], combination: Combination | None = None) -> CombinedAnswer | None:
    """Return the combined answer; None where there is no combination, or one of its members was not asked.

    Args:
        p_fake: Probability of fake in [0, 1] by detector; others than the members only serve to explain disagreement.
        combination: None takes the one that ships.
    """
    combination = combination or read_combination()
    if combination is None or not set(combination.names) <= set(p_fake):
        return None
    score = combination.score(p_fake)
    above = score - combination.strong_above
    p_combined = round(1 / (1 + math.exp(-above)), 6)
    return CombinedAnswer(combination.grade(score), p_combined, combination.names, describe_disagreement(p_fake))


def describe_disagreement(p_fake: Mapping[str, float]) -> str:
    """Say in one sentence which families of detectors see signs of forgery where others do not; empty if none differ.

    A family sees signs where more than half of its detectors do.
    """
    calls: dict[str, list[bool]] = {}
    for name, score in p_fake.items():
        if verdict(score) != "unsure":
            calls.setdefault(registry.card(name).family, []).append(score >= THRESHOLD)
    sees = {family: sum(seen) * 2 > len(seen) for family, seen in calls.items()}
    seeing = [FAMILY_WORDS[family] for family in FAMILY_WORDS if sees.get(family)]
    others = [FAMILY_WORDS[family] for family in FAMILY_WORDS if sees.get(family) is False]
    if not seeing or not others:
        return ""
    return f"The detectors disagree: {' and '.join(seeing)} mostly see signs, {' and '.join(others)} mostly see none."
