"""Train TR-Net: a generator against three discriminators, on pairs of a fake and its photograph."""

import copy
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend import runtime, saving
from backend.trace_removal import losses
from backend.trace_removal.discriminators import (
    Discriminator,
    FingerprintDiscriminator,
    SpatialDiscriminator,
    SpectralDiscriminator,
    source_loss,
)
from backend.trace_removal.network import TRNet
from backend.training import harness, pairs
from backend.training.disturbances import disturb, in_eight_bits, through_jpeg
from backend.training.generator import perceptual_network
from backend.training.pairs import Batch, Pairs
from backend.training.trnet_settings import TRNetSettings

FITTED_ON = 256  # real pictures whose spectra standardise the spectral discriminator
RECALIBRATED_ON = 40  # batches that give the averaged weights their own batch statistics
WARMUP = 100  # steps of the discriminators alone
GAIN = 8  # of the differences on a sheet


class TRNetTask:
    """TR-Net in training, as a `harness.Task`."""

    def __init__(self, data: Pairs, settings: TRNetSettings, held_out: Pairs) -> None:
        """Prepare a run on pairs; `held_out` is only shown."""
        self.data, self.settings, self.held_out = data, settings, held_out
        torch.manual_seed(settings.seed)
        self.device = runtime.device()
        self.network = TRNet(
            settings.width,
            statistics=settings.statistics,
            residual=settings.residual,
            bound=settings.bound,
            grain=settings.grain,
            by_contrast=settings.by_contrast,
        )
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False).to(self.device)
        width, norm = settings.discriminator_width, settings.norm
        self.spectral = SpectralDiscriminator(width, norm, settings.spectral_form, settings.size)
        self.spectral.fit(data.real[:: max(1, len(data) // FITTED_ON)][:FITTED_ON].float() / 255)
        self.fingerprint = FingerprintDiscriminator(1 + len(data.kinds), width, norm)
        self.discriminators: dict[str, Discriminator] = {
            "spatial": SpatialDiscriminator(width, norm, settings.spatial_form),
            "spectral": self.spectral,
            "fingerprint": self.fingerprint,
        }
        for module in (self.network, *self.discriminators.values()):
            module.train().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.generator_optimizer = torch.optim.RMSprop(self.network.parameters(), settings.lr_generator)
        self.discriminator_optimizer = torch.optim.RMSprop(
            [weight for module in self.discriminators.values() for weight in module.parameters()],
            settings.lr_discriminator,
        )
        perceptual = perceptual_network(settings.perceptual) if settings.similarity == "perceptual" else None
        self.perceptual = perceptual and perceptual.to(self.device)
        self.ahead = settings.ahead if settings.steps else 0  # without steps, weights are only measured anew
        self.total = self.ahead + settings.identity_steps + settings.steps

    def modules(self) -> Mapping[str, nn.Module]:
        """Return what a checkpoint holds."""
        return {"network": self.network, "average": self.average, **self.discriminators}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Return both optimisers."""
        return {"generator": self.generator_optimizer, "discriminators": self.discriminator_optimizer}

    def step(self, number: int) -> dict[str, float]:
        """Train one step.

        The first steps train the discriminators alone (`ahead`), the next the generator to copy (`identity_steps`),
        and all others the generator, with the discriminators before it in one of `discriminator_every`.
        """
        settings = self.settings
        self._set_rates(number)
        if number < self.ahead:
            return self._step_ahead(number)
        batch = self._draw(number)
        made = self.network(batch.fake)
        begun = number - self.ahead - settings.identity_steps
        if begun < 0:
            values = {"identity": F.l1_loss(made, batch.fake)}
            total = values["identity"]
        else:
            turn, wait = divmod(begun, settings.discriminator_every)
            values = {} if wait else self._train_discriminators(batch, made.detach(), number, turn)
            own = self._generator_losses(batch, made, number)
            values |= own
            total = sum((self._weight(name) * value for name, value in own.items()), torch.zeros(()))
        self._update(self.generator_optimizer, total)
        decay = min(settings.average_decay, (1 + number) / (10 + number))
        harness.update_average(self.average, self.network, decay)
        error = (made.detach().clamp(0, 1) - batch.fake).square().flatten(1).mean(1).clamp_min(1e-10)
        psnr = float((-10 * torch.log10(error)).mean())
        return {name: value.item() for name, value in values.items()} | {"psnr": psnr}

    def _step_ahead(self, number: int) -> dict[str, float]:
        """Train the discriminators alone, on photographs and on fakes before the generator."""
        batch = self._draw(number, self.settings.batch_ahead)
        real, fake = self._shown([batch.real, batch.fake], 2 * number)
        judged, named = self._judged(torch.cat([real, fake]))
        values = {"source": source_loss(named, self._sources(batch))}
        total = self.settings.weight_source * values["source"]
        for name, logits in judged.items():
            values[f"untouched_{name}"] = losses.discriminator_loss(self.settings.adversarial, *logits.chunk(2))
            total = total + values[f"untouched_{name}"]
        self._update(self.discriminator_optimizer, total)
        return {name: value.item() for name, value in values.items()}

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Return held-out fakes above what is made of them and the amplified difference."""
        fake = self.held_out.fake[:: max(1, len(self.held_out) // 8)][:8].float().to(self.device) / 255
        made = self.average(fake).clamp(0, 1)
        difference = ((made - fake) * GAIN + 0.5).clamp(0, 1)
        return torch.cat([torch.cat(list(row), dim=2) for row in (fake, made, difference)], dim=1)[None].cpu()

    @torch.no_grad()
    def finished(self) -> TRNet:
        """Return the averaged generator, with batch statistics of its own."""
        norms = [module for module in self.average.modules() if isinstance(module, nn.BatchNorm2d)]
        if self.settings.statistics == "batch":
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain mean over all batches
            self.average.train()
            for number in range(RECALIBRATED_ON):
                self.average(self._draw(self.total + number).fake)
        return self.average.eval()

    def _draw(self, number: int, count: int | None = None) -> Batch:
        settings = self.settings
        drawn = pairs.draw(
            self.data,
            settings.batch if count is None else count,
            seed=settings.seed,
            step=number,
            jpeg_share=settings.jpeg_share,
        )
        real, fake = (one.to(self.device, memory_format=torch.channels_last) for one in (drawn.real, drawn.fake))
        return Batch(real, fake, drawn.sources.to(self.device))

    def _train_discriminators(self, batch: Batch, made: Tensor, number: int, turn: int) -> dict[str, Tensor]:
        settings, count = self.settings, len(made)
        real, fake, changed = self._shown([batch.real, batch.fake, made], 2 * number)
        pictures = torch.cat([real, changed, fake])
        judged, named = self._judged(pictures if settings.weight_untouched else pictures[: 2 * count], pictures)
        # The source head learns from pictures of the data set, not from the generator's.
        values = {"source": source_loss(torch.cat([named[:count], named[2 * count :]]), self._sources(batch))}
        total = settings.weight_source * values["source"]
        for name, logits in judged.items():
            ours = logits[:count]
            values[f"d_{name}"] = losses.discriminator_loss(settings.adversarial, ours, logits[count : 2 * count])
            total = total + values[f"d_{name}"]
            if settings.weight_untouched:
                values[f"untouched_{name}"] = losses.discriminator_loss(settings.adversarial, ours, logits[2 * count :])
                total = total + settings.weight_untouched * values[f"untouched_{name}"]
        if settings.penalty and turn % settings.penalty_every == 0:
            places = torch.from_numpy(np.random.default_rng([settings.seed, turn, 1]).random(count, np.float32))
            slopes = []
            for module in self.discriminators.values():
                one, other = (module.inputs(pictures).detach() for pictures in (real, fake))
                slopes.append(losses.gradient_penalty(module.backbone, one, other, places.to(self.device)))
            values["penalty"] = torch.stack(slopes).sum()
            total = total + settings.penalty * settings.penalty_every * values["penalty"]
        self._update(self.discriminator_optimizer, total)
        return values

    def _shown(self, pictures: list[Tensor], number: int) -> list[Tensor]:
        """Return pictures as the discriminators see them: saved, some batches disturbed, all of one alike.

        No `number` may come twice in a run: whether, how and how strongly depend on it.
        """
        if self.settings.saved:
            pictures = [through_jpeg(one, saving.QUALITY) for one in pictures]
        elif self.settings.rounded:
            pictures = [in_eight_bits(one) for one in pictures]
        randomness = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + number)
        if float(torch.rand((), generator=randomness)) >= self.settings.disturbed:
            return pictures
        return disturb(pictures, randomness)

    def _judged(self, pictures: Tensor, for_source: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Return each discriminator's log-odds of real (N,), and one logit a source (N, sources), in float32.

        Args:
            pictures: As the discriminators see them.
            for_source: Those of the fingerprint discriminator, if it is to see others.
        """
        own = {"fingerprint": pictures if for_source is None else for_source}
        # In float32: rounded filters would not sum to zero, and their maps would show the brightness.
        inputs = {name: module.inputs(own.get(name, pictures)) for name, module in self.discriminators.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bfloat16):
            found = {
                name: module.backbone(inputs[name])
                for name, module in self.discriminators.items()
                if module is not self.fingerprint
            }
            found["fingerprint"], named = self.fingerprint.judge(inputs["fingerprint"])
        return {name: logits.float() for name, logits in found.items()}, named.float()

    @staticmethod
    def _sources(batch: Batch) -> Tensor:
        """Return the sources of the photographs and fakes of a batch (2 N,)."""
        return torch.cat([torch.full_like(batch.sources, pairs.REAL_SOURCE), batch.sources])

    def _weight(self, name: str) -> float:
        settings = self.settings
        weights = {
            "similarity": settings.weight_similarity * settings.similarity_every,
            "profile": settings.weight_profile,
            "floors": settings.weight_floors,
            "named": settings.weight_named,
        }
        return weights.get(name, settings.weight_adversarial)

    def _generator_losses(self, batch: Batch, made: Tensor, number: int) -> dict[str, Tensor]:
        settings = self.settings
        (shown,) = self._shown([made], 2 * number + 1)
        judged, named = self._judged(shown)
        values = {f"g_{name}": losses.generator_loss(settings.adversarial, logits) for name, logits in judged.items()}
        if settings.weight_named:
            values["named"] = source_loss(named, torch.full_like(batch.sources, pairs.REAL_SOURCE))
        if number % settings.similarity_every == 0:
            values["similarity"] = self._similarity(batch.fake, made)
        values["profile"] = losses.profile_loss(settings.profile, batch.real, made)
        values["floors"] = losses.below_floors(batch.fake, made, settings.psnr_floor, settings.ssim_floor)
        return values

    def _similarity(self, fake: Tensor, made: Tensor) -> Tensor:
        if self.perceptual is None:
            return losses.ssim_similarity(fake, made)
        return losses.perceptual_similarity(self.perceptual, fake, made)

    @staticmethod
    def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 5.0)
        optimizer.step()

    def _set_rates(self, number: int) -> None:
        share = self.settings.decay_share  # of the steps that are not ahead
        left = (self.total - number) / max(1, self.total - self.ahead)
        factor = 0.1 ** (1 - left / share) if left < share else 1.0
        self.generator_optimizer.param_groups[0]["lr"] = self.settings.lr_generator * factor
        rate = self.settings.lr_discriminator * factor
        if number < self.ahead:  # by half a cosine, to the rate with which it goes on
            fall = 0.5 * (1 + math.cos(math.pi * number / self.ahead))
            rise = min(1.0, (number + 1) / WARMUP)  # the first steps of RMSprop are ten times as long as later ones
            rate += (self.settings.lr_ahead * rise - rate) * fall
        self.discriminator_optimizer.param_groups[0]["lr"] = rate
