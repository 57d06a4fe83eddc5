"""Start a training run from weights that exist, in place of random ones."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from backend import weights
from backend.errors import UserError

INSTALLED = "installed"


def load(
    given: str,
    name: str,
    networks: Sequence[nn.Module],
    prefix: str = "",
    *,
    without: str | None = None,
    adapt: Callable[[Mapping[str, Tensor], Any], Mapping[str, Tensor]] | None = None,
) -> str:
    """Load weights, in float16 or float32, into networks of one kind, and return which they were.

    Args:
        given: A file, or `installed` for the registry's entry.
        name: Name of that entry.
        networks: The network in training and its average.
        prefix: What the names of the file's tensors begin with; others are left out.
        without: What the names of a network's tensors begin with that stay as they are.
        adapt: Makes tensors for a network out of the file's.

    Raises:
        UserError: There is no such file, or it holds another network.
    """
    path = weights.entry(name).path if given == INSTALLED else Path(given)
    state = weights.read_checkpoint(path)
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    try:
        for network in networks:
            kept = {key: value for key, value in network.state_dict().items() if without and key.startswith(without)}
            taken = {key: value for key, value in own.items() if not (without and key.startswith(without))}
            taken = dict(adapt(taken, network)) if adapt else taken
            network.load_state_dict(taken | kept, strict=True)  # halves become floats, as in the network
    except RuntimeError:
        raise UserError(
            f"The weights in {path.name} are of another network than the one to be trained.",
            "Give a file that the same command wrote, or leave out --initial.",
        ) from None
    return f"{path.name}, sha256 {weights.file_hash(path)}"
