"""Sharpening of photographs that drawings are compared with."""

import pytest
import torch
from scipy import ndimage

from backend.training.losses import sharpen_pictures


@pytest.mark.parametrize("amount", [0.35, 1.0])
def test_it_adds_the_difference_to_a_gaussian_blur(amount):
    pictures = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sharpened = sharpen_pictures(pictures, amount)
    blurred = ndimage.gaussian_filter(pictures.numpy(), (0, 0, 1.2, 1.2), radius=(0, 0, 3, 3), mode="mirror")
    assert torch.allclose(sharpened, pictures + amount * (pictures - torch.from_numpy(blurred)), atol=1e-12)


def test_nothing_is_added_to_flat_colour_or_with_an_amount_of_nothing():
    pictures = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sharpen_pictures(pictures, 0.0), pictures)
    assert torch.allclose(sharpen_pictures(torch.full((1, 3, 16, 16), 0.25), 1.0), torch.full((1, 3, 16, 16), 0.25))


def test_an_edge_becomes_steeper():
    edge = torch.zeros(1, 1, 8, 16)
    edge[..., 8:] = 1.0
    row = sharpen_pictures(edge, 0.5)[0, 0, 4]
    assert row[7] < 0 and row[8] > 1  # overshoots on both sides
    assert row[7].item() == pytest.approx(1 - row[8].item(), abs=1e-6)
