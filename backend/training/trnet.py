"""Train TR-Net (arXiv 2203.11433): a generator against three discriminators, on pairs of a fake and its photograph.

Also measures removals, and the reference statistics of the views.
"""

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend import face_packs, images, runtime, weights
from backend.detectors import registry
from backend.errors import UserError
from backend.progress import Step, finish
from backend.similarity import psnr_and_ssim
from backend.trace_removal import discriminators, references
from backend.trace_removal.discriminators import (
    Discriminator,
    FingerprintDiscriminator,
    Norm,
    SpatialDiscriminator,
    SpatialForm,
    SpectralDiscriminator,
    SpectralForm,
    source_loss,
)
from backend.trace_removal.network import Statistics, TRNet
from backend.trace_removal.removal import TRNET_ENTRY
from backend.training import data as training_data
from backend.training import loop
from backend.training.data import PairBatch, Pairs
from backend.training.degradation import compress_batch, degrade_batches, round_batch
from backend.training.loop import write_sheets
from backend.training.losses import load_perceptual_network


@dataclass(frozen=True)
class TRNetTrainingSettings:
    """Settings of one run; `settings/trnet.toml` explains them."""

    size: int
    width: float
    discriminator_width: float
    statistics: Statistics
    residual: bool
    bound: float
    grain: float
    by_contrast: bool
    norm: Norm
    spectral_form: SpectralForm
    spatial_form: SpatialForm
    adversarial: discriminators.AdversarialForm
    similarity: discriminators.SimilarityForm
    perceptual: str
    similarity_every: int
    profile: discriminators.ProfileForm
    weight_adversarial: float
    weight_similarity: float
    weight_profile: float
    weight_source: float
    weight_untouched: float
    weight_named: float
    disturbed: float
    rounded: bool
    saved: bool
    penalty: float
    penalty_every: int
    psnr_floor: float
    ssim_floor: float
    weight_floors: float
    identity_steps: int
    ahead: int
    batch_ahead: int
    lr_ahead: float
    discriminator_every: int
    steps: int
    batch: int
    lr_generator: float
    lr_discriminator: float
    decay_share: float
    average_decay: float
    kept_share: float
    jpeg_share: float
    seed: int
    bfloat16: bool
    initial: str = ""  # weights that the run started from, where it did


SPECTRA_FITTED_ON = 256  # real pictures whose spectra standardise the spectral discriminator

RECALIBRATED_ON = 40  # batches that give the averaged weights their own batch statistics

WARMUP = 100  # steps of the discriminators alone

SHEET_GAIN = 8  # of the differences on a sheet


