"""Train the embedded StyleGAN2 against a discriminator (Karras et al. 2020), from nothing or from trained weights.

On a GPU this alone makes the generator. On a CPU it is the second half of a run that began as a regression
(`generator.py`): samples must pass as photographs, and the picture of a principal code must stay its photograph.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backend.errors import UserError
from backend.generators.e4e import CODE
from backend.generators.stylegan2 import StyleGAN2, row_count
from backend.runtime import device
from backend.training import harness
from backend.training.adversary import ZEROES, Adversary, AdversarySettings, Arithmetic
from backend.training.generator import draw_faces, perceptual_network, picture_losses, sheet, shrink, update
from backend.training.growth import Growth
from backend.training.principal_codes import PrincipalCodes
from backend.training.regularisers import lazy_betas, lazy_share, path_lengths, path_penalty

SAMPLES_FOR_MEAN = 10_000
SHOWN_SEED = 2026
PATH_SHARE = 2  # path lengths are taken of one sample in so many, as published


@dataclass(frozen=True, kw_only=True)
class AdversarialSettings(AdversarySettings):
    """Settings of a run; `settings/generator_adversarial.toml` explains them."""

    size: int
    mapping_layers: int
    channels: dict[str, int]
    stages: list[list[float]]
    decay_share: float
    train_mapping: bool
    fresh_noise: bool
    style_mixing: float
    adversarial_weight: float
    path_weight: float
    path_every: int
    path_decay: float
    reconstruction_weight: float
    perceptual_weight: float
    average_images: float
    compiled: bool
    checkpoint_every: int
    seed: int
    initial: str = ""  # weights that the run started from, where it did


class PathMean(nn.Module):
    """The running mean of path lengths; belongs to a checkpoint."""

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(()))


class AdversarialTask:
    """A generator in adversarial training, as a `harness.Task`."""

    def __init__(
        self,
        pictures: Tensor,
        settings: AdversarialSettings,
        held_out: Tensor,
        codes: PrincipalCodes | None = None,
    ) -> None:
        """Prepare a run on uint8 pictures (N, 3, size, size); `held_out` (K, 3, size, size) is only shown.

        `codes` are those that the generator learned, and needed where it has to go on drawing them. Fitted anew they
        would be others: components of equal spread, and signs, are a matter of rounding.
        """
        self.settings, self.arithmetic = settings, Arithmetic.of(device(), compiled=settings.compiled)
        self.checkpoint_every = settings.checkpoint_every
        here = self.arithmetic.device
        torch.manual_seed(settings.seed)
        table = {int(size): width for size, width in settings.channels.items()}
        generator = StyleGAN2(settings.size, mapping_layers=settings.mapping_layers, channels=table)
        self.generator = generator.to(here)  # its features have the channels last, whatever the weights have
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(requires_grad=False)
        self.adversary = Adversary(settings.size, settings, self.arithmetic)
        self.path_mean = PathMean().to(here)
        self.generator.style.requires_grad_(settings.train_mapping)
        trained = [weight for weight in self.generator.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.Adam(trained, 1e-3, lazy_betas(settings.path_every), ZEROES, fused=True)
        self.codes: PrincipalCodes | None = None
        if settings.reconstruction_weight:
            if codes is None:
                raise UserError(
                    "To go on drawing photographs, the generator needs their codes.",
                    "Add --codes FILE, which its run left beside it, or --set reconstruction_weight=0.",
                )
            self.codes = codes.to(here)
            self.perceptual = perceptual_network("alex").to(here)
        self.pictures, self.held_out = pictures.to(here), held_out.to(here)
        self.growth = Growth(settings.stages, settings.decay_share)
        self.total = self.growth.total
        self._draw = self.arithmetic.ready(self.draw)

    def modules(self) -> Mapping[str, nn.Module]:
        """Return what a checkpoint holds."""
        own = {"generator": self.generator, "average": self.average, "path_mean": self.path_mean}
        return own | dict(self.adversary.modules()) | ({} if self.codes is None else {"codes": self.codes})

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Return both optimisers."""
        return {"generator": self.optimizer} | dict(self.adversary.optimizers())

    def step(self, number: int) -> dict[str, float | Tensor]:
        """Train generator and discriminator one step, on the same drawings."""
        settings, stage = self.settings, self.growth.at(number)
        randomness = self.arithmetic.randomness(settings.seed, number)
        faces = draw_faces(self.pictures, stage.batch, settings.seed, number)
        wanted = shrink(faces, stage.resolution)
        rate = stage.rate * lazy_share(settings.path_every)
        codes = self.sample_codes(stage.batch, stage.resolution, randomness)
        if self.codes is not None:
            codes = torch.cat([codes, self.codes(faces)[:, None].expand(-1, self.generator.rows, -1)])
        drawn = self._draw(codes, self.noise(len(codes), randomness), stage.resolution)
        samples = drawn[: stage.batch]
        losses = {"fooling": self.adversary.fooling(samples, randomness)}
        loss = settings.adversarial_weight * losses["fooling"]
        if self.codes is not None:
            parts, reconstruction = self._reconstruction(drawn[stage.batch :], wanted)
            losses, loss = losses | parts, loss + settings.reconstruction_weight * reconstruction
        update(self.optimizer, loss, rate, longest=torch.inf)
        if settings.path_every and number % settings.path_every == 0:
            losses["path"] = self._regularise(max(1, stage.batch // PATH_SHARE), stage.resolution, rate, randomness)
        values = {name: value.detach() for name, value in losses.items()}
        values |= self.adversary.train(wanted, samples, number, randomness)
        decay = 0.5 ** (stage.batch / settings.average_images)
        harness.update_average(self.average, self.generator, min(decay, (1 + number) / (10 + number)))
        return {"resolution": float(stage.resolution)} | values

    def sample_codes(self, count: int, resolution: int, randomness: torch.Generator) -> Tensor:
        """Return codes (count, rows, 512) of random z; where styles are mixed, two z share the rows in use."""
        here, rows = self.arithmetic.device, self.generator.rows
        z = torch.randn(2 * count, CODE, generator=randomness, device=here)
        one, other = self.generator.mapping(z)[:, None].expand(-1, rows, -1).chunk(2)
        cut = 1 + (torch.rand(count, generator=randomness, device=here) * (row_count(resolution) - 1)).long()
        mixed = torch.rand(count, generator=randomness, device=here) < self.settings.style_mixing
        first = torch.arange(rows, device=here)[None] < torch.where(mixed, cut, rows)[:, None]
        return torch.where(first[:, :, None], one, other)

    def noise(self, count: int, randomness: torch.Generator) -> list[Tensor] | None:
        """Return maps (count, 1, H, W) for every layer, or None for the registered ones."""
        if not self.settings.fresh_noise:
            return None
        shapes = [(count, 1, *old.shape[2:]) for old in self.generator.noises.buffers()]
        return [torch.randn(shape, generator=randomness, device=self.arithmetic.device) for shape in shapes]

    def draw(
        self, codes: Tensor, noise: list[Tensor] | None, resolution: int, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Draw pictures (N, 3, resolution, resolution) around [-1, 1] from codes (N, rows, 512)."""
        start = self.generator.prefix(codes, 0, dtype=dtype or self.arithmetic.dtype)
        return self.generator.resume(start, codes, resolution=resolution, noise=noise)

    def _reconstruction(self, drawn: Tensor, wanted: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        parts = picture_losses(drawn, wanted)
        parts["perceptual"] = self.perceptual(drawn, wanted).mean()
        return parts, parts["l1"] + parts["l2"] + self.settings.perceptual_weight * parts["perceptual"]

    def _regularise(self, count: int, resolution: int, rate: float, randomness: torch.Generator) -> Tensor:
        """Make a step that evens out the path lengths; return the penalty."""
        settings = self.settings
        codes = self.sample_codes(count, resolution, randomness)
        codes = codes if codes.requires_grad else codes.requires_grad_()
        drawn = self.draw(codes, self.noise(count, randomness), resolution, torch.float32)
        lengths = path_lengths(drawn, codes, randomness)
        penalty = path_penalty(lengths, self.path_mean.value, settings.path_decay)
        update(self.optimizer, settings.path_weight * settings.path_every * penalty, rate, longest=torch.inf)
        return penalty.detach()

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Return samples of the averaged weights, and held-out faces above their renderings where codes are trained."""
        randomness = self.arithmetic.randomness(SHOWN_SEED, 0)
        count, rows = len(self.held_out), self.generator.rows
        z = torch.randn(2 * count, CODE, generator=randomness, device=self.arithmetic.device)
        shown = list(self.average.synthesize(self.average.mapping(z)[:, None].expand(-1, rows, -1)).chunk(2))
        if self.codes is not None:
            faces = self.held_out.float() / 127.5 - 1
            shown += [faces, self.average.synthesize(self.codes(faces)[:, None].expand(-1, rows, -1))]
        return sheet(*(row.cpu() for row in shown))

    @torch.no_grad()
    def finished(self) -> dict[str, Tensor]:
        """Return the tensors of the shipped file."""
        if self.codes is not None:
            codes = [self.codes(part.float() / 127.5 - 1) for part in self.pictures.split(256)]
            average = torch.cat(codes).mean(0)
        else:
            randomness = self.arithmetic.randomness(SHOWN_SEED, 1)
            z = torch.randn(SAMPLES_FOR_MEAN, CODE, generator=randomness, device=self.arithmetic.device)
            average = self.average.mapping(z).mean(0)
        return {f"generator.{key}": value for key, value in self.average.state_dict().items()} | {
            "latent_average": average.expand(self.generator.rows, -1).clone()
        }
