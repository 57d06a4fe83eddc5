"""Detectors by name. A new one is a new file beside this one, whose network carries `@register_detector`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from backend import runtime, weights
from backend.detectors.base import TWO_LOGITS, Card, Detector, ErrorRate, Family
from backend.errors import UserError
from backend.registration import LAST, Registered, Registry
from backend.settings import SETTINGS

Options = Mapping[str, Any]
DetectorSet = Literal["shipped", "embedded", "plain", "all"]
UNDEFENDED = "none"  # the defence of the plain set
EMBEDDED_SIZE = 128  # side in pixels of the faces that embedded detectors take, unless `input_size` says otherwise


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What is known of a detector before it is trained.

    Args:
        title: Name for people.
        network: Builds the untrained network; takes the names in `embedded` as arguments.
        published: Builds the untrained network at the size of the paper.
        embedded: Arguments of `network` that an entry of the weights' registry may set, with their defaults; None
            where only the published size exists.
        outputs: What the network returns, a key of `base.LOG_ODDS`.
        cam_layer: Layer that Grad-CAM reads; empty where there is none or its places are frequencies, as in DCT-A.
        family: What it looks at: the picture itself, its frequencies, or its noise.
        mean: Subtracted from every channel of pictures in [0, 1].
        std: Divides every channel afterwards.
    """

    title: str
    paper: str
    network: Callable[..., nn.Module]
    published: Callable[[], nn.Module]
    embedded: Mapping[str, Any] | None = None
    outputs: str = TWO_LOGITS
    cam_layer: str = ""
    family: Family = "pixels"
    mean: float | list[float] = 0.5
    std: float | list[float] = 0.5

    def build(self, options: Options) -> nn.Module:
        """Return the untrained network that the options of a registry entry describe."""
        if self.embedded is None:
            return self.published()
        return self.network(**{name: options.get(name, default) for name, default in self.embedded.items()})


ARCHITECTURES = Registry[Architecture]("detector", "backend.detectors")
# Networks that others publish in a form of their own; only entries of the Hub name them, as their `architecture`.
PUBLISHED = Registry[Architecture]("published form", "backend.detectors")


def register_detector(
    name: str,
    *,
    embedded: Mapping[str, Any],
    published: Callable[[], nn.Module] | None = None,
    order: float = LAST,
    **facts: Any,
) -> Callable[[Registered], Registered]:
    """Return a decorator that makes a class or function that builds a network a detector of the app.

    Args:
        name: The name that code and command line use.
        embedded: Arguments that an entry of the weights' registry may set, with their defaults.
        published: Builds the network at the size of the paper; by default the network without arguments.
        order: Place in lists.
        facts: Other fields of `Architecture`.
    """

    def make(network: Callable[..., nn.Module]) -> Architecture:
        return Architecture(network=network, published=published or network, embedded=embedded, **facts)

    return ARCHITECTURES.register(name, make, order)


def register_published(
    name: str, *, published: Callable[[], nn.Module] | None = None, **facts: Any
) -> Callable[[Registered], Registered]:
    """Return a decorator for a network that exists at its published size only; arguments as for a detector."""

    def make(network: Callable[..., nn.Module]) -> Architecture:
        return Architecture(network=network, published=published or network, **facts)

    return PUBLISHED.register(name, make)


def names() -> list[str]:
    return list(ARCHITECTURES)


def loadable(which: DetectorSet = "shipped") -> list[str]:
    """Return the detectors that have an entry in the registry of weights, in the order of `names()`.

    Args:
        which: `shipped`, as the app uses them: one entry of the same name for each architecture, then those fetched
            from the Hub; `embedded`, without the latter; `plain`, the undefended ones, whose entries are named
            `NAME_plain`; or `all`, with every other variant.
    """
    if not (SETTINGS.weights_dir / "registry.toml").exists():
        return []
    known = weights.read_entries()
    if which in {"shipped", "embedded"}:
        shipped = [name for name in ARCHITECTURES if name in known and known[name].profile == "embedded"]
        return shipped + (_fetched(known) if which == "shipped" else [])
    variants = [
        (entry.options.get("architecture", name), name) for name, entry in known.items() if entry.profile == "embedded"
    ]
    ordered = [name for listed in ARCHITECTURES for architecture, name in variants if architecture == listed]
    return ordered if which == "all" else [name for name in ordered if _defence(known[name].options) == UNDEFENDED]


def _fetched(known: Mapping[str, weights.Entry]) -> list[str]:
    hub = {name: entry for name, entry in known.items() if entry.profile == "hub" and entry.path.is_file()}
    return [name for name, entry in hub.items() if find_architecture(entry.options.get("architecture", "")) is not None]


def find_architecture(name: str) -> Architecture | None:
    """Return a detector of the app or a published form; None where the name is unknown."""
    return ARCHITECTURES.get(name) or PUBLISHED.get(name)


def build(name: str) -> nn.Module:
    """Return the raw, untrained network at its published size."""
    return _architecture(name).published()


def build_embedded(name: str, options: Options) -> nn.Module:
    """Return the raw, untrained network of a registry entry with these options, for training and for `load`."""
    return _architecture(name).build(options)


def card(name: str) -> Card:
    """Return the card of a detector without loading its weights."""
    architecture = _architecture(name)
    entry = weights.find_entry(name)
    options = entry.options
    return Card(
        name=name,
        title=options.get("title", architecture.title),
        paper=architecture.paper,
        weights=entry.name,
        input_size=int(options.get("input_size", EMBEDDED_SIZE)),
        mean=channel_values(options.get("mean", architecture.mean)),
        std=channel_values(options.get("std", architecture.std)),
        outputs=architecture.outputs,
        cam_layer=architecture.cam_layer,
        trained_on=options["trained_on"],
        licence=entry.licence,
        errors=tuple(ErrorRate(**rate) for rate in options.get("errors", ())),
        known_failures=options["known_failures"],
        family=architecture.family,
        template=options.get("template", Card.template),
        defence=_defence(options),
        mirrored=bool(options.get("mirrored", Card.mirrored)),
    )


def load(name: str) -> Detector:
    """Return the process's one copy of a detector: trained, frozen, on the device of the settings."""
    return runtime.load_once(f"detector {name}", lambda: _load(name))


def _load(name: str) -> Detector:
    facts = card(name)
    options = weights.find_entry(name).options
    network = weights.load_into(build_embedded(name, options), name)
    calibration = {key: float(options[key]) for key in ("temperature", "threshold") if key in options}
    detector = Detector(network, facts, **calibration)
    return detector.eval().requires_grad_(False).to(runtime.device())


def _architecture(name: str) -> Architecture:
    """Return an architecture by its own name or that of an entry with the option `architecture`."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    if (SETTINGS.weights_dir / "registry.toml").exists() and name in weights.read_entries():
        architecture = find_architecture(weights.find_entry(name).options.get("architecture", ""))
        if architecture is not None:
            return architecture
    raise UserError(f"There is no detector named {name}.", f"Choose one of: {', '.join(names())}.")


def _defence(options: Options) -> str:
    return str(options.get("defence", "shipped"))


def channel_values(value: float | list[float]) -> tuple[float, float, float]:
    """Return a value for each channel, from one for all or a list of three."""
    red, green, blue = value if isinstance(value, list) else (value, value, value)
    return float(red), float(green), float(blue)
