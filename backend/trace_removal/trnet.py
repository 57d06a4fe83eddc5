"""TR-Net as the app uses it: trained weights, and the form that all attacks share (arXiv 2203.11433)."""

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from backend import runtime, weights
from backend.attacks.pixels import inside, judged, put_back
from backend.attacks.result import Attacked
from backend.detectors.card import Detector
from backend.errors import UserError
from backend.progress import Job, Step
from backend.runtime import MODEL_LOCK, frozen
from backend.trace_removal.network import TRNet

ENTRY = "trnet"
WEAKEST, STRONGEST = 0.25, 2.0
TRAINING = "python -m backend train trnet --data DIR --fakes DIR --out trnet.safetensors --install"


@dataclass(frozen=True)
class TRNetSettings:
    """Settings of one pass.

    Args:
        width: Factor on the network's channels; the result says that of the network that was used.
        residual: Whether the network adds to the picture; the result says that of the network that was used.
        bound: Largest change of a value in [0, 1] where it adds, at strength 1; likewise.
        grain: Grey levels of noise that the network sees on the picture; likewise.
        by_contrast: Whether the change is smaller on even skin, and up to 1.6 times `bound` elsewhere; likewise.
        strength: Factor on the network's change, from `WEAKEST` to `STRONGEST`; it was trained for 1.
        seed: Recorded; the noise depends on the picture alone.
    """

    width: float = 1.0
    residual: bool = False
    bound: float = 1.0
    grain: float = 0.0
    by_contrast: bool = False
    strength: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a strength out of range."""
        if not WEAKEST <= self.strength <= STRONGEST:
            raise UserError(f"TR-Net's strength cannot be {self.strength}.", f"Give {WEAKEST} to {STRONGEST}.")


def load() -> TRNet:
    """Return the process's one copy of the trained network, frozen, on the device of the settings.

    Raises:
        UserError: There is no entry, or its model file is missing or damaged.
    """
    return runtime.loaded(ENTRY, _load)


def build(options: Any) -> TRNet:
    """Return the untrained network that a registry entry with these options describes."""
    return TRNet(
        options["width"],
        statistics=options["statistics"],
        residual=options["residual"],
        bound=options.get("bound", 1.0),
        grain=options.get("grain", 0.0),
        by_contrast=options.get("by_contrast", False),
    )


def of_network(network: TRNet, strength: float = 1.0) -> TRNetSettings:
    """Return the settings of a pass through a network.

    Raises:
        UserError: The strength is out of range.
    """
    return TRNetSettings(network.width, network.residual, network.bound, network.grain, network.by_contrast, strength)


def applied(settings: TRNetSettings, network: TRNet | None = None) -> TRNetSettings:
    """Return settings with what the network (None: the trained one) decides."""
    return replace(of_network(network or load(), settings.strength), seed=settings.seed)


def attack(
    images: Tensor,
    detector: Detector,
    settings: TRNetSettings | None = None,
    mask: Tensor | None = None,
    *,
    network: TRNet | None = None,
) -> Job[Attacked]:
    """Pass faces through TR-Net; the detector only judges before and after.

    Args:
        images: Faces (N, 3, H, W) in [0, 1].
        detector: What judges; TR-Net has not seen it.
        settings: Settings of the pass.
        mask: 1 where pixels may change, (H, W) or (N, 1, H, W); everywhere by default.
        network: The network, by default the trained one.

    Raises:
        UserError: The model file is missing or damaged.
    """
    started = time.perf_counter()
    network = network or load()
    settings = applied(settings or TRNetSettings(), network)
    begun = images.detach().to(detector.mean.device)
    region = inside(mask, begun)
    with frozen(network, detector), MODEL_LOCK, torch.no_grad():
        made = put_back(network.remove(begun, settings.strength), begun, region)
        result = judged("TR-Net", begun, made, detector, settings, started=started)
    yield Step(1, 1, "The face passed through TR-Net.", made[:1].cpu())
    return result


def _load() -> TRNet:
    network = build(weights.entry(ENTRY).options)
    weights.load_into(network, ENTRY)
    return network.to(runtime.device())
