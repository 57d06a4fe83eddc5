"""Measure NF's fingerprints: the mean noise residual of every maker's fakes. Nothing is trained."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from backend import runtime
from backend.detectors.nf import NoiseFingerprints
from backend.errors import UserError
from backend.residuals import wiener_residual
from backend.training import defences
from backend.training.batches import as_images
from backend.training.detector import DetectorSettings
from backend.training.history import History
from backend.training.labelled import Examples

MOST = 2000  # fakes of each maker, as TR-Net's paper averages (arXiv 2203.11433, section 3.3)


class FingerprintTask:
    """One pass over the fakes, as a `harness.Task`; the defence acts on every fake before its residual is taken."""

    def __init__(self, network: NoiseFingerprints, examples: Examples, settings: DetectorSettings) -> None:
        """Prepare the pass; `settings` gives the size of a batch, the defence and the seed."""
        self.network = network.to(runtime.device())
        self.examples, self.settings = examples, settings
        self.defence = defences.named(settings.defence, History(**settings.history))  # type: ignore[arg-type]
        self.order: list[tuple[int, int]] = []
        for place, source in enumerate(network.sources):
            members = np.flatnonzero(examples.kinds == source)
            if not len(members):
                raise UserError(f"There are no fakes of the kind {source}.", "Give a folder that has them.")
            drawn = np.random.default_rng([settings.seed, place]).permutation(members)[:MOST]
            self.order += [(place, int(index)) for index in drawn]
        self.counts = [sum(place == one for one, _ in self.order) for place in range(len(network.sources))]
        self.total = -(-len(self.order) // settings.batch)

    def modules(self) -> Mapping[str, nn.Module]:
        """Return what a checkpoint holds."""
        return {"network": self.network}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Return none."""
        return {}

    def preview(self) -> Tensor | None:
        """Show nothing."""
        return None

    @torch.no_grad()
    def step(self, number: int) -> dict[str, float]:
        """Add the residuals of one batch of fakes, each divided by the number of its maker's."""
        batch = self.settings.batch
        part = self.order[number * batch : (number + 1) * batch]
        pictures = []
        for _, index in part:
            picture = self.examples.pictures[index].permute(1, 2, 0).numpy()
            pictures.append(
                self.defence(np.ascontiguousarray(picture), np.random.default_rng([self.settings.seed, index]))
            )
        fingerprints = self.network.fingerprints
        residuals = wiener_residual(as_images(pictures).to(fingerprints.device))
        for (place, _), residual in zip(part, residuals, strict=True):
            fingerprints[place] += residual / self.counts[place]
        return {"residual": float(residuals.square().mean().sqrt())}

    def finished(self) -> nn.Module:
        """Return the network with fingerprints of unit power."""
        self.network.normalise()
        return self.network
