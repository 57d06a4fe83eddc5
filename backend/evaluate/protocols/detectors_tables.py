"""Tables and plots of the detectors protocol."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from backend.evaluate import corruptions, naming, plots, published
from backend.evaluate.metrics import classification as metrics
from backend.evaluate.plots import Figure, Series
from backend.evaluate.rows import Row
from backend.evaluate.tables import Cell, Column, Table

if TYPE_CHECKING:
    from backend.evaluate.protocols.detectors import DetectorsConfig

DETECTOR = Column("detector", "Detector")
REAL = Column("accuracy_real", "Accuracy, real", "accuracy_real")
FAKE = Column("accuracy_fake", "Accuracy, fake", "accuracy_fake")
AUC, AP, EER = Column("auc", "AUC", "auc"), Column("ap", "AP", "ap"), Column("eer", "EER", "eer")


Parts = list[tuple[str, list[Row]]]  # title of the detector, rows


def tables(rows: Sequence[Row], config: "DetectorsConfig") -> list[Table]:
    """Return all tables; every row is what one detector says of one picture after one corruption."""
    parts = _each(rows, config)
    clean = [(name, _after(own, corruptions.NONE)) for name, own in parts]
    return [
        _families(clean),
        _beside(clean),
        _sources(clean),
        _overall(clean, config),
        _robustness(parts, config),
        _calibration(clean),
    ]


def finding(rows: Sequence[Row], config: "DetectorsConfig") -> str:
    """Say in one sentence which detector separates best, how often it is wrong, and which family is hardest."""
    clean = [(name, _after(own, corruptions.NONE)) for name, own in _each(rows, config)]
    areas = {name: metrics.auc(*_scores(own)) for name, own in clean}
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
        naming.family(family): metrics.accuracy_fake(
            *_probabilities([row for row in everything if row["family"] == family])
        ).value
        for family in _values(everything, "family")
    }
    rates = {family: rate for family, rate in found.items() if rate is not None}
    if len(rates) > 1:
        hardest = min(rates, key=rates.__getitem__)
        said += f"; the hardest family is {hardest}, of which all detectors find {rates[hardest]:.0%} on average"
    return f"{said}."


def plots_of(rows: Sequence[Row], config: "DetectorsConfig") -> list[Figure]:
    """Return all plots."""
    parts = _each(rows, config)
    clean = [(name, _after(own, corruptions.NONE)) for name, own in parts]
    drawn = [_roc("roc", "ROC curve, all fakes", clean)]
    for family in _values([row for _, own in clean for row in own], "family"):
        part = [(name, [row for row in own if row["family"] in ("", family)]) for name, own in clean]
        drawn.append(_roc(f"roc_{family}", f"ROC curve, {naming.family(family)} against all real pictures", part))
    drawn.append(_reliability(clean))
    drawn += [_curve(kind, parts, config) for kind in corruptions.UNITS]
    return [one for one in drawn if one is not None]


def _families(parts: Parts) -> Table:
    same_source = Column("auc_same_source", "AUC, same source", "auc")
    columns = (DETECTOR, Column("family", "Family of fakes"), FAKE, AUC, same_source, AP, EER)
    body: list[tuple[Cell, ...]] = []
    for name, own in parts:
        real = [row for row in own if row["label"] == "real"]
        for family in _values(own, "family"):
            fake = [row for row in own if row["family"] == family]
            sources = {row["source"] for row in fake} - {""}
            same = [row for row in real if row["source"] in sources]
            labels, scores = _scores(real + fake)
            cells = (
                metrics.accuracy_fake(*_probabilities(fake)),
                metrics.auc(labels, scores),
                metrics.auc(*_scores(same + fake)),
                metrics.average_precision(labels, scores),
                metrics.equal_error_rate(labels, scores),
            )
            body.append((name, naming.family(family), *cells))
    note = (
        "Each family against all real pictures; 'same source' takes only real pictures of the source that the fakes "
        "were made from, where it is known."
    )
    return Table("families", "Detectors by family of fakes", columns, tuple(body), note, by_family=True)


def _beside(parts: Parts) -> Table:
    """Set accuracy beside what TR-Net's paper prints for the same architectures."""
    printed = published.clean_accuracy()
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


def _sources(parts: Parts) -> Table:
    body = [
        (name, source, metrics.accuracy_real(*_probabilities(part)))
        for name, own in parts
        for source in _values([row for row in own if row["label"] == "real"], "source")
        for part in [[row for row in own if row["label"] == "real" and row["source"] == source]]
    ]
    columns = (DETECTOR, Column("source", "Source"), REAL)
    note = "What is missing to 1 are false alarms: real people accused."
    return Table("sources", "Detectors by source of real pictures", columns, tuple(body), note)


def _overall(parts: Parts, config: "DetectorsConfig") -> Table:
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
            metrics.auc(labels, scores),
            metrics.average_precision(labels, scores),
            metrics.equal_error_rate(labels, scores),
            *(metrics.false_alarms_at_recall(labels, scores, recall) for recall in config.recalls),
            metrics.brier(labels, said),
            metrics.calibration_error(labels, said),
        )
        body.append((name, *cells))
    columns = (DETECTOR, REAL, FAKE, AUC, AP, EER, *alarms, *calibration)
    note = "All families together; the mix of families in the data decides these numbers."
    return Table("detectors", "Detectors over all pictures", columns, tuple(body), note)


