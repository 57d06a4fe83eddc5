import torch

from backend import images
from backend.counterfactual.rendering import as_saved, compose_picture

ORIGINAL = torch.full((1, 3, 4, 4), 0.5)


def full(value: float, size: int = 4) -> torch.Tensor:
    return torch.full((1, 3, size, size), value)


def test_transfer_adds_only_the_change():
    assert torch.allclose(compose_picture("transfer", ORIGINAL, full(0.3), full(0.1)), full(0.7))
    assert torch.equal(compose_picture("transfer", ORIGINAL, full(1.7), full(1.7)), ORIGINAL)


def test_reconstruction_is_the_drawing_itself():
    assert torch.equal(compose_picture("reconstruction", ORIGINAL, full(0.3), full(0.1)), full(0.3))


def test_both_are_cut_off_at_the_range_of_a_picture():
    assert torch.equal(compose_picture("transfer", ORIGINAL, full(2.0), full(0.0)), full(1.0))
    assert torch.equal(compose_picture("reconstruction", ORIGINAL, full(-1.0), full(0.0)), full(0.0))


def test_another_size_is_brought_to_the_crop():
    assert torch.allclose(compose_picture("transfer", ORIGINAL, full(0.3, 8), full(0.1, 8)), full(0.7))
    assert compose_picture("reconstruction", ORIGINAL, full(0.3, 2), full(0.1, 2)).shape == ORIGINAL.shape


def test_the_difference_is_taken_before_cutting_off():
    # Both drawings leave the range, their difference does not.
    assert torch.allclose(compose_picture("transfer", ORIGINAL, full(1.4), full(1.2)), full(0.7))


def test_saved_pictures_have_eight_bits_and_a_slope():
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    saved = as_saved(picture)
    assert torch.equal(saved, images.to_tensor(images.to_array(picture)))
    saved.sum().backward()
    assert torch.equal(picture.grad, torch.ones_like(picture))
    assert torch.equal(as_saved(saved.detach()), saved.detach())
