"""Whether maps mark what was forged: swaps of the photographs at hand, whose forged part is known.

None of the four papers can measure this, because their fakes come without masks. Two controls say what a number is
worth: places at random, and the middle of the picture, where the face of every aligned picture is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from backend import fakes, images
from backend.detectors import predict, registry
from backend.detectors.base import THRESHOLD
from backend.errors import UserError
from backend.evaluate import plots
from backend.evaluate.dataset import FACE_SIZE, Dataset, crop_face
from backend.evaluate.metrics import localisation as metrics
from backend.evaluate.metrics.base import Estimate, mean_with_interval, proportion
from backend.evaluate.plots import Figure, Series
from backend.evaluate.protocols.base import (
    QUICK,
    Item,
    Protocol,
    ProtocolConfig,
    Values,
    Whole,
    check_detectors,
    detector_title,
    make_item,
    register_protocol,
)
from backend.evaluate.protocols.sufficiency import derived_seed
from backend.evaluate.store import Row
from backend.evaluate.tables import Cell, Column, Table, cell_number
from backend.explain.base import EXPLAINERS, Preset
from backend.explain.explanation import ExplainSettings, compare_methods
from backend.progress import Job
from backend.settings import validated

CANDIDATES = 6  # photographs among which the source of a swap is taken
FEATHER = 3.0  # pixels
RANDOM, MIDDLE = "random places", "the middle of the picture"


@validated
@dataclass(frozen=True)
class LocalisationConfig(ProtocolConfig):
    """Settings.

    Args:
        detectors: Whose verdicts are explained; the swaps that one of them does not call fake are left out for it.
        samples: How many samples each map takes.
        segments: About how many segments the face is cut into.
    """

    detectors: Values[str] = ()
    samples: Preset = "quick"
    segments: Whole = ExplainSettings.segments


@register_protocol(order=45)
class LocalisationProtocol(Protocol):
    """An item is a photograph and a detector; a row is one map of the swap that was made from the photograph."""

    config: LocalisationConfig

    name = "localisation"
    title = "Maps and forged parts"
    about = (
        "Whether maps mark what was forged: another person's face is put onto each photograph, so the forged part is "
        "known, and every map of a detector that calls the swap fake is compared with it."
    )
    source = "Measures of object detection and of the pointing game (Zhang et al. 2018, arXiv 1608.00507)."

    @classmethod
    def preset(cls, name: str) -> LocalisationConfig:
        wanted = ("sbi",) if name == QUICK else ("sbi", "xception")  # one with a mask, and one without
        known = [detector for detector in registry.loadable() if detector in wanted]
        return LocalisationConfig(0, 12 if name == QUICK else None, detectors=tuple(known or registry.loadable()[:1]))

    def models(self) -> list[str]:
        return list(self.config.detectors)

    def items(self, data: Dataset) -> list[Item]:
        check_detectors(self.config.detectors)
        if len(data.reals) < 2:
            return []
        return [make_item(sample.name, detector=name) for sample in data.reals for name in self.config.detectors]

    def run_item(self, item: Item, data: Dataset) -> Job[list[Row]]:
        """Make a swap, explain it in every way, and compare each map with what was forged."""
        seed = derived_seed(self.config.seed, item.sample, "swap")
        picture, mask = make_swap(data, item.sample, seed)
        detector = registry.load(item.options["detector"])
        face = images.to_tensor(picture)
        (p_fake,) = predict.predict_p_fake(face, [item.options["detector"]])[item.options["detector"]]
        if p_fake < THRESHOLD:
            raise UserError(f"{detector.card.title} does not call this swap fake, so there is no verdict to explain.")
        settings = ExplainSettings(
            preset=self.config.samples, seed=self.config.seed, segments=self.config.segments, shortcut=True
        )
        compared = yield from compare_methods(face, detector, settings)
        facts: Row = {"sample": item.sample, "source": data.by_name[item.sample].source}
        facts |= {"detector": item.options["detector"], "p_fake": p_fake, "forged": float(mask.mean())}
        rows: list[Row] = []
        for explanation in compared.done:
            row = facts | {"method": explanation.settings.method, "reference": explanation.reference or ""}
            row |= {"degenerate": explanation.degenerate, "reason": explanation.reason}
            rows.append(row | ({} if explanation.degenerate else _measure(explanation.saliency.numpy(), mask)))
        for name, control in _controls(mask.shape, seed).items():
            rows.append(
                facts | {"method": name, "reference": "", "degenerate": False, "reason": ""} | _measure(control, mask)
            )
        return rows

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        frame = pd.DataFrame(rows)
        body: list[tuple[Cell, ...]] = [(*names, *_cells(group)) for names, group in self._groups(frame)]
        columns = (
            Column("detector", "Detector"),
            Column("map", "Map"),
            Column("iou", "Overlap", "mask_iou", 2),
            Column("auc", "Pixels", "mask_auc", 2),
            Column("pointing", "Pointing", "pointing_game", 2),
        )
        note = (
            "Every map is cut to as many of 16 x 16 places as were forged. Maps without any answer are left out. "
            "The controls are what a map must beat: faces of aligned pictures lie in the middle."
        )
        return [Table("localisation", "Maps beside what was forged", columns, tuple(body), note)]

    def plots(self, rows: Sequence[Row]) -> list[Figure]:
        figures = []
        for name in self.config.detectors:
            groups = [(names[1], _cells(group)[0]) for names, group in self._groups(pd.DataFrame(rows), name)]
            labels = [label for label, _ in groups]
            values = [Series("overlap", (), [cell_number(cell) for _, cell in groups])]
            alt = f"Overlap of maps with the forged part, {detector_title(name)}; higher is better. "
            alt += plots.values_in_words(values, labels)
            title = f"Overlap with the forged part, {detector_title(name)}"
            figures.append(plots.draw_bars(f"overlap_{name}", title, alt, labels, values, y_label="Overlap"))
        return figures

    def finding(self, rows: Sequence[Row]) -> str:
        frame = pd.DataFrame(rows)
        overlaps = {names: _cells(group)[0] for names, group in self._groups(frame)}
        maps = {names: cell for names, cell in overlaps.items() if names[1] not in (RANDOM, MIDDLE)}
        known = {names: cell for names, cell in maps.items() if cell.value is not None}
        if not known:
            return ""
        (detector, best), cell = max(known.items(), key=lambda entry: entry[1].value or 0)
        middle = max(cell_number(overlaps[names]) for names in overlaps if names[1] == MIDDLE)
        interval = "" if cell.low is None or cell.high is None else f"{cell.low:.2f} to {cell.high:.2f}, "
        return (
            f"Of {len(known)} maps, {best} of {detector} overlaps best with what was forged: {cell.value:.2f} "
            f"({interval}{cell.count} swaps); the middle of the picture, which knows nothing of the forgery, reaches "
            f"{middle:.2f}."
        )

    def limits(self, data: Dataset) -> list[str]:
        return [
            *super().limits(data),
            "The swaps are made by this project from two photographs each; other tools forge other parts.",
            "Only swaps that the detector calls fake are measured, so detectors are not compared on the same swaps.",
            (
                "A map answers what the verdict hangs on, and only the mask of the forgery answers what was forged; "
                "a detector may rightly look at one part of a forged face."
            ),
        ]

    def _groups(self, frame: pd.DataFrame, only: str | None = None) -> list[tuple[tuple[str, str], pd.DataFrame]]:
        groups = []
        for name in self.config.detectors if only is None else [only]:
            of_detector = frame[frame["detector"] == name]
            for (method, reference), group in of_detector.groupby(["method", "reference"], sort=False):
                groups.append(((detector_title(name), _map_title(method, reference)), group[~group["degenerate"]]))
        return groups


def _map_title(method: str, reference: str) -> str:
    title = EXPLAINERS[method].title if method in EXPLAINERS else method
    return f"{title}, {reference}" if reference else title


def _cells(group: pd.DataFrame) -> tuple[Estimate, ...]:
    if not len(group):
        return (mean_with_interval([]),) * 3
    return (
        mean_with_interval(group["iou"], (0.0, 1.0)),
        mean_with_interval(group["auc"], (0.0, 1.0)),
        proportion(int(group["pointing"].sum()), len(group)),
    )


def make_swap(data: Dataset, name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Put the face of another photograph onto one: uint8 (S, S, 3), and what was forged, bool (S, S).

    Raises:
        UserError: No landmarks are found in one of them.
    """
    randomness = np.random.default_rng(seed)
    others = [sample.name for sample in data.reals if sample.name != name]
    drawn = [others[int(place)] for place in randomness.permutation(len(others))[:CANDIDATES]]
    crops = [crop_face(data, sample, size=FACE_SIZE).crop for sample in (name, *drawn)]
    stacked = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    points, scores = fakes.find_landmarks(stacked)
    usable = [place for place in range(1, len(crops)) if scores[place] >= fakes.MIN_LANDMARK_SCORE]
    if scores[0] < fakes.MIN_LANDMARK_SCORE or not usable:
        raise UserError("No landmarks were found, so no face could be swapped.")
    source = min(usable, key=lambda place: float((points[place] - points[0]).abs().sum()))
    places = points.double().numpy()
    blend = str(randomness.choice(["feather", "poisson"]))
    swapped = fakes.swap_faces(crops[0], crops[source], places[0], places[source], blend=blend, feather=FEATHER)
    mask = fakes.swapped_share(places[0], FACE_SIZE, FEATHER) >= 0.5
    return images.like_photograph(swapped), mask


def _measure(saliency: np.ndarray, mask: np.ndarray) -> Row:
    return {
        "iou": metrics.overlap_at_equal_area(saliency, mask),
        "auc": metrics.pixel_auc(saliency, mask),
        "pointing": metrics.points_at_mask(saliency, mask),
    }


def _controls(shape: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    """Return maps that know nothing of the picture."""
    height, width = shape
    cells = np.random.default_rng(seed).random((metrics.CELLS, metrics.CELLS))
    random = np.kron(cells, np.ones((height // metrics.CELLS, width // metrics.CELLS)))
    rows, columns = np.mgrid[0:height, 0:width]
    middle = -np.hypot((rows + 0.5) / height - 0.5, (columns + 0.5) / width - 0.5)
    return {RANDOM: random, MIDDLE: middle}
