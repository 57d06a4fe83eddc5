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
from backend.detectors import base as cards
from backend.detectors import inference, predict, registry
from backend.detectors.base import LOG_ODDS, Card, Detector
from backend.detectors.xception import Xception, from_deepfakebench
from backend.errors import UserError
from backend.settings import SETTINGS

NAMES = registry.names()
PUBLISHED_PARAMETERS = {
    "xception": 20_811_050,
    "efficientnet_b4": 17_552_202,
    "meso4": 27_977,
    "mesoinception4": 28_615,
    "mat": 18_826_068,
    "recce": 25_832_558,
    "f3net": 21_075_786,
    "patch_cnn": 191_330,
    "dct_a": 71_654,
    "lf": 8_915_336,
    "nf": 0,
    "sbi": 3_415_922,  # EfficientNet-Lite0, whose authors count 4.65 million with 1,000 classes, and the mask
}
EMBEDDED_PARAMETERS = {
    "xception": (1e6, 2e6),
    "efficientnet_b4": (3e5, 1e6),
    "meso4": (0, 3e4),
    "mesoinception4": (0, 3e4),
    "mat": (3e5, 6e5),
    "recce": (8e5, 1.2e6),
    "f3net": (8e5, 1.2e6),
    "patch_cnn": (1e5, 3e5),
    "dct_a": (5e4, 1e5),
    "lf": (4e5, 8e5),
    "nf": (-1, 1),
    "sbi": (3e6, 4e6),
}
# Raw outputs that say fake with log-odds of 3, and ones that say real with log-odds of -3, by meaning.
OUTPUTS = {
    "one logit, fake high": ([[3.0]], [[-3.0]]),
    "one logit, real high": ([[-3.0]], [[3.0]]),
    "two logits, real then fake": ([[-1.0, 2.0]], [[2.0, -1.0]]),
    "two logits, fake then real": ([[2.0, -1.0]], [[-1.0, 2.0]]),
    "patch logits, fake then real": ([[[[3.0, 3.0]], [[0.0, 0.0]]]], [[[[-1.0, 0.0]], [[2.0, 3.0]]]]),
    "logits by source, real first": ([[-3.0, 0.0, -99.0]], [[99.0, 95.9999, 90.0]]),
    "correlations by source, fake high": ([[3.0, -5.0]], [[-5.0, -3.0]]),
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
    architecture = registry.ARCHITECTURES[name]
    mean, std = (architecture.mean,) * 3, (architecture.std,) * 3
    texts = {"title": architecture.title, "paper": architecture.paper, "weights": name, "trained_on": "", "licence": ""}
    meaning = {"outputs": architecture.outputs, "cam_layer": architecture.cam_layer, "errors": (), "known_failures": ""}
    return Card(name=name, input_size=registry.EMBEDDED_SIZE, mean=mean, std=std, **texts, **meaning)


def embedded(name: str) -> Detector:
    """Return an untrained embedded detector."""
    torch.manual_seed(0)
    network = registry.build_embedded(name, {})
    if name == "nf":  # its fingerprints are zero until they are measured
        network.fingerprints.normal_()
    return Detector(network, plain_card(name)).eval().requires_grad_(False)


def last_layer(network: nn.Module) -> nn.Linear | nn.Conv2d:
    """Return the layer that gives the raw outputs."""
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return (linear or [module for module in network.modules() if isinstance(module, nn.Conv2d)])[-1]


def parameters(network: nn.Module) -> int:
    """Count the trainable numbers."""
    return sum(weight.numel() for weight in network.parameters())


class Constant(nn.Module):
    """A network that returns the same raw output for every picture."""

    def __init__(self, raw: Tensor) -> None:
        super().__init__()
        self.raw = raw

    def forward(self, images: Tensor) -> Tensor:
        return self.raw.expand(len(images), *self.raw.shape[1:])


@pytest.mark.parametrize("meaning", LOG_ODDS)
def test_direction_of_every_kind_of_output(meaning: str) -> None:
    for raw, expected in zip(OUTPUTS[meaning], (3.0, -3.0), strict=True):
        detector = Detector(Constant(torch.tensor(raw)), replace(plain_card("xception"), outputs=meaning))
        log_odds = detector.logit_fake(torch.rand(2, 3, 128, 128))
        torch.testing.assert_close(log_odds, torch.full((2,), expected), atol=3e-3, rtol=0)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "nf"])  # nf has no layers
