"""Where the training of an architecture differs from the common one: what is fitted before it, or in its place."""

from typing import Protocol

import torch
from torch import Tensor, nn

from backend.detectors.card import Card
from backend.detectors.dct_a import DCTA
from backend.detectors.nf import NoiseFingerprints
from backend.training import objectives
from backend.training.batches import Batches
from backend.training.detector import DetectorSettings, DetectorTask
from backend.training.fingerprint_task import FingerprintTask
from backend.training.harness import Task
from backend.training.labelled import Examples

BALANCED = {"nf"}  # thresholds for the best balanced accuracy (Marra et al.), instead of a share of false alarms
MEASURED = {"nf"}  # measured in one pass over the fakes, without steps of training
FITTED_BATCHES = 64  # whose pictures standardise DCT-A's spectra
LEAST_DEVIATION = 1e-3


class DetectorTraining(Task, Protocol):
    """A task that ends in a network."""

    def finished(self) -> nn.Module:
        """Return the network as it is to be stored."""


def prepare(network: nn.Module, batches: Batches) -> None:
    """Fit what a network needs from training pictures before its first step."""
    if isinstance(network, DCTA):
        standardise(network, batches)


@torch.no_grad()
def standardise(network: DCTA, batches: Batches) -> None:
    """Set mean and standard deviation of every coefficient of the log spectrum from the first batches."""
    total = torch.zeros_like(network.mean, dtype=torch.float64)
    squares, count = torch.zeros_like(total), 0
    for number in range(FITTED_BATCHES):
        spectra: Tensor = network.log_spectrum(batches.draw(number).images * 255).double()
        total += spectra.sum(0)
        squares += spectra.square().sum(0)
        count += len(spectra)
    mean = total / count
    network.mean.copy_(mean)
    network.std.copy_((squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(LEAST_DEVIATION))


def task(
    architecture: str, network: nn.Module, card: Card, examples: Examples, settings: DetectorSettings
) -> DetectorTraining:
    """Return the task that trains, or measures, a network of an architecture."""
    if isinstance(network, NoiseFingerprints):
        return FingerprintTask(network, examples, settings)
    return DetectorTask(network, card, examples, settings, objectives.of(architecture))
