"""How good the detectors are: per family and source, calibration, and robustness to JPEG, blur, resizing and noise."""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from backend import images, runtime
from backend.detectors import registry
from backend.errors import UserError
from backend.evaluate import plots, published
from backend.evaluate.dataset import Dataset, crop_face
from backend.evaluate.metrics import classification as metrics
from backend.evaluate.plots import Figure, Series
from backend.evaluate.protocols import base
from backend.evaluate.protocols.base import (
    QUICK,
    Item,
    Protocol,
    ProtocolConfig,
    Values,
    check_detectors,
    make_item,
    register_protocol,
)
from backend.evaluate.store import Row
from backend.evaluate.tables import Cell, Column, Table
from backend.settings import validated

NO_CORRUPTION = "none"

CORRUPTION_UNITS = {
    "jpeg": "JPEG quality",
    "blur": "standard deviation in pixels",
    "resize": "factor",
    "noise": "grey levels",
}


STRONGEST = {"jpeg": 100, "blur": 100, "resize": 1, "noise": 255}


def corrupt_picture(picture: np.ndarray, kind: str, strength: float, seed: int, name: str) -> np.ndarray:
    """Return uint8 (H, W, 3) after one corruption.

    Args:
        picture: uint8 (H, W, 3).
        kind: `none`, `jpeg`, `blur`, `resize` or `noise`.
        strength: Quality (1 to 100), standard deviation in pixels, factor in (0, 1], or standard deviation in grey
            levels.
        seed: Of the noise.
        name: Of the picture, so that no two pictures get the same noise.
    """
    if kind == NO_CORRUPTION:
        return picture
    if kind == "noise":
        return _noise(picture, strength, seed, name)
    return _CORRUPTIONS[kind](picture, strength)


def parse_corruption(text: str) -> tuple[str, float]:
    """Read `jpeg 70` as kind and strength.

    Raises:
        UserError: There is no such kind, or the strength is no number.
    """
    if text == NO_CORRUPTION:
        return NO_CORRUPTION, 0.0
    kind, _, strength = text.partition(" ")
    try:
        value = float(strength)
    except ValueError:
        value = -1.0
    if kind not in CORRUPTION_UNITS or not 0 < value <= STRONGEST[kind]:
        raise UserError(f"There is no corruption {text}.", "Write for example: jpeg 70, blur 1, resize 0.5, noise 5.")
    return kind, value


def _jpeg(picture: np.ndarray, quality: float) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=round(quality))
    with Image.open(io.BytesIO(buffer.getvalue())) as saved:
        return np.array(saved.convert("RGB"))


