"""Published checkpoints as states of our networks: every tensor finds its place, or a sentence says which did not."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from backend.errors import UserError


def matched(
    state: Mapping[str, Tensor],
    build: Callable[[], nn.Module],
    title: str,
    *,
    prefix: str = "",
    unused: Sequence[str] = (),
    rename: Callable[[str], str] = str,
) -> dict[str, Tensor]:
    """Turn a published checkpoint into a state that `build()` loads with every key matched.

    Args:
        state: Published keys to tensors.
        build: Builds the network that is to take them; only its shapes are looked at.
        title: What the network is called in errors.
        prefix: Starts every key of the checkpoint, and none of ours.
        unused: Starts of keys, after the prefix, that the checkpoint saves and its network never runs.
        rename: Turns a published key without the prefix into ours.

    Raises:
        UserError: Keys are unknown or missing, or tensors have other shapes.
    """
    with torch.device("meta"):
        expected = build().state_dict()
    hint = f"Use a checkpoint of {title}, unchanged."
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        bare = key.removeprefix(prefix)
        if key.startswith(prefix) and bare.startswith(tuple(unused)):
            continue
        name = rename(bare)
        if not key.startswith(prefix) or name not in expected:
            raise UserError(f"The checkpoint has a tensor that {title} does not have: {key}.", hint)
        if value.shape != expected[name].shape:
            raise UserError(f"The checkpoint's tensor {key} has shape {tuple(value.shape)}, not {title}'s.", hint)
        found[name] = value
    # Batch norm's step counter was not saved by old versions of torch, and no result depends on it.
    missing = [name for name in expected if name not in found and not name.endswith("num_batches_tracked")]
    if missing:
        raise UserError(f"The checkpoint lacks {len(missing)} tensors of {title}, first {missing[0]}.", hint)
    return {name: found.get(name, torch.tensor(0)) for name in expected}