def _robustness(parts: Parts, config: "DetectorsConfig") -> Table:
    body: list[tuple[Cell, ...]] = []
    for name, own in parts:
        for text in config.corruptions:
            part = _after(own, text)
            labels, said = _probabilities(part)
            rates = metrics.accuracy_real(labels, said), metrics.accuracy_fake(labels, said)
            body.append((name, text, *rates, metrics.auc(*_scores(part))))
    columns = (DETECTOR, Column("corruption", "Corruption"), REAL, FAKE, AUC)
    units = "; ".join(f"{kind}: {unit}" for kind, unit in corruptions.UNITS.items())
    return Table("robustness", "Detectors after corruptions of the face crop", columns, tuple(body), units + ".")


def _calibration(parts: Parts) -> Table:
    numbers = Column("said", "Mean p_fake"), Column("true", "Share of fakes"), Column("count", "Pictures")
    body: list[tuple[Cell, ...]] = []
    for name, own in parts:
        for said, true, count in metrics.reliability(*_probabilities(own)):
            number = min(int(said * metrics.BINS), metrics.BINS - 1)
            body.append((name, f"{number / metrics.BINS:.1f}", said, true, count))
    note = (
        "A calibrated detector's mean p_fake equals the share of fakes, where fakes are as frequent as in the pictures "
        "it was calibrated on; where they are rarer, as in the world, p_fake says too much."
    )
    columns = (DETECTOR, Column("bin", "p_fake from"), *numbers)
    return Table("calibration", "What stated probabilities are worth", columns, tuple(body), note)


def _roc(name: str, title: str, parts: Parts) -> Figure | None:
    series, areas = [], []
    for detector, own in parts:
        area = metrics.auc(*_scores(own))
        if area is None:
            continue
        false_alarms, recalls = metrics.roc(*_scores(own))
        series.append(Series(f"{detector} (AUC {area:.2f})", false_alarms.tolist(), recalls.tolist()))
        areas.append(f"{detector} {area:.2f}")
    if not series:
        return None
    alt = f"Recall over false alarms. Areas under the curve: {', '.join(areas)}."
    labels = "False alarms (share of real pictures)", "Recall (share of fakes)"
    return plots.lines(
        name, title, alt, series, x_label=labels[0], y_label=labels[1], diagonal=True, unit=True, markers=False
    )


def _reliability(parts: Parts) -> Figure:
    series, errors = [], []
    for detector, own in parts:
        labels, said = _probabilities(own)
        bins = metrics.reliability(labels, said)
        series.append(Series(detector, [one for one, _, _ in bins], [true for _, true, _ in bins]))
        errors.append(f"{detector} {metrics.calibration_error(labels, said) or 0:.2f}")
    alt = f"Share of fakes over stated probability. Expected calibration errors: {', '.join(errors)}."
    axes = "Stated probability of fake", "Share of fakes"
    return plots.lines(
        "calibration", "Calibration", alt, series, x_label=axes[0], y_label=axes[1], diagonal=True, unit=True
    )


def _curve(kind: str, parts: Parts, config: "DetectorsConfig") -> Figure | None:
    """Draw the AUC of each detector over the strengths of one kind of corruption."""
    texts = [text for text in config.corruptions if corruptions.parse(text)[0] == kind]
    series, lowest = [], []
    for detector, own in parts:
        areas = [metrics.auc(*_scores(_after(own, text))) for text in texts]
        known = [area for area in areas if area is not None]
        if texts and len(known) == len(texts):
            series.append(Series(detector, [corruptions.parse(text)[1] for text in texts], known))
            lowest.append(f"{detector} {min(known):.2f}")
    if not series:
        return None
    alt = f"AUC over the strength of {kind}. Lowest values: {', '.join(lowest)}."
    unit = f"{kind} ({corruptions.UNITS[kind]})"
    return plots.lines(f"robustness_{kind}", f"Robustness to {kind}", alt, series, x_label=unit, y_label="AUC")


def _each(rows: Sequence[Row], config: "DetectorsConfig") -> Parts:
    return [(naming.detector(name), [row for row in rows if row["detector"] == name]) for name in config.detectors]


def _after(rows: Sequence[Row], text: str) -> list[Row]:
    kind, strength = corruptions.parse(text)
    return [row for row in rows if row["corruption"] == kind and row["strength"] == strength]


def _values(rows: Sequence[Row], column: str) -> list[str]:
    return sorted({row[column] for row in rows} - {""})


def _scores(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and log-odds: unlike probabilities, these never saturate into ties."""
    return _labels(rows), np.array([row["log_odds"] for row in rows], dtype=np.float64)


def _probabilities(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    return _labels(rows), np.array([row["p_fake"] for row in rows], dtype=np.float64)


def _labels(rows: Sequence[Row]) -> np.ndarray:
    return np.array([int(row["label"] == "fake") for row in rows], dtype=int)
