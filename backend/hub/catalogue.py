"""What is here and what can be fetched: every model with its size, its licence and what it is for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from backend import runtime, weights
from backend.detectors import registry
from backend.hub import fetching
from backend.settings import SETTINGS
from backend.weights import Entry

ModelState = Literal["loaded", "here", "absent"]
DETECTOR = "detector"
# Title and use of what ships with the app and is no detector.
EMBEDDED_USES: Mapping[str, tuple[str, str]] = {
    "generator": ("Generator", "draws faces, for Counterfactual"),
    "encoder": ("Encoder", "finds the code of a face, for Counterfactual"),
    "trnet": ("TR-Net", "removes traces, for Trace Removal"),
    "ganprintr": ("GANprintR", "an attack that Trace Removal compares with"),
    "traces": ("Mean traces", "what Trace Removal compares spectra with"),
}
# Use of what others publish and is no detector, by its form; what has none is not used by the app.
HUB_USES: Mapping[str, str] = {
    "e4e": "generator and encoder of 1024 pixels, for Counterfactual",
    "facenet": "recognises persons, for the measures of Evaluate",
    "arcface": "recognises persons, for the measures of Evaluate",
}
UNUSED = "not used by the app, only by scripts"


@dataclass(frozen=True)
class Model:
    """One model as people see it.

    Args:
        bytes: Size of its file, 0 where it is not known.
        about: Whether that size is only roughly known.
        state: `loaded`, `here` (loaded when it is needed) or `absent`.
        sources: Where it can be downloaded from; none where it is only published elsewhere.
    """

    name: str
    title: str
    use: str
    bytes: int
    about: bool
    licence: str
    note: str
    state: ModelState
    sources: tuple[str, ...]
    embedded: bool

    @property
    def is_used(self) -> bool:
        return self.use != UNUSED


def list_models() -> list[Model]:
    """Return every model of the registry, in its order; whether files are whole is checked when they are loaded."""
    if not (SETTINGS.weights_dir / "registry.toml").exists():
        return []
    loaded = {name.partition(" ")[2] for name in runtime.loaded_names()}
    if "generator" in loaded:
        loaded.add("encoder")  # they are loaded together
    return [_model(entry, loaded) for entry in weights.read_entries().values()]


def _model(entry: Entry, loaded: set[str]) -> Model:
    title, use = _named(entry)
    present = entry.path.is_file()
    return Model(
        name=entry.name,
        title=title,
        use=use,
        bytes=entry.path.stat().st_size if present else entry.bytes or entry.about_bytes,
        about=not present and not entry.bytes,
        licence=entry.licence,
        note=entry.note or "",
        state="absent" if not present else "loaded" if entry.name in loaded else "here",
        sources=tuple(str(source) for source in fetching.hub_files(entry)),
        embedded=entry.profile == "embedded",
    )


def _named(entry: Entry) -> tuple[str, str]:
    if entry.name in EMBEDDED_USES:
        return EMBEDDED_USES[entry.name]
    if registry.find_architecture(entry.options.get("architecture", entry.name)) is not None:
        return registry.card(entry.name).title, DETECTOR
    return str(entry.options.get("title", entry.name)), HUB_USES.get(entry.form, UNUSED)
