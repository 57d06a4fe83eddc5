"""Residuals against golden numbers, scipy, and pictures whose residual is known."""

import numpy as np
import pytest
import torch
from scipy import signal

from backend import signals

UNIFORM = torch.from_numpy(np.random.RandomState(0).rand(1, 3, 128, 128).astype(np.float32))


def test_wiener_residual_has_the_golden_numbers():
    picture = torch.from_numpy(np.random.RandomState(1).rand(64, 64))[None, None]
    residual = signals.wiener_residual(picture)[0, 0]
    assert float(residual.numpy().std()) == pytest.approx(0.2392283, abs=1e-7)
    assert float(residual[5, 5]) == pytest.approx(0.000863956, abs=1e-8)


def smooth_and_rough():
    rows, columns = np.mgrid[0:40, 0:56] / 56
    smooth = np.stack([0.5 + 0.4 * np.sin(3 * rows), rows * columns, np.full_like(rows, 0.8)])
    rough = np.random.default_rng(3).random((3, 40, 56))
    return np.stack([smooth, rough, 0.9 * smooth + 0.02 * rough]).astype(np.float32)


def test_wiener_residual_equals_scipy_on_every_channel_of_a_batch():
    batch = smooth_and_rough()
    expected = np.stack(
        [[channel - signal.wiener(channel.astype(np.float64), 3) for channel in picture] for picture in batch]
    )
    np.testing.assert_allclose(signals.wiener_residual(torch.from_numpy(batch)).numpy(), expected, atol=1e-5)


def test_a_black_picture_has_no_residual_and_a_finite_gradient():
    black = torch.zeros(1, 3, 8, 8, requires_grad=True)
    residual = signals.wiener_residual(black)
    residual.sum().backward()
    assert not residual.any()
    assert black.grad.isfinite().all()


def test_srm_has_the_golden_numbers():
    maps = signals.srm_residuals(UNIFORM)
    torch.testing.assert_close(
        maps.abs().mean((0, 2, 3)), torch.tensor([0.603096, 0.813306, 0.493152]), atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(maps[0, :, 10, 10], torch.tensor([0.327461, -0.187138, 0.893550]), atol=1e-5, rtol=1e-5)


def test_srm_filters_ignore_ramps_and_cut_off_at_three():
    assert signals.SRM_KERNELS.sum((1, 2)).abs().max() < 1e-6
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    assert signals.srm_residuals(ramp)[..., 2:-2, 2:-2].abs().max() < 1e-5
    assert signals.srm_residuals(UNIFORM * 255).abs().max() == 3


def test_correlation_is_one_with_itself_and_zero_without_energy():
    fingerprint = torch.randn(3, 8, 8)
    other = torch.randn(3, 8, 8)
    other -= fingerprint * (fingerprint * other).sum() / fingerprint.square().sum()
    correlations = signals.residual_correlation(
        fingerprint, torch.stack([fingerprint, -2 * fingerprint, other, 0 * other])
    )
    torch.testing.assert_close(correlations, torch.tensor([1.0, -1.0, 0.0, 0.0]), atol=1e-6, rtol=0)
    assert signals.residual_correlation(0 * fingerprint, fingerprint[None]).item() == 0
    silent = torch.zeros(1, 3, 8, 8, requires_grad=True)
    signals.residual_correlation(fingerprint, silent).sum().backward()
    assert silent.grad.abs().max() <= fingerprint.abs().max()


def test_correlation_subtracts_no_mean():
    assert signals.residual_correlation(torch.tensor([[[1.0, 0.0]]]), torch.ones(1, 1, 1, 2)).item() == pytest.approx(
        0.5**0.5
    )


@pytest.mark.parametrize("name", ["wiener_residual", "srm", "correlation"])
def test_gradients_are_those_of_finite_differences(name):
    images = torch.rand(1, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4), requires_grad=True)
    fingerprint = torch.randn(3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    functions = {
        "wiener_residual": signals.wiener_residual,
        "srm": signals.srm_residuals,
        "correlation": lambda batch: signals.residual_correlation(fingerprint, signals.wiener_residual(batch)),
    }
    assert torch.autograd.gradcheck(functions[name], (images,))
