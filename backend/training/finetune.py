"""Fine-tune a published e4e encoder on one's own faces (Dong et al. 2024, Artifact-Eraser, section 4.1).

The decoder is frozen. The encoder learns to invert the faces on L2 + 0.8 LPIPS + 0.5 identity, batches of 8 at a rate
of 1e-4. Drawings are pooled to the encoder's 256 pixels before they are compared, as in e4e (Tov et al. 2021).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend import perceptual
from backend.generators.inversion import Inverter, encode
from backend.perceptual import Perceptual
from backend.runtime import device
from backend.training import identity_loss
from backend.training.encoder import keep_statistics
from backend.training.generator import draw_faces, sheet, shrink
from backend.training.identity_loss import Embedding


@dataclass(frozen=True)
class FinetuneSettings:
    """Settings of a run; `settings/finetune.toml` explains them."""

    steps: int
    batch: int
    rate: float
    l2_weight: float
    lpips_weight: float
    identity_weight: float
    seed: int
    initial: str = ""  # the checkpoint that the run started from


@dataclass(frozen=True)
class Losses:
    """The networks that the losses need, as far as they can be had.

    Args:
        perceptual: LPIPS, or what stands in for it.
        embedding: ArcFace, or what stands in for it, or None.
        left_out: What differs from the paper because a network cannot be had, one sentence each.
    """

    perceptual: Perceptual
    embedding: Embedding | None
    left_out: tuple[str, ...]


def losses_here(template: str) -> Losses:
    """Return the losses that can be computed on this machine, for faces aligned as `template`."""
    left_out = []
    distance = perceptual.perceptual()
    missing = perceptual.lpips_missing()
    if missing is not None:
        left_out.append(f"LPIPS is replaced by {distance.name}: {perceptual.ALEXNET} of torchvision is not here.")
    embedding = identity_loss.find(template)
    if embedding is None:
        left_out.append(f"The identity loss is left out: {identity_loss.MISSING}")
    elif embedding.name != identity_loss.NAME:
        left_out.append(f"{identity_loss.NAME} is replaced by {embedding.name}: it was not fetched.")
    return Losses(distance, embedding, tuple(left_out))


class FinetuneTask:
    """An encoder in fine-tuning, as a `harness.Task`.

    Args:
        pictures: Aligned faces, uint8 (N, 3, S, S), S the encoder's input size.
        settings: Of the run.
        held_out: uint8 (K, 3, S, S), only shown.
        inverter: Its encoder is trained, and its generator is frozen.
        losses: What can be computed here.
    """

    def __init__(
        self, pictures: Tensor, settings: FinetuneSettings, held_out: Tensor, inverter: Inverter, losses: Losses
    ) -> None:
        self.pictures, self.settings, self.held_out, self.losses = pictures, settings, held_out, losses
        self.inverter = inverter
        inverter.generator.eval().requires_grad_(False)
        self.encoder = inverter.encoder.train().requires_grad_(True)
        # Batches of eight would replace good statistics by noise, and inversion uses the running ones.
        keep_statistics(self.encoder)
        self.optimizer = torch.optim.Adam(self.encoder.parameters(), settings.rate)
        self.total = settings.steps

    def modules(self) -> Mapping[str, nn.Module]:
        """Return what a checkpoint holds."""
        return {"encoder": self.encoder}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Return the optimiser."""
        return {"encoder": self.optimizer}

    def step(self, number: int) -> dict[str, float]:
        """Train one step."""
        settings = self.settings
        faces = draw_faces(self.pictures, settings.batch, settings.seed, number).to(device())
        drawn, wanted = self.compared(faces)
        values = {"l2": F.mse_loss(drawn, wanted), "lpips": self.losses.perceptual.distance(drawn, wanted).mean()}
        loss = settings.l2_weight * values["l2"] + settings.lpips_weight * values["lpips"]
        if self.losses.embedding is not None:
            values["identity"] = self.losses.embedding.distance(drawn, wanted)
            loss = loss + settings.identity_weight * values["identity"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return {name: value.item() for name, value in values.items()}

    def compared(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        """Return drawings of faces (N, 3, S, S) and the faces, in [-1, 1], at the smaller of both sizes."""
        known = self.inverter
        codes = encode(self.encoder, known.generator, known.latent_average, faces, known.feedback)
        drawn = known.generator.synthesize(codes)
        side = min(drawn.shape[-1], faces.shape[-1])
        return shrink(drawn, side), shrink(faces, side)

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Return held-out faces above their inversions."""
        faces = (self.held_out.float() / 127.5 - 1).to(device())
        drawn, wanted = self.compared(faces)
        return sheet(wanted.cpu(), drawn.cpu())

    @torch.no_grad()
    def psnr(self) -> float:
        """Return the mean PSNR in dB of the held-out faces' inversions, at the size at which they are compared."""
        errors = []
        for part in self.held_out.split(self.settings.batch):
            drawn, wanted = self.compared((part.float() / 127.5 - 1).to(device()))
            errors.append(((drawn.clamp(-1, 1) - wanted) / 2).square().flatten(1).mean(1))
        return float((-10 * torch.log10(torch.cat(errors).clamp_min(1e-10))).mean())

    def checkpoint(self) -> dict[str, object]:
        """Return encoder and decoder in the layout in which e4e publishes them."""
        parts = {"encoder": self.encoder, "decoder": self.inverter.generator}
        states = {
            f"{name}.{key}": value.detach().cpu().contiguous()
            for name, network in parts.items()
            for key, value in network.state_dict().items()
        }
        options = {"stylegan_size": self.inverter.size, "encoder_type": "Encoder4Editing"}
        return {"state_dict": states, "latent_avg": self.inverter.latent_average.cpu().contiguous(), "opts": options}