def _blur(picture: np.ndarray, deviation: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return _rounded(gaussian_filter(picture.astype(np.float64), (deviation, deviation, 0)))


def _resize(picture: np.ndarray, factor: float) -> np.ndarray:
    height, width = picture.shape[:2]
    small = (max(1, round(width * factor)), max(1, round(height * factor)))
    image = Image.fromarray(picture)
    return np.array(image.resize(small, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC))


def _noise(picture: np.ndarray, deviation: float, seed: int, name: str) -> np.ndarray:
    own = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big")
    return _rounded(picture + np.random.default_rng(own).normal(0, deviation, picture.shape))


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


_CORRUPTIONS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {"jpeg": _jpeg, "blur": _blur, "resize": _resize}


CORRUPTIONS = (
    *("none", "jpeg 90", "jpeg 70", "jpeg 50", "jpeg 30", "blur 0.5", "blur 1", "blur 2"),
    *("resize 0.75", "resize 0.5", "resize 0.25", "noise 2", "noise 5", "noise 10"),
)


@validated
@dataclass(frozen=True)
class DetectorsConfig(ProtocolConfig):
    """Settings.

    Args:
        detectors: Which detectors.
        corruptions: What is done to the pictures, one at a time, as `jpeg 70`; `none` must be among them.
        recalls: Shares of fakes to be caught, at which false alarms are counted.
    """

    detectors: Values[str] = ()
    corruptions: Values[str] = CORRUPTIONS
    recalls: Values[float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        """Refuse settings that end in no table."""
        for text in self.corruptions:
            parse_corruption(text)
        if NO_CORRUPTION not in self.corruptions:
            raise UserError("The corruption none is missing.", "Add none: the pictures as they are count, too.")
        if not all(0 < recall <= 1 for recall in self.recalls):
            raise UserError("Each recall must be greater than 0 and at most 1.", "Use for example 0.9.")


@register_protocol(order=10)
class DetectorsProtocol(Protocol):
    """An item is one picture after one corruption; a row is what one detector says of it."""

    config: DetectorsConfig

    name = "detectors"
    title = "Detectors"
    about = (
        "How often each detector is right, by family of fakes and by source of real pictures; whether its "
        "probabilities mean what they say; and what JPEG, blur, a smaller size and noise do to it."
    )
    source = "Measures as usual in the field (Roessler et al. 2019, arXiv 1901.08971; Guo et al. 2017)."

    @classmethod
    def preset(cls, name: str) -> DetectorsConfig:
        """Return 12 fakes and 12 real pictures, or all."""
        count = 12 if name == QUICK else None
        return DetectorsConfig(count, count, detectors=tuple(registry.loadable()))

    def models(self) -> list[str]:
        """Return the detectors."""
        return list(self.config.detectors)

    def items(self, data: Dataset) -> list[Item]:
        """Return every picture with every corruption."""
        check_detectors(self.config.detectors)
        return [make_item(sample.name, corruption=text) for sample in data.samples for text in self.config.corruptions]

    def run_item(self, item: Item, data: Dataset) -> list[Row]:
        """Ask every detector about one face, cut out as the detector wants it and corrupted."""
        sample = data.by_name[item.sample]
        kind, strength = parse_corruption(item.options["corruption"])
        said: Row = {"sample": sample.name, "label": sample.label, "family": sample.family, "source": sample.source}
        said |= {"corruption": kind, "strength": strength}
        rows = []
        for name in self.config.detectors:
            detector = registry.load(name)
            own = crop_face(data, sample.name, size=detector.card.input_size, template=detector.card.template)
            face = corrupt_picture(own.crop, kind, strength, self.config.seed, sample.name)
            with runtime.MODEL_LOCK, torch.no_grad():
                log_odds = float(detector.logit_fake(images.to_tensor(face).to(runtime.device()))[0])
                p_fake = float(torch.sigmoid(torch.tensor(log_odds)))
            rows.append(said | {"detector": name, "log_odds": log_odds, "p_fake": p_fake})
        return rows

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        """Return the tables by family, by source, of all pictures, of the corruptions, and of the calibration."""
        return detectors_tables(rows, self.config)

    def plots(self, rows: Sequence[Row]) -> list[Figure]:
        """Return ROC curves, calibration and robustness."""
        return detectors_plots(rows, self.config)

    def finding(self, rows: Sequence[Row]) -> str:
        """Say which detector separates best, and which family is hardest."""
        return detectors_finding(rows, self.config)

    def limits(self, data: Dataset) -> list[str]:
        """Add what depends on how the pictures were made."""
        said = super().limits(data)
        said.append("A detector can win by sharpness, size or JPEG history alone where real and fake differ in these.")
        said.append(
            "The detectors that come with this app were trained on fakes by its own models; on fakes of these kinds "
            "they are better than on a stranger's."
        )
        said.append(
            "AUC, average precision and equal error rate stand without an interval, and are no surer than the rates "
            "beside them; the best of many detectors is partly the luckiest."
        )
        said.append("Average precision depends on how many of the pictures are fake; in the world, few are.")
        return said


DETECTOR = Column("detector", "Detector")

REAL = Column("accuracy_real", "Accuracy, real", "accuracy_real")

FAKE = Column("accuracy_fake", "Accuracy, fake", "accuracy_fake")

AUC, AP, EER = Column("auc", "AUC", "auc"), Column("ap", "AP", "ap"), Column("eer", "EER", "eer")


DetectorRows = list[tuple[str, list[Row]]]  # title of the detector, rows


def detectors_tables(rows: Sequence[Row], config: "DetectorsConfig") -> list[Table]:
    """Return all tables; every row is what one detector says of one picture after one corruption."""
    parts = _rows_by_detector(rows, config)
    clean = [(name, _rows_after(own, NO_CORRUPTION)) for name, own in parts]
    return [
        _families_table(clean),
        _beside_table(clean),
        _sources_table(clean),
        _overall_table(clean, config),
        _robustness_table(parts, config),
        _calibration_table(clean),
    ]


def detectors_finding(rows: Sequence[Row], config: "DetectorsConfig") -> str:
    """Say in one sentence which detector separates best, how often it is wrong, and which family is hardest."""
    clean = [(name, _rows_after(own, NO_CORRUPTION)) for name, own in _rows_by_detector(rows, config)]
    areas = {name: metrics.area_under_roc(*_scores(own)) for name, own in clean}
    known = {name: area for name, area in areas.items() if area is not None}
    if not known:
        return ""
    best = max(known, key=known.__getitem__)
    own = _probabilities(dict(clean)[best])
    real, fake = metrics.accuracy_real(*own), metrics.accuracy_fake(*own)
    said = f"Of {len(known)} detectors {best} separates these pictures best (AUC {known[best]:.2f}): it finds "
    said += f"{fake.value or 0:.0%} of the {fake.count} fakes and wrongly calls {1 - (real.value or 0):.0%} of the "
    said += f"{real.count} real faces fake (95 % interval {1 - (real.high or 0):.0%} to {1 - (real.low or 0):.0%})"
    everything = [row for _, part in clean for row in part]
    found = {
        base.family_title(family): metrics.accuracy_fake(
            *_probabilities([row for row in everything if row["family"] == family])
        ).value
        for family in _column_values(everything, "family")
    }
    rates = {family: rate for family, rate in found.items() if rate is not None}
    if len(rates) > 1:
        hardest = min(rates, key=rates.__getitem__)
        said += f"; the hardest family is {hardest}, of which all detectors find {rates[hardest]:.0%} on average"
    return f"{said}."


def detectors_plots(rows: Sequence[Row], config: "DetectorsConfig") -> list[Figure]:
    """Return all plots."""
    parts = _rows_by_detector(rows, config)
    clean = [(name, _rows_after(own, NO_CORRUPTION)) for name, own in parts]
    drawn = [_roc_plot("roc", "ROC curve, all fakes", clean)]
    for family in _column_values([row for _, own in clean for row in own], "family"):
        part = [(name, [row for row in own if row["family"] in ("", family)]) for name, own in clean]
        drawn.append(
            _roc_plot(f"roc_{family}", f"ROC curve, {base.family_title(family)} against all real pictures", part)
        )
    drawn.append(_reliability_plot(clean))
    drawn += [_robustness_plot(kind, parts, config) for kind in CORRUPTION_UNITS]
    return [one for one in drawn if one is not None]


def _families_table(parts: DetectorRows) -> Table:
    same_source = Column("auc_same_source", "AUC, same source", "auc")
    columns = (DETECTOR, Column("family", "Family of fakes"), FAKE, AUC, same_source, AP, EER)
    body: list[tuple[Cell, ...]] = []
    for name, own in parts:
        real = [row for row in own if row["label"] == "real"]
        for family in _column_values(own, "family"):
            fake = [row for row in own if row["family"] == family]
            sources = {row["source"] for row in fake} - {""}
            same = [row for row in real if row["source"] in sources]
            labels, scores = _scores(real + fake)
            cells = (
                metrics.accuracy_fake(*_probabilities(fake)),
                metrics.area_under_roc(labels, scores),
                metrics.area_under_roc(*_scores(same + fake)),
                metrics.average_precision(labels, scores),
                metrics.equal_error_rate(labels, scores),
            )
            body.append((name, base.family_title(family), *cells))
    note = (
        "Each family against all real pictures; 'same source' takes only real pictures of the source that the fakes "
        "were made from, where it is known."
    )
    return Table("families", "Detectors by family of fakes", columns, tuple(body), note, by_family=True)


def _beside_table(parts: DetectorRows) -> Table:
    """Set accuracy beside what TR-Net's paper prints for the same architectures."""
    printed = published.printed_clean_accuracy()
    body: list[tuple[Cell, ...]] = []
    for name, own in parts:
        if name in printed:
            rates = metrics.accuracy_real(*_probabilities(own)), metrics.accuracy_fake(*_probabilities(own))
            body.append((name, rates[0], printed[name][0], rates[1], printed[name][1]))
    real, fake = (Column(f"paper_{one}", f"Paper, {one}", digits=2) for one in ("real", "fake"))
    ours = (
        Column("accuracy_real", "Ours, real", "accuracy_real", 2),
        Column("accuracy_fake", "Ours, fake", "accuracy_fake", 2),
    )
    note = f"The paper is TR-Net (arXiv 2203.11433), table 1. {published.WHY_ACCURACY_DIFFERS}"
    columns = (DETECTOR, ours[0], real, ours[1], fake)
    return Table("beside", "Accuracy, ours and the paper's", columns, tuple(body), note, beside=True)


def _sources_table(parts: DetectorRows) -> Table:
    body = [
        (name, source, metrics.accuracy_real(*_probabilities(part)))
        for name, own in parts
        for source in _column_values([row for row in own if row["label"] == "real"], "source")
        for part in [[row for row in own if row["label"] == "real" and row["source"] == source]]
    ]
    columns = (DETECTOR, Column("source", "Source"), REAL)
    note = "What is missing to 1 are false alarms: real people accused."
    return Table("sources", "Detectors by source of real pictures", columns, tuple(body), note)


def _overall_table(parts: DetectorRows, config: "DetectorsConfig") -> Table:
    alarms = [
        Column(f"false_alarms_{one:g}", f"False alarms at recall {one:g}", "false_alarms") for one in config.recalls
    ]
    calibration = Column("brier", "Brier score", "brier"), Column("ece", "Calibration error", "ece")
    body: list[tuple[Cell, ...]] = []
    for name, own in parts:
        labels, scores = _scores(own)
        _, said = _probabilities(own)
        cells = (
            metrics.accuracy_real(labels, said),
            metrics.accuracy_fake(labels, said),
            metrics.area_under_roc(labels, scores),
            metrics.average_precision(labels, scores),
            metrics.equal_error_rate(labels, scores),
            *(metrics.false_alarms_at_recall(labels, scores, recall) for recall in config.recalls),
            metrics.brier_score(labels, said),
            metrics.calibration_error(labels, said),
        )
        body.append((name, *cells))
    columns = (DETECTOR, REAL, FAKE, AUC, AP, EER, *alarms, *calibration)
    note = "All families together; the mix of families in the data decides these numbers."
    return Table("detectors", "Detectors over all pictures", columns, tuple(body), note)


def _robustness_table(parts: DetectorRows, config: "DetectorsConfig") -> Table:
    body: list[tuple[Cell, ...]] = []
    for name, own in parts:
        for text in config.corruptions:
            part = _rows_after(own, text)
            labels, said = _probabilities(part)
            rates = metrics.accuracy_real(labels, said), metrics.accuracy_fake(labels, said)
            body.append((name, text, *rates, metrics.area_under_roc(*_scores(part))))
    columns = (DETECTOR, Column("corruption", "Corruption"), REAL, FAKE, AUC)
    units = "; ".join(f"{kind}: {unit}" for kind, unit in CORRUPTION_UNITS.items())
    return Table("robustness", "Detectors after corruptions of the face crop", columns, tuple(body), units + ".")


def _calibration_table(parts: DetectorRows) -> Table:
    numbers = Column("said", "Mean p_fake"), Column("true", "Share of fakes"), Column("count", "Pictures")
    body: list[tuple[Cell, ...]] = []
    for name, own in parts:
        for said, true, count in metrics.reliability_bins(*_probabilities(own)):
            number = min(int(said * metrics.BINS), metrics.BINS - 1)
            body.append((name, f"{number / metrics.BINS:.1f}", said, true, count))
    note = (
        "A calibrated detector's mean p_fake equals the share of fakes, where fakes are as frequent as in the pictures "
        "it was calibrated on; where they are rarer, as in the world, p_fake says too much."
    )
    columns = (DETECTOR, Column("bin", "p_fake from"), *numbers)
    return Table("calibration", "What stated probabilities are worth", columns, tuple(body), note)


def _roc_plot(name: str, title: str, parts: DetectorRows) -> Figure | None:
    series, areas = [], []
    for detector, own in parts:
        area = metrics.area_under_roc(*_scores(own))
        if area is None:
            continue
        false_alarms, recalls = metrics.roc_points(*_scores(own))
        series.append(Series(f"{detector} (AUC {area:.2f})", false_alarms.tolist(), recalls.tolist()))
        areas.append(f"{detector} {area:.2f}")
    if not series:
        return None
    alt = f"Recall over false alarms. Areas under the curve: {', '.join(areas)}."
    labels = "False alarms (share of real pictures)", "Recall (share of fakes)"
    return plots.draw_lines(
        name, title, alt, series, x_label=labels[0], y_label=labels[1], diagonal=True, unit=True, markers=False
    )


def _reliability_plot(parts: DetectorRows) -> Figure:
    series, errors = [], []
    for detector, own in parts:
        labels, said = _probabilities(own)
        bins = metrics.reliability_bins(labels, said)
        series.append(Series(detector, [one for one, _, _ in bins], [true for _, true, _ in bins]))
        errors.append(f"{detector} {metrics.calibration_error(labels, said) or 0:.2f}")
    alt = f"Share of fakes over stated probability. Expected calibration errors: {', '.join(errors)}."
    axes = "Stated probability of fake", "Share of fakes"
    return plots.draw_lines(
        "calibration", "Calibration", alt, series, x_label=axes[0], y_label=axes[1], diagonal=True, unit=True
    )


def _robustness_plot(kind: str, parts: DetectorRows, config: "DetectorsConfig") -> Figure | None:
    """Draw the AUC of each detector over the strengths of one kind of corruption."""
    texts = [text for text in config.corruptions if parse_corruption(text)[0] == kind]
    series, lowest = [], []
    for detector, own in parts:
        areas = [metrics.area_under_roc(*_scores(_rows_after(own, text))) for text in texts]
        known = [area for area in areas if area is not None]
        if texts and len(known) == len(texts):
            series.append(Series(detector, [parse_corruption(text)[1] for text in texts], known))
            lowest.append(f"{detector} {min(known):.2f}")
    if not series:
        return None
    alt = f"AUC over the strength of {kind}. Lowest values: {', '.join(lowest)}."
    unit = f"{kind} ({CORRUPTION_UNITS[kind]})"
    return plots.draw_lines(f"robustness_{kind}", f"Robustness to {kind}", alt, series, x_label=unit, y_label="AUC")


def _rows_by_detector(rows: Sequence[Row], config: "DetectorsConfig") -> DetectorRows:
    return [(base.detector_title(name), [row for row in rows if row["detector"] == name]) for name in config.detectors]


def _rows_after(rows: Sequence[Row], text: str) -> list[Row]:
    kind, strength = parse_corruption(text)
    return [row for row in rows if row["corruption"] == kind and row["strength"] == strength]


def _column_values(rows: Sequence[Row], column: str) -> list[str]:
    return sorted({row[column] for row in rows} - {""})


def _scores(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and log-odds: unlike probabilities, these never saturate into ties."""
    return _labels(rows), np.array([row["log_odds"] for row in rows], dtype=np.float64)


def _probabilities(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    return _labels(rows), np.array([row["p_fake"] for row in rows], dtype=np.float64)


def _labels(rows: Sequence[Row]) -> np.ndarray:
    return np.array([int(row["label"] == "fake") for row in rows], dtype=int)
