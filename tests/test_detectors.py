"""Every detector keeps the contract: direction, gradients, calibration, card, sizes."""

import hashlib
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from backend import runtime, weights
from backend.detectors import card as cards
from backend.detectors import registry
from backend.detectors.card import LOG_ODDS, Card, Detector
from backend.detectors.xception import Xception, from_deepfakebench
from backend.errors import UserError
from backend.settings import SETTINGS

NAMES = registry.names()
PUBLISHED_PARAMETERS = {
    "xception": 20_811_050,
    "efficientnet_b4": 17_552_202,
    "meso4": 27_977,
    "mesoinception4": 28_615,
}
EMBEDDED_PARAMETERS = {
    "xception": (1e6, 2e6),
    "efficientnet_b4": (3e5, 1e6),
    "meso4": (0, 3e4),
    "mesoinception4": (0, 3e4),
}
# Raw outputs (1, C) that say fake, by meaning.
FAKE_OUTPUTS = {
    "one logit, fake high": [[3.0]],
    "one logit, real high": [[-3.0]],
    "two logits, real then fake": [[-1.0, 2.0]],
    "two logits, fake then real": [[2.0, -1.0]],
}
OPTIONS = """
[{name}]
profile = "embedded"
file = "{name}.safetensors"
sha256 = "{digest}"
bytes = {size}
licence = "CC0"
source = "a test"
temperature = 2.0
threshold = 0.5
trained_on = "nothing"
known_failures = "everything"
errors = [{{kind = "real", rate = 0.1, count = 20}}, {{kind = "swap", rate = 0.3, count = 10, auc = 0.8}}]
"""


def plain_card(name: str) -> Card:
    """Return a card of an embedded detector without a registry of weights."""
    facts = registry.ARCHITECTURES[name]
    mean, std = (facts.mean,) * 3, (facts.std,) * 3
    texts = {"title": facts.title, "paper": facts.paper, "weights": name, "trained_on": "", "licence": ""}
    meaning = {"outputs": facts.outputs, "cam_layer": facts.cam_layer, "errors": (), "known_failures": ""}
    return Card(name=name, input_size=registry.EMBEDDED_SIZE, mean=mean, std=std, **texts, **meaning)


def embedded(name: str) -> Detector:
    """Return an untrained embedded detector."""
    torch.manual_seed(0)
    return Detector(registry.build_embedded(name, {}), plain_card(name)).eval().requires_grad_(False)


