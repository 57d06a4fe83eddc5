"""Whether maps name the places that a detector uses: four perturbation methods, each with two references.

Stability follows the code of XAI-Deepfakes (Tsigos et al. 2024, arXiv 2404.18649): the attack on the highest segments
stops while the score has hardly moved and the verdict stands, and the map of that face is compared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from backend import images, runtime
from backend.attacks import nes
from backend.attacks.base import Attacked
from backend.attacks.nes import NESSettings
from backend.detectors import registry
from backend.detectors.base import THRESHOLD, Detector
from backend.errors import UserError
from backend.evaluate import dataset, plots, published
from backend.evaluate.dataset import Dataset, crop_face
from backend.evaluate.metrics import faithfulness as metric
from backend.evaluate.metrics.base import Estimate, mean, mean_with_interval, proportion
from backend.evaluate.plots import Figure, Series
from backend.evaluate.protocols.base import (
    QUICK,
    Item,
    Values,
    Whole,
    check_detectors,
    detector_title,
    make_item,
    register_protocol,
    select,
)
from backend.evaluate.protocols.sufficiency import (
    DETECTOR,
    RANDOM_SEGMENTS,
    Attack,
    MapProtocol,
    MapRows,
    SufficiencyConfig,
    derived_seed,
    empty_sufficiency_row,
    mean_by_picture,
    method_title,
    random_sufficiency_cells,
    sufficiency_cells,
    sufficiency_row,
)
from backend.evaluate.store import Row
from backend.evaluate.tables import Cell, Column, Table, cell_number
from backend.explain.base import EXPLAINERS, REFERENCES, Reference
from backend.explain.explanation import ExplainSettings, Explanation, attack_settings, explain, start_attack
from backend.explain.segments import rank_scores, segment_scores, top_mask
from backend.explain.sufficiency import measure_sufficiency
from backend.progress import Job, Running
from backend.runtime import remembered_jobs
from backend.settings import validated

NEIGHBOUR_TOPS = 3  # segments that the attack may change
NEIGHBOUR_FALL = 0.10  # largest fall of p_fake
PERTURBATION_METHODS = ("lime", "shap", "sobol", "rise")
# PGD goes on after the verdict has turned, so with the paper's 16 grey levels any large segment would do.
QUICK_LEVELS, QUICK_ITERATIONS = 4.0, 10
_KEPT_ATTACKS = 2  # adversarial images of a process, because the methods of one picture follow each other
METHOD, REFERENCE = Column("method", "Method"), Column("reference", "Reference")
NO_REFERENCE = "none"  # the reference of random segments


@validated
@dataclass(frozen=True)
class FaithfulnessConfig(SufficiencyConfig):
    """Settings.

    Args:
        methods: Which methods explain, of those that hide parts of a face.
        references: What a hidden part shows: the method's usual fill, the adversarial image, or each in turn.
        reference_attack: What makes the adversarial image: `nes`, as in the paper, or `pgd` and the least share of its
            change that suffices.
        margin: How far past the threshold NES takes the adversarial image: p_real - p_fake, in [0, 1).
        stability: Whether every map is compared with that of a face that differs a little; every map is then made
            twice, and attacked once more, by NES.
    """

    detectors: Values[str] = ()
    methods: Values[str] = PERTURBATION_METHODS
    references: Values[Reference] = REFERENCES
    reference_attack: Attack = "nes"
    margin: float = 0.0
    segments: Whole = ExplainSettings.segments
    stability: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.methods:
            explainer = EXPLAINERS.find(name)
            if not explainer.references:
                raise UserError(
                    f"{explainer.title} hides no parts of the face, so it has no reference.",
                    f"Use some of: {', '.join(PERTURBATION_METHODS)}.",
                )


@register_protocol(order=40)
class FaithfulnessProtocol(MapProtocol):
    """An item is one fake that is called fake, one detector and one method; a row is one map of it."""

    config: FaithfulnessConfig
    map_columns = (DETECTOR, METHOD, REFERENCE)

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

    @classmethod
    def preset(cls, name: str) -> FaithfulnessConfig:
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

    def select_samples(self, data: Dataset) -> Dataset:
        """Return the fakes that are measured; no real picture is."""
        return data.select(self.config.fakes, 0, self.config.seed, lambda name: self.problem(data, name))

    def problem(self, data: Dataset, name: str) -> str | None:
        """Refuse also a fake that no detector calls fake."""
        unusable = dataset.crop_problem(data, name)
        if unusable is not None:
            return unusable
        if any(_p_fake(data, name, registry.load(detector)) >= THRESHOLD for detector in self.config.detectors):
            return None
        return "No detector calls this fake fake, so there is no verdict to explain."

    def items(self, data: Dataset) -> list[Item]:
        config = self.config
        check_detectors(config.detectors)
        return [
            make_item(sample.name, detector=detector, method=name)
            for sample in data.fakes
            for detector in config.detectors
            for name in config.methods
        ]

    def run_item(self, item: Item, data: Dataset) -> Job[list[Row]]:
        """Explain one fake by one method with each reference, and test each map."""
        sample = data.by_name[item.sample]
        detector = registry.load(item.options["detector"])
        p_fake = _p_fake(data, sample.name, detector)
        if p_fake < THRESHOLD:
            raise UserError(f"{detector.card.title} does not call this fake fake, so there is no verdict to explain.")
        picture = _detector_crop(data, sample.name, detector)
        facts: Row = {"sample": sample.name, "family": sample.family, "source": sample.source}
        facts |= {"detector": item.options["detector"], "method": item.options["method"], "p_before": p_fake}
        rows = []
        for reference in self.config.references:
            row = yield from self._test_map(item, reference, picture, detector)
            rows.append(facts | row)
        return rows

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        frame, note = pd.DataFrame(rows), self._note()
        return [
            self._beside_table(frame),
            self.families_table(frame, "Faithfulness by family of fakes", note),
            self.overall_table(frame, "Faithfulness over all fakes", note),
            *([self._gain_table(frame)] if len(self.config.references) > 1 else []),
            self.against_random_table(frame, "the same picture"),
            *([self._stability_table(frame)] if self.config.stability else []),
            self._references_table(frame),
            self._cost_table(frame),
        ]

    def plots(self, rows: Sequence[Row]) -> list[Figure]:
        frame, tops, figures = pd.DataFrame(rows), self.config.tops, []
        for name in self._measured_detectors(frame):
            maps = select(frame, detector=name)
            estimates = {
                f"{method_title(method)}, {reference}": sufficiency_cells(group, tops)
                for method, reference, group in self._variants(maps)
            }
            estimates[RANDOM_SEGMENTS] = random_sufficiency_cells(maps, tops)
            labels = list(estimates)
            start = len(tops)  # accuracies come first
            groups = [
                Series(f"top {top}", (), [cell_number(cells[start + place]) for cells in estimates.values()])
                for place, top in enumerate(tops)
            ]
            alt = f"Sufficiency by map on {detector_title(name)}; higher is better. "
            alt += plots.values_in_words(groups, labels)
            title = f"Sufficiency, {detector_title(name)}"
            figures.append(plots.draw_bars(f"sufficiency_{name}", title, alt, labels, groups, y_label="Sufficiency"))
        return figures

    def finding(self, rows: Sequence[Row]) -> str:
        frame, top, gains = pd.DataFrame(rows), min(self.config.tops), []
        for name in self.config.methods:
            gain = mean_with_interval(reference_gains(select(frame, method=name), top))
            if gain.value is not None:
                interval = "" if gain.low is None else f" [{gain.low:+.3f}, {gain.high:+.3f}]"
                gains.append(f"{method_title(name)} {gain.value:+.3f}{interval}")
        if not gains:
            return ""
        return (
            f"With an adversarial image behind the hidden parts in place of the usual fill, sufficiency@{top} changed "
            f"by {', '.join(gains)} (95 % interval, picture by picture)."
        )

    def limits(self, data: Dataset) -> list[str]:
        sentences = [
            *super().limits(data),
            self.config.attack_in_words(),
            "Only fakes that the detector calls fake are measured. The paper keeps the others; they fall by 0.",
            (
                "Where an attack on three segments turns nearly every verdict, the third column tells no maps apart; "
                "look at the first."
            ),
            (
                "A segment that is larger, or that has more texture, is easier to attack, whatever the map meant by "
                "it; the random segments have as many pixels, not the same texture."
            ),
        ]
        if self.config.attack != "nes":
            sentences.append("The white-box shortcut finds weak places that the paper's NES may not find.")
        return sentences

    def published(self) -> list[Table]:
        return published.adv_xai_tables()

    def _test_map(self, item: Item, reference: Reference, picture: np.ndarray, detector: Detector) -> Job[Row]:
        """Explain a picture (S, S, 3) with one reference, and test the map."""
        config, name = self.config, item.options["method"]
        face, settings = images.to_tensor(picture), self._explain_settings(name, reference)
        row: Row = {"reference": reference, "attack_images": 0, "attack_calls": 0, "attack_seconds": 0.0}
        attacked = None
        if reference == "adversarial":
            shared = replace(settings, method="lime")  # all methods have the same adversarial image
            attacked = yield from _adversarial(picture.tobytes(), len(picture), item.options["detector"], shared)
            row |= {"attack_images": attacked.image_count, "attack_calls": attacked.call_count}
            row |= {"attack_seconds": attacked.seconds, "flipped": bool(attacked.flipped[0])}
            row |= {"iterations": int(attacked.iterations[0])}
            row |= {"change": float((attacked.images[0] - face[0]).abs().max())}
        result = yield from explain(face, detector, settings, attacked)
        row |= {"degenerate": result.degenerate, "reason": result.reason, "p_reference": result.p_reference}
        row |= {"images": result.explanation.images, "calls": result.explanation.calls, "map_seconds": result.seconds}
        if result.degenerate:
            return row | empty_sufficiency_row(config.tops)
        # As in the paper, LIME's segments count only where they speak for the verdict.
        seed = derived_seed(config.seed, item.key, reference)
        test = config.map_test_settings(seed, positive_only=name == "lime")
        tested = yield from measure_sufficiency(face, detector, result.saliency, result.labels, test)
        row |= sufficiency_row(tested)
        if config.stability and row[f"p_after_{max(config.tops)}"] is not None:
            stability = _measured_stability(face, detector, result, settings, config.nes_settings())
            row["stability"] = yield from stability
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

    def map_rows(self, frame: pd.DataFrame) -> list[tuple[Cell, ...]]:
        body: list[tuple[Cell, ...]] = []
        for name in self._measured_detectors(frame):
            maps, title = select(frame, detector=name), detector_title(name)
            for method, reference, group in self._variants(maps):
                cells = sufficiency_cells(group, self.config.tops)
                body.append((title, method_title(method), reference, *cells))
            body.append((title, RANDOM_SEGMENTS, NO_REFERENCE, *random_sufficiency_cells(maps, self.config.tops)))
        return body

    def maps(self, frame: pd.DataFrame) -> list[MapRows]:
        return [
            ((detector_title(name), method_title(method), reference), group)
            for name in self._measured_detectors(frame)
            for method, reference, group in self._variants(select(frame, detector=name))
        ]

    def _measured_detectors(self, frame: pd.DataFrame) -> list[str]:
        return [name for name in self.config.detectors if name in set(frame["detector"])]

    def _variants(self, frame: pd.DataFrame) -> Iterator[tuple[str, Reference, pd.DataFrame]]:
        for method in self.config.methods:
            for reference in self.config.references:
                yield method, reference, select(frame, method=method, reference=reference)

    def _note(self) -> str:
        return (
            f"{self.config.attack_in_words()} Before any attack the accuracy is 1, because only detected fakes are "
            "measured. LIME is attacked only in segments that speak for fake, and counts where there are enough for "
            "the largest k."
        )

    def _beside_table(self, frame: pd.DataFrame) -> Table:
        printed = published.printed_accuracy_means()
        tops = [top for top in self.config.tops if top in published.PRINTED_TOPS]
        columns = [METHOD, REFERENCE]
        for top in tops:
            columns.append(Column(f"ours_{top}", f"Accuracy@{top}, ours", "accuracy_at_k"))
            columns.append(Column(f"paper_{top}", f"Accuracy@{top}, paper"))
        body: list[tuple[Cell, ...]] = []
        for method, reference, maps in self._variants(frame):
            names = method_title(method), reference
            paper = printed.get(names, {})
            pairs = zip(picture_accuracies(maps, tops), map(paper.get, tops), strict=True)
            body.append((*names, *(cell for pair in pairs for cell in pair)))
        note = (
            f"The paper's is the mean of the families whose numbers are at hand ({published.families_at_hand()}), so "
            "its methods cannot be compared with each other here. Ours counts only fakes that are detected before the "
            "attack, the paper's all; the verdicts of several detectors on one picture are averaged first. "
            f"{published.WHY_FAITHFULNESS_DIFFERS}"
        )
        title = "Accuracy after the attack, ours and the paper's"
        return Table("beside", title, tuple(columns), tuple(body), note, beside=True)

    def _gain_table(self, frame: pd.DataFrame) -> Table:
        tops = self.config.tops
        columns = (
            *(DETECTOR, METHOD),
            *(Column(f"gain_{top}", f"Sufficiency@{top}, adversarial - original") for top in tops),
            Column("better", f"Fakes on which adversarial is better at {min(tops)}"),
        )
        body: list[tuple[Cell, ...]] = []
        for name in self._measured_detectors(frame):
            for method in self.config.methods:
                maps = select(frame, detector=name, method=method)
                gains = (mean_with_interval(reference_gains(maps, top)) for top in tops)
                differences = [gain for gain in reference_gains(maps, min(tops)) if gain]
                better = proportion(sum(gain > 0 for gain in differences), len(differences))
                body.append((detector_title(name), method_title(method), *gains, better))
        note = (
            "Picture by picture; above 0 the adversarial reference makes the better map. Ties are left out of the "
            "share."
        )
        return Table("gain", "What the adversarial reference adds", columns, tuple(body), note)

    def _stability_table(self, frame: pd.DataFrame) -> Table:
        body: list[tuple[Cell, ...]] = [
            (*names, mean_with_interval(maps.get("stability", ()), (-1.0, 1.0))) for names, maps in self.maps(frame)
        ]
        note = (
            f"NES changed each face in its {NEIGHBOUR_TOPS} highest segments while p_fake fell by at most "
            f"{NEIGHBOUR_FALL:.2f} and the face was called fake; then it was explained again with the same seed. Left "
            "out are maps whose face changed more at once, and those that showed nothing the second time. A map that "
            "always looks the same is stable, too, so read this beside the sufficiency."
        )
        columns = (*self.map_columns, Column("stability", "Stability", "stability"))
        return Table("stability", "How stable maps are", columns, tuple(body), note)

    def _references_table(self, frame: pd.DataFrame) -> Table:
        columns = (
            *self.map_columns,
            Column("p_before", "p_fake of the face"),
            Column("p_reference", "p_fake of what stands behind"),
            Column("called_real", "Reference below the threshold"),
            Column("change", "Its largest change", digits=1, unit="of 255"),
            Column("iterations", "Updates of its attack", digits=1),
            Column("empty", "Maps that show nothing"),
        )
        body: list[tuple[Cell, ...]] = []
        for names, maps in self.maps(frame):
            p_reference = maps["p_reference"].astype(float).dropna()
            cells = (
                mean(maps["p_before"]),
                mean(p_reference),
                proportion(sum(p_reference < THRESHOLD), len(p_reference)),
                mean(255 * value for value in maps.get("change", ())),
                mean(maps.get("iterations", ())),
                proportion(sum(maps["degenerate"]), len(maps)),
            )
            body.append((*names, *cells))
        note = (
            "What a hidden part shows. A reference that is still called fake, or that is no face, makes a weaker map."
        )
        return Table("references", "What stood behind the hidden parts", columns, tuple(body), note)

    def _cost_table(self, frame: pd.DataFrame) -> Table:
        columns = (
            *self.map_columns,
            Column("seconds", "Seconds", digits=2),
            Column("images", "Pictures judged", digits=0),
            Column("calls", "Calls of the detector", digits=0),
        )
        sums = (("map_seconds", "attack_seconds"), ("images", "attack_images"), ("calls", "attack_calls"))
        body: list[tuple[Cell, ...]] = [
            (*names, *(mean(maps[first] + maps[second]) for first, second in sums)) for names, maps in self.maps(frame)
        ]
        note = (
            "The attack that makes the adversarial image counts with every map that needs it; the test of maps does "
            "not."
        )
        return Table("cost", "Time and inferences of one map", columns, tuple(body), note)


def find_neighbour(
    face: Tensor, detector: Detector, saliency: Tensor, labels: Tensor, settings: NESSettings | None = None
) -> Job[Tensor | None]:
    """Attack the highest segments of a map with NES, and return the last picture whose score hardly fell.

    p_fake of that picture fell by at most `NEIGHBOUR_FALL`.

    Args:
        face: (1, 3, H, W) in [0, 1].
        detector: Whose verdict the map explains.
        saliency: The map (H, W), higher where more speaks for the verdict.
        labels: Segments (H, W), from 0 without gaps.
        settings: Settings of the attack.

    Returns:
        The picture (1, 3, H, W), still called fake; None if the first update already went further.

    Raises:
        UserError: A setting is out of its range.
    """
    labels = labels.cpu()
    mask = top_mask(labels, rank_scores(segment_scores(saliency, labels)), NEIGHBOUR_TOPS)
    kept, least = None, None
    with Running(nes.attack(face, detector, settings, mask)) as running:
        for step in running:
            if step.preview is not None:  # one that was asked about
                p_fake = step.values["p_fake"]
                if least is None:  # the face itself
                    least = max(THRESHOLD, p_fake - NEIGHBOUR_FALL)
                elif p_fake >= least:
                    kept = step.preview
            yield step
    return kept


def _detector_crop(data: Dataset, name: str, detector: Detector) -> np.ndarray:
    """Return the detector's own crop of a picture, uint8 (S, S, 3)."""
    return crop_face(data, name, size=detector.card.input_size, template=detector.card.template).crop


