"""Other trained TR-Nets as attacks of their own: less data, a family left out, another width."""

import json
from dataclasses import dataclass
from pathlib import Path

from backend import runtime, weights
from backend.errors import UserError
from backend.trace_removal import trnet
from backend.trace_removal.network import TRNet

HINT = "Write for example --set 'removers=[\"tenth=DIR/trnet.safetensors\"]'."


@dataclass(frozen=True)
class Remover:
    """A TR-Net in a file that `python -m backend train trnet` wrote, its report beside it.

    Args:
        name: Its name in the tables.
        path: The weights (.safetensors).
    """

    name: str
    path: Path

    def load(self) -> TRNet:
        """Return the process's one copy.

        Raises:
            UserError: File or report is missing or damaged.
        """
        return runtime.loaded(f"remover {self.path}", self._load)

    def hash(self) -> str:
        """Return the SHA-256 of the weights.

        Raises:
            UserError: There is no such file.
        """
        if not self.path.is_file():
            raise UserError(f"There is no file {self.path.name} for the TR-Net {self.name}.", HINT)
        return weights.file_hash(self.path)

    def _load(self) -> TRNet:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        self.hash()
        try:
            report = json.loads(self.path.with_suffix(".json").read_text(encoding="utf-8"))
            network = trnet.build(report["options"][trnet.ENTRY])
            network.load_state_dict(load_file(self.path))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError):
            raise UserError(
                f"The TR-Net {self.name} cannot be loaded from {self.path.name}.",
                "Keep the .json file that training wrote beside the weights.",
            ) from None
        return network.eval().requires_grad_(requires_grad=False).to(runtime.device())


def parse(texts: tuple[str, ...]) -> tuple[Remover, ...]:
    """Read NAME=PATH.

    Raises:
        UserError: A text has another form, or two have one name.
    """
    found: list[Remover] = []
    for text in texts:
        name, _, path = text.partition("=")
        if not name or not path or name in {one.name for one in found}:
            raise UserError(f"The TR-Net {text} has no name of its own or no file.", HINT)
        found.append(Remover(name, Path(path).expanduser()))
    return tuple(found)