def last_layer(network: nn.Module) -> nn.Linear:
    """Return the layer that gives the raw outputs."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


def parameters(network: nn.Module) -> int:
    """Count the trainable numbers."""
    return sum(weight.numel() for weight in network.parameters())


class Constant(nn.Module):
    """A network that returns the same raw output for every picture."""

    def __init__(self, raw: Tensor) -> None:
        super().__init__()
        self.raw = raw

    def forward(self, images: Tensor) -> Tensor:
        return self.raw.expand(len(images), -1)


@pytest.mark.parametrize("meaning", LOG_ODDS)
def test_direction_of_every_meaning(meaning: str) -> None:
    raw = torch.tensor(FAKE_OUTPUTS[meaning])
    detector = Detector(Constant(raw), replace(plain_card("xception"), outputs=meaning))
    assert detector.logit_fake(torch.rand(2, 3, 128, 128)).tolist() == [3.0, 3.0]
    opposite = Detector(Constant(-raw), replace(plain_card("xception"), outputs=meaning))
    assert opposite.p_fake(torch.rand(1, 3, 128, 128)).item() < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_direction_of_every_detector(name: str) -> None:
    detector = embedded(name)
    head = last_layer(detector.network)
    faces = torch.rand(2, 3, 128, 128)
    for fake in (True, False):
        says_fake = torch.tensor(FAKE_OUTPUTS[detector.card.outputs][0])
        head.weight.zero_()
        head.bias.copy_(says_fake if fake else -says_fake)
        assert ((detector.p_fake(faces) > 0.9) if fake else (detector.p_fake(faces) < 0.1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_the_input(name: str) -> None:
    detector = embedded(name)
    faces = torch.rand(1, 3, 160, 160, requires_grad=True)
    detector.logit_fake(faces).sum().backward()
    assert faces.grad is not None and faces.grad.isfinite().all() and faces.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in detector.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [64, 128, 200])
@torch.no_grad()
def test_any_input_size(name: str, size: int) -> None:
    assert embedded(name).logit_fake(torch.rand(2, 3, size, size)).shape == (2,)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_cam_layer_gives_a_map(name: str) -> None:
    detector = embedded(name)
    maps: list[Tensor] = []
    handle = detector.cam_module().register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    detector.logit_fake(torch.rand(1, 3, 128, 128))
    handle.remove()
    assert maps[0].ndim == 4 and min(maps[0].shape[-2:]) >= 4


@torch.no_grad()
def test_probability_is_the_sigmoid_of_the_logit() -> None:
    detector = embedded("mesoinception4")
    faces = torch.rand(4, 3, 128, 128)
    torch.testing.assert_close(detector.p_fake(faces), torch.sigmoid(detector.logit_fake(faces)))


@torch.no_grad()
def test_threshold_first_then_temperature() -> None:
    facts = replace(plain_card("xception"), outputs="one logit, fake high")
    detector = Detector(Constant(torch.tensor([[3.0]])), facts, temperature=2.0, threshold=1.0)
    assert detector.logit_fake(torch.rand(1, 3, 128, 128)).item() == pytest.approx(1.0)
    at_threshold = Detector(Constant(torch.tensor([[1.0]])), facts, temperature=2.0, threshold=1.0)
    assert at_threshold.p_fake(torch.rand(1, 3, 128, 128)).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("p_fake", "word"),
    [(0.0, "real"), (0.34, "real"), (0.4, "uncertain"), (0.6, "uncertain"), (0.66, "fake"), (1.0, "fake")],
)
def test_verdict_words(p_fake: float, word: str) -> None:
    assert cards.verdict(p_fake) == word


@torch.no_grad()
def test_full_width_xception_equals_timm() -> None:
    torch.manual_seed(0)
    ours = Xception().eval()
    theirs = timm.create_model("legacy_xception", pretrained=False, num_classes=2).eval()
    theirs.load_state_dict({key.replace("last_linear", "fc"): value for key, value in ours.state_dict().items()})
    faces = torch.rand(1, 3, 128, 128) * 2 - 1
    torch.testing.assert_close(ours(faces), theirs(faces))


@pytest.mark.parametrize(
    "change",
    [
        {"backbone.extra.weight": torch.zeros(1)},
        {"conv1.weight": torch.zeros(1)},
        {"backbone.bn1.weight": torch.zeros(3)},
    ],
)
def test_deepfakebench_state_is_matched_strictly(change: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        state = {f"backbone.{key}": value for key, value in Xception().state_dict().items()}
    assert from_deepfakebench(state).keys() == {key.removeprefix("backbone.") for key in state}
    with pytest.raises(UserError):
        from_deepfakebench(state | change)
    del state["backbone.conv1.weight"]
    with pytest.raises(UserError, match="lacks 1"):
        from_deepfakebench(state)


@pytest.mark.parametrize("name", NAMES)
def test_published_size(name: str) -> None:
    with torch.device("meta"):
        assert parameters(registry.build(name)) == PUBLISHED_PARAMETERS[name]


@pytest.mark.parametrize("name", NAMES)
def test_embedded_size(name: str) -> None:
    low, high = EMBEDDED_PARAMETERS[name]
    assert low < parameters(registry.build_embedded(name, {})) < high


@pytest.fixture
def weights_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put the registry of weights in an empty folder."""
    monkeypatch.setattr(weights, "SETTINGS", replace(SETTINGS, weights_dir=tmp_path))
    monkeypatch.setattr(registry, "SETTINGS", replace(SETTINGS, weights_dir=tmp_path))
    monkeypatch.setattr(runtime, "_loaded", {})
    weights.entries.cache_clear()
    yield tmp_path
    weights.entries.cache_clear()


def write_entry(folder: Path, name: str) -> nn.Module:
    """Save an untrained embedded network with an entry of its own; return the network."""
    torch.manual_seed(1)
    network = registry.build_embedded(name, {}).eval()
    path = folder / f"{name}.safetensors"
    weights.save_half(path, network.state_dict())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = OPTIONS.format(name=name, digest=digest, size=path.stat().st_size)
    (folder / "registry.toml").write_text(entry, encoding="utf-8")
    return network


@pytest.mark.parametrize("name", NAMES)
def test_load(weights_folder: Path, name: str) -> None:
    assert registry.loadable() == []
    network = write_entry(weights_folder, name)
    assert registry.loadable() == [name]
    detector = registry.load(name)
    assert registry.load(name) is detector
    assert not any(module.training for module in detector.modules())
    assert not any(weight.requires_grad for weight in detector.parameters())
    faces = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        raw = LOG_ODDS[detector.card.outputs](network(detector.prepare(faces)))
        torch.testing.assert_close(detector.logit_fake(faces), (raw - 0.5) / 2, atol=0.02, rtol=0.02)


def test_card_is_complete(weights_folder: Path) -> None:
    write_entry(weights_folder, "mesoinception4")
    card = registry.card("mesoinception4")
    assert all(getattr(card, field.name) not in ("", None, ()) for field in fields(card))
    assert card.licence == "CC0" and card.trained_on == "nothing" and card.input_size == 128
    false_alarm = card.false_alarm()
    assert false_alarm is not None and false_alarm.rate == 0.1
    assert [(miss.kind, miss.auc) for miss in card.misses()] == [("swap", 0.8)]


def test_unknown_names_are_said(weights_folder: Path) -> None:
    write_entry(weights_folder, "xception")
    for call in (registry.build, registry.load, registry.card):
        with pytest.raises(UserError, match="no detector named nonsense"):
            call("nonsense")
    with pytest.raises(UserError, match="no model named meso4"):
        registry.load("meso4")
