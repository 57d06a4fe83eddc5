"""Whether maps name the places that a detector uses: four perturbation methods, each with two references."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from backend import images, runtime
from backend.attacks.nes import NESSettings
from backend.attacks.result import Attacked
from backend.detectors import registry
from backend.detectors.card import THRESHOLD, Detector
from backend.errors import UserError
from backend.evaluate import crops, published_maps
from backend.evaluate.crops import crop
from backend.evaluate.data import Dataset
from backend.evaluate.memory import remembered
from backend.evaluate.metrics import faithfulness as metric
from backend.evaluate.plots import Figure
from backend.evaluate.protocols import faithfulness_tables, proofs
from backend.evaluate.protocols.proofs import ProofConfig
from backend.evaluate.protocols.protocol import QUICK, Item, Protocol, check_detectors, item
from backend.evaluate.rows import Row
from backend.evaluate.tables import Table
from backend.explain.explaining import attack_job, attack_settings, explain
from backend.explain.explanation import ExplainSettings, Explanation
from backend.explain.methods import REFERENCES, Reference, method
from backend.explain.neighbour import neighbour
from backend.explain.proof import prove
from backend.progress import finish

METHODS = ("lime", "shap", "sobol", "rise")
# PGD does not stop where the verdict turns, so with the paper's 16 grey levels any large segment would do.
QUICK_LEVELS, QUICK_ITERATIONS = 4.0, 10
_KEPT = 2  # adversarial images of a process, because the methods of one picture follow each other


@dataclass(frozen=True)
class FaithfulnessConfig(ProofConfig):
    """Settings.

    Args:
        detectors: Which detectors are explained.
        methods: Which methods explain, of those that hide parts of a face.
        references: What a hidden part shows: the method's usual fill, the adversarial image, or each in turn.
        reference_attack: What makes the adversarial image: `nes`, as in the paper, or `pgd` and the least share of its
            change that suffices.
        margin: How far past the threshold NES takes the adversarial image: p_real - p_fake, in [0, 1).
        segments: About how many segments a face has.
        stability: Whether every map is compared with one of a face that differs a little; every map is then made
            twice, and attacked once more, by NES.
    """

    detectors: tuple[str, ...] = ()
    methods: tuple[str, ...] = METHODS
    references: tuple[Reference, ...] = REFERENCES
    reference_attack: proofs.Attack = "nes"
    margin: float = 0.0
    segments: int = ExplainSettings.segments
    stability: bool = False


@dataclass(frozen=True)
class FaithfulnessProtocol(Protocol):
    """An item is one fake that is called fake, one detector and one method; a row is one map of it."""

    config: FaithfulnessConfig

    name = "faithfulness"
    title = "Faithfulness of maps"
    about = (
        "Whether LIME, SHAP, SOBOL and RISE name the places that a detector's verdict hangs on, with their usual fill "
        "and with an adversarial image behind the hidden parts: only the segments that a map ranks highest are "
        "attacked, and the further the score falls the better the map. Random segments of the same size are the "
        "baseline."
    )
    source = (
        "Protocol of Adv-XAI-Deepfakes (Tsigos et al. 2025, arXiv 2502.03957, section 4); stability as in the code of "
        "XAI-Deepfakes (Tsigos et al. 2024, arXiv 2404.18649), which knows no adversarial reference."
    )
    Settings = FaithfulnessConfig

    @classmethod
    def preset(cls, name: str) -> FaithfulnessConfig:
        """Return 12 fakes, one detector, quick maps and the fast test, or everything as in the paper."""
        known = tuple(registry.loadable())
        if name != QUICK:
            return FaithfulnessConfig(None, 0, detectors=known, stability=True)
        return FaithfulnessConfig(
            12,
            0,
            samples="quick",
            attack="pgd",
            grey_levels=QUICK_LEVELS,
            iterations=QUICK_ITERATIONS,
            draws=1,
            detectors=known[:1],
        )

    def models(self) -> list[str]:
        """Return the detectors."""
        return list(self.config.detectors)

    def choose(self, data: Dataset) -> Dataset:
        """Return the fakes that are measured; no real picture is."""
        return data.select(self.config.fakes, 0, self.config.seed, lambda name: self.problem(data, name))

    def problem(self, data: Dataset, name: str) -> str | None:
        """Refuse also a fake that no detector calls fake."""
        unusable = crops.problem(data, name)
        if unusable is not None:
            return unusable
        if any(_p_fake(data, name, registry.load(one)) >= THRESHOLD for one in self.config.detectors):
            return None
        return "No detector calls this fake fake, so there is no verdict to explain."

    def items(self, data: Dataset) -> list[Item]:
        """Return every fake with every detector and every method."""
        config = self.config
        config.check()
        check_detectors(config.detectors)
        for name in config.methods:
            if not method(name).references:
                raise UserError(f"{method(name).title} hides no parts, so it has no reference.", f"Use {METHODS}.")
        return [
            item(sample.name, detector=detector, method=name)
            for sample in data.fakes
            for detector in config.detectors
            for name in config.methods
        ]

    def run_item(self, item: Item, data: Dataset) -> list[Row]:
        """Explain one fake by one method with each reference, and test each map."""
        sample = data.by_name[item.sample]
        detector = registry.load(item.options["detector"])
        p_fake = _p_fake(data, sample.name, detector)
        if p_fake < THRESHOLD:
            raise UserError(f"{detector.card.title} calls this fake real, so there is no verdict to explain.")
        picture = _seen(data, sample.name, detector)
        said: Row = {"sample": sample.name, "family": sample.family, "source": sample.source}
        said |= {"detector": item.options["detector"], "method": item.options["method"]}
        said["p_before"] = p_fake
        return [said | self._tested(item, reference, picture, detector) for reference in self.config.references]

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        """Return the tables by family, over all, of what the reference adds, against chance, and of the cost."""
        return faithfulness_tables.tables(rows, self.config)

    def plots(self, rows: Sequence[Row]) -> list[Figure]:
        """Return the sufficiency of every map, one plot a detector."""
        return faithfulness_tables.plots_of(rows, self.config)

    def finding(self, rows: Sequence[Row]) -> str:
        """Say what the adversarial reference adds to each method."""
        return faithfulness_tables.finding(rows, self.config)

    def limits(self, data: Dataset) -> list[str]:
        """Add what the test itself cannot say."""
        said = super().limits(data)
        said.append(proofs.in_words(self.config))
        said.append("Only fakes that the detector calls fake are measured. The paper keeps the others; they fall by 0.")
        said.append(
            "Where an attack on three segments turns nearly every verdict, the third column tells no maps apart; look "
            "at the first."
        )
        said.append(
            "A segment that is larger, or that has more texture, is easier to attack, whatever the map meant by it; "
            "the random segments have as many pixels, not the same texture."
        )
        if self.config.attack != "nes":
            said.append("The white-box shortcut finds weak places that the paper's NES may not find.")
        return said

    def published(self) -> list[Table]:
        """Return the paper's tables, as far as they are at hand."""
        return published_maps.faithfulness()

    def _tested(self, item: Item, reference: Reference, picture: np.ndarray, detector: Detector) -> Row:
        """Explain a picture (S, S, 3) with one reference, and test the map."""
        config, name = self.config, item.options["method"]
        face, settings = images.to_tensor(picture), self._explain_settings(name, reference)
        row: Row = {"reference": reference, "attack_images": 0, "attack_calls": 0, "attack_seconds": 0.0}
        attacked = None
        if reference == "adversarial":
            attacked = _attacked(picture.tobytes(), len(picture), item.options["detector"], settings)
            row |= {"attack_images": attacked.image_count, "attack_calls": attacked.call_count}
            row |= {"attack_seconds": attacked.seconds, "flipped": bool(attacked.flipped[0])}
            row |= {"iterations": int(attacked.iterations[0])}
            row |= {"change": float((attacked.images[0] - face[0]).abs().max())}
        made = finish(explain(face, detector, settings, attacked))
        row |= {"degenerate": made.degenerate, "reason": made.reason, "p_reference": made.p_reference}
        row |= {"images": made.explanation.images, "calls": made.explanation.calls, "map_seconds": made.seconds}
        if made.degenerate:
            return row | proofs.untested(config.tops)
        # As in the paper, LIME's segments count only where they speak for the verdict.
        seed = proofs.own_seed(config.seed, item.key, reference)
        test = proofs.proof_settings(config, seed, positive_only=name == "lime")
        row |= proofs.tested(finish(prove(face, detector, made.saliency, made.labels, test)))
        if config.stability and row[f"p_after_{max(config.tops)}"] is not None:
            row["stability"] = _stability(face, detector, made, settings, proofs.nes_settings(config))
        return row

    def _explain_settings(self, name: str, reference: Reference) -> ExplainSettings:
        config = self.config
        settings = ExplainSettings(
            method=name,
            reference=reference,
            preset=config.samples,
            seed=config.seed,
            segments=config.segments,
            shortcut=config.reference_attack == "pgd",
        )
        return replace(settings, attack=replace(attack_settings(settings), kappa=config.margin))


