"""The test of explanation maps that two protocols share: its settings, what a row keeps of it, and its columns.

Only the segments that a map ranks highest are attacked (`backend.explain.sufficiency`); the same number of pixels in
random segments is the baseline.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import pandas as pd
from pydantic import Field

from backend.attacks import nes
from backend.attacks.nes import NESSettings
from backend.detectors.base import THRESHOLD
from backend.evaluate.metrics import faithfulness
from backend.evaluate.metrics.base import Estimate, mean_with_interval
from backend.evaluate.protocols.base import Protocol, ProtocolConfig, Values, Whole, family_title
from backend.evaluate.store import Row
from backend.evaluate.tables import Cell, Column, Table
from backend.explain.base import EXPLAINERS, Preset
from backend.explain.sufficiency import ITERATIONS, Sufficiency, SufficiencySettings
from backend.settings import validated

Attack = Literal["nes", "pgd"]
ATTACK_WORDS: dict[Attack, str] = {"nes": "NES, which sees answers alone", "pgd": "PGD, which sees the gradient"}
RANDOM_SEGMENTS = "Random segments"
FAMILY = Column("family", "Family of fakes")
DETECTOR = Column("detector", "Detector")
MapRows = tuple[tuple[str, ...], pd.DataFrame]  # the cells that name a method's maps, and their rows


@validated
@dataclass(frozen=True)
class SufficiencyConfig(ProtocolConfig):
    """Settings of the test.

    Args:
        samples: How many samples a map takes: a preset of the explanations.
        attack: What attacks the segments: `nes`, as in the papers, or `pgd`, a white-box shortcut that is some 30
            times cheaper.
        grey_levels: How far any value may move, of 255.
        step_levels: How far one update moves a value, of 255.
        iterations: How many updates at most.
        tops: How many of the highest segments are attacked, one attack for each number.
        draws: How many random rankings are attacked beside every map, with as many pixels each.
    """

    samples: Preset = "full"
    attack: Attack = "nes"
    grey_levels: float = 16.0
    step_levels: float = 1.0
    iterations: Whole = ITERATIONS
    tops: Values[Whole] = (1, 2, 3)
    draws: Annotated[Whole, Field(ge=1)] = 3

    def __post_init__(self) -> None:
        self.map_test_settings(0)
        self.nes_settings().check()

    def nes_settings(self) -> NESSettings:
        """Return the settings of NES; those of PGD have the same bounds."""
        alpha, delta = self.step_levels / 255, self.grey_levels / 255
        return NESSettings(alpha=alpha, delta=delta, iterations=self.iterations, seed=self.seed)

    def map_test_settings(self, seed: int, *, positive_only: bool = False) -> SufficiencySettings:
        """Return the settings of one test, with the seed of its random segments."""
        bounds = self.nes_settings()
        attack = bounds if self.attack == "nes" else nes.white_box_settings(bounds)
        return SufficiencySettings(self.tops, attack, self.draws, positive_only, seed)

    def attack_in_words(self) -> str:
        return (
            f"Segments were attacked by {ATTACK_WORDS[self.attack]}: no value moved by more than {self.grey_levels:g} "
            f"of 255 grey levels, in at most {self.iterations} updates of {self.step_levels:g}."
        )


class MapProtocol(Protocol):
    """A protocol that tests explanation maps; each row of its tables is a method's maps, or random segments."""

    config: Any
    map_columns: ClassVar[tuple[Column, ...]]  # that name the maps of a row

    def models(self) -> list[str]:
        return list(self.config.detectors)

    @abstractmethod
    def map_rows(self, frame: pd.DataFrame) -> list[tuple[Cell, ...]]:
        """Return one row of a table for each method's maps, and for random segments: names, accuracy, sufficiency."""

    @abstractmethod
    def maps(self, frame: pd.DataFrame) -> list[MapRows]:
        """Return the maps of each method."""

    def families_table(self, frame: pd.DataFrame, title: str, note: str) -> Table:
        body = [(family_title(name), *row) for name, family in frame.groupby("family") for row in self.map_rows(family)]
        columns = (FAMILY, *self.map_columns, *sufficiency_columns(self.config.tops))
        return Table("families", title, columns, tuple(body), note, by_family=True)

    def overall_table(self, frame: pd.DataFrame, title: str, note: str) -> Table:
        columns = (*self.map_columns, *sufficiency_columns(self.config.tops))
        return Table(self.name, title, columns, tuple(self.map_rows(frame)), note)

    def against_random_table(self, frame: pd.DataFrame, tested_on: str) -> Table:
        """Return the table of maps against random segments; `tested_on` says which picture was attacked."""
        tops = self.config.tops
        columns = (*self.map_columns, *(Column(f"over_random_{k}", f"Sufficiency@{k}, map - random") for k in tops))
        body: list[tuple[Cell, ...]] = [
            (*names, *(_over_random(maps, top) for top in tops)) for names, maps in self.maps(frame)
        ]
        note = f"Against as many pixels in random segments of {tested_on}; a map whose interval holds 0 may be chance."
        return Table("over_random", "Maps against random segments", columns, tuple(body), note)