def test_direction_of_every_detector(name: str) -> None:
    detector = embedded(name)
    head = last_layer(detector.network)
    faces = torch.rand(2, 3, 128, 128)
    for fake, raw in zip((True, False), OUTPUTS[detector.card.outputs], strict=True):
        bias = torch.tensor(raw)[0].reshape(len(raw[0]), -1)[:, 0]
        head.weight.zero_()
        # Sources beyond those named in the table are as unlikely as the last of them.
        head.bias.copy_(torch.cat([bias, bias[-1:].expand(len(head.bias) - len(bias))]))
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


@pytest.mark.parametrize("name", [name for name in NAMES if registry.ARCHITECTURES[name].cam_layer])
@torch.no_grad()
def test_cam_layer_gives_a_map(name: str) -> None:
    detector = embedded(name)
    maps: list[Tensor] = []
    handle = detector.cam_module().register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    detector.logit_fake(torch.rand(1, 3, 128, 128))
    handle.remove()
    assert maps[0].ndim == 4 and min(maps[0].shape[-2:]) >= 4


def test_a_detector_without_layers_says_so() -> None:
    with pytest.raises(UserError, match="no layer whose attention"):
        embedded("nf").cam_module()
    with pytest.raises(UserError, match="no layer whose attention"):
        embedded("dct_a").cam_module()  # its layers lie over frequencies, and a map of them is none of the face


@torch.no_grad()
def test_a_mirrored_detector_gives_the_mean_of_a_picture_and_its_mirror_image() -> None:
    once = embedded("xception")
    once.network.last_linear.weight.mul_(1000)  # untrained, it says nearly the same of everything
    both = Detector(once.network, replace(once.card, mirrored=True), temperature=2.0, threshold=0.5).eval()
    faces = torch.rand(3, 3, 128, 128)
    mean = (once.logit_fake(faces) + once.logit_fake(faces.flip(3))) / 2
    torch.testing.assert_close(both.logit_fake(faces), (mean - 0.5) / 2, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both.logit_fake(faces.flip(3)), both.logit_fake(faces), atol=1e-4, rtol=1e-4)
    assert (both.logit_fake(faces) - (once.logit_fake(faces) - 0.5) / 2).abs().max() > 1e-2
    quick = inference.for_inference(both)
    assert quick is not both and quick.card.mirrored  # batch norms are folded as for any other
    torch.testing.assert_close(quick.logit_fake(faces), both.logit_fake(faces), atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_probability_is_the_sigmoid_of_the_logit() -> None:
    detector = embedded("mesoinception4")
    faces = torch.rand(4, 3, 128, 128)
    torch.testing.assert_close(detector.p_fake(faces), torch.sigmoid(detector.logit_fake(faces)))


@torch.no_grad()
def test_threshold_first_then_temperature() -> None:
    card = replace(plain_card("xception"), outputs="one logit, fake high")
    detector = Detector(Constant(torch.tensor([[3.0]])), card, temperature=2.0, threshold=1.0)
    assert detector.logit_fake(torch.rand(1, 3, 128, 128)).item() == pytest.approx(1.0)
    at_threshold = Detector(Constant(torch.tensor([[1.0]])), card, temperature=2.0, threshold=1.0)
    assert at_threshold.p_fake(torch.rand(1, 3, 128, 128)).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("p_fake", "verdict"),
    [
        (0.0, "no_known_signs"),
        (0.34, "no_known_signs"),
        (0.4, "unsure"),
        (0.6, "unsure"),
        (0.66, "signs"),
        (1.0, "signs"),
    ],
)
def test_verdict_words(p_fake: float, verdict: str) -> None:
    assert cards.verdict(p_fake) == verdict


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
    weights.read_entries.cache_clear()
    yield tmp_path
    weights.read_entries.cache_clear()


