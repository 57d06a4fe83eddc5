"""NF: a picture that carries a maker's fingerprint is recognised by it."""

import torch

from backend.detectors.base import LOG_ODDS
from backend.detectors.nf import NoiseFingerprints
from backend.signals import residual_correlation, wiener_residual

CORRELATIONS = LOG_ODDS["correlations by source, fake high"]


def network_and_faces():
    random = torch.Generator().manual_seed(2)
    network = NoiseFingerprints(("one", "other"), 32)
    network.fingerprints.copy_(wiener_residual(torch.rand(2, 3, 32, 32, generator=random)))
    rows, columns = torch.meshgrid(torch.linspace(0, 3, 32), torch.linspace(0, 2, 32), indexing="ij")
    clean = (0.5 + 0.3 * torch.sin(rows) * torch.cos(columns)).expand(3, 32, 32)
    noise = 0.02 * torch.randn(3, 32, 32, generator=random)
    prints = network.fingerprints
    return network, torch.stack([clean + noise, clean + noise + 0.1 * prints[0], clean + noise + 0.1 * prints[1]])


def test_the_fingerprint_in_a_picture_is_found():
    network, faces = network_and_faces()
    raw = network(faces)
    assert raw.shape == (3, 2)
    assert raw[1].argmax() == 0 and raw[2].argmax() == 1
    assert raw[0].abs().max() < 0.1 < 0.4 < min(raw[1, 0], raw[2, 1])
    assert CORRELATIONS(raw).argmin() == 0


def test_raw_outputs_are_the_correlations_of_the_residual():
    network, faces = network_and_faces()
    expected = [residual_correlation(fingerprint, wiener_residual(faces)) for fingerprint in network.fingerprints]
    torch.testing.assert_close(network(faces), torch.stack(expected, dim=1))


def test_normalising_changes_no_answer_and_survives_half_precision():
    network, faces = network_and_faces()
    network.fingerprints.mul_(1e-5)  # would be lost in float16
    before = network(faces)
    network.normalise()
    torch.testing.assert_close(network(faces), before)
    assert torch.allclose(network.fingerprints.square().mean((1, 2, 3)), torch.ones(2))
    network.fingerprints.copy_(network.fingerprints.half().float())
    torch.testing.assert_close(network(faces), before, atol=1e-3, rtol=0)


def test_only_the_fingerprints_are_stored_and_nothing_is_trained():
    network = NoiseFingerprints()
    assert list(network.state_dict()) == ["fingerprints"]
    assert not list(network.parameters())
    assert (network(torch.rand(1, 3, 128, 128)) == 0).all()  # without fingerprints nothing correlates
