"""Patch-CNN: sizes of the paper at every depth, what a patch sees, and a verdict that never overflows."""

import pytest
import torch

from backend.detectors.base import patch_log_odds
from backend.detectors.patch_cnn import PatchCNN


@pytest.mark.parametrize(
    ("depth", "parameters", "maps"),
    [
        (1, 55_010, (74, 63, 31)),
        (2, 191_330, (37, 32, 16)),
        (3, 1_108_218, (19, 16, 8)),
        (4, 2_722_194, (19, 16, 8)),
        (5, 4_336_170, (19, 16, 8)),
    ],
)
def test_sizes_of_the_paper(depth, parameters, maps):
    with torch.device("meta"):
        network = PatchCNN(depth).eval()
        sides = [network(torch.zeros(1, 3, size, size)).shape for size in (299, 256, 128)]
    assert sum(weight.numel() for weight in network.parameters()) == parameters
    assert sides == [(1, 2, side, side) for side in maps]
    keys = {".".join(key.split(".")[:2]) for key in network.state_dict()}
    blocks = {f"block{number}.{part}" for number in range(1, depth + 1) for part in ("skip", "skipbn", "rep")}
    # Where a block keeps the number of channels and the resolution it needs no projection.
    assert {key for key in keys if key.startswith("block")} == blocks - {
        f"block{number}.{part}" for number in (4, 5) for part in ("skip", "skipbn")
    }
    assert {key.split(".")[0] for key in keys} - {key.split(".")[0] for key in blocks} == {
        "conv1",
        "bn1",
        "conv2",
        "bn2",
        "convout",
    }


@pytest.mark.parametrize(("depth", "field"), [(1, 19), (2, 43), (3, 91)])
def test_a_patch_sees_as_much_as_the_paper_says(depth, field):
    torch.manual_seed(0)
    network = PatchCNN(depth, width=0.25).eval().double()
    faces = torch.rand(1, 3, 256, 256, dtype=torch.float64, requires_grad=True)
    maps = network(faces)
    middle = maps.shape[-1] // 2
    maps[0, :, middle, middle].sum().backward()
    rows = (faces.grad[0].abs().sum((0, 2)) > 0).nonzero()
    assert int(rows.max() - rows.min()) + 1 <= field
    assert int(rows.max() - rows.min()) + 1 >= field - 4  # max pooling looks at one winner of three


def test_the_verdict_is_the_mean_of_the_patches_probabilities():
    maps = torch.randn(3, 2, 5, 4)
    means = maps.softmax(1)[:, 0].mean((1, 2))
    torch.testing.assert_close(patch_log_odds(maps).sigmoid(), means)


def test_certain_patches_neither_overflow_nor_lose_their_gradient():
    maps = torch.zeros(2, 2, 1, 2)
    maps[0, 0] = 500.0  # every patch is fake with 500 to 1 in log-odds: 1 - p_fake is zero in float32
    maps[1, 0, 0, 0], maps[1, 1, 0, 1] = 500.0, 500.0  # one each way
    maps.requires_grad_(True)
    log_odds = patch_log_odds(maps)
    assert log_odds.tolist() == pytest.approx([500.0, 0.0], abs=1e-3)
    log_odds.sum().backward()
    assert maps.grad.isfinite().all() and maps.grad[0].abs().sum() > 0.5