class TRNetTask:
    """TR-Net in training, as a `harness.Task`."""

    def __init__(self, data: Pairs, settings: TRNetTrainingSettings, held_out: Pairs) -> None:
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
        self.spectral.fit(data.real[:: max(1, len(data) // SPECTRA_FITTED_ON)][:SPECTRA_FITTED_ON].float() / 255)
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
        perceptual = load_perceptual_network(settings.perceptual) if settings.similarity == "perceptual" else None
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
        loop.update_average(self.average, self.network, decay)
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
            values[f"untouched_{name}"] = discriminators.discriminator_loss(self.settings.adversarial, *logits.chunk(2))
            total = total + values[f"untouched_{name}"]
        self._update(self.discriminator_optimizer, total)
        return {name: value.item() for name, value in values.items()}

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Return held-out fakes above what is made of them and the amplified difference."""
        fake = self.held_out.fake[:: max(1, len(self.held_out) // 8)][:8].float().to(self.device) / 255
        made = self.average(fake).clamp(0, 1)
        difference = ((made - fake) * SHEET_GAIN + 0.5).clamp(0, 1)
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

    def _draw(self, number: int, count: int | None = None) -> PairBatch:
        settings = self.settings
        drawn = training_data.draw_pairs(
            self.data,
            settings.batch if count is None else count,
            seed=settings.seed,
            step=number,
            jpeg_share=settings.jpeg_share,
        )
        real, fake = (one.to(self.device, memory_format=torch.channels_last) for one in (drawn.real, drawn.fake))
        return PairBatch(real, fake, drawn.sources.to(self.device))

    def _train_discriminators(self, batch: PairBatch, made: Tensor, number: int, turn: int) -> dict[str, Tensor]:
        settings, count = self.settings, len(made)
        real, fake, changed = self._shown([batch.real, batch.fake, made], 2 * number)
        pictures = torch.cat([real, changed, fake])
        judged, named = self._judged(pictures if settings.weight_untouched else pictures[: 2 * count], pictures)
        # The source head learns from pictures of the data set, not from the generator's.
        values = {"source": source_loss(torch.cat([named[:count], named[2 * count :]]), self._sources(batch))}
        total = settings.weight_source * values["source"]
        for name, logits in judged.items():
            ours = logits[:count]
            values[f"d_{name}"] = discriminators.discriminator_loss(
                settings.adversarial, ours, logits[count : 2 * count]
            )
            total = total + values[f"d_{name}"]
            if settings.weight_untouched:
                values[f"untouched_{name}"] = discriminators.discriminator_loss(
                    settings.adversarial, ours, logits[2 * count :]
                )
                total = total + settings.weight_untouched * values[f"untouched_{name}"]
        if settings.penalty and turn % settings.penalty_every == 0:
            places = torch.from_numpy(np.random.default_rng([settings.seed, turn, 1]).random(count, np.float32))
            slopes = []
            for module in self.discriminators.values():
                one, other = (module.inputs(pictures).detach() for pictures in (real, fake))
                slopes.append(discriminators.gradient_penalty(module.backbone, one, other, places.to(self.device)))
            values["penalty"] = torch.stack(slopes).sum()
            total = total + settings.penalty * settings.penalty_every * values["penalty"]
        self._update(self.discriminator_optimizer, total)
        return values

    def _shown(self, pictures: list[Tensor], number: int) -> list[Tensor]:
        """Return pictures as the discriminators see them: saved, some batches disturbed, all of one alike.

        No `number` may come twice in a run: whether, how and how strongly depend on it.
        """
        if self.settings.saved:
            pictures = [compress_batch(one, images.JPEG_QUALITY) for one in pictures]
        elif self.settings.rounded:
            pictures = [round_batch(one) for one in pictures]
        randomness = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + number)
        if float(torch.rand((), generator=randomness)) >= self.settings.disturbed:
            return pictures
        return degrade_batches(pictures, randomness)

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
    def _sources(batch: PairBatch) -> Tensor:
        """Return the sources of the photographs and fakes of a batch (2 N,)."""
        return torch.cat([torch.full_like(batch.sources, training_data.REAL_SOURCE), batch.sources])

    def _weight(self, name: str) -> float:
        settings = self.settings
        weights = {
            "similarity": settings.weight_similarity * settings.similarity_every,
            "profile": settings.weight_profile,
            "floors": settings.weight_floors,
            "named": settings.weight_named,
        }
        return weights.get(name, settings.weight_adversarial)

    def _generator_losses(self, batch: PairBatch, made: Tensor, number: int) -> dict[str, Tensor]:
        settings = self.settings
        (shown,) = self._shown([made], 2 * number + 1)
        judged, named = self._judged(shown)
        values = {
            f"g_{name}": discriminators.generator_loss(settings.adversarial, logits) for name, logits in judged.items()
        }
        if settings.weight_named:
            values["named"] = source_loss(named, torch.full_like(batch.sources, training_data.REAL_SOURCE))
        if number % settings.similarity_every == 0:
            values["similarity"] = self._similarity(batch.fake, made)
        values["profile"] = discriminators.profile_loss(settings.profile, batch.real, made)
        values["floors"] = discriminators.likeness_floor_loss(
            batch.fake, made, settings.psnr_floor, settings.ssim_floor
        )
        return values

    def _similarity(self, fake: Tensor, made: Tensor) -> Tensor:
        if self.perceptual is None:
            return discriminators.ssim_similarity(fake, made)
        return discriminators.perceptual_similarity(self.perceptual, fake, made)

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


OnStep = Callable[[Step], None]

TRNET_RECIPES = {"embedded": "trnet", "paper": "trnet_paper", "code": "trnet_code"}  # to the settings file

MEASURED_PAIRS = 200  # held-out pairs of each kind

REFERENCE_PICTURES = 2000  # pictures of each group, as the paper averages

MEASURED_BATCH = 32


def train_trnet(
    data: Path,
    folders: Sequence[Path],
    out: Path,
    on_step: OnStep,
    *,
    recipe: str = "embedded",
    initial: str | None = None,
    **changes: Any,
) -> loop.Report:
    """Train TR-Net on pairs, measure it on held-out pairs, and write `out` (a .safetensors file).

    No detector takes part.

    Args:
        data: Photographs.
        folders: Folders of fakes made from them, with `train/` and `val/`.
        out: Where the weights go; the run's folder, its curves and the report lie beside it.
        on_step: Called at every step.
        recipe: One of `RECIPES`.
        initial: Weights to start from; the discriminators start anew.
        changes: Settings that differ from those of the recipe's file.

    Raises:
        UserError: There is no such recipe, or a setting has no such name.
    """
    settings = read_trnet_settings(recipe, **changes)
    training, held_out = _read_pairs(data, folders, settings.size)
    task = TRNetTask(training, settings, held_out)
    if initial:
        label = loop.load_initial(initial, TRNET_ENTRY, (task.network, task.average))
        settings = dataclasses.replace(settings, initial=label)
    elif settings.kept_share < 1:
        raise UserError("kept_share mixes weights with those that a run starts from.", "Name them with --initial.")
    before = copy.deepcopy(task.average).cpu().state_dict()
    folder = out.parent / f"{TRNET_ENTRY}-run"
    run = finish(write_sheets(loop.train_task(task, folder, settings, checkpoint_every=200), folder), on_step)
    losses = folder / "losses.csv"  # none where weights are only measured anew
    drawn = {"curves": str(loop.draw_curves(losses, folder / "curves.png"))} if losses.exists() else {}
    mixes = settings.kept_share < 1  # batch statistics, too, which are then not measured anew
    network = task.average.eval() if mixes else task.finished()
    network = network.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    half = weights.rounded_to_half(_mix_states(network.state_dict(), before, settings.kept_share))
    network.load_state_dict(half)
    weights.save_half(out, half)
    options: dict[str, Any] = {
        "width": settings.width,
        "statistics": settings.statistics,
        "residual": settings.residual,
        "bound": settings.bound,
        "grain": settings.grain,
        "by_contrast": settings.by_contrast,
    }
    options |= {"settings": {key: value for key, value in asdict(settings).items() if key not in options}}
    metrics = measure_removals(network, held_out)
    report = loop.write_report(
        out.with_suffix(".json"), metrics, run, {TRNET_ENTRY: out}, {TRNET_ENTRY: options | {"measured": metrics}}
    )
    return report | drawn


def _mix_states(after: Mapping[str, Tensor], before: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return weights and batch statistics between those before and after a run (Wortsman et al. 2109.01903)."""
    return {
        name: before[name].lerp(value, share) if value.is_floating_point() else value for name, value in after.items()
    }


def read_trnet_settings(recipe: str, **changes: Any) -> TRNetTrainingSettings:
    """Read the settings of a recipe.

    Raises:
        UserError: There is no such recipe, or a setting has no such name.
    """
    return loop.read_settings(TRNetTrainingSettings, loop.find_recipe(TRNET_RECIPES, recipe, "TR-Net"), **changes)


@torch.no_grad()
def measure_removals(network: TRNet, held_out: Pairs) -> dict[str, dict[str, float]]:
    """Measure 8-bit removals of held-out fakes, by kind.

    Returns:
        By kind: `psnr` in dB and `ssim` of removal and fake (mean), their deviations, `count`, and how far the
        power spectrum of fake and removal is from the photograph's (mean squared difference of natural logarithms).
    """
    found = {}
    for kind in held_out.kinds:
        chosen = held_out.of(kind)
        if not len(chosen):
            continue
        alike, before, after = [], [], []
        stride = max(1, len(chosen) // MEASURED_PAIRS)
        for real, fake in zip(
            chosen.real[::stride].split(MEASURED_BATCH), chosen.fake[::stride].split(MEASURED_BATCH), strict=True
        ):
            made = (network.remove(fake.float() / 255) * 255).round() / 255
            alike += [psnr_and_ssim(_to_array(one), images.to_array(two)) for one, two in zip(fake, made, strict=True)]
            wanted = real.float() / 255
            before.append(float(discriminators.profile_loss("log", wanted, fake.float() / 255)))
            after.append(float(discriminators.profile_loss("log", wanted, made)))
        # Of a picture that did not change at all there is no PSNR to average.
        psnr = np.array([one["psnr"] for one in alike if one["psnr"] is not None])
        ssim = np.array([one["ssim"] for one in alike])
        found[kind] = {
            "psnr": round(float(psnr.mean()), 2),
            "psnr_std": round(float(psnr.std()), 2),
            "ssim": round(float(ssim.mean()), 4),
            "ssim_std": round(float(ssim.std()), 4),
            "spectrum_before": round(float(np.mean(before)), 3),
            "spectrum_after": round(float(np.mean(after)), 3),
            "count": len(alike),
        }
    return found


def measure_references(
    data: Path, folders: Sequence[Path], out: Path, on_step: OnStep, *, attention_count: int = 200
) -> loop.Report:
    """Average the traces of photographs and of every kind of fake, and write `out` (a .safetensors file).

    Args:
        data: Photographs.
        folders: Folders of fakes, with `train/` and `val/`; the training ones are measured.
        out: Where the arrays go; the report lies beside it.
        on_step: Called at every step.
        attention_count: Pictures of each group whose attention is averaged.
    """
    photographs, _ = face_packs.split_photographs(data, registry.EMBEDDED_SIZE)
    groups: dict[str, list[Tensor]] = {references.REAL: [photographs.pictures]}
    for folder in folders:
        made = face_packs.load_photographs(folder / "train", registry.EMBEDDED_SIZE)
        kinds = np.array([name.split("/")[0] for name in made.names])
        for kind in dict.fromkeys(kinds.tolist()):
            groups.setdefault(kind, []).append(made.pictures[torch.from_numpy(np.flatnonzero(kinds == kind))])
    pictures = {group: _thin_pictures(torch.cat(parts)) for group, parts in groups.items()}
    detectors = [name for name in registry.loadable() if registry.card(name).cam_layer]
    started = time.perf_counter()
    found = finish(references.build_references(pictures, detectors, attention_count=attention_count), on_step)
    weights.save_half(out, found.tensors())
    settings = {"pictures": found.count, "attention": attention_count}
    run = loop.TrainingRun(0, time.perf_counter() - started, {}, settings)
    files, options = {references.REFERENCES_ENTRY: out}, {references.REFERENCES_ENTRY: found.options()}
    return loop.write_report(out.with_suffix(".json"), {"bytes": out.stat().st_size}, run, files, options)


def _read_pairs(data: Path, folders: Sequence[Path], size: int) -> tuple[Pairs, Pairs]:
    photographs, held_out = face_packs.split_photographs(data, size)
    training = training_data.load_pairs(photographs, [folder / "train" for folder in folders])
    return training, training_data.load_pairs(held_out, [folder / "val" for folder in folders], kinds=training.kinds)


def _thin_pictures(pictures: Tensor) -> Tensor:
    return pictures[:: max(1, len(pictures) // REFERENCE_PICTURES)][:REFERENCE_PICTURES]


def _to_array(picture: Tensor) -> np.ndarray:
    return picture.permute(1, 2, 0).numpy()