def _seen(data: Dataset, name: str, detector: Detector) -> np.ndarray:
    """Return the detector's own crop of a picture, uint8 (S, S, 3)."""
    return crop(data, name, size=detector.card.input_size, template=detector.card.template).crop


def _p_fake(data: Dataset, name: str, detector: Detector) -> float:
    face = images.to_tensor(_seen(data, name, detector)).to(detector.mean.device)
    with runtime.MODEL_LOCK, torch.no_grad():
        return float(detector.p_fake(face)[0])


def _stability(
    face: Tensor, detector: Detector, made: Explanation, settings: ExplainSettings, attack: NESSettings
) -> float | None:
    """Return the correlation of a map with that of a face that differs a little; None without one to compare."""
    other = finish(neighbour(face, detector, made.saliency, made.labels, attack))
    if other is None:
        return None
    again = finish(explain(other, detector, settings))
    return None if again.degenerate else metric.stability(made.saliency.numpy(), again.saliency.numpy())


def _attacked(pixels: bytes, side: int, detector: str, settings: ExplainSettings) -> Attacked:
    """Return the adversarial image of a face; all methods have the same one."""
    return _adversarial(pixels, side, detector, replace(settings, method="lime", reference="adversarial"))


@remembered(_KEPT)
def _adversarial(pixels: bytes, side: int, detector: str, settings: ExplainSettings) -> Attacked:
    face = images.to_tensor(np.frombuffer(pixels, dtype=np.uint8).reshape(side, side, 3).copy())
    return finish(attack_job(face, registry.load(detector), settings))
