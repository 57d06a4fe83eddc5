"""Whether maps name the places that a detector uses: four perturbation methods, each with two references.

Stability as in the code of XAI-Deepfakes (Tsigos et al. 2024, arXiv 2404.18649): the attack on the highest segments is
stopped while the score has hardly moved and the verdict stands, and the map of that face is compared.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
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
from backend.evaluate.protocols import base, sufficiency
from backend.evaluate.protocols.base import (
    QUICK,
    Item,
    Protocol,
    Values,
    Whole,
    check_detectors,
    make_item,
    register_protocol,
)
from backend.evaluate.protocols.sufficiency import SufficiencyConfig
from backend.evaluate.store import Row
from backend.evaluate.tables import Cell, Column, Table
from backend.explain.base import EXPLAINERS, REFERENCES, Reference
from backend.explain.explanation import ExplainSettings, Explanation, attack_settings, explain, start_attack
from backend.explain.segments import rank_scores, segment_scores, top_mask
from backend.explain.sufficiency import measure_sufficiency
from backend.progress import Job, Running, finish
from backend.runtime import remembered
from backend.settings import validated

NEIGHBOUR_TOPS = 3  # segments that the attack may change

NEIGHBOUR_FALL = 0.10  # by which p_fake may have fallen


def find_neighbour(
    face: Tensor, detector: Detector, saliency: Tensor, labels: Tensor, settings: NESSettings | None = None
) -> Job[Tensor | None]:
    """Attack the highest segments of a map with NES, and return the last picture whose p_fake fell by at most `MOST`.

    Args:
        face: (1, 3, H, W) in [0, 1].
        detector: Whose verdict the map explains.
        saliency: The map (H, W), higher where more speaks for the verdict.
        labels: Segments (H, W), from 0 without gaps.
        settings: Settings of the attack.

    Yields:
        The steps of the attack.

    Returns:
        The picture (1, 3, H, W), still called fake; None where already the first update went further, so that there
        is none but the face itself.

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


PERTURBATION_METHODS = ("lime", "shap", "sobol", "rise")

# PGD does not stop where the verdict turns, so with the paper's 16 grey levels any large segment would do.
QUICK_LEVELS, QUICK_ITERATIONS = 4.0, 10

_KEPT_ATTACKS = 2  # adversarial images of a process, because the methods of one picture follow each other


@validated
@dataclass(frozen=True)
class FaithfulnessConfig(SufficiencyConfig):
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

    detectors: Values[str] = ()
    methods: Values[str] = PERTURBATION_METHODS
    references: Values[Reference] = REFERENCES
    reference_attack: sufficiency.Attack = "nes"
    margin: float = 0.0
    segments: Whole = ExplainSettings.segments
    stability: bool = False

    def __post_init__(self) -> None:
        """Refuse methods that hide no parts of a face, and what the test itself refuses."""
        super().__post_init__()
        for name in self.methods:
            explainer = EXPLAINERS.find(name)
            if not explainer.references:
                raise UserError(
                    f"{explainer.title} hides no parts of the face, so it has no reference.",
                    f"Use some of: {', '.join(PERTURBATION_METHODS)}.",
                )


