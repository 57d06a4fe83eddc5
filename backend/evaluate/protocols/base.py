"""What a protocol is: a frozen config, its items, what one item yields, and the tables and plots of all rows.

A new protocol is one new file beside this one, with `@register_protocol()` above its class.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

import pandas as pd
from pydantic import BeforeValidator, Field, Strict

from backend import weights
from backend.detectors import base, registry
from backend.errors import UserError
from backend.evaluate import dataset
from backend.evaluate.dataset import FEW_PICTURES, Dataset
from backend.evaluate.plots import Figure
from backend.evaluate.store import Row
from backend.evaluate.tables import Table
from backend.progress import Job
from backend.registration import LAST, Registry
from backend.settings import validated


def detector_title(name: str) -> str:
    """Return the title of a detector; one that is not installed here keeps its name."""
    if name in registry.ARCHITECTURES:
        return registry.ARCHITECTURES[name].title
    return registry.card(name).title if name in weights.read_entries() else name


def family_title(name: str) -> str:
    """Say what a family of fakes consists of; a family of the user's own keeps the name of its folder."""
    return base.FAKE_KINDS.get(name, name)


QUICK, FULL = "quick", "full"
PRESETS = (QUICK, FULL)

Value = TypeVar("Value")
Values = Annotated[  # a setting with several values; a single one need not be a list
    tuple[Value, ...], BeforeValidator(lambda value: value if isinstance(value, (list, tuple)) else (value,))
]
Whole = Annotated[int, Strict()]  # neither 5.0 nor true
Count = Annotated[Whole, Field(ge=0)]


@dataclass(frozen=True)
class Item:
    """One unit of work: a picture and a setting.

    Args:
        key: Its name within the run, the same in every session; rows are ordered by it.
        sample: Name of the picture in the data.
        options: Plain values that say what to do with the picture.
    """

    key: str
    sample: str
    options: Mapping[str, Any]


def make_item(sample: str, **options: Any) -> Item:
    """Return an item whose key says all that it depends on."""
    return Item("|".join([sample, *(f"{name}={value}" for name, value in options.items())]), sample, options)


@validated
@dataclass(frozen=True)
class ProtocolConfig:
    """What every protocol's settings have.

    Args:
        fakes: How many fakes are measured, spread evenly over families; None takes all.
        reals: How many real pictures are measured; None takes all.
        seed: Seed of the choice of pictures and of all other random numbers.
    """

    fakes: Count | None = None
    reals: Count | None = None
    seed: Whole = 0


