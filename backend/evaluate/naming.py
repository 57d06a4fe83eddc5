"""Names for people of what rows and files name in code: detectors and families of fakes."""

from backend import verdicts, weights
from backend.detectors import registry


def detector(name: str) -> str:
    """Return the title of a detector; one that is not installed here keeps its name."""
    if name in registry.ARCHITECTURES:
        return registry.ARCHITECTURES[name].title
    return registry.card(name).title if name in weights.entries() else name


def family(name: str) -> str:
    """Return what a family of fakes consists of; a family of somebody's own keeps the name of its folder."""
    return verdicts.KINDS.get(name, name)
