"""The table of detectors: a new one is a new file beside this one and one line in `ARCHITECTURES`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from backend import runtime, weights
from backend.detectors.base import Card, Detector, ErrorRate
from backend.detectors.dct_a import DCTA
from backend.detectors.efficientnet import (
    build_deepfakebench_b4,
    build_efficientnet,
    build_slim_efficientnet,
    build_torchvision_b0,
)
from backend.detectors.f3net import F3Net
from backend.detectors.lf import LF, LF_SOURCES
from backend.detectors.mat import MAT
from backend.detectors.mesonet import DeepfakeBenchMeso4, DeepfakeBenchMesoInception4, Meso4, MesoInception4
from backend.detectors.nf import NF_MAKERS as MAKERS
from backend.detectors.nf import NoiseFingerprints
from backend.detectors.patch_cnn import PatchCNN
from backend.detectors.recce import RECCE
from backend.detectors.vit import CommFor, build_vit_b
from backend.detectors.xception import Xception
from backend.errors import UserError
from backend.settings import SETTINGS

Options = Mapping[str, Any]
DetectorSet = Literal["shipped", "embedded", "plain", "all"]
UNDEFENDED = "none"  # the defence of the plain set
EMBEDDED_SIZE = 128  # side in pixels of the faces that embedded detectors take, unless `input_size` says otherwise


@dataclass(frozen=True)
class Architecture:
    """What is known of a detector before it is trained.

    Args:
        title: Name for people.
        paper: Where it was published.
        outputs: What the network returns, a key of `card.LOG_ODDS`.
        cam_layer: Layer that Grad-CAM reads; empty where there is none, or its places are frequencies, as in DCT-A.
        mean: Subtracted from every channel of pictures in [0, 1].
        std: Divides every channel afterwards.
        published: Builds the untrained network at the size of the paper.
        embedded: Builds the untrained network as the options of a registry entry say.
    """

    title: str
    paper: str
    outputs: str
    cam_layer: str
    mean: float | list[float]
    std: float | list[float]
    published: Callable[[], nn.Module]
    embedded: Callable[[Options], nn.Module]


def _xception(options: Options) -> nn.Module:
    return Xception(width=options.get("width", 0.25))


def _efficientnet(options: Options) -> nn.Module:
    return build_slim_efficientnet(width=options.get("width", 0.35), depth=options.get("depth", 0.6))


def _meso4(options: Options) -> nn.Module:
    return Meso4(width=options.get("width", 1.0), input_size=_input_size(options))


def _mesoinception4(options: Options) -> nn.Module:
    return MesoInception4(width=options.get("width", 1.0), input_size=_input_size(options))


def _mat(options: Options) -> nn.Module:
    return MAT(options.get("width", 0.25), options.get("depth", 0.33))


def _recce(options: Options) -> nn.Module:
    return RECCE(options.get("width", 0.2))


def _f3net(options: Options) -> nn.Module:
    return F3Net(options.get("width", 0.2), _input_size(options))


def _patch_cnn(options: Options) -> nn.Module:
    return PatchCNN(options.get("depth", 3), options.get("width", 0.35))


def _dct_a(options: Options) -> nn.Module:
    return DCTA(_input_size(options), options.get("width", 1.0))


def _lf(options: Options) -> nn.Module:
    return LF(tuple(options.get("sources", LF_SOURCES)), _input_size(options), options.get("width", 0.25))


def _nf(options: Options) -> nn.Module:
    return NoiseFingerprints(tuple(options.get("sources", MAKERS)), _input_size(options))


def _published(
    title: str, paper: str, outputs: str, cam_layer: str, build: Callable[[], nn.Module], **normalised: Any
) -> Architecture:
    """Return an architecture that exists at its published size only."""
    return Architecture(
        title, paper, outputs, cam_layer, published=build, embedded=lambda _options: build(), **normalised
    )


TWO = "two logits, real then fake"
MESO = "one logit, real high"
CHOLLET = "Chollet 2017, arXiv 1610.02357; for faces Roessler et al. 2019, arXiv 1901.08971"
TAN = "Tan and Le 2019, arXiv 1905.11946"
AFCHAR = "Afchar et al. 2018, arXiv 1809.00888"
ZHAO = "Zhao et al. 2021, arXiv 2103.02406"
CAO = "Cao et al. 2022, CVPR, End-to-End Reconstruction-Classification Learning for Face Forgery Detection"
QIAN = "Qian et al. 2020, arXiv 2007.09355"
CHAI = "Chai et al. 2020, arXiv 2008.10588"
FRANK = "Frank et al. 2020, arXiv 2003.08685"
YU = "Yu et al. 2019, arXiv 1811.08180"
MARRA = "Marra et al. 2019, arXiv 1812.11842"
PARK = "Park and Owens 2025, arXiv 2411.04125"
DOSOVITSKIY = "Dosovitskiy et al. 2021, arXiv 2010.11929"
PATCHES = "patch logits, fake then real"
BY_SOURCE = "logits by source, real first"
CORRELATIONS = "correlations by source, fake high"
B4 = "efficientnet_b4"
ARCHITECTURES: dict[str, Architecture] = {
    "xception": Architecture("Xception", CHOLLET, TWO, "act4", 0.5, 0.5, Xception, _xception),
    B4: Architecture("EfficientNet", TAN, TWO, "bn2", 0.5, 0.5, lambda: build_efficientnet(B4), _efficientnet),
    "meso4": Architecture("Meso-4", AFCHAR, MESO, "bn4", 0.0, 1.0, Meso4, _meso4),
    "mesoinception4": Architecture("MesoInception-4", AFCHAR, MESO, "bn4", 0.0, 1.0, MesoInception4, _mesoinception4),
    "mat": Architecture("MAT", ZHAO, TWO, "net.bn2", 0.5, 0.5, MAT, _mat),
    "recce": Architecture("RECCE", CAO, TWO, "encoder.act4", 0.5, 0.5, lambda: RECCE(imagenet_head=True), _recce),
    "f3net": Architecture("F3-Net", QIAN, TWO, "backbone.act4", 0.5, 0.5, F3Net, _f3net),
    "patch_cnn": Architecture("Patch-CNN", CHAI, PATCHES, "convout", 0.5, 0.5, PatchCNN, _patch_cnn),
    "dct_a": Architecture("DCT-A", FRANK, TWO, "", 0.0, 1 / 255, DCTA, _dct_a),
    "lf": Architecture("LF", YU, BY_SOURCE, "blocks.8.conv1", 0.5, 0.5, LF, _lf),
    "nf": Architecture("NF", MARRA, CORRELATIONS, "", 0.0, 1.0, NoiseFingerprints, _nf),
}
# Networks that others publish in a form of their own; only entries of the Hub name them, as their `architecture`.
IMAGENET: dict[str, list[float]] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HALF = {"mean": 0.5, "std": 0.5}
FAKE_HIGH = "one logit, fake high"
PUBLISHED: dict[str, Architecture] = {
    "xception_deepfakebench": _published("Xception", CHOLLET, TWO, "act4", Xception, **HALF),
    "efficientnet_b4_deepfakebench": _published("EfficientNet-B4", TAN, TWO, "bn2", build_deepfakebench_b4, **HALF),
    "f3net_deepfakebench": _published("F3-Net", QIAN, TWO, "backbone.act4", F3Net, **HALF),
    "recce_deepfakebench": _published("RECCE", CAO, TWO, "encoder.act4", lambda: RECCE(imagenet_head=True), **HALF),
    "meso4_deepfakebench": _published("Meso-4", AFCHAR, TWO, "conv4", DeepfakeBenchMeso4, **HALF),
    "mesoinception4_deepfakebench": _published(
        "MesoInception-4", AFCHAR, TWO, "conv2", DeepfakeBenchMesoInception4, **HALF
    ),
    "efficientnet_b0_torchvision": _published(
        "EfficientNet-B0", TAN, TWO, "features", build_torchvision_b0, **IMAGENET
    ),
    "vit_s_commfor": _published("Community Forensics ViT-S", PARK, FAKE_HIGH, "", CommFor, **IMAGENET),
    "vit_b_transformers": _published("ViT-B", DOSOVITSKIY, TWO, "", build_vit_b, **HALF),
}


def names() -> list[str]:
    """Return the detectors that can be built."""
    return list(ARCHITECTURES)


def loadable(which: DetectorSet = "shipped") -> list[str]:
    """Return the detectors that have an entry in the registry of weights, in the order of `names()`.

    Args:
        which: `shipped`, what the app uses: one entry for each architecture, of the same name, and after them what
            was fetched from the Hub; `embedded`, without the latter; `plain`, the undefended ones, whose entries are
            named `NAME_plain`; or `all`, with every other variant.
    """
    if not (SETTINGS.weights_dir / "registry.toml").exists():
        return []
    known = weights.read_entries()
    if which in {"shipped", "embedded"}:
        own = [name for name in ARCHITECTURES if name in known and known[name].profile == "embedded"]
        return own + (_fetched(known) if which == "shipped" else [])
    embedded = [(name, entry) for name, entry in known.items() if entry.profile == "embedded"]
    named = [(entry.options.get("architecture", name), name) for name, entry in embedded]
    ordered = [name for wanted in ARCHITECTURES for architecture, name in named if architecture == wanted]
    return ordered if which == "all" else [name for name in ordered if _defence(known[name].options) == UNDEFENDED]


def _fetched(known: Mapping[str, weights.Entry]) -> list[str]:
    """Return the detectors from the Hub whose files are here."""
    hub = {name: entry for name, entry in known.items() if entry.profile == "hub" and entry.path.is_file()}
    return [name for name, entry in hub.items() if entry.options.get("architecture") in ARCHITECTURES | PUBLISHED]


def build(name: str) -> nn.Module:
    """Return the raw, untrained network at its published size."""
    return _architecture(name).published()


def build_embedded(name: str, options: Options) -> nn.Module:
    """Return the raw, untrained network that a registry entry with these options describes.

    Training and `load` both use it, so the same options give the same network.

    Args:
        name: One of `names()`.
        options: `width` (and `depth` for EfficientNet), `input_size`; what is left out has a default.
    """
    return _architecture(name).embedded(options)


def card(name: str) -> Card:
    """Return the card of a detector without loading its weights."""
    architecture = _architecture(name)
    entry = weights.find_entry(name)
    options = entry.options
    return Card(
        name=name,
        title=options.get("title", architecture.title),
        paper=architecture.paper,
        weights=entry.name,
        input_size=_input_size(options),
        mean=channel_values(options.get("mean", architecture.mean)),
        std=channel_values(options.get("std", architecture.std)),
        outputs=architecture.outputs,
        cam_layer=architecture.cam_layer,
        trained_on=options["trained_on"],
        licence=entry.licence,
        errors=tuple(ErrorRate(**rate) for rate in options.get("errors", ())),
        known_failures=options["known_failures"],
        template=options.get("template", Card.template),
        defence=_defence(options),
        mirrored=bool(options.get("mirrored", Card.mirrored)),
    )


def load(name: str) -> Detector:
    """Return the process's one copy of a detector: trained, frozen, on the device of the settings."""
    return runtime.load_once(f"detector {name}", lambda: _load(name))


def _load(name: str) -> Detector:
    facts = card(name)
    options = weights.find_entry(name).options
    network = weights.load_into(build_embedded(name, options), name)
    calibration = {key: float(options[key]) for key in ("temperature", "threshold") if key in options}
    detector = Detector(network, facts, **calibration)
    return detector.eval().requires_grad_(False).to(runtime.device())


def _architecture(name: str) -> Architecture:
    """Return an architecture by its own name or by that of an entry, which may carry `architecture`."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    if (SETTINGS.weights_dir / "registry.toml").exists() and name in weights.read_entries():
        found = (ARCHITECTURES | PUBLISHED).get(weights.find_entry(name).options.get("architecture", ""))
        if found is not None:
            return found
    raise UserError(f"There is no detector named {name}.", f"Choose one of: {', '.join(names())}.")


def _defence(options: Options) -> str:
    return str(options.get("defence", "shipped"))


def _input_size(options: Options) -> int:
    return int(options.get("input_size", EMBEDDED_SIZE))


def channel_values(value: float | list[float]) -> tuple[float, float, float]:
    """Return one value a channel from one for all or a list of three."""
    red, green, blue = value if isinstance(value, list) else (value, value, value)
    return float(red), float(green), float(blue)
