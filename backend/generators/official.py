"""Generators as their authors publish them, as plain tensors under the published keys, and back.

e4e (Tov et al. 2021, arXiv 2102.02766) publishes encoder and StyleGAN2 decoder in one file; StyleGAN2 alone comes in
the layout of rosinality's implementation.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from backend.errors import UserError
from backend.generators.e4e import CODE, E4EEncoder
from backend.generators.inversion import FFHQ_EPSILON, FFHQ_SIZE, Inverter
from backend.generators.stylegan2 import StyleGAN2
from backend.runtime import device, loaded
from backend.weights import load_entry

ENCODER, DECODER, GENERATOR, AVERAGE = "encoder.", "decoder.", "g_ema.", "latent_avg"


def from_e4e(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turn an e4e checkpoint for FFHQ into tensors `encoder.*`, `decoder.*` and `latent_avg` (18, 512).

    Raises:
        UserError: Something is missing, unknown, or of another shape.
    """
    states, average = content.get("state_dict"), content.get(AVERAGE)
    title = f"an e4e checkpoint of a {FFHQ_SIZE}-pixel generator"
    if not isinstance(states, Mapping) or not isinstance(average, Tensor) or average.shape[-1] != CODE:
        raise UserError(f"The file is not {title}.", "Expected are a state_dict and the latent_avg.")
    tensors = {key: value for key, value in states.items() if key.startswith((ENCODER, DECODER))}
    _require(tensors, {ENCODER: lambda: E4EEncoder(FFHQ_SIZE), DECODER: lambda: StyleGAN2(FFHQ_SIZE)}, title)
    return {**tensors, AVERAGE: average}


def from_stylegan2(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turn a StyleGAN2 checkpoint for FFHQ into tensors `g_ema.*` and `latent_avg` (512,).

    Raises:
        UserError: Something is missing, unknown, or of another shape.
    """
    state, average = content.get("g_ema"), content.get(AVERAGE)
    title = f"a StyleGAN2 checkpoint of {FFHQ_SIZE} pixels"
    if not isinstance(state, Mapping) or not isinstance(average, Tensor):
        raise UserError(f"The file is not {title}.", "Expected are g_ema and latent_avg.")
    tensors = {f"{GENERATOR}{key}": value for key, value in state.items()}
    _require(tensors, {GENERATOR: lambda: StyleGAN2(FFHQ_SIZE)}, title)
    return {**tensors, AVERAGE: average}


def load(name: str) -> Inverter:
    """Return the process's one copy of a fetched e4e inverter.

    Raises:
        UserError: It was not fetched, or its file is damaged.
    """
    return loaded(f"inverter {name}", lambda: _load(name))


def _load(name: str) -> Inverter:
    return from_tensors(load_entry(name), name)


def from_tensors(tensors: Mapping[str, Tensor], name: str) -> Inverter:
    """Build an inverter from what `from_e4e` returned."""
    with torch.device("meta"):  # the networks take the file's tensors as they are: nothing is drawn or held twice
        generator, encoder = StyleGAN2(FFHQ_SIZE), E4EEncoder(FFHQ_SIZE)
    for network, prefix in ((generator, DECODER), (encoder, ENCODER)):
        network.load_state_dict(_below(tensors, prefix), strict=True, assign=True)
        network.float().eval().requires_grad_(False)
    average = tensors[AVERAGE].reshape(-1, CODE).float().expand(generator.rows, -1)
    return Inverter(generator, encoder, average, name, "ffhq", FFHQ_EPSILON).to(device())


def _require(tensors: Mapping[str, Tensor], networks: Mapping[str, Callable[[], nn.Module]], title: str) -> None:
    """Make sure that tensors are those of networks, key by key and shape by shape."""
    for prefix, build in networks.items():
        with torch.device("meta"):
            expected = {key: value.shape for key, value in build().state_dict().items()}
        given = {key: value.shape for key, value in _below(tensors, prefix).items()}
        differing = sorted(key for key in expected.keys() | given.keys() if expected.get(key) != given.get(key))
        if differing:
            raise UserError(
                f"The file is not {title}: {prefix}{differing[0]} is missing, unknown or of another shape.",
                "Use the file as its authors publish it.",
            )


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