@dataclass(frozen=True)
class Protocol(ABC):
    """A protocol with its settings; it is pickled to the workers, so it holds no models.

    Subclasses set `name`, `title`, `about` and `source`, annotate `config` with its class, and add no fields.
    """

    config: Any

    name: ClassVar[str]
    title: ClassVar[str]
    about: ClassVar[str]
    source: ClassVar[str]
    presets: ClassVar[tuple[str, ...]] = PRESETS
    defaults_of_old_runs: ClassVar[Mapping[str, Any]] = {}  # of settings added later whose default differs

    @classmethod
    @abstractmethod
    def preset(cls, name: str) -> Any:
        """Return the config of a preset, `quick` or `full`, with every default spelled out."""

    def select_samples(self, data: Dataset) -> Dataset:
        config = self.config
        return data.select(config.fakes, config.reals, config.seed, lambda name: self.problem(data, name))

    def problem(self, data: Dataset, name: str) -> str | None:
        """Say why a picture cannot be used, or return None; asked where only some pictures are taken."""
        return dataset.crop_problem(data, name)

    @abstractmethod
    def items(self, data: Dataset) -> list[Item]:
        """Return all items for the chosen pictures, those of one picture next to each other."""

    @abstractmethod
    def run_item(self, item: Item, data: Dataset) -> Job[list[Row]]:
        """Measure one item; it can be stopped at every step.

        Apart from `seconds` columns and the rounding of float32, rows depend only on item, config, data and weights.

        Raises:
            UserError: The picture cannot be measured; the message is the reason.
        """

    @abstractmethod
    def tables(self, rows: Sequence[Row]) -> list[Table]:
        """Return the tables of all rows, whatever their order."""

    @abstractmethod
    def plots(self, rows: Sequence[Row]) -> list[Figure]:
        """Return the plots of all rows."""

    def models(self) -> list[str]:
        """Return the names of the registry's weights that the protocol uses; their hashes are part of the run."""
        return []

    def measures(self) -> dict[str, str]:
        """Return, for every metric that may be missing here, the network that measures it or why none does.

        It decides the numbers, so it is part of the run.
        """
        return {}

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of every model file that is used, by name; they are part of the run."""
        return weights.model_hashes(sorted(set(self.models())))

    def settings(self) -> dict[str, Any]:
        """Return the settings as reports show them: plain values, and files by name, without their folders."""
        return dataclasses.asdict(self.config)

    def finding(self, rows: Sequence[Row]) -> str:  # noqa: ARG002 - of the subclasses
        """Return the main finding in one plain sentence with its numbers, or an empty string."""
        return ""

    def limits(self, data: Dataset) -> list[str]:
        """Return, in sentences, what cannot be concluded from these pictures."""
        groups = ((data.fakes, "fakes", self.config.fakes), (data.reals, "real pictures", self.config.reals))
        small = [f"{len(group)} {word}" for group, word, count in groups if len(group) < FEW_PICTURES and count != 0]
        sentences = [
            "Numbers hold for these pictures and these families of fakes; other sources give other numbers.",
            (
                "Intervals take the pictures as independent of each other. Frames of one video and fakes of one photo "
                "are not, and with these the intervals are too narrow."
            ),
        ]
        if not small:
            return sentences
        return [
            (
                f"There are only {' and '.join(small)}: enough to see the protocol work, too few to conclude from. "
                "The intervals say how little is known."
            ),
            *sentences,
        ]

    def published(self) -> list[Table]:
        """Return the paper's own numbers, each with a note on why ours differ."""
        return []


PROTOCOLS: Registry[type[Protocol]] = Registry("protocol", "backend.evaluate.protocols")
ProtocolClass = TypeVar("ProtocolClass", bound=type[Protocol])


def register_protocol(order: float = LAST) -> Callable[[ProtocolClass], ProtocolClass]:
    """Return a decorator that registers a protocol under its name, in the order of lists and pages."""

    def register(protocol: ProtocolClass) -> ProtocolClass:
        PROTOCOLS.add(protocol.name, protocol, order)
        return protocol

    return register


def select(frame: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """Return the rows that have these values in the columns of these names."""
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame


def check_detectors(names: Sequence[str], judges: Sequence[str] = ()) -> None:
    """Check that detectors can be loaded and, if there are `judges`, that they are among them.

    Raises:
        UserError: One cannot, or is not.
    """
    known = registry.loadable()
    for name in names:
        if name not in known:
            raise UserError(f"There is no detector named {name}.", f"Choose among: {', '.join(known)}.")
        if judges and name not in judges:
            raise UserError(
                f"The detector {name} is attacked but is not among those that judge.", "Add it to detectors."
            )


def configure_protocol(protocol: type[Protocol], preset: str, changes: Mapping[str, Any]) -> Protocol:
    """Return a protocol in one of its presets, with some settings changed to values as JSON gives them.

    Raises:
        UserError: There is no such preset or setting, or a value is of the wrong kind.
    """
    if preset not in protocol.presets:
        raise UserError(f"There is no preset {preset}.", f"Use one of: {', '.join(protocol.presets)}.")
    config = protocol.preset(preset)
    names = [field.name for field in dataclasses.fields(config)]
    for name in changes:
        if name not in names:
            raise UserError(f"There is no setting {name}.", f"Settings of {protocol.name}: {', '.join(names)}.")
    return protocol(dataclasses.replace(config, **changes))
