"""Begin a larger encoder from a smaller one, so that it gives the same codes (Net2Net, Chen et al. 2016)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from backend.generators.e4e import BANDS, E4EEncoder

STEM, RGB = "input_layer.0.weight", 3


def grown(given: Mapping[str, Tensor], network: E4EEncoder) -> dict[str, Tensor]:
    """Return the weights of `given`, of a network with fewer early channels or without detail, for `network`.

    What is new keeps the values that it has in `network`, and nothing old reads it yet, so the codes stay the same
    and the new part can learn.
    """
    known = dict(given)
    if network.detail and known[STEM].shape[1] == RGB:
        known[STEM] = _for_bands(known[STEM])
    return {key: _widened(known[key], own) if key in known else own for key, own in network.state_dict().items()}


def _for_bands(weight: Tensor) -> Tensor:
    """Return the stem's weights for bands of the faces and of what was lacking, of which it read the sum's means."""
    means = torch.cat([weight, weight.new_zeros(len(weight), (BANDS - 1) * RGB, *weight.shape[2:])], dim=1)
    return torch.cat([means, means], dim=1)


def _widened(old: Tensor, new: Tensor) -> Tensor:
    """Return `new` with `old` in its first places, where nothing old reads what is new."""
    if old.shape == new.shape:
        return old
    result = new.clone()
    if old.ndim > 1:
        result[: len(old)] = 0
    result[tuple(slice(side) for side in old.shape)] = old.to(new.dtype)
    return result
