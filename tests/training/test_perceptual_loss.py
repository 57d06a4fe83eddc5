"""The perceptual loss of encoder training: joined layers, enlarged parts, and which faces it compares."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from backend.similarity import SSIM_PRODUCTS, batch_ssim
from backend.training import losses
from backend.training.loop import Arithmetic
from tests.adversarial_toys import random

EXACT = Arithmetic(torch.device("cpu"), torch.float32, compiled=False)


def test_a_convolution_joined_with_the_filter_after_it_gives_the_same_inside_the_picture():
    torch.manual_seed(0)
    convolution = nn.Conv2d(2, 3, 5, padding=2).requires_grad_(False)
    taps = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = torch.outer(taps, taps)
    pictures = torch.randn(2, 2, 17, 17)
    padded = F.pad(convolution(pictures), (2, 2, 2, 2), mode="reflect")
    expected = F.conv2d(padded, kernel.expand(3, 1, 3, 3), stride=2, groups=3)
    joined = losses.join_filter(convolution, kernel, 2)(pictures)
    assert joined.shape == expected.shape == (2, 3, 10, 10)
    assert torch.allclose(joined[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], atol=1e-5)


def test_the_network_sees_as_st_lpips_does():
    stlpips = pytest.importorskip("stlpips_pytorch.stlpips")
    published = stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False).eval()
    first, second = (torch.rand(2, 3, 128, 128, generator=random(seed)) * 2 - 1 for seed in (0, 1))
    quicker = losses.build_perceptual_network()
    with torch.no_grad():
        before, after = published.net.slice1(first), quicker.net.slice1(first)
        assert torch.allclose(before[:, :, 1:-1, 1:-1], after[:, :, 1:-1, 1:-1], atol=1e-4)
        assert torch.allclose(published(first, second), quicker(first, second), rtol=0.03)


def test_enlarged_parts_are_squares_of_half_the_side_at_random_places():
    ramp = torch.arange(16.0).expand(16, 16)
    pictures = torch.stack([ramp, ramp.T])[None].repeat(40, 1, 1, 1)
    parts = losses.enlarge_parts(pictures, random())
    assert parts.shape == pictures.shape
    left, right = parts[:, 0, :, 0], parts[:, 0, :, -1]
    assert torch.allclose(right - left, torch.tensor(7.0))  # eight of the sixteen values
    corners = {(int(across), int(down)) for across, down in zip(left[:, 0], parts[:, 1, 0, 0], strict=True)}
    assert len(corners) > 20 and max(max(corner) for corner in corners) <= 8
    assert torch.equal(parts, losses.enlarge_parts(pictures, random()))


def test_only_some_faces_are_compared_and_some_of_those_in_a_part(monkeypatch):
    class Seeing(nn.Module):
        def forward(self, first, second):
            self.seen = first
            return (first - second).abs().mean((1, 2, 3))

    monkeypatch.setattr(losses, "build_perceptual_network", Seeing)
    loss = losses.PerceptualLoss(0.75, 0.5, EXACT)
    drawn, target = (torch.rand(8, 3, 32, 32, generator=random(seed)) for seed in (0, 1))
    drawn.requires_grad_()
    loss(drawn, target, random()).backward()
    whole_faces = [index for index in range(8) if any(torch.equal(drawn[index], face) for face in loss.network.seen)]
    assert len(loss.network.seen) == 6 and len(whole_faces) == 3
    reached = drawn.grad.flatten(1).abs().sum(1) > 0
    assert reached.tolist() == [True] * 6 + [False] * 2


def test_ssim_is_the_same_by_products_and_by_convolutions():
    first, second = (torch.rand(1, 3, 40, SSIM_PRODUCTS + 1, generator=random(seed)).double() for seed in (0, 1))
    by_convolution = batch_ssim(first, second)
    pieces = [batch_ssim(first[..., at : at + 11], second[..., at : at + 11]) for at in range(SSIM_PRODUCTS - 9)]
    assert torch.allclose(by_convolution, torch.stack(pieces).mean(0))
