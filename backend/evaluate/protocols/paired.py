"""Whether the map of a real photo names the places where its fake is turned most easily."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from backend import images, runtime
from backend.detectors import registry
from backend.detectors.base import THRESHOLD, Detector
from backend.errors import UserError
from backend.evaluate import plots
from backend.evaluate.dataset import Dataset, crop_pair
from backend.evaluate.metrics.base import Estimate, mean, mean_with_interval
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
    MapProtocol,
    MapRows,
    SufficiencyConfig,
    derived_seed,
    empty_sufficiency_row,
    method_title,
    random_sufficiency_cells,
    sufficiency_cells,
    sufficiency_row,
)
from backend.evaluate.store import Row
from backend.evaluate.tables import Cell, Column, Table, cell_number
from backend.explain.base import EXPLAINERS
from backend.explain.deletion import WHY_MISLEADING, CurveSettings, PixelFill, deletion_curves
from backend.explain.explanation import ExplainSettings, explain
from backend.explain.pairs import PairSettings, SegmentSource, measure_pair_sufficiency
from backend.explain.segments import slic_segments
from backend.progress import Job
from backend.settings import validated

PAIRED_METHODS = ("sobol", "xrai", "rise", "lime", "gradcam")
# The paper's detectors; of each group, the first that is installed.
PREFERRED_DETECTORS = (("xception",), ("mesoinception4", "meso4"))
RESOLUTIONS = (1.0, 0.5)
# Segments are half as large as in `faithfulness`, so the paper's 16 grey levels fit; updates are few and large.
QUICK_STEP, QUICK_ITERATIONS = 4.0, 8
QUICK_POINTS = 20  # of a curve
SMALLEST = 16  # side in pixels of a face that can still be cut into segments
SIZE, METHOD = Column("resolution", "Resolution"), Column("method", "Map of the real photo")
CLAIMS = (
    "The paper says in words that SOBOL does best throughout, and that attacks succeed less at its larger resolution "
    "(299 pixels, against 256); its numbers were not at hand."
)
FILL_WORDS = {"mean": "the mean colour", "black": "black", "blur": "the blurred face"}
FEWEST_MAPS = 3  # of one pair; a rank correlation over fewer says nothing


@validated
@dataclass(frozen=True)
class PairedConfig(SufficiencyConfig):
    """Settings.

    Args:
        detectors: Which detectors are explained and attacked.
        resolutions: Sizes of both pictures, as multiples of the detector's own; at one half every pixel that is
            attacked is four of the detector's.
        segments_of: Which of the two is cut into segments, `real` or `fake`.
        curve_steps: Steps of the deletion and insertion curves.
        fill: What a removed pixel shows.
    """

    detectors: Values[str] = ()
    methods: Values[str] = PAIRED_METHODS
    resolutions: Values[float] = RESOLUTIONS
    segments: Whole = PairSettings.segments
    segments_of: SegmentSource = "real"
    curve_steps: Whole = CurveSettings.steps
    fill: PixelFill = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        PairSettings(segments=self.segments, segments_of=self.segments_of)  # refuse what they refuse
        CurveSettings(fill=self.fill, steps=self.curve_steps)
        for name in self.methods:
            EXPLAINERS.find(name)
        if not self.resolutions or min(self.resolutions) <= 0:
            raise UserError("Each resolution must be greater than 0.", "Use for example 1 and 0.5.")


@register_protocol(order=50)
class PairedProtocol(MapProtocol):
    """An item is one pair, one detector and one resolution; a row is the map of one method, or a random one."""

    config: PairedConfig
    map_columns = (DETECTOR, SIZE, METHOD)

    name = "paired"
    title = "Maps of real photos, tested on their fakes"
    about = (
        "Real photos are explained by SOBOL, XRAI, RISE, LIME and Grad-CAM; the segments that a map ranks highest are "
        "attacked in the fake that was made from the photo. What keeps the detector from calling the photo fake is "
        "missing in the fake, so a good map names the places where the fake is turned most easily. The usual deletion "
        "and insertion curves stand beside it."
    )
    source = "Protocol of Gowrisankar and Thing (2023, arXiv 2312.06627), as far as its summary says."

    @classmethod
    def preset(cls, name: str) -> PairedConfig:
        known = registry.loadable()
        preferred = [next((name for name in group if name in known), None) for group in PREFERRED_DETECTORS]
        detectors = tuple(name for name in preferred if name is not None) or tuple(known[:2])
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

    def select_samples(self, data: Dataset) -> Dataset:
        """Return fakes whose real photo is here, with those photos; `fakes` limits both, and `reals` is not used.

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
                self._wrong(detector, *self._pair(data, name, detector, factor)) is None
                for detector in map(registry.load, self.config.detectors)
                for factor in self.config.resolutions
            )
        except UserError as error:
            return error.message
        return None if right else "No detector is right about both the fake and its real photo."

    def items(self, data: Dataset) -> list[Item]:
        config = self.config
        check_detectors(config.detectors)
        return [
            make_item(sample.name, detector=detector, resolution=factor)
            for sample in data.fakes
            for detector in config.detectors
            for factor in config.resolutions
        ]

    def run_item(self, item: Item, data: Dataset) -> Job[list[Row]]:
        """Explain the real photo by every method, and test each map on the fake."""
        sample, config = data.by_name[item.sample], self.config
        detector = registry.load(item.options["detector"])
        real, fake = self._pair(data, sample.name, detector, item.options["resolution"])
        wrong = self._wrong(detector, real, fake)
        if wrong is not None:
            raise UserError(wrong)
        facts: Row = {"sample": sample.name, "family": sample.family, "source": sample.source}
        facts |= {"detector": item.options["detector"], "resolution": item.options["resolution"]}
        facts["side"] = real.shape[-1]
        rows = []
        for name in config.methods:
            row = yield from self._test_map(item, name, real, fake, detector)
            rows.append(facts | row)
        random = yield from self._random(real, detector, derived_seed(config.seed, item.key))
        return [*rows, facts | random]

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        frame, note = pd.DataFrame(rows), self._note()
        return [
            self.families_table(frame, "Attacked fakes by family", note),
            self.overall_table(frame, "Attacked fakes over all pairs", f"{note} {CLAIMS}"),
            self.against_random_table(frame, "the same fake"),
            self._curves_table(frame),
            self._agreement_table(frame),
            self._cost_table(frame),
        ]

    def plots(self, rows: Sequence[Row]) -> list[Figure]:
        frame, config, figures = pd.DataFrame(rows), self.config, []
        top = max(config.tops)
        labels = [*map(method_title, config.methods), RANDOM_SEGMENTS]
        for name in config.detectors:
            sizes: dict[str, list[float]] = {}
            for _, size, *_, cell in self.map_rows(select(frame, detector=name)):
                sizes.setdefault(str(size), []).append(cell_number(cell))
            groups = [Series(size, (), values) for size, values in sizes.items()]
            if not groups:
                continue
            alt = f"Sufficiency@{top} on fakes by map of the real photo, {detector_title(name)}; higher is better. "
            alt += plots.values_in_words(groups, labels)
            title = f"Sufficiency@{top}, {detector_title(name)}"
            figures.append(
                plots.draw_bars(f"sufficiency_{name}", title, alt, labels, groups, y_label=f"Sufficiency@{top}")
            )
        tested = frame.dropna(subset=f"p_after_{top}")
        falls = tested["p_before"] - tested[f"p_after_{top}"]
        clouds = [
            Series(method_title(method), tested["deletion"][chosen].tolist(), falls[chosen].tolist())
            for method in config.methods
            if (chosen := tested["method"] == method).any()
        ]
        if clouds:
            alt = (
                f"Every map: sufficiency@{top} over the area under its deletion curve. If both measured the same, the "
                f"points would fall from the left to the right. {_agreement_in_words(self._agreement_table(frame))}"
            )
            title = "The test on the fake beside the deletion curve"
            axes: dict[str, Any] = {"x_label": "Area under the deletion curve", "y_label": f"Sufficiency@{top}"}
            figures.append(plots.draw_points("deletion", title, alt, clouds, **axes))
        return figures

    def finding(self, rows: Sequence[Row]) -> str:
        frame, tops = pd.DataFrame(rows), self.config.tops
        falls = {
            method_title(method): sufficiency_cells(select(frame, method=method), tops)[-1].value
            for method in self.config.methods
        }
        measured = {name: fall for name, fall in falls.items() if fall is not None}
        if not measured:
            return ""
        best = max(measured, key=lambda name: measured[name])
        chance = cell_number(random_sufficiency_cells(frame, tops)[-1])
        others = ", ".join(f"{name} {value:.2f}" for name, value in measured.items() if name != best)
        return (
            f"Attacked in the {max(tops)} segments that {best} ranks highest in the real photo, the fake's score falls "
            f"by {measured[best]:.2f}, the most of all maps{f' ({others})' if others else ''}; in random segments of "
            f"the same size it falls by {chance:.2f}."
        )

    def limits(self, data: Dataset) -> list[str]:
        return [
            *super().limits(data),
            self.config.attack_in_words(),
            (
                "Only pairs of which the detector judges both pictures rightly are measured; a pair must show the same "
                "face in nearly the same place, because segments are carried over pixel by pixel."
            ),
            (
                "Resolutions are multiples of the size that the detector takes. It enlarges or reduces what it is "
                "shown; this varies how fine the attack and the segments are, not the network, which the paper varies "
                "too."
            ),
            WHY_MISLEADING,
            (
                "The paper was at hand only as a summary, without its numbers: how many segments it attacks, how many "
                "probes NES makes and how its curves are filled are chosen here."
            ),
        ]

    def _pair(self, data: Dataset, fake: str, detector: Detector, factor: float) -> tuple[Tensor, Tensor]:
        """Return photo and fake (1, 3, S, S) at a multiple of the detector's own size."""
        size = round(detector.card.input_size * factor)
        if size < SMALLEST:
            raise UserError(f"{size} pixels are too few to be cut into segments.", "Use a larger resolution.")
        crops = crop_pair(data, fake, size=size, template=detector.card.template)
        return images.to_tensor(crops[0].crop), images.to_tensor(crops[1].crop)

    def _wrong(self, detector: Detector, real: Tensor, fake: Tensor) -> str | None:
        """Say what a detector gets wrong about a pair, or return None."""
        with runtime.MODEL_LOCK, torch.no_grad():
            called_fake = detector.p_fake(torch.cat([real, fake]).to(detector.mean.device)) >= THRESHOLD
        if called_fake[0]:
            return f"{detector.card.title} calls the real photo fake."
        return None if called_fake[1] else f"{detector.card.title} does not call the fake fake."

    def _test_map(self, item: Item, name: str, real: Tensor, fake: Tensor, detector: Detector) -> Job[Row]:
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
        explanation = yield from explain(real, detector, settings)
        row: Row = {"method": name, "degenerate": explanation.degenerate, "reason": explanation.reason}
        row |= {"images": explanation.explanation.images, "map_seconds": explanation.seconds}
        if explanation.degenerate:
            return row | {"p_before": None, "deletion": None, "insertion": None} | empty_sufficiency_row(config.tops)
        test = config.map_test_settings(derived_seed(config.seed, item.key, name))
        pair_settings = PairSettings(config.segments, config.segments_of, test)
        pair = yield from measure_pair_sufficiency(real, fake, detector, explanation.saliency, pair_settings)
        row |= {"p_real_photo": pair.p_real_photo} | sufficiency_row(pair.sufficiency)
        curves = yield from self._curves(real, detector, explanation.saliency)
        return row | curves

    def _curves(self, real: Tensor, detector: Detector, saliency: Tensor) -> Job[Row]:
        """Follow p_real of the photo while the highest pixels of its map are removed, and inserted."""
        settings = CurveSettings(self.config.fill, self.config.curve_steps)
        curves = yield from deletion_curves(real, detector, saliency, settings=settings)
        return {"deletion": curves.deletion_auc, "insertion": curves.insertion_auc, "curve_seconds": curves.seconds}

    def _random(self, real: Tensor, detector: Detector, seed: int) -> Job[Row]:
        """Return the curves of a map that ranks segments at random."""
        labels = slic_segments(real[0], self.config.segments)
        scores = torch.rand(int(labels.max()) + 1, generator=torch.Generator().manual_seed(seed))
        row: Row = {"method": RANDOM_SEGMENTS, "degenerate": False, "reason": "", "images": 0, "p_before": None}
        curves = yield from self._curves(real, detector, scores[labels])
        return row | empty_sufficiency_row(self.config.tops) | curves

    def map_rows(self, frame: pd.DataFrame) -> list[tuple[Cell, ...]]:
        body: list[tuple[Cell, ...]] = []
        for names, maps in self._settings_measured(frame):
            for method in self.config.methods:
                cells = sufficiency_cells(select(maps, method=method), self.config.tops)
                body.append((*names, method_title(method), *cells))
            body.append((*names, RANDOM_SEGMENTS, *random_sufficiency_cells(maps, self.config.tops)))
        return body

    def maps(self, frame: pd.DataFrame) -> list[MapRows]:
        return [
            ((*names, method_title(method)), select(maps, method=method))
            for names, maps in self._settings_measured(frame)
            for method in self.config.methods
        ]

    def _settings_measured(self, frame: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
        """Yield the names and rows of every detector and resolution that was measured."""
        for name in self.config.detectors:
            for factor in self.config.resolutions:
                maps = select(frame, detector=name, resolution=factor)
                if len(maps):
                    yield (detector_title(name), f"{factor:g} x ({maps['side'].iloc[0]} pixels)"), maps

    def _note(self) -> str:
        return (
            f"{self.config.attack_in_words()} Before any attack the accuracy is 1, because only pairs are measured "
            "whose two pictures are both judged rightly; the fall from 1 is what the paper reports."
        )

    def _curves_table(self, frame: pd.DataFrame) -> Table:
        areas = ("deletion", "insertion")
        columns = (*self.map_columns, *(Column(name, f"Area, {name}", "curve_area") for name in areas))
        body: list[tuple[Cell, ...]] = []
        for names, maps in self._settings_measured(frame):
            for method in (*self.config.methods, RANDOM_SEGMENTS):
                chosen = select(maps, method=method)
                title = method if method == RANDOM_SEGMENTS else method_title(method)
                body.append((*names, title, *(mean_with_interval(chosen[area], (0.0, 1.0)) for area in areas)))
        note = (
            f"Of p_real of the photo; a removed pixel shows {FILL_WORDS[self.config.fill]}. A good map should have a "
            "low area for deletion and a high one for insertion, and random segments neither."
        )
        return Table("curves", "Deletion and insertion on the real photo", columns, tuple(body), note)

    def _agreement_table(self, frame: pd.DataFrame) -> Table:
        top = max(self.config.tops)
        body: list[tuple[Cell, ...]] = []
        for names, maps in self._settings_measured(frame):
            pairs = [pair for _, pair in maps.dropna(subset=f"p_after_{top}").groupby("sample")]
            falls = [pair["p_before"] - pair[f"p_after_{top}"] for pair in pairs]
            cells = (
                mean_with_interval(
                    _rank_correlation(sign * pair[curve], fall) for pair, fall in zip(pairs, falls, strict=True)
                )
                for curve, sign in (("deletion", -1), ("insertion", 1))
            )
            body.append((*names, *cells))
        columns = (
            *(DETECTOR, SIZE),
            Column("deletion", "Rank correlation, deletion"),
            Column("insertion", "Rank correlation, insertion"),
        )
        note = (
            f"Spearman's correlation over the maps of one pair between a curve and sufficiency@{top}, averaged over "
            "pairs: 1 if the curve ranks maps as the test does, 0 if it knows nothing of it."
        )
        return Table("agreement", "Do the curves agree with the test?", columns, tuple(body), note)

    def _cost_table(self, frame: pd.DataFrame) -> Table:
        costs = (
            Column("map_seconds", "Seconds of the map", digits=2),
            Column("sufficiency_seconds", "Seconds of the attacks", digits=2),
            Column("curve_seconds", "Seconds of the curves", digits=2),
            Column("images", "Pictures judged for the map", digits=0),
        )
        body: list[tuple[Cell, ...]] = [
            (*names, *(mean(maps.get(column.name, ())) for column in costs)) for names, maps in self.maps(frame)
        ]
        config = self.config
        note = (
            f"The attacks are on {len(config.tops)} numbers of segments, each also on {config.draws} random rankings."
        )
        return Table("cost", "Time of map, attack and curves", (*self.map_columns, *costs), tuple(body), note)


def _rank_correlation(first: pd.Series, second: pd.Series) -> float | None:
    if len(first) < FEWEST_MAPS or first.nunique() == 1 or second.nunique() == 1:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(first, second).statistic)


def _agreement_in_words(table: Table) -> str:
    correlations = [
        f"{name}, {size}: {cell.value:.2f}"
        for name, size, cell, *_ in table.rows
        if isinstance(cell, Estimate) and cell.value is not None
    ]
    return f"Rank correlation with deletion: {'; '.join(correlations)}." if correlations else ""
