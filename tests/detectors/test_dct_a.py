"""DCT-A: the transform, its golden numbers, and the standardisation that goes with the weights."""

import numpy as np
import pytest
import torch
from scipy import fft

from backend.detectors.dct_a import DCTA
from backend.signals import dct2, dct_matrix

FACE = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (128, 128, 3)).astype(np.float32)).permute(2, 0, 1)


def test_the_transform_equals_scipy_and_is_orthonormal():
    values = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(1))
    expected = fft.dctn(values.numpy(), type=2, norm="ortho", axes=(-2, -1))
    np.testing.assert_allclose(dct2(values).numpy(), expected, atol=1e-5)
    matrix = dct_matrix(128).double()
    torch.testing.assert_close(matrix @ matrix.t(), torch.eye(128, dtype=torch.float64), atol=1e-6, rtol=0)


def test_log_spectrum_has_the_golden_numbers():
    spectrum = DCTA().log_spectrum(FACE[None])[0]
    assert spectrum[:, 0, 0].tolist() == pytest.approx([9.698241, 9.706701, 9.705146], rel=1e-5)
    assert spectrum[:, 1, 2].tolist() == pytest.approx([4.631565, 3.445961, 4.119090], rel=1e-4)
    assert spectrum.mean().item() == pytest.approx(3.654177, rel=1e-5)


def test_the_layers_are_those_of_the_paper():
    shapes = [tuple(weight.shape) for name, weight in DCTA().named_parameters() if name.endswith("weight")]
    assert shapes == [(3, 3, 3, 3), (8, 3, 3, 3), (16, 8, 3, 3), (32, 16, 3, 3), (2, 32 * 32 * 32)]


def test_the_standardisation_is_stored_and_used():
    network = DCTA().eval()
    assert network.state_dict()["mean"].shape == network.state_dict()["std"].shape == (3, 128, 128)
    spectrum = network.log_spectrum(FACE[None])
    network.mean.copy_(spectrum[0])
    captured = []
    network.conv1.register_forward_hook(lambda _, inputs, __: captured.append(inputs[0]))
    with torch.no_grad():
        network(FACE[None])
        network.mean.copy_(spectrum[0] - 3)
        network.std.fill_(2.0)
        network(FACE[None])
    assert captured[0].abs().max() == 0
    torch.testing.assert_close(captured[1], torch.full_like(spectrum, 1.5))


def test_an_even_picture_is_finite_and_so_is_its_gradient():
    even = torch.full((1, 3, 128, 128), 100.0, requires_grad=True)
    DCTA()(even).sum().backward()
    assert even.grad.isfinite().all()
