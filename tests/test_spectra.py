"""Spectra: golden numbers, waves whose spectra are known, and gradients."""

import math

import numpy as np
import pytest
import torch

from backend import signals
from backend.trace_removal.discriminators import SpectralDiscriminator


@pytest.fixture(scope="module")
def noise():
    return torch.from_numpy(np.random.RandomState(0).rand(1, 3, 128, 128).astype(np.float32))


def wave(cycles: int, *, amplitude: float = 0.25, shift: float = 0.0, size: int = 64) -> torch.Tensor:
    """Return a grey picture 0.5 + amplitude * cos along its rows."""
    place = torch.arange(size) / size
    line = 0.5 + amplitude * torch.cos(2 * math.pi * cycles * place + shift)
    return line.expand(1, 3, size, size).contiguous()


def test_golden_log_power(noise):
    power = signals.log_power(noise)[0]
    assert float(power[0, 0]) == pytest.approx(18.015198, rel=1e-4)
    assert float(power.mean()) == pytest.approx(5.835329, rel=1e-4)
    code = SpectralDiscriminator(0.125, form="code").inputs(noise)
    assert code.shape == (1, 1, 128, 128) and float(code.mean()) == pytest.approx(5.835329, rel=1e-4)


def test_golden_profile_of_the_released_code(noise):
    profile = signals.radial_psd_as_coded(noise)[0].tolist()
    assert len(profile) == 91
    assert profile[:4] == pytest.approx([1, 0.067967, 0.060139, 0.019158], abs=1e-4)
    assert profile[8:12] == pytest.approx([0.055487, 0.049524, 0.075470, 0.065710], abs=1e-4)
    assert profile[-4:] == pytest.approx([0, 0.061558, 0.098563, 0.188168], abs=1e-4)
    counts = signals._rings(128, 128, one_sided=True)[1].tolist()
    assert counts[:5] == [1, 5, 9, 11, 13] and counts[-3:] == [7, 8, 1]
    assert signals.without_lowest_radii(torch.zeros(1, 91)).shape == (1, 82)


def test_power_of_white_noise_is_its_variance_at_every_radius():
    values = 0.1 * torch.randn(64, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    profile = signals.radial_psd(values.expand(-1, 3, -1, -1)).mean(0)
    assert profile.shape == (32,)
    assert profile[2:].tolist() == pytest.approx([0.01] * 30, rel=0.1)


def test_a_wave_has_its_power_at_its_radius_alone():
    profile = signals.radial_psd(wave(10))[0]
    ring = int(signals._rings(64, 64, one_sided=False)[1][10])
    # Two of the ring's frequencies hold (amplitude / 2)^2 times the number of pixels each.
    assert float(profile[10]) == pytest.approx(2 * 0.125**2 * 64 * 64 / ring, rel=1e-4)
    assert float(profile[[*range(1, 10), *range(11, 32)]].max()) < 1e-6
    assert signals.radial_psd(torch.rand(2, 3, 48, 80)).shape == (2, 24)


def test_phase_keeps_its_quadrant_and_needs_no_frequency():
    for angle in (0.5, 2.5, -2.5, -0.5):
        assert float(signals.phase_spectrum(wave(5, shift=angle))[0, 0, 5]) == pytest.approx(angle, abs=1e-4)
    black = torch.zeros(1, 3, 16, 16, requires_grad=True)
    phases = signals.phase_spectrum(black)
    phases.sum().backward()
    assert float(phases.abs().max()) == 0 and float(black.grad.abs().max()) == 0


def test_low_and_high_frequencies_add_up_to_the_picture(noise):
    low, high = signals.split_frequencies(noise)
    assert float((low + high - noise).abs().max()) < 1e-5
    even = torch.full((1, 3, 32, 32), 0.6)
    low, high = signals.split_frequencies(even)
    assert float((low - even).abs().max()) < 1e-6 and float(high.abs().max()) < 1e-6  # H(0) = 1
    strong = signals.split_frequencies(wave(20, size=128))[0] - 0.5
    assert float(strong.abs().max()) == pytest.approx(0.25 * math.exp(-0.5), rel=1e-3)  # H(sigma)


def test_the_filter_is_symmetric_so_that_pictures_stay_real(noise):
    keep = torch.exp(-signals._radius(128, 128, one_sided=False).square() / (2 * 20.0**2))
    full = torch.fft.ifft2(keep * torch.fft.fft2(noise[0, 0].double()))
    assert float(full.imag.abs().max()) < 1e-12
    assert float((full.real - signals.split_frequencies(noise)[0][0, 0]).abs().max()) < 1e-5


def test_spectra_are_differentiable():
    for measure in (
        signals.log_power,
        signals.phase_spectrum,
        signals.amplitude_spectrum,
        signals.radial_psd,
        signals.radial_psd_as_coded,
    ):
        images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double().requires_grad_(True)
        weights = torch.rand_like(measure(images))
        (slope,) = torch.autograd.grad((weights * measure(images)).sum(), images)
        step = torch.zeros_like(images)
        step[0, 1, 3, 7] = 1e-6
        with torch.no_grad():
            difference = ((measure(images + step) - measure(images - step)) * weights).sum() / 2e-6
        assert float(slope[0, 1, 3, 7]) == pytest.approx(float(difference), rel=1e-3, abs=1e-6)


def test_the_spectral_discriminator_standardises_every_frequency():
    faces = torch.rand(32, 3, 128, 128, generator=torch.Generator().manual_seed(2))
    module = SpectralDiscriminator(0.125)
    module.fit(faces)
    inputs = module.inputs(faces)
    assert inputs.shape == (32, 2, 128, 128)
    assert float(inputs[:, 0].mean(0).abs().max()) < 1e-4
    assert float((inputs[:, 0].std(0) - 1).abs().max()) < 1e-3
    assert float(inputs[:, 1].std()) == pytest.approx(1, abs=0.02)
    paper = SpectralDiscriminator(0.125, form="paper").inputs(faces)
    assert float(paper[0, 0, 0, 0]) == pytest.approx(float(signals.brightness(faces[:1]).sum()), rel=1e-4)


def test_what_rounding_hides_has_no_slope(noise):
    """A smooth picture has next to no high frequencies: a bare logarithm's slope would be without limit there."""
    error = (noise * 255).round() / 255 - noise
    assert float(signals.log_power(error).exp().mean()) == pytest.approx(signals.rounding_power(128, 128), rel=0.05)
    place = 2 * math.pi * 3 * torch.arange(128) / 128
    smooth = (0.5 + 0.2 * torch.cos(place[:, None] + place[None])).expand(1, 3, 128, 128).clone()
    module = SpectralDiscriminator(0.125)
    slopes = []
    for transform in (module.inputs, lambda images: signals.log_power(images)[:, None]):
        images = smooth.clone().requires_grad_(True)
        transform(images)[:, :1, 40:88, 40:88].sum().backward()
        slopes.append(float(images.grad.norm()))
    assert slopes[0] < slopes[1] / 20