def write_entry(folder: Path, name: str, **options: str) -> nn.Module:
    """Save an untrained embedded network with an entry of its own; return the network."""
    torch.manual_seed(1)
    network = registry.build_embedded(options.get("architecture", name), {}).eval()
    path = folder / f"{name}.safetensors"
    weights.save_half(path, network.state_dict())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = OPTIONS.format(name=name, digest=digest, size=path.stat().st_size)
    entry += "".join(f'{key} = "{value}"\n' for key, value in options.items())
    with (folder / "registry.toml").open("a", encoding="utf-8") as file:
        file.write(entry)
    weights.read_entries.cache_clear()
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


def test_an_entry_says_whether_its_detector_judges_by_the_mirror_image_too(weights_folder: Path) -> None:
    network = write_entry(weights_folder, "meso4", trained="by nobody")
    assert not registry.card("meso4").mirrored
    listing = weights_folder / "registry.toml"
    listing.write_text(listing.read_text(encoding="utf-8") + "mirrored = true\n", encoding="utf-8")
    weights.read_entries.cache_clear()
    detector = registry.load("meso4")
    assert detector.card.mirrored
    faces = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(detector.logit_fake(faces), detector.logit_fake(faces.flip(3)))
        assert not torch.allclose(network(detector.prepare(faces)), network(detector.prepare(faces.flip(3))), rtol=1e-4)


def test_plain_weights_are_entries_of_the_same_architecture(weights_folder: Path) -> None:
    write_entry(weights_folder, "meso4")
    write_entry(weights_folder, "meso4_plain", architecture="meso4", defence="none", title="Meso-4, undefended")
    write_entry(weights_folder, "xception_weak", architecture="xception", defence="weak")
    assert registry.loadable() == ["meso4"]
    assert registry.loadable("plain") == ["meso4_plain"]
    assert registry.loadable("all") == ["xception_weak", "meso4", "meso4_plain"]
    plain, shipped = registry.card("meso4_plain"), registry.card("meso4")
    assert (plain.title, plain.defence, shipped.title, shipped.defence) == (
        "Meso-4, undefended",
        "none",
        "Meso-4",
        "shipped",
    )
    assert registry.load("meso4_plain").card.weights == "meso4_plain"


def test_card_is_complete(weights_folder: Path) -> None:
    write_entry(weights_folder, "mesoinception4")
    card = registry.card("mesoinception4")
    assert all(getattr(card, field.name) not in ("", None, ()) for field in fields(card))
    assert card.licence == "CC0" and card.trained_on == "nothing" and card.input_size == 128
    false_alarm = card.false_alarm()
    assert false_alarm is not None and false_alarm.rate == 0.1
    assert [(miss.kind, miss.auc) for miss in card.misses()] == [("swap", 0.8)]


def test_unknown_names_are_reported(weights_folder: Path) -> None:
    write_entry(weights_folder, "xception")
    for call in (registry.build, registry.load, registry.card):
        with pytest.raises(UserError, match="no detector named nonsense"):
            call("nonsense")
    with pytest.raises(UserError, match="no model named meso4"):
        registry.load("meso4")


@pytest.mark.parametrize(
    ("score", "text"),
    [(0.348, "0.35"), (0.352, "0.352"), (0.3504, "0.3504"), (0.648, "0.648"), (0.124, "0.12"), (1.0, "1.00")],
)
def test_a_rounded_score_never_reads_as_another_verdict(score, text):
    assert predict.format_p_fake(score) == text
