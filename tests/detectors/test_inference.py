from dataclasses import replace

import pytest
import torch
from torch import nn

from backend import engine, runtime
from backend.detectors import inference, registry
from backend.detectors.base import TWO_LOGITS, Detector
from backend.detectors.inference import BatchedDetector, ask_once, compile_detector, compiled_copy, for_inference
from backend.explain import photo
from backend.settings import SETTINGS
from tests.toys import grey, hooks, toy_detector


class Small(nn.Module):
    """A convolution and its batch norm; `twice` uses the convolution's output a second time."""

    def __init__(self, *, twice: bool) -> None:
        super().__init__()
        self.features, self.norm, self.twice = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), twice

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.features(images)
        total = self.norm(features).relu().mean((1, 2, 3))
        return (total + features.square().mean((1, 2, 3)) * self.twice)[:, None]


def with_statistics(detector):
    source = torch.Generator().manual_seed(0)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                values.add_(torch.rand(values.shape, generator=source))
    return detector


def test_a_quick_xception_gives_the_same_log_odds():
    card = toy_detector(size=64).card
    network = registry.build_embedded("xception", {"width": 0.125})
    detector = with_statistics(Detector(network, card.__class__(**vars(card) | {"outputs": TWO_LOGITS}))).train()
    quick = for_inference(detector)
    assert quick is not detector and not quick.training and hooks(quick) == 0
    assert not any(isinstance(module, nn.BatchNorm2d) for module in quick.modules())
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(quick.logit_fake(images), detector.eval().logit_fake(images), rtol=1e-4, atol=1e-4)
    assert hooks(detector) == 0 and all(weight.requires_grad for weight in detector.parameters())
    assert any(isinstance(module, nn.BatchNorm2d) for module in detector.modules())


def test_a_norm_is_folded_only_where_nothing_else_reads_the_convolution():
    card = toy_detector().card
    alone, shared = (with_statistics(Detector(Small(twice=twice), card)) for twice in (False, True))
    assert isinstance(for_inference(alone).network.norm, nn.Identity)
    assert for_inference(shared) is shared


def test_a_copy_is_kept_until_the_weights_change():
    detector = with_statistics(Detector(Small(twice=False), toy_detector().card)).eval()
    quick = for_inference(detector)
    assert for_inference(detector) is quick
    with torch.no_grad():
        detector.network.features.weight.add_(0.5)
        assert for_inference(detector) is not quick
        assert torch.allclose(for_inference(detector).logit_fake(grey(99)), detector.logit_fake(grey(99)), atol=1e-5)


def test_a_detector_without_norms_is_used_as_it_is():
    detector = toy_detector()
    assert for_inference(detector) is detector


def test_a_judge_counts_and_gives_ordinary_tensors():
    detector = toy_detector().train()
    judge = BatchedDetector(detector, batch=2)
    logit = judge.logit_fake_of_all(grey(10, 20, 200, 30, 40))
    assert (judge.images, judge.calls) == (5, 3)
    assert torch.allclose(logit, detector.logit_fake(grey(10, 20, 200, 30, 40)).detach(), atol=1e-5)
    assert not logit.is_inference() and detector.training
    assert BatchedDetector(detector).batch == 40


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """The process's copy of a detector that ships, with an empty cache and nothing compiled."""
    pytest.importorskip("openvino")
    if runtime.device().type != "cpu":
        pytest.skip("networks are compiled on a CPU only")
    monkeypatch.setattr(engine, "SETTINGS", replace(SETTINGS, cache_dir=tmp_path, engine="auto"))
    detector = registry.load("meso4")
    inference._copies.pop(detector, None)
    yield detector
    inference._copies.pop(detector, None)


def test_a_shipped_detector_is_compiled_before_its_first_full_batch(shipped):
    judge = BatchedDetector(shipped)
    pictures = torch.rand(20, 3, 128, 128, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = shipped.logit_fake(pictures)
    judge.logit_fake(pictures[:1])
    assert compiled_copy(shipped) is None
    assert torch.allclose(judge.logit_fake_of_all(pictures), expected, atol=1e-3)
    assert compiled_copy(shipped) is not None and (judge.images, judge.calls) == (21, 2)
    # Pictures of another size are resized first, and a single one is then answered by the compiled copy, too.
    large = torch.rand(1, 3, 200, 200, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.allclose(judge.logit_fake(large), shipped.logit_fake(large), atol=1e-3)
    assert not compiled_copy(shipped)(pictures).requires_grad
    assert judge.detector.logit_fake(pictures.requires_grad_()).requires_grad  # gradients stay with PyTorch


def test_several_detectors_are_asked_at_once(shipped):
    assert compile_detector(shipped) is not None
    others = {name: registry.load(name) for name in ("meso4", "mesoinception4")}
    pictures = torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(4))
    answers = ask_once({name: (detector, pictures) for name, detector in others.items()})
    assert list(answers) == list(others)
    for name, detector in others.items():
        with torch.no_grad():
            assert torch.allclose(answers[name], detector.logit_fake(pictures), atol=1e-3)


@pytest.mark.parametrize("part", ["start", "wait"])
def test_a_compiled_copy_that_fails_is_given_up(shipped, monkeypatch, caplog, part):
    pictures = torch.rand(20, 3, 128, 128, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = shipped.logit_fake(pictures)
    others = {name: (registry.load(name), pictures) for name in ("meso4", "mesoinception4")}
    for ask in (
        lambda: BatchedDetector(shipped).logit_fake_of_all(pictures),
        lambda: ask_once(others)["meso4"],
    ):
        inference._copies.pop(shipped, None)
        failing = compile_detector(shipped)
        monkeypatch.setattr(failing, part, lambda *_: 1 / 0)
        assert torch.allclose(ask(), expected, atol=1e-3)
        assert compiled_copy(shipped) is None
    assert "meso4 goes on with PyTorch: OpenVINO failed" in caplog.text


def test_only_the_copies_of_the_process_are_compiled(monkeypatch):
    monkeypatch.setattr(engine, "compile_network", lambda *_: pytest.fail("a toy was compiled"))
    assert compile_detector(toy_detector()) is None


def test_a_detector_that_is_asked_often_is_compiled(shipped, monkeypatch):
    monkeypatch.setattr(inference, "ASKED_OFTEN", 3)
    inference._asked.pop(shipped, None)
    picture = torch.rand(1, 3, 128, 128)
    ready = []
    for _ in range(4):
        ask_once({"meso4": (shipped, picture)})
        ready.append(compiled_copy(shipped) is not None)
    assert ready == [False, False, True, True]


def test_the_expected_time_is_measured_again_once_a_detector_is_compiled_and_compiles_nothing(shipped):
    photo._measured_seconds.cache_clear()
    photo.seconds_a_picture("meso4")
    assert compiled_copy(shipped) is None
    compile_detector(shipped)
    photo.seconds_a_picture("meso4")
    assert photo._measured_seconds.cache_info().misses == 2
    photo._measured_seconds.cache_clear()
