"""Our networks give the numbers of the published ones, under the published key names."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backend.detectors import efficientnet, f3net, registry
from backend.detectors.mesonet import (
    DeepfakeBenchMeso4,
    DeepfakeBenchMesoInception4,
    meso4_from_deepfakebench,
    mesoinception4_from_deepfakebench,
)
from backend.detectors.xception import from_deepfakebench
from backend.generators.arcface import ArcFace
from backend.generators.e4e import E4EEncoder
from backend.generators.stylegan2 import StyleGAN2
from tests.published import official_b4

TOLERANCE = 1e-4  # relative to the largest absolute expected value


def error(shared: Path, file: str, case: str, output: Tensor) -> float:
    """Return the largest deviation from a stored case, relative to its largest absolute value."""
    expected = np.load(shared / "parity" / file)[case]
    assert tuple(output.shape) == expected.shape
    return float(np.abs(output.numpy() - expected).max() / np.abs(expected).max())


def filled(module: nn.Module, fill: ModuleType, seed: int, **options: Any) -> nn.Module:
    """Fill a network whose keys are the published ones, and put it in inference mode."""
    state = module.state_dict()
    fill.fill_(state, seed, **options)
    module.load_state_dict(state)
    return module.eval()


@pytest.fixture(scope="module")
def stylegan2(parity_fill: ModuleType) -> nn.Module:
    """Return the filled 64-pixel generator."""
    return filled(StyleGAN2(64), parity_fill, 1, unit_variance=True)


@torch.no_grad()
def test_stylegan2_synthesis(shared_folder: Path, parity_fill: ModuleType, stylegan2: StyleGAN2) -> None:
    codes = torch.from_numpy(parity_fill.values("stylegan2_64.ws", (1, 10, 512), 1))
    image = stylegan2.synthesize(codes)
    assert error(shared_folder, "generators.npz", "stylegan2_64_image", image) < TOLERANCE


@torch.no_grad()
def test_stylegan2_mapping(shared_folder: Path, parity_fill: ModuleType, stylegan2: StyleGAN2) -> None:
    output = stylegan2.mapping(torch.from_numpy(parity_fill.values("stylegan2_64.z", (2, 512), 1)))
    assert error(shared_folder, "generators.npz", "stylegan2_64_w", output) < TOLERANCE


@torch.no_grad()
def test_e4e(shared_folder: Path, parity_fill: ModuleType) -> None:
    faces = parity_fill.image("e4e_1024.x", 256, 256) * 2 - 1
    output = filled(E4EEncoder(1024), parity_fill, 2)(faces)
    assert error(shared_folder, "generators.npz", "e4e_1024_codes", output) < TOLERANCE


@torch.no_grad()
def test_arcface(shared_folder: Path, parity_fill: ModuleType) -> None:
    faces = parity_fill.image("irse50.x", 112, 112) * 2 - 1
    output = filled(ArcFace(), parity_fill, 3)(faces)
    assert error(shared_folder, "generators.npz", "irse50_embedding", output) < TOLERANCE


@torch.no_grad()
def test_xception(shared_folder: Path, parity_fill: ModuleType) -> None:
    network = registry.build("xception").eval()
    checkpoint = {f"backbone.{key}": value.clone() for key, value in network.state_dict().items()}
    checkpoint["backbone.adjust_channel.0.weight"] = torch.zeros(512, 2048, 1, 1)  # as published, never run
    parity_fill.fill_(checkpoint, 21, gain=1.1)
    network.load_state_dict(from_deepfakebench(checkpoint))
    output = network(parity_fill.image("xception.x", 256, 256, 2) * 2 - 1)
    assert error(shared_folder, "detectors.npz", "xception_logits", output) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "network", "convert", "seed"),
    [
        ("meso4", DeepfakeBenchMeso4, meso4_from_deepfakebench, 22),
        ("mesoinception4", DeepfakeBenchMesoInception4, mesoinception4_from_deepfakebench, 23),
    ],
)
@torch.no_grad()
def test_deepfakebench_mesonet(
    shared_folder: Path, parity_fill: ModuleType, name: str, network: Any, convert: Any, seed: int
) -> None:
    network = network().eval()
    checkpoint = {f"backbone.{key}": value.clone() for key, value in network.state_dict().items()}
    parity_fill.fill_(checkpoint, seed, gain=1.5)
    network.load_state_dict(convert(checkpoint))
    output = network(parity_fill.image(f"{name}.x", 256, 256, 2) * 2 - 1)
    assert error(shared_folder, "detectors.npz", f"{name}_logits", output) < TOLERANCE


@torch.no_grad()
def test_deepfakebench_efficientnet(shared_folder: Path, parity_fill: ModuleType) -> None:
    network = efficientnet.build_deepfakebench_b4().eval()
    checkpoint = {f"backbone.efficientnet.{key}": value for key, value in official_b4(network).items()}
    for part in ("weight", "bias"):
        checkpoint[f"backbone.last_layer.{part}"] = checkpoint.pop(f"backbone.efficientnet._fc.{part}")
    parity_fill.fill_(checkpoint, 24, gain=1.38)
    network.load_state_dict(efficientnet.from_deepfakebench(checkpoint))
    output = network(parity_fill.image("efficientnetb4.x", 256, 256, 2) * 2 - 1)
    assert error(shared_folder, "detectors.npz", "efficientnetb4_logits", output) < TOLERANCE


@torch.no_grad()
def test_f3net(shared_folder: Path, parity_fill: ModuleType) -> None:
    network = registry.build("f3net").eval()
    checkpoint = {key: value.clone() for key, value in network.state_dict().items()}  # the published keys
    checkpoint["backbone.adjust_channel.0.weight"] = torch.zeros(512, 2048, 1, 1)  # as published, never run
    parity_fill.fill_(checkpoint, 25, gain=1.1)
    network.load_state_dict(f3net.from_deepfakebench(checkpoint))
    output = network(parity_fill.image("f3net.x", 256, 256, 2) * 2 - 1)
    assert error(shared_folder, "detectors.npz", "f3net_logits", output) < TOLERANCE
