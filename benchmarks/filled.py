"""Stand-ins for published checkpoints: the same layout and size, with arbitrary weights."""

import zlib
from typing import Any

import torch
from torch import Tensor

from backend.generators.e4e import CODE_SIZE, E4EEncoder
from backend.generators.stylegan2 import StyleGAN2


def e4e(size: int, width: float = 1.0) -> dict[str, Any]:
    """Return an e4e checkpoint for a generator of `size` pixels, in the published layout.

    The values are normally distributed, the same on every machine, and scaled so that no layer's output vanishes or
    explodes. An encoder `width` of 1.0 is the published one.
    """
    with torch.device("meta"):
        decoder, encoder = StyleGAN2(size), E4EEncoder(size, width=width)
    states = {f"decoder.{key}": _filled(key, value, equalised=True) for key, value in decoder.state_dict().items()}
    states |= {f"encoder.{key}": _filled(key, value, equalised=False) for key, value in encoder.state_dict().items()}
    average = _normal("latent_avg", (decoder.rows, CODE_SIZE)) * 0.5
    return {"state_dict": states, "latent_avg": average, "opts": {"stylegan_size": size}}


def _filled(name: str, like: Tensor, *, equalised: bool) -> Tensor:
    shape = tuple(like.shape)
    if name.endswith("kernel"):  # the low-pass filter is not a weight
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
        return torch.outer(taps, taps)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=like.dtype)
    values = _normal(name, shape)
    if name.endswith("running_var"):
        return 1 + 0.1 * values.abs()
    if name.endswith("modulation.bias"):
        return 1 + 0.1 * values
    if name.endswith("noise.weight") or (like.ndim == 1 and not name.endswith("weight")):
        return 0.1 * values
    if like.ndim == 1:
        return 1 + 0.1 * values  # weights of a batch norm, or slopes
    if equalised or like.ndim < 2:  # scaled at run time
        return values * (100.0 if name.startswith("style.") else 1.0)
    return values / like[0].numel() ** 0.5


def _normal(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
