"""Whether the map of a real photo names the places where its fake is turned most easily."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backend import images, runtime
from backend.detectors import registry
from backend.detectors.card import THRESHOLD, Detector
from backend.errors import UserError
from backend.evaluate.crops import crop_pair
from backend.evaluate.data import Dataset
from backend.evaluate.plots import Figure
from backend.evaluate.protocols import paired_tables, proofs
from backend.evaluate.protocols.proofs import ProofConfig
from backend.evaluate.protocols.protocol import QUICK, Item, Protocol, check_detectors, item
from backend.evaluate.rows import Row
from backend.evaluate.tables import Table
from backend.explain.deletion import WHY_MISLEADING, CurveSettings, Fill, curves
from backend.explain.explaining import explain
from backend.explain.explanation import ExplainSettings
from backend.explain.methods import method
from backend.explain.pairs import PairSettings, Source, prove_pair
from backend.explain.segments import slic_segments
from backend.progress import finish

METHODS = ("sobol", "xrai", "rise", "lime", "gradcam")
WANTED = (("xception",), ("mesoinception4", "meso4"))  # the paper's detectors; of each group the first that is here
RESOLUTIONS = (1.0, 0.5)
# Half as large segments as in `faithfulness` bear the paper's 16 grey levels, in few, large updates.
QUICK_STEP, QUICK_ITERATIONS = 4.0, 8
QUICK_POINTS = 20  # of a curve
SMALLEST = 16  # pixels of a face that can still be cut into segments


@dataclass(frozen=True)
class PairedConfig(ProofConfig):
    """Settings.

    Args:
        detectors: Which detectors are explained and attacked.
        methods: Which methods explain the real photo.
        resolutions: Sizes of both pictures, as multiples of the detector's own; at one half every pixel that is
            attacked is four of the detector's.
        segments: About how many segments a photo has.
        segments_of: Which of the two is cut into segments, `real` or `fake`.
        curve_steps: Steps of the deletion and insertion curves.
        fill: What a removed pixel shows: `mean`, `black` or `blur`.
    """

    detectors: tuple[str, ...] = ()
    methods: tuple[str, ...] = METHODS
    resolutions: tuple[float, ...] = RESOLUTIONS
    segments: int = PairSettings.segments
    segments_of: Source = "real"
    curve_steps: int = CurveSettings.steps
    fill: Fill = "mean"


@dataclass(frozen=True)
class PairedProtocol(Protocol):
    """An item is one pair, one detector and one resolution; a row is the map of one method, or a random one."""

    config: PairedConfig

    name = "paired"
    title = "Maps of real photos, tested on their fakes"
    about = (
        "Real photos are explained by SOBOL, XRAI, RISE, LIME and Grad-CAM; the segments that a map ranks highest are "
        "attacked in the fake that was made from the photo. What makes the detector call the photo real is missing in "
        "the fake, so a good map names the places where the fake is turned most easily. The usual deletion and "
        "insertion curves stand beside it."
    )
    source = "Protocol of Gowrisankar and Thing (2023, arXiv 2312.06627), as far as its summary says."
    Settings = PairedConfig

    @classmethod
    def preset(cls, name: str) -> PairedConfig:
        """Return 12 pairs, quick maps and the fast test, or all pairs and everything as in the paper."""
        known = registry.loadable()
        found = [next((one for one in group if one in known), None) for group in WANTED]
        detectors = tuple(one for one in found if one is not None) or tuple(known[:2])
        if name != QUICK:
            return PairedConfig(None, None, detectors=detectors)
        return PairedConfig(
            12,
            12,
            samples="quick",
            attack="pgd",
            step_levels=QUICK_STEP,
            iterations=QUICK_ITERATIONS,
            draws=1,
            detectors=detectors,
            curve_steps=QUICK_POINTS,
        )

    def models(self) -> list[str]:
        """Return the detectors."""
        return list(self.config.detectors)

    def choose(self, data: Dataset) -> Dataset:
        """Return fakes whose real photo is here, with those photos; `reals` bounds nothing that `fakes` does not.

        Raises:
            UserError: No fake has its real photo among the pictures.
        """
        if not any(sample.pair in data.by_name for sample in data.fakes):
            raise UserError(
                "No fake has its real photo among these pictures.",
                "Give the photo and the fakes that were made from it the same name, in real/ and fake/.",
            )
        return data.select_pairs(self.config.fakes, self.config.seed, lambda name: self.problem(data, name))

    def problem(self, data: Dataset, name: str) -> str | None:
        """Refuse a fake unless some detector is right about it and about its photo, at some resolution."""
        try:
            right = any(
                self._wrong(registry.load(one), *self._pair(data, name, registry.load(one), factor)) is None
                for one in self.config.detectors
                for factor in self.config.resolutions
            )
        except UserError as error:
            return error.message
        return None if right else "No detector is right about both the fake and its real photo."

    def items(self, data: Dataset) -> list[Item]:
        """Return every pair with every detector at every resolution."""
        config = self.config
        config.check()
        PairSettings(config.segments, config.segments_of).check()
        CurveSettings(config.fill, config.curve_steps).check()
        check_detectors(config.detectors)
        for name in config.methods:
            method(name)
        if not config.resolutions or min(config.resolutions) <= 0:
            raise UserError("A resolution is a multiple of the detector's own.", "Use for example 1 and 0.5.")
        return [
            item(sample.name, detector=detector, resolution=factor)
            for sample in data.fakes
            for detector in config.detectors
            for factor in config.resolutions
        ]

    def run_item(self, item: Item, data: Dataset) -> list[Row]:
        """Explain the real photo by every method, and test each map on the fake."""
        sample, config = data.by_name[item.sample], self.config
        detector = registry.load(item.options["detector"])
        real, fake = self._pair(data, sample.name, detector, item.options["resolution"])
        wrong = self._wrong(detector, real, fake)
        if wrong is not None:
            raise UserError(wrong)
        said: Row = {"sample": sample.name, "family": sample.family, "source": sample.source}
        said |= {"detector": item.options["detector"], "resolution": item.options["resolution"], "side": real.shape[-1]}
        rows = [said | self._tested(item, name, real, fake, detector) for name in config.methods]
        return [*rows, said | self._random(real, detector, proofs.own_seed(config.seed, item.key))]

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        """Return the tables by family, over all, against chance, of the curves, and of the time."""
        return paired_tables.tables(rows, self.config)

    def plots(self, rows: Sequence[Row]) -> list[Figure]:
        """Return accuracy after the attack, and the test beside the curves."""
        return paired_tables.plots_of(rows, self.config)

    def finding(self, rows: Sequence[Row]) -> str:
        """Say which map turns most fakes, beside chance."""
        return paired_tables.finding(rows, self.config)

    def limits(self, data: Dataset) -> list[str]:
        """Add what the test itself cannot say."""
        said = super().limits(data)
        said.append(proofs.in_words(self.config))
        said.append(
            "Only pairs of which the detector judges both pictures rightly are measured; a pair must show the same "
            "face in nearly the same place, because segments are carried over pixel by pixel."
        )
        said.append(
            "Resolutions are multiples of the size that the detector takes. It enlarges or reduces what it is shown; "
            "this varies how fine the attack and the segments are, not the network, which the paper varies too."
        )
        said.append(WHY_MISLEADING)
        said.append(
            "The paper was at hand only as a summary, without its numbers: how many segments it attacks, how many "
            "probes NES makes and how its curves are filled are chosen here."
        )
        return said

    def _pair(self, data: Dataset, fake: str, detector: Detector, factor: float) -> tuple[Tensor, Tensor]:
        """Return photo and fake (1, 3, S, S) at a multiple of the detector's own size."""
        size = round(detector.card.input_size * factor)
        if size < SMALLEST:
            raise UserError(f"{size} pixels are too few to be cut into segments.", "Use a larger resolution.")
        real, made = crop_pair(data, fake, size=size, template=detector.card.template)
        return images.to_tensor(real.crop), images.to_tensor(made.crop)

    def _wrong(self, detector: Detector, real: Tensor, fake: Tensor) -> str | None:
        """Say what a detector gets wrong about a pair, or return None."""
        with runtime.MODEL_LOCK, torch.no_grad():
            called_fake = detector.p_fake(torch.cat([real, fake]).to(detector.mean.device)) >= THRESHOLD
        if called_fake[0]:
            return f"{detector.card.title} calls the real photo fake."
        return None if called_fake[1] else f"{detector.card.title} calls the fake real."

    def _tested(self, item: Item, name: str, real: Tensor, fake: Tensor, detector: Detector) -> Row:
        """Explain the photo by one method, and attack the fake where the map points."""
        config = self.config
        settings = ExplainSettings(
            method=name,
            reference="original",
            preset=config.samples,
            seed=config.seed,
            towards="real",
            segments=config.segments,
        )
        made = finish(explain(real, detector, settings))
        row: Row = {"method": name, "degenerate": made.degenerate, "reason": made.reason}
        row |= {"images": made.explanation.images, "map_seconds": made.seconds}
        if made.degenerate:
            return row | {"p_before": None, "deletion": None, "insertion": None} | proofs.untested(config.tops)
        test = proofs.proof_settings(config, proofs.own_seed(config.seed, item.key, name))
        chosen = PairSettings(config.segments, config.segments_of, test)
        found = finish(prove_pair(real, fake, detector, made.saliency, chosen))
        row |= {"p_real_photo": found.p_real_photo} | proofs.tested(found.proof)
        return row | self._curves(real, detector, made.saliency)

    def _curves(self, real: Tensor, detector: Detector, saliency: Tensor) -> Row:
        """Follow p_real of the photo while the places of its map are removed, and put in."""
        settings = CurveSettings(self.config.fill, self.config.curve_steps)
        found = finish(curves(real, detector, saliency, settings=settings))
        return {"deletion": found.deletion_auc, "insertion": found.insertion_auc, "curve_seconds": found.seconds}

    def _random(self, real: Tensor, detector: Detector, seed: int) -> Row:
        """Return the curves of a map that ranks segments at random."""
        labels = slic_segments(real[0], self.config.segments)
        drawn = torch.rand(int(labels.max()) + 1, generator=torch.Generator().manual_seed(seed))
        row: Row = {"method": proofs.RANDOM, "degenerate": False, "reason": "", "images": 0, "p_before": None}
        return row | proofs.untested(self.config.tops) | self._curves(real, detector, drawn[labels])
