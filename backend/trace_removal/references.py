"""Average traces of real photographs and of every kind of fake, as small arrays."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backend import runtime, signals, weights
from backend.progress import Job, Step

REFERENCES_ENTRY = "traces"
REFERENCES_COMMAND = "python -m backend train references --data DIR --fakes DIR --out traces.safetensors --install"
REAL = "real"
ATTENTION_SIDE = 32  # of a stored map
DECIBELS = 10 / np.log(10)  # factor on the natural logarithm of a power
BATCH = 64
PicturesByGroup = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class References:
    """Means over many pictures of each group: `real` and every kind of fake."""

    spectrum: dict[str, np.ndarray]  # by group, the mean log power (S, S) in dB, frequency 0 in the middle
    power: dict[str, np.ndarray]  # by group, mean and standard deviation (2, S // 2) of the power at each radius, in dB
    fingerprint: dict[str, Tensor]  # by kind of fake, the mean noise residual (3, S, S)
    # By fingerprint and group, mean and standard deviation of the correlations; measured on the half of the pictures
    # that the fingerprint was not made from.
    correlation: dict[str, dict[str, tuple[float, float]]]
    # By detector and group, the mean Grad-CAM (32, 32) in [0, 1], each picture's scaled to its own maximum.
    attention: dict[str, dict[str, np.ndarray]]
    count: dict[str, int]  # pictures by group
    # SHA-256 of the weights of every detector in `attention`; the maps hold for these weights only.
    detectors: dict[str, str] = field(default_factory=dict)

    @property
    def kinds(self) -> list[str]:
        return list(self.fingerprint)

    def knows(self, detector: str) -> bool:
        """Return whether the attention of a detector was measured with its current weights."""
        entry = weights.read_entries().get(detector)
        return entry is not None and self.detectors.get(detector) == entry.sha256

    def tensors(self) -> dict[str, Tensor]:
        """Return everything but counts and hashes, by `what/group`, for a file."""
        tensors = {f"spectrum/{group}": torch.from_numpy(values) for group, values in self.spectrum.items()}
        tensors |= {f"power/{group}": torch.from_numpy(values) for group, values in self.power.items()}
        tensors |= {f"fingerprint/{kind}": values for kind, values in self.fingerprint.items()}
        for kind, by_group in self.correlation.items():
            tensors |= {f"correlation/{kind}/{group}": torch.tensor(values) for group, values in by_group.items()}
        for detector, maps in self.attention.items():
            tensors |= {f"attention/{detector}/{group}": torch.from_numpy(values) for group, values in maps.items()}
        return tensors

    def options(self) -> dict[str, Any]:
        """Return what the registry entry records about the file."""
        return {"count": self.count, "detectors": self.detectors}


def load_references() -> References:
    """Return the process's one copy; raises UserError where its entry or file is missing or damaged."""
    return runtime.load_once(
        REFERENCES_ENTRY,
        lambda: references_from_tensors(
            weights.load_entry(REFERENCES_ENTRY), weights.find_entry(REFERENCES_ENTRY).options
        ),
    )


def references_from_tensors(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> References:
    """Return the references that `References.tensors` and `References.options` describe."""
    arrays: dict[str, dict[str, Any]] = {what: {} for what in ("spectrum", "power", "fingerprint")}
    nested: dict[str, dict[str, dict[str, Any]]] = {"correlation": {}, "attention": {}}
    for name, values in sorted(tensors.items()):
        what, first, *rest = name.split("/")
        if what in arrays:
            arrays[what][first] = values if what == "fingerprint" else values.numpy()
        else:
            nested[what].setdefault(first, {})[rest[0]] = values.numpy()
    correlation = {
        kind: {group: (float(mean), float(deviation)) for group, (mean, deviation) in by_group.items()}
        for kind, by_group in nested["correlation"].items()
    }
    count, detectors = dict(options["count"]), dict(options["detectors"])
    return References(
        **arrays, correlation=correlation, attention=nested["attention"], count=count, detectors=detectors
    )


def build_references(pictures: PicturesByGroup, detectors: list[str], *, attention_count: int = 200) -> Job[References]:
    """Measure the references.

    Args:
        pictures: By group, uint8 (N, 3, S, S); `real` must be one of the groups.
        detectors: Names of the detectors whose attention is measured.
        attention_count: Pictures per group for the attention.
    """
    total = len(pictures) * (1 + len(detectors))
    spectrum, power, prints, correlation = {}, {}, {}, {}
    halves = {group: (values[::2], values[1::2]) for group, values in pictures.items()}
    for number, (group, values) in enumerate(pictures.items()):
        yield Step(number, total, f"spectra of {group}")
        spectrum[group], power[group] = _spectral_means(values)
        if group != REAL:
            prints[group] = signals.measure_fingerprint(values)
            first = {group: signals.measure_fingerprint(halves[group][0])}
            correlation[group] = {
                other: _mean_and_deviation(signals.fingerprint_correlations(halves[other][1], first)[group])
                for other in pictures
            }
    attention: dict[str, dict[str, np.ndarray]] = {}
    for name in detectors:
        attention[name] = {}
        for group, values in pictures.items():
            done = len(pictures) * len(attention) + len(attention[name])
            yield Step(done, total, f"attention of {name} to {group}")
            attention[name][group] = mean_attention(name, values[:: max(1, len(values) // attention_count)])
    counts = {group: len(values) for group, values in pictures.items()}
    hashes = {name: weights.find_entry(name).sha256 for name in detectors}
    return References(spectrum, power, prints, correlation, attention, counts, hashes)


def mean_attention(detector: str, pictures: Tensor) -> np.ndarray:
    """Return a detector's mean Grad-CAM towards fake (32, 32) over uint8 pictures (N, 3, S, S), empty maps left out."""
    from backend.detectors import registry
    from backend.detectors.gradcam import grad_cam

    total, count = torch.zeros(ATTENTION_SIDE, ATTENTION_SIDE), 0
    for part in pictures.split(BATCH):
        cams = grad_cam(registry.load(detector), (part.float() / 255).to(runtime.device()))
        maps = torch.from_numpy(cams.maps[~cams.empty])
        if len(maps):
            total += F.interpolate(maps[:, None], size=(ATTENTION_SIDE, ATTENTION_SIDE), mode="area").sum((0, 1))
            count += len(maps)
    return (total / max(1, count)).numpy()


@torch.no_grad()
def _spectral_means(pictures: Tensor) -> tuple[np.ndarray, np.ndarray]:
    total, profiles = torch.zeros(pictures.shape[-2:], dtype=torch.float64), []
    for part in pictures.split(BATCH):
        images = part.float() / 255
        total += log_spectrum(images).sum(0, dtype=torch.float64)
        profiles.append(log_profile(images))
    profile = torch.cat(profiles)
    return (total / len(pictures)).float().numpy(), torch.stack([profile.mean(0), profile.std(0)]).numpy()


def log_spectrum(images: Tensor) -> Tensor:
    """Return the log power (N, S, S) in dB, frequency 0 in the middle, of pictures (N, 3, S, S) in [0, 1]."""
    return DECIBELS * torch.fft.fftshift(signals.log_power(images), dim=(-2, -1))


def log_profile(images: Tensor) -> Tensor:
    """Return the power at each radius (N, S // 2) in dB of pictures (N, 3, S, S) in [0, 1]."""
    return 10 * torch.log10(signals.radial_psd(images) + signals.POWER_FLOOR)


def _mean_and_deviation(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std())
