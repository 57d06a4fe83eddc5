"""Which generators can be chosen here: the embedded one, and those fetched from the Hub."""

from backend import weights
from backend.errors import UserError
from backend.generators import inversion
from backend.generators.inversion import Inverter
from backend.settings import SETTINGS

EMBEDDED = "generator"
FORM = "e4e"  # of entries of the Hub that hold an encoder with its generator


def available() -> dict[str, str]:
    """Return titles by name: the embedded generator first, then those whose files were fetched."""
    if not (SETTINGS.weights_dir / "registry.toml").exists():
        return {}
    known = weights.entries()
    size = known[EMBEDDED].options.get("size", 128) if EMBEDDED in known else 128
    found = {EMBEDDED: f"The small one that ships with the app ({size} pixels)"}
    for name, entry in known.items():
        if entry.profile == "hub" and entry.options.get("form") == FORM and entry.path.is_file():
            found[name] = str(entry.options.get("title", name))
    return found


def usual() -> str:
    """Return the one to begin with: in the Hub profile the first that was fetched, else the embedded one."""
    fetched = [name for name in available() if name != EMBEDDED]
    return fetched[0] if SETTINGS.profile == "hub" and fetched else EMBEDDED


def load(name: str) -> Inverter:
    """Return the process's one copy of a generator with its encoder.

    Raises:
        UserError: There is none of this name here.
    """
    if name == EMBEDDED:
        return inversion.load()
    if name not in available():
        raise UserError(f"There is no generator named {name} here.", f"Choose one of: {', '.join(available())}.")
    from backend.generators import official

    return official.load(name)
