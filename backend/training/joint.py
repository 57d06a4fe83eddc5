"""Fine-tune encoder and generator together, once both are trained.

Inversions must resemble their photographs. With a discriminator they must pass as photographs too; where it judges
samples as well, the latent discriminator keeps the encoder's codes where samples come from, and the mapping network
stays as it is. Where it does not, some faces of every batch are drawn from their base code alone, as samples are at
first, and the mapping network is fitted to the base codes afterwards.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backend.errors import UserError
from backend.generators.e4e import CODE
from backend.generators.stylegan2 import StyleGAN2
from backend.training import harness
from backend.training.adversary import ZEROES, Adversary, AdversarySettings
from backend.training.encoder import BLOCK, EncoderSettings, EncoderTask, keep_statistics
from backend.training.generator import draw_faces, random_squares, sheet, shrink, update
from backend.training.mapping import fit_mapping


@dataclass(frozen=True, kw_only=True)
class JointSettings(EncoderSettings, AdversarySettings):
    """Settings of a run; `settings/joint.toml` explains them."""

    generator_rate: float
    adversarial_weight: float
    judged_side: int
    samples_judged: bool
    base_share: float


class JointTask(EncoderTask):
    """Encoder and generator in training, as a `harness.Task`; arguments as for `EncoderTask`, with a generator."""

    settings: JointSettings
    generator: StyleGAN2

    def __init__(
        self, pictures: Tensor, settings: JointSettings, held_out: Tensor, *, generator: StyleGAN2, **more: Any
    ) -> None:
        if settings.judged_side.bit_count() != 1:
            raise UserError("The side that the discriminator sees must be a power of two.", "Try judged_side=64.")
        super().__init__(pictures, settings, held_out, generator=generator, codes=None, **more)
        keep_statistics(self.encoder)
        self.generator_average = copy.deepcopy(self.generator)
        drawing = [weight for name, weight in self.generator.named_parameters() if not name.startswith("style.")]
        for weight in drawing:
            weight.requires_grad_()
        self.adversary: Adversary | None = None
        if settings.adversarial_weight:
            self.adversary = Adversary(settings.judged_side, settings, self.arithmetic)
        momentum = 0.9 if self.adversary is None else 0.0
        self.generator_optimizer = torch.optim.Adam(
            drawing, settings.generator_rate, (momentum, 0.99), ZEROES, fused=True
        )

    def modules(self) -> Mapping[str, nn.Module]:
        """Return what a checkpoint holds."""
        own = {"generator": self.generator, "generator_average": self.generator_average}
        return dict(super().modules()) | own | dict(self.adversary.modules() if self.adversary else {})

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Return the optimisers."""
        judging = self.adversary.optimizers() if self.adversary else {}
        return dict(super().optimizers()) | {"generator": self.generator_optimizer} | dict(judging)

    def step(self, number: int) -> dict[str, float | Tensor]:
        """Train everything one step."""
        settings, stage = self.settings, self.stage(number)
        randomness = self.arithmetic.randomness(settings.seed, number)
        faces = draw_faces(self.pictures, stage.batch, settings.seed, number)
        codes = self.with_base_alone(self.encode(faces, once=self.base_alone(len(faces))))
        inversions, losses, loss = self.inversion(codes, faces, stage.resolution, randomness)
        judged = inversions
        if self.adversary is not None:
            if settings.samples_judged:
                judged = torch.cat([inversions, self.samples(stage.batch, stage.resolution, randomness)])
            judged = self.judged(judged, randomness)
            losses["fooling"] = self.adversary.fooling(judged, randomness)
            loss = loss + settings.adversarial_weight * losses["fooling"]
        self.generator_optimizer.zero_grad(set_to_none=True)
        update(self.optimizer, loss, stage.rate)
        for group in self.generator_optimizer.param_groups:
            group["lr"] = settings.generator_rate * self.growth.decay(number)
        self.generator_optimizer.step()
        if self.latent is not None:
            losses["latent"] = self.train_latent(codes, number)
        values = {name: value.detach() for name, value in losses.items()}
        if self.adversary is not None:
            photographs = self.judged(shrink(faces, stage.resolution), randomness)
            values |= self.adversary.train(photographs, judged, number, randomness)
        harness.update_average(self.average, self.encoder, settings.average_decay)
        harness.update_average(self.generator_average, self.generator, settings.average_decay)
        return {"resolution": float(stage.resolution)} | values

    def judged(self, pictures: Tensor, randomness: torch.Generator) -> Tensor:
        """Return what the discriminator sees of pictures (N, 3, S, S): a random square of each, or all of it."""
        return random_squares(pictures, min(self.settings.judged_side, pictures.shape[-1]), randomness)

    def with_base_alone(self, codes: Tensor) -> Tensor:
        """Return codes (N, rows, 512) with the offsets left out of the last `base_share` of the faces."""
        kept = len(codes) - self.base_alone(len(codes))
        return torch.cat([codes[:kept], codes[kept:, :1].expand(-1, codes.shape[1], -1)])

    def base_alone(self, count: int) -> int:
        """Return how many of `count` faces are drawn from their base code alone."""
        return round(self.settings.base_share * count)

    def samples(self, count: int, resolution: int, randomness: torch.Generator) -> Tensor:
        """Return drawings (count, 3, resolution, resolution) of random z."""
        z = torch.randn(count, CODE, generator=randomness, device=self.arithmetic.device)
        with torch.no_grad():
            codes = self.generator.mapping(z)[:, None].expand(-1, self.generator.rows, -1)
        return self.draw(codes, resolution)

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Return held-out faces, their inversions, and samples, below each other."""
        faces = self.held_out.float() / 127.5 - 1
        codes = self.average_codes(faces, self.generator_average)
        z = torch.randn(len(faces), CODE, generator=self.arithmetic.randomness(0, 0), device=self.arithmetic.device)
        samples = self.generator_average.mapping(z)[:, None].expand_as(codes)
        shown = faces, self.generator_average.synthesize(codes), self.generator_average.synthesize(samples)
        return sheet(*(row.cpu() for row in shown))

    def finished(self) -> dict[str, Tensor]:
        """Return the generator's tensors; where no samples were judged, its mapping is fitted to base codes first."""
        if self.adversary is None or not self.settings.samples_judged:
            with torch.no_grad():
                parts = [part.to(self.arithmetic.device).float() / 127.5 - 1 for part in self.pictures.split(BLOCK)]
                base = torch.cat([self.average.base(shrink(part, self.settings.input_size)) for part in parts])
            fit_mapping(self.generator_average.cpu(), (base + self.latent_average).cpu(), seed=self.settings.seed)
        return {f"generator.{key}": value.cpu() for key, value in self.generator_average.state_dict().items()}
