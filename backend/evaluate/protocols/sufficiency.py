"""The test of explanation maps that two protocols share: its settings, what a row keeps of it, and its columns.

Only the segments that a map ranks highest are attacked (`backend.explain.sufficiency`); the same number of pixels in
random segments is the baseline.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from backend.attacks import nes
from backend.attacks.nes import NESSettings
from backend.detectors.base import THRESHOLD
from backend.evaluate.metrics import faithfulness
from backend.evaluate.metrics.base import Estimate, mean_with_interval
from backend.evaluate.protocols.base import ProtocolConfig, Values, Whole
from backend.evaluate.store import Row
from backend.evaluate.tables import Cell, Column, Table
from backend.explain.base import EXPLAINERS, Preset
from backend.explain.sufficiency import ITERATIONS, Sufficiency, SufficiencySettings
from backend.settings import validated

Attack = Literal["nes", "pgd"]
ATTACK_WORDS: dict[Attack, str] = {"nes": "NES, which sees answers alone", "pgd": "PGD, which sees the gradient"}
RANDOM_SEGMENTS = "Random segments"

MapRows = tuple[tuple[str, ...], list[Row]]  # the cells that name a method's maps, and their rows


@validated
@dataclass(frozen=True)
class SufficiencyConfig(ProtocolConfig):
    """Settings of the test.

    Args:
        samples: How thoroughly maps are made: a preset of the explanations.
        attack: What attacks the segments: `nes`, as in the papers, or `pgd`, a white-box shortcut that is some 30
            times cheaper.
        grey_levels: How far any value may move, of 255.
        step_levels: How far one update moves a value, of 255.
        iterations: How many updates at most.
        tops: How many of the highest segments are attacked, one attack for each number.
        draws: Random rankings that are attacked beside every map, as many pixels each.
    """

    samples: Preset = "full"
    attack: Attack = "nes"
    grey_levels: float = 16.0
    step_levels: float = 1.0
    iterations: Whole = ITERATIONS
    tops: Values[Whole] = (1, 2, 3)
    draws: Annotated[Whole, Field(ge=1)] = 3

    def __post_init__(self) -> None:
        """Refuse settings with which no map can be tested."""
        map_test_settings(self, 0)
        nes_settings(self).check()


def nes_settings(config: SufficiencyConfig) -> NESSettings:
    """Return the settings of NES; those of PGD have the same bounds."""
    return NESSettings(
        alpha=config.step_levels / 255,
        delta=config.grey_levels / 255,
        iterations=config.iterations,
        seed=config.seed,
    )


def map_test_settings(config: SufficiencyConfig, seed: int, *, positive_only: bool = False) -> SufficiencySettings:
    """Return the settings of one test, with the seed of its random segments."""
    budget = nes_settings(config)
    attack = budget if config.attack == "nes" else nes.white_box_settings(budget)
    return SufficiencySettings(
        tops=config.tops, attack=attack, draws=config.draws, positive_only=positive_only, seed=seed
    )


def attack_in_words(config: SufficiencyConfig) -> str:
    """Say how segments are attacked."""
    return (
        f"Segments were attacked by {ATTACK_WORDS[config.attack]}: "
        f"no value moved by more than {config.grey_levels:g} of "
        f"255 grey levels, in at most {config.iterations} updates of {config.step_levels:g}."
    )


def derived_seed(seed: int, *names: object) -> int:
    """Return a seed for one thing of many, the same in every session."""
    digest = hashlib.sha256("|".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def sufficiency_row(proof: Sufficiency) -> Row:
    """Return what a row keeps of a test: None where there were too few segments to attack."""
    row: Row = {"p_before": proof.p_before, "proof_images": proof.image_count, "proof_seconds": proof.seconds}
    for place, top in enumerate(proof.settings.tops):
        after, random = proof.p_after[place], proof.random_p_after[:, place]
        some = not bool(after.isnan())
        row[f"p_after_{top}"] = float(after) if some else None
        row[f"random_p_after_{top}"] = float(random.mean()) if some else None
        row[f"random_called_fake_{top}"] = float((random >= THRESHOLD).float().mean()) if some else None
    return row


def empty_sufficiency_row(tops: Iterable[int]) -> Row:
    """Return the same columns for a map that shows nothing."""
    names = ("p_after", "random_p_after", "random_called_fake")
    return {f"{name}_{top}": None for top in tops for name in names}


def sufficiency_columns(tops: Iterable[int]) -> tuple[Column, ...]:
    """Return the columns that `cells` and `random_cells` fill."""
    tops = tuple(tops)
    return (
        *(Column(f"accuracy_{top}", f"Accuracy@{top}", "accuracy_at_k") for top in tops),
        *(Column(f"sufficiency_{top}", f"Sufficiency@{top}", "sufficiency_at_k") for top in tops),
    )


def sufficiency_cells(rows: Sequence[Row], tops: Iterable[int]) -> tuple[Estimate, ...]:
    """Return accuracy and sufficiency of the rows of one map."""
    tops = tuple(tops)
    after = {top: [row[f"p_after_{top}"] for row in rows] for top in tops}
    before = [row["p_before"] for row in rows]
    return (
        *(faithfulness.accuracy_at_k([None if p is None else p >= THRESHOLD for p in after[top]]) for top in tops),
        *(faithfulness.sufficiency_at_k(before, after[top]) for top in tops),
    )


def random_sufficiency_cells(rows: Sequence[Row], tops: Iterable[int]) -> tuple[Estimate, ...]:
    """Return the same for the random segments beside all maps; those of one picture are averaged first."""
    tops = tuple(tops)
    return (
        *(mean_with_interval(_by_picture(rows, f"random_called_fake_{top}"), (0.0, 1.0)) for top in tops),
        *(mean_with_interval(_by_picture(rows, f"random_p_after_{top}", falls=True)) for top in tops),
    )


def against_random_table(
    named: tuple[Column, ...], maps: Iterable[MapRows], tops: Iterable[int], tested_on: str
) -> Table:
    """Return the table of maps against random segments.

    Args:
        named: The columns that name a map.
        maps: All maps.
        tops: Numbers of segments.
        tested_on: Which picture was attacked, in words.
    """
    tops = tuple(tops)
    columns = (*named, *(Column(f"over_random_{top}", f"Sufficiency@{top}, map - random") for top in tops))
    body: list[tuple[Cell, ...]] = [(*names, *(over_random(rows, top) for top in tops)) for names, rows in maps]
    note = f"Against as many pixels in random segments of {tested_on}; a map whose interval holds 0 may be chance."
    return Table("over_random", "Maps against random segments", columns, tuple(body), note)


def method_title(method: str) -> str:
    """Return the name of an explanation method for people."""
    return EXPLAINERS[method].title


def over_random(rows: Sequence[Row], top: int) -> Estimate:
    """Return how much further the score falls than with random segments, picture by picture."""
    pairs = ((row[f"random_p_after_{top}"], row[f"p_after_{top}"]) for row in rows)
    return mean_with_interval(None if one is None or two is None else one - two for one, two in pairs)


def bar_values(cell: Cell) -> float:
    """Return the number that a bar shows; NaN where nothing was measured."""
    return float("nan") if not isinstance(cell, Estimate) or cell.value is None else cell.value


def _by_picture(rows: Sequence[Row], name: str, *, falls: bool = False) -> list[float]:
    """Return the mean of a column over the rows of each picture, or of how far p_fake falls to it."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row[name] is not None:
            found.setdefault(row["sample"], []).append(row["p_before"] - row[name] if falls else row[name])
    return [sum(values) / len(values) for values in found.values()]
