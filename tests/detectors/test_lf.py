"""LF: the published channels, equalised learning rate, and the verdict by the most likely source."""

import pytest
import torch
from torch.nn import functional as F

from backend.detectors.base import LOG_ODDS
from backend.detectors.lf import LF, LF_SOURCES, ScaledConv, ScaledLinear


def test_the_layers_are_those_of_the_paper():
    with torch.device("meta"):
        network = LF(("real", "a", "b", "c", "d"))
    convolutions = [tuple(layer.weight.shape[:2]) for layer in network.modules() if isinstance(layer, ScaledConv)]
    assert convolutions == [
        (16, 3), (32, 16), (32, 32), (64, 32), (64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (512, 256),
        (512, 512),
    ]  # fmt: skip
    dense = [tuple(layer.weight.shape) for layer in network.modules() if isinstance(layer, ScaledLinear)]
    assert dense == [(512, 512 * 16), (5, 512)]


def test_every_block_halves_the_resolution_down_to_four():
    network = LF(width=0.125).eval()
    sizes = []
    for block in network.blocks.values():
        block.register_forward_hook(lambda _, __, output: sizes.append(output.shape[-1]))
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 128, 128)).shape == (2, len(LF_SOURCES))
    assert sizes == [64, 32, 16, 8, 4]


def test_weights_have_unit_variance_and_are_scaled_when_used():
    torch.manual_seed(0)
    layer = ScaledConv(8, 16)
    assert layer.weight.std().item() == pytest.approx(1, abs=0.05)
    features = torch.randn(1, 8, 6, 6)
    padded = F.pad(features, (1, 1, 1, 1), mode="reflect")
    expected = F.leaky_relu(F.conv2d(padded, layer.weight) * (2 / (8 * 9)) ** 0.5, 0.2)
    torch.testing.assert_close(layer(features), expected)
    last = ScaledLinear(64, 4, gain=1.0)
    torch.testing.assert_close(last(torch.ones(1, 64)), last.weight.sum(1)[None] / 8)


def test_the_most_likely_source_decides():
    raw = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.3, 0.4, 0.2, 0.1], [0.9, 0.05, 0.03, 0.02]]).log()
    # Three makers together are likelier than real in the first.
    log_odds = LOG_ODDS["logits by source, real first"](raw)
    torch.testing.assert_close(log_odds.exp(), torch.tensor([3 / 4, 4 / 3, 1 / 18]))