def derived_seed(seed: int, *names: object) -> int:
    """Return a seed that depends on `seed` and names alone, the same in every session."""
    digest = hashlib.sha256("|".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def sufficiency_row(test: Sufficiency) -> Row:
    """Return what a row keeps of a test: None where there were too few segments to attack."""
    row: Row = {"p_before": test.p_before, "sufficiency_images": test.image_count, "sufficiency_seconds": test.seconds}
    for place, top in enumerate(test.settings.tops):
        after, random = test.p_after[place], test.random_p_after[:, place]
        attacked = not bool(after.isnan())
        row[f"p_after_{top}"] = float(after) if attacked else None
        row[f"random_p_after_{top}"] = float(random.mean()) if attacked else None
        row[f"random_called_fake_{top}"] = float((random >= THRESHOLD).float().mean()) if attacked else None
    return row


def empty_sufficiency_row(tops: Iterable[int]) -> Row:
    """Return the same columns for a map that shows nothing."""
    names = ("p_after", "random_p_after", "random_called_fake")
    return {f"{name}_{top}": None for top in tops for name in names}


def sufficiency_columns(tops: tuple[int, ...]) -> tuple[Column, ...]:
    """Return the columns that `sufficiency_cells` and `random_sufficiency_cells` fill."""
    return (
        *(Column(f"accuracy_{top}", f"Accuracy@{top}", "accuracy_at_k") for top in tops),
        *(Column(f"sufficiency_{top}", f"Sufficiency@{top}", "sufficiency_at_k") for top in tops),
    )


def sufficiency_cells(maps: pd.DataFrame, tops: Iterable[int]) -> tuple[Estimate, ...]:
    """Return accuracy and sufficiency of some maps."""
    after = [maps[f"p_after_{top}"].astype(float) for top in tops]
    return (
        *(faithfulness.accuracy_at_k(list(p_after.dropna() >= THRESHOLD)) for p_after in after),
        *(faithfulness.sufficiency_at_k(maps["p_before"], p_after) for p_after in after),
    )


def random_sufficiency_cells(maps: pd.DataFrame, tops: Iterable[int]) -> tuple[Estimate, ...]:
    """Return the same for the random segments beside all maps; those of one picture are averaged first."""
    called_fake = [maps[f"random_called_fake_{top}"] for top in tops]
    falls = [maps["p_before"].astype(float) - maps[f"random_p_after_{top}"].astype(float) for top in tops]
    return (
        *(mean_with_interval(mean_by_picture(maps, values), (0.0, 1.0)) for values in called_fake),
        *(mean_with_interval(mean_by_picture(maps, values)) for values in falls),
    )


def mean_by_picture(frame: pd.DataFrame, values: pd.Series) -> pd.Series:
    """Return the mean of some values over the rows of each picture; of one picture they are not independent."""
    return values.astype(float).groupby(frame["sample"], sort=False).mean()


def method_title(method: str) -> str:
    return EXPLAINERS[method].title


def _over_random(maps: pd.DataFrame, top: int) -> Estimate:
    """Return how much further the score falls than with random segments, picture by picture."""
    return mean_with_interval(maps[f"random_p_after_{top}"].astype(float) - maps[f"p_after_{top}"].astype(float))