def _p_fake(data: Dataset, name: str, detector: Detector) -> float:
    face = images.to_tensor(_detector_crop(data, name, detector)).to(detector.mean.device)
    with runtime.MODEL_LOCK, torch.no_grad():
        return float(detector.p_fake(face)[0])


def _measured_stability(
    face: Tensor, detector: Detector, explanation: Explanation, settings: ExplainSettings, attack: NESSettings
) -> Job[float | None]:
    """Return the correlation of a map with that of a face that differs a little; None without one to compare."""
    neighbour = yield from find_neighbour(face, detector, explanation.saliency, explanation.labels, attack)
    if neighbour is None:
        return None
    second = yield from explain(neighbour, detector, settings)
    return None if second.degenerate else metric.map_stability(explanation.saliency.numpy(), second.saliency.numpy())


@remembered_jobs(_KEPT_ATTACKS)
def _adversarial(pixels: bytes, side: int, detector: str, settings: ExplainSettings) -> Job[Attacked]:
    face = images.to_tensor(np.frombuffer(pixels, dtype=np.uint8).reshape(side, side, 3).copy())
    return (yield from start_attack(face, registry.load(detector), settings))


def picture_accuracies(maps: pd.DataFrame, tops: Sequence[int]) -> list[Estimate]:
    """Return accuracy over pictures; several detectors' verdicts on one are not independent and are averaged first."""
    if maps["detector"].nunique() < 2:
        return list(sufficiency_cells(maps, tops)[: len(tops)])
    accuracies = []
    for top in tops:
        attacked = maps.dropna(subset=f"p_after_{top}")
        right = mean_by_picture(attacked, attacked[f"p_after_{top}"] >= THRESHOLD)
        accuracies.append(mean_with_interval(right, (0.0, 1.0)))
    return accuracies


def reference_gains(maps: pd.DataFrame, top: int) -> list[float]:
    """Return how much further p_fake falls with the adversarial reference: the mean over detectors by picture."""
    by_reference = {
        reference: group.set_index(["sample", "detector"])[f"p_after_{top}"].astype(float)
        for reference, group in maps.groupby("reference")
    }
    if len(by_reference) < 2:
        return []
    gains = (by_reference["original"] - by_reference["adversarial"]).dropna()
    return gains.groupby("sample").mean().tolist()