@register_protocol(order=40)
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

    def select_samples(self, data: Dataset) -> Dataset:
        """Return the fakes that are measured; no real picture is."""
        return data.select(self.config.fakes, 0, self.config.seed, lambda name: self.problem(data, name))

    def problem(self, data: Dataset, name: str) -> str | None:
        """Refuse also a fake that no detector calls fake."""
        unusable = dataset.crop_problem(data, name)
        if unusable is not None:
            return unusable
        if any(_p_fake(data, name, registry.load(one)) >= THRESHOLD for one in self.config.detectors):
            return None
        return "No detector calls this fake fake, so there is no verdict to explain."

    def items(self, data: Dataset) -> list[Item]:
        """Return every fake with every detector and every method."""
        config = self.config
        check_detectors(config.detectors)
        return [
            make_item(sample.name, detector=detector, method=name)
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
        picture = _detector_crop(data, sample.name, detector)
        said: Row = {"sample": sample.name, "family": sample.family, "source": sample.source}
        said |= {"detector": item.options["detector"], "method": item.options["method"]}
        said["p_before"] = p_fake
        return [said | self._tested(item, reference, picture, detector) for reference in self.config.references]

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        """Return the tables by family, over all, of what the reference adds, against chance, and of the cost."""
        return faithfulness_tables(rows, self.config)

    def plots(self, rows: Sequence[Row]) -> list[Figure]:
        """Return the sufficiency of every map, one plot a detector."""
        return faithfulness_plots(rows, self.config)

    def finding(self, rows: Sequence[Row]) -> str:
        """Say what the adversarial reference adds to each method."""
        return faithfulness_finding(rows, self.config)

    def limits(self, data: Dataset) -> list[str]:
        """Add what the test itself cannot say."""
        said = super().limits(data)
        said.append(sufficiency.attack_in_words(self.config))
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
        return published.adv_xai_tables()

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
            return row | sufficiency.empty_sufficiency_row(config.tops)
        # As in the paper, LIME's segments count only where they speak for the verdict.
        seed = sufficiency.derived_seed(config.seed, item.key, reference)
        test = sufficiency.map_test_settings(config, seed, positive_only=name == "lime")
        row |= sufficiency.sufficiency_row(
            finish(measure_sufficiency(face, detector, made.saliency, made.labels, test))
        )
        if config.stability and row[f"p_after_{max(config.tops)}"] is not None:
            row["stability"] = _measured_stability(face, detector, made, settings, sufficiency.nes_settings(config))
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


def _detector_crop(data: Dataset, name: str, detector: Detector) -> np.ndarray:
    """Return the detector's own crop of a picture, uint8 (S, S, 3)."""
    return crop_face(data, name, size=detector.card.input_size, template=detector.card.template).crop


def _p_fake(data: Dataset, name: str, detector: Detector) -> float:
    face = images.to_tensor(_detector_crop(data, name, detector)).to(detector.mean.device)
    with runtime.MODEL_LOCK, torch.no_grad():
        return float(detector.p_fake(face)[0])


def _measured_stability(
    face: Tensor, detector: Detector, made: Explanation, settings: ExplainSettings, attack: NESSettings
) -> float | None:
    """Return the correlation of a map with that of a face that differs a little; None without one to compare."""
    other = finish(find_neighbour(face, detector, made.saliency, made.labels, attack))
    if other is None:
        return None
    again = finish(explain(other, detector, settings))
    return None if again.degenerate else metric.map_stability(made.saliency.numpy(), again.saliency.numpy())


def _attacked(pixels: bytes, side: int, detector: str, settings: ExplainSettings) -> Attacked:
    """Return the adversarial image of a face; all methods have the same one."""
    return _adversarial(pixels, side, detector, replace(settings, method="lime", reference="adversarial"))


@remembered(_KEPT_ATTACKS)
def _adversarial(pixels: bytes, side: int, detector: str, settings: ExplainSettings) -> Attacked:
    face = images.to_tensor(np.frombuffer(pixels, dtype=np.uint8).reshape(side, side, 3).copy())
    return finish(start_attack(face, registry.load(detector), settings))


FAMILY, DETECTOR = Column("family", "Family of fakes"), Column("detector", "Detector")

METHOD, REFERENCE = Column("method", "Method"), Column("reference", "Reference")

MAP_COLUMNS = (DETECTOR, METHOD, REFERENCE)

NO_REFERENCE = "none"  # the reference of random segments


Variant = tuple[str, str]  # method and reference


def faithfulness_tables(rows: Sequence[Row], config: "FaithfulnessConfig") -> list[Table]:
    """Return all tables.

    Args:
        rows: One row a map.
        config: What was measured.
    """
    found = [_families_table(rows, config), _overall_table(rows, config)]
    if len(config.references) > 1:
        found.append(_gain_table(rows, config))
    against_random = sufficiency.against_random_table(
        MAP_COLUMNS, _rows_by_map(rows, config), config.tops, "the same picture"
    )
    found.append(against_random)
    if config.stability:
        found.append(_stability_table(rows, config))
    return [_beside_table(rows, config), *found, _references_table(rows, config), _cost_table(rows, config)]


def faithfulness_plots(rows: Sequence[Row], config: "FaithfulnessConfig") -> list[Figure]:
    """Return one plot a detector: groups of bars for the variants and the random segments."""
    drawn = []
    for name in _measured_detectors(rows, config):
        own = [row for row in rows if row["detector"] == name]
        measured = {
            _variant_title(one): sufficiency.sufficiency_cells(_rows_of_variant(own, one), config.tops)
            for one in _variants(config)
        }
        measured[sufficiency.RANDOM_SEGMENTS] = sufficiency.random_sufficiency_cells(own, config.tops)
        labels = list(measured)
        start = len(config.tops)  # accuracies come first
        groups = [
            Series(f"top {top}", (), [sufficiency.bar_values(measured[label][start + place]) for label in labels])
            for place, top in enumerate(config.tops)
        ]
        values = plots.values_in_words(groups, labels)
        alt = f"Sufficiency by map on {base.detector_title(name)}; higher is better. {values}"
        title = f"Sufficiency, {base.detector_title(name)}"
        drawn.append(plots.draw_bars(f"sufficiency_{name}", title, alt, labels, groups, y_label="Sufficiency"))
    return drawn


def faithfulness_finding(rows: Sequence[Row], config: "FaithfulnessConfig") -> str:
    """Say in one sentence what the adversarial reference adds at the smallest k, over all detectors."""
    top = min(config.tops)
    said = [
        f"{sufficiency.method_title(name)} {gain.value:+.3f}{_interval(gain)}"
        for name in config.methods
        if (gain := _mean_difference([row for row in rows if row["method"] == name], f"p_after_{top}")).value
        is not None
    ]
    if not said:
        return ""
    return (
        f"With an adversarial image behind the hidden parts in place of the usual fill, sufficiency@{top} changed by "
        f"{', '.join(said)} (95 % interval, picture by picture)."
    )


def _beside_table(rows: Sequence[Row], config: "FaithfulnessConfig") -> Table:
    """Set the accuracy that is left, over all detectors, beside the paper's."""
    printed = published.printed_accuracy_means()
    tops = [top for top in config.tops if top in published.PRINTED_TOPS]
    columns = (
        METHOD,
        REFERENCE,
        *(
            column
            for top in tops
            for column in (
                Column(f"ours_{top}", f"Accuracy@{top}, ours", "accuracy_at_k"),
                Column(f"paper_{top}", f"Accuracy@{top}, paper"),
            )
        ),
    )
    body: list[tuple[Cell, ...]] = []
    for one in _variants(config):
        ours = _accuracies(_rows_of_variant(rows, one), tops)
        paper = printed.get(_variant_cells(one), {})
        pairs = ((mine, paper.get(top)) for top, mine in zip(tops, ours, strict=True))
        body.append((*_variant_cells(one), *(cell for pair in pairs for cell in pair)))
    note = (
        f"The paper's is the mean of the families whose numbers are at hand ({published.families_at_hand()}), so its "
        "methods cannot be compared with each other here. Ours counts only fakes that are detected before the attack, "
        "the paper's all; the verdicts of several detectors on one picture are averaged first. "
        f"{published.WHY_FAITHFULNESS_DIFFERS}"
    )
    return Table("beside", "Accuracy after the attack, ours and the paper's", columns, tuple(body), note, beside=True)


def _accuracies(rows: Sequence[Row], tops: Sequence[int]) -> list[Estimate]:
    """Return accuracy over pictures; of several detectors' verdicts on one, which are not independent, the mean."""
    if len({row["detector"] for row in rows}) < 2:
        return list(sufficiency.sufficiency_cells(rows, tops)[: len(tops)])
    found = []
    for top in tops:
        by_picture: dict[str, list[bool]] = {}
        for row in rows:
            if row[f"p_after_{top}"] is not None:
                by_picture.setdefault(row["sample"], []).append(row[f"p_after_{top}"] >= THRESHOLD)
        means = (sum(right) / len(right) for right in by_picture.values())
        found.append(mean_with_interval(means, (0.0, 1.0)))
    return found


def _families_table(rows: Sequence[Row], config: "FaithfulnessConfig") -> Table:
    body = [
        (base.family_title(family), *line)
        for family in sorted({row["family"] for row in rows})
        for line in _map_lines([row for row in rows if row["family"] == family], config)
    ]
    columns = (FAMILY, *MAP_COLUMNS, *sufficiency.sufficiency_columns(config.tops))
    return Table("families", "Faithfulness by family of fakes", columns, tuple(body), _note(config), by_family=True)


def _overall_table(rows: Sequence[Row], config: "FaithfulnessConfig") -> Table:
    columns = (*MAP_COLUMNS, *sufficiency.sufficiency_columns(config.tops))
    return Table("faithfulness", "Faithfulness over all fakes", columns, tuple(_map_lines(rows, config)), _note(config))


def _map_lines(rows: Sequence[Row], config: "FaithfulnessConfig") -> list[tuple[Cell, ...]]:
    body: list[tuple[Cell, ...]] = []
    for name in _measured_detectors(rows, config):
        own = [row for row in rows if row["detector"] == name]
        body += [
            (
                base.detector_title(name),
                *_variant_cells(one),
                *sufficiency.sufficiency_cells(_rows_of_variant(own, one), config.tops),
            )
            for one in _variants(config)
        ]
        body.append(
            (
                base.detector_title(name),
                sufficiency.RANDOM_SEGMENTS,
                NO_REFERENCE,
                *sufficiency.random_sufficiency_cells(own, config.tops),
            )
        )
    return body


def _note(config: "FaithfulnessConfig") -> str:
    return (
        f"{sufficiency.attack_in_words(config)} "
        "Before any attack the accuracy is 1, because only detected fakes are measured. "
        "LIME is attacked only in segments that speak for fake, and counts where there are enough for the largest k."
    )


def _gain_table(rows: Sequence[Row], config: "FaithfulnessConfig") -> Table:
    """Return the differences between the two references on the same fakes."""
    columns = (
        DETECTOR,
        METHOD,
        *(Column(f"gain_{top}", f"Sufficiency@{top}, adversarial - original") for top in config.tops),
        Column("better", f"Fakes on which adversarial is better at {min(config.tops)}"),
    )
    body: list[tuple[Cell, ...]] = []
    for name in _measured_detectors(rows, config):
        for one in config.methods:
            own = [row for row in rows if row["detector"] == name and row["method"] == one]
            gains = [_mean_difference(own, f"p_after_{top}") for top in config.tops]
            differences = [gain for gain in _differences(own, f"p_after_{min(config.tops)}") if gain]
            better = proportion(sum(gain > 0 for gain in differences), len(differences))
            body.append((base.detector_title(name), sufficiency.method_title(one), *gains, better))
    note = "Picture by picture; above 0 the adversarial reference makes the better map. Ties are left out of the share."
    return Table("gain", "What the adversarial reference adds", columns, tuple(body), note)


def _stability_table(rows: Sequence[Row], config: "FaithfulnessConfig") -> Table:
    body: list[tuple[Cell, ...]] = [
        (*names, mean_with_interval([row.get("stability") for row in own], (-1.0, 1.0)))
        for names, own in _rows_by_map(rows, config)
    ]
    note = (
        f"NES changed each face in its {NEIGHBOUR_TOPS} highest segments while p_fake fell by at most "
        f"{NEIGHBOUR_FALL:.2f} and the face was called fake; then it was explained again with the same seed. Left out "
        "are maps whose face changed more at once, and those that showed nothing the second time. A map that always "
        "looks the same is stable, too, so read this beside the sufficiency."
    )
    return Table(
        "stability",
        "How stable maps are",
        (*MAP_COLUMNS, Column("stability", "Stability", "stability")),
        tuple(body),
        note,
    )


def _references_table(rows: Sequence[Row], config: "FaithfulnessConfig") -> Table:
    columns = (
        *MAP_COLUMNS,
        Column("p_before", "p_fake of the face"),
        Column("p_reference", "p_fake of what stands behind"),
        Column("called_real", "Reference called real"),
        Column("change", "Its largest change", digits=1, unit="of 255"),
        Column("iterations", "Updates of its attack", digits=1),
        Column("empty", "Maps that show nothing"),
    )
    body: list[tuple[Cell, ...]] = []
    for names, own in _rows_by_map(rows, config):
        shown = [row["p_reference"] for row in own if row["p_reference"] is not None]
        cells = (
            mean(row["p_before"] for row in own),
            mean(shown),
            proportion(sum(p < THRESHOLD for p in shown), len(shown)),
            mean(255 * row["change"] for row in own if "change" in row),
            mean(row["iterations"] for row in own if "iterations" in row),
            proportion(sum(row["degenerate"] for row in own), len(own)),
        )
        body.append((*names, *cells))
    note = "What a hidden part shows. A reference that is still called fake, or that is no face, makes a weaker map."
    return Table("references", "What stood behind the hidden parts", columns, tuple(body), note)


def _cost_table(rows: Sequence[Row], config: "FaithfulnessConfig") -> Table:
    columns = (
        *MAP_COLUMNS,
        Column("seconds", "Seconds", digits=2),
        Column("images", "Pictures judged", digits=0),
        Column("calls", "Calls of the detector", digits=0),
    )
    values: tuple[Callable[[Row], float], ...] = (
        lambda row: row["map_seconds"] + row["attack_seconds"],
        lambda row: row["images"] + row["attack_images"],
        lambda row: row["calls"] + row["attack_calls"],
    )
    body: list[tuple[Cell, ...]] = [
        (*names, *(mean(value(row) for row in own) for value in values)) for names, own in _rows_by_map(rows, config)
    ]
    note = "The attack that makes the adversarial image counts with every map that needs it; the test of maps does not."
    return Table("cost", "Time and inferences of one map", columns, tuple(body), note)


def _differences(rows: Sequence[Row], name: str) -> list[float]:
    """Return original - adversarial of a column for every picture that has both, the mean over detectors."""
    by_map: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row[name] is not None:
            by_map.setdefault((row["sample"], row["detector"]), {})[row["reference"]] = row[name]
    by_picture: dict[str, list[float]] = {}
    for (sample, _), one in by_map.items():
        if len(one) > 1:
            by_picture.setdefault(sample, []).append(one["original"] - one["adversarial"])
    return [sum(values) / len(values) for values in by_picture.values()]


def _mean_difference(rows: Sequence[Row], name: str) -> Estimate:
    return mean_with_interval(_differences(rows, name))


def _interval(estimate: Estimate) -> str:
    return "" if estimate.low is None else f" [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def _measured_detectors(rows: Sequence[Row], config: "FaithfulnessConfig") -> list[str]:
    return [name for name in config.detectors if any(row["detector"] == name for row in rows)]


def _rows_by_map(rows: Sequence[Row], config: "FaithfulnessConfig") -> Iterator[sufficiency.MapRows]:
    """Yield the maps of every detector, method and reference."""
    for name in _measured_detectors(rows, config):
        own = [row for row in rows if row["detector"] == name]
        for one in _variants(config):
            yield (base.detector_title(name), *_variant_cells(one)), _rows_of_variant(own, one)


def _variants(config: "FaithfulnessConfig") -> list[Variant]:
    return [(name, reference) for name in config.methods for reference in config.references]


def _rows_of_variant(rows: Sequence[Row], variant: Variant) -> list[Row]:
    return [row for row in rows if (row["method"], row["reference"]) == variant]


def _variant_cells(variant: Variant) -> tuple[str, str]:
    return sufficiency.method_title(variant[0]), variant[1]


def _variant_title(variant: Variant) -> str:
    return f"{sufficiency.method_title(variant[0])}, {variant[1]}"
