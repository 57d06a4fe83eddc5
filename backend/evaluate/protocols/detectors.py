"""How good the detectors are: per family and source, calibration, and robustness to JPEG, H.264, blur, size, noise."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from backend import images, runtime, video
from backend.detectors import registry
from backend.detectors.inference import ask_once
from backend.errors import UserError
from backend.evaluate import plots, published
from backend.evaluate.dataset import Dataset, crop_face
from backend.evaluate.metrics import classification as metrics
from backend.evaluate.plots import Figure, Series
from backend.evaluate.protocols.base import (
    QUICK,
    Item,
    Protocol,
    ProtocolConfig,
    Values,
    check_detectors,
    detector_title,
    family_title,
    make_item,
    register_protocol,
)
from backend.evaluate.store import Row
from backend.evaluate.tables import Cell, Column, Table
from backend.progress import Job
from backend.settings import validated

NO_CORRUPTION = "none"
CORRUPTIONS = (
    *("none", "jpeg 90", "jpeg 70", "jpeg 50", "jpeg 30", "blur 0.5", "blur 1", "blur 2"),
    *("resize 0.75", "resize 0.5", "resize 0.25", "noise 2", "noise 5", "noise 10"),
    *("h264 23", "h264 28", "h264 33"),
)
CORRUPTION_UNITS = {
    "jpeg": "JPEG quality",
    "blur": "standard deviation in pixels",
    "resize": "factor",
    "noise": "grey levels",
    "h264": "rate factor of the video",
}
STRONGEST = {"jpeg": 100, "blur": 100, "resize": 1, "noise": 255, "h264": 51}
Verdicts = dict[str, pd.DataFrame]  # by the title of a detector; one row a picture and corruption
DETECTOR = Column("detector", "Detector")
REAL = Column("accuracy_real", "Accuracy, real", "accuracy_real")
FAKE = Column("accuracy_fake", "Accuracy, fake", "accuracy_fake")
AUC, AP, EER = Column("auc", "AUC", "auc"), Column("ap", "AP", "ap"), Column("eer", "EER", "eer")


def corrupt_picture(picture: np.ndarray, kind: str, strength: float, seed: int, name: str) -> np.ndarray:
    """Return uint8 (H, W, 3) after one corruption.

    Args:
        picture: uint8 (H, W, 3).
        kind: `none`, `jpeg`, `blur`, `resize`, `noise` or `h264`.
        strength: Quality (1 to 100), standard deviation in pixels, factor in (0, 1], or standard deviation in grey
            levels, or constant rate factor of H.264 (0 to 51, higher is worse).
        seed: Seed of the noise.
        name: Name of the picture, so that no two pictures get the same noise.
    """
    if kind == NO_CORRUPTION:
        return picture
    if kind == "noise":
        return _add_noise(picture, strength, seed, name)
    if kind == "jpeg":
        return images.like_photograph(picture, round(strength))
    if kind == "h264":
        return video.save_as_frame(picture, round(strength), moved=True)
    return _blur(picture, strength) if kind == "blur" else _resize(picture, strength)


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


def _blur(picture: np.ndarray, deviation: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return _rounded(gaussian_filter(picture.astype(np.float64), (deviation, deviation, 0)))


def _resize(picture: np.ndarray, factor: float) -> np.ndarray:
    height, width = picture.shape[:2]
    small = (max(1, round(width * factor)), max(1, round(height * factor)))
    image = Image.fromarray(picture)
    return np.array(image.resize(small, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC))


def _add_noise(picture: np.ndarray, deviation: float, seed: int, name: str) -> np.ndarray:
    number = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big")
    return _rounded(picture + np.random.default_rng(number).normal(0, deviation, picture.shape))


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@validated
@dataclass(frozen=True)
class DetectorsConfig(ProtocolConfig):
    """Settings.

    Args:
        corruptions: What is done to the pictures, one at a time, as in `jpeg 70`; `none` must be among them.
        recalls: Recalls, in (0, 1], at which false alarms are counted.
    """

    detectors: Values[str] = ()
    corruptions: Values[str] = CORRUPTIONS
    recalls: Values[float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        for text in self.corruptions:
            parse_corruption(text)
        if NO_CORRUPTION not in self.corruptions:
            raise UserError("The corruption none is missing.", "Add none: the unchanged pictures are needed too.")
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
        "probabilities mean what they say; and what JPEG, video, blur, a smaller size and noise do to it."
    )
    source = "Measures as usual in the field (Roessler et al. 2019, arXiv 1901.08971; Guo et al. 2017)."

    @classmethod
    def preset(cls, name: str) -> DetectorsConfig:
        count = 12 if name == QUICK else None
        return DetectorsConfig(count, count, detectors=tuple(registry.loadable()))

    def models(self) -> list[str]:
        return list(self.config.detectors)

    def items(self, data: Dataset) -> list[Item]:
        check_detectors(self.config.detectors)
        return [make_item(sample.name, corruption=text) for sample in data.samples for text in self.config.corruptions]

    def run_item(self, item: Item, data: Dataset) -> Job[list[Row]]:
        """Ask every detector about one face, cut out as the detector wants it and corrupted."""
        yield from ()  # it takes too short to be stopped in the middle
        sample = data.by_name[item.sample]
        kind, strength = parse_corruption(item.options["corruption"])
        facts: Row = {"sample": sample.name, "label": sample.label, "family": sample.family, "source": sample.source}
        facts |= {"corruption": kind, "strength": strength}
        faces: dict[tuple[str, int], Tensor] = {}
        questions = {}
        for name in self.config.detectors:
            detector = registry.load(name)
            view = (detector.card.template, detector.card.input_size)
            if view not in faces:
                aligned = crop_face(data, sample.name, size=view[1], template=view[0])
                face = corrupt_picture(aligned.crop, kind, strength, self.config.seed, sample.name)
                faces[view] = images.to_tensor(face).to(runtime.device())
            questions[name] = detector, faces[view]
        rows = []
        for name, answer in ask_once(questions).items():
            log_odds = float(answer[0])
            p_fake = float(torch.sigmoid(torch.tensor(log_odds)))
            rows.append(facts | {"detector": name, "log_odds": log_odds, "p_fake": p_fake})
        return rows

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        verdicts = self._by_detector(rows)
        clean = _without_corruption(verdicts)
        return [
            _families_table(clean),
            _beside_table(clean),
            _sources_table(clean),
            self._overall_table(clean),
            self._robustness_table(verdicts),
            _calibration_table(clean),
        ]

    def plots(self, rows: Sequence[Row]) -> list[Figure]:
        verdicts = self._by_detector(rows)
        clean = _without_corruption(verdicts)
        figures = [_roc_plot("roc", "ROC curve, all fakes", clean)]
        for family in _families(pd.concat(clean.values())):
            subset = {name: frame[frame["family"].isin(["", family])] for name, frame in clean.items()}
            title = f"ROC curve, {family_title(family)} against all real pictures"
            figures.append(_roc_plot(f"roc_{family}", title, subset))
        figures += [_reliability_plot(clean), *(self._robustness_plot(kind, verdicts) for kind in CORRUPTION_UNITS)]
        return [figure for figure in figures if figure is not None]

    def finding(self, rows: Sequence[Row]) -> str:
        clean = _without_corruption(self._by_detector(rows))
        areas = {name: metrics.area_under_roc(*_scores(frame)) for name, frame in clean.items()}
        known = {name: area for name, area in areas.items() if area is not None}
        if not known:
            return ""
        best = max(known, key=known.__getitem__)
        real, fake = (rate(*_probabilities(clean[best])) for rate in (metrics.accuracy_real, metrics.accuracy_fake))
        text = (
            f"Of {len(known)} detectors {best} separates these pictures best (AUC {known[best]:.2f}): it finds "
            f"{fake.value or 0:.0%} of the {fake.count} fakes and wrongly calls {1 - (real.value or 0):.0%} of the "
            f"{real.count} real faces fake (95 % interval {1 - (real.high or 0):.0%} to {1 - (real.low or 0):.0%})"
        )
        verdicts = pd.concat(clean.values())
        rates = {}
        for family in _families(verdicts):
            rate = metrics.accuracy_fake(*_probabilities(verdicts[verdicts["family"] == family])).value
            if rate is not None:
                rates[family_title(family)] = rate
        if len(rates) > 1:
            hardest = min(rates, key=rates.__getitem__)
            text += f"; the hardest family is {hardest}, of which all detectors find {rates[hardest]:.0%} on average"
        return f"{text}."

    def limits(self, data: Dataset) -> list[str]:
        return [
            *super().limits(data),
            "A detector can win by sharpness, size or JPEG history alone where real and fake differ in these.",
            (
                "The detectors that come with this app were trained on fakes by its own models; on fakes of these "
                "kinds they are better than on a stranger's."
            ),
            (
                "AUC, average precision and equal error rate stand without an interval, and are no surer than the "
                "rates beside them; the best of many detectors is partly the luckiest."
            ),
            "Average precision depends on how many of the pictures are fake; in the world, few are.",
        ]

    def _by_detector(self, rows: Sequence[Row]) -> Verdicts:
        frame = pd.DataFrame(rows)
        return {detector_title(name): frame[frame["detector"] == name] for name in self.config.detectors}

    def _overall_table(self, clean: Verdicts) -> Table:
        recalls = self.config.recalls
        body: list[tuple[Cell, ...]] = []
        for name, frame in clean.items():
            (labels, scores), (_, p_fake) = _scores(frame), _probabilities(frame)
            cells = (
                metrics.accuracy_real(labels, p_fake),
                metrics.accuracy_fake(labels, p_fake),
                metrics.area_under_roc(labels, scores),
                metrics.average_precision(labels, scores),
                metrics.equal_error_rate(labels, scores),
                *(metrics.false_alarms_at_recall(labels, scores, recall) for recall in recalls),
                metrics.brier_score(labels, p_fake),
                metrics.calibration_error(labels, p_fake),
            )
            body.append((name, *cells))
        alarms = (Column(f"false_alarms_{x:g}", f"False alarms at recall {x:g}", "false_alarms") for x in recalls)
        calibration = Column("brier", "Brier score", "brier"), Column("ece", "Calibration error", "ece")
        columns = (DETECTOR, REAL, FAKE, AUC, AP, EER, *alarms, *calibration)
        note = "All families together; the mix of families in the data decides these numbers."
        return Table("detectors", "Detectors over all pictures", columns, tuple(body), note)

    def _robustness_table(self, verdicts: Verdicts) -> Table:
        body: list[tuple[Cell, ...]] = []
        for name, frame in verdicts.items():
            for text in self.config.corruptions:
                corrupted = _after(frame, text)
                labels, p_fake = _probabilities(corrupted)
                rates = metrics.accuracy_real(labels, p_fake), metrics.accuracy_fake(labels, p_fake)
                body.append((name, text, *rates, metrics.area_under_roc(*_scores(corrupted))))
        columns = (DETECTOR, Column("corruption", "Corruption"), REAL, FAKE, AUC)
        units = "; ".join(f"{kind}: {unit}" for kind, unit in CORRUPTION_UNITS.items())
        return Table("robustness", "Detectors after corruptions of the face crop", columns, tuple(body), units + ".")

    def _robustness_plot(self, kind: str, verdicts: Verdicts) -> Figure | None:
        texts = [text for text in self.config.corruptions if parse_corruption(text)[0] == kind]
        series, lowest = [], []
        for detector, frame in verdicts.items():
            areas = [metrics.area_under_roc(*_scores(_after(frame, text))) for text in texts]
            known = [area for area in areas if area is not None]
            if texts and len(known) == len(texts):
                series.append(Series(detector, [parse_corruption(text)[1] for text in texts], known))
                lowest.append(f"{detector} {min(known):.2f}")
        if not series:
            return None
        alt = f"AUC over the strength of {kind}. Lowest values: {', '.join(lowest)}."
        unit = f"{kind} ({CORRUPTION_UNITS[kind]})"
        return plots.draw_lines(f"robustness_{kind}", f"Robustness to {kind}", alt, series, x_label=unit, y_label="AUC")


def _families_table(clean: Verdicts) -> Table:
    same_source = Column("auc_same_source", "AUC, same source", "auc")
    columns = (DETECTOR, Column("family", "Family of fakes"), FAKE, AUC, same_source, AP, EER)
    body: list[tuple[Cell, ...]] = []
    for name, frame in clean.items():
        real = frame[frame["label"] == "real"]
        for family in _families(frame):
            fake = frame[frame["family"] == family]
            same = real[real["source"].isin(set(fake["source"]) - {""})]
            labels, scores = _scores(pd.concat([real, fake]))
            cells = (
                metrics.accuracy_fake(*_probabilities(fake)),
                metrics.area_under_roc(labels, scores),
                metrics.area_under_roc(*_scores(pd.concat([same, fake]))),
                metrics.average_precision(labels, scores),
                metrics.equal_error_rate(labels, scores),
            )
            body.append((name, family_title(family), *cells))
    note = (
        "Each family against all real pictures; 'same source' takes only real pictures of the source that the fakes "
        "were made from, where it is known."
    )
    return Table("families", "Detectors by family of fakes", columns, tuple(body), note, by_family=True)


def _beside_table(clean: Verdicts) -> Table:
    printed = published.printed_clean_accuracy()
    body: list[tuple[Cell, ...]] = []
    for name, frame in clean.items():
        if name in printed:
            labels, p_fake = _probabilities(frame)
            real, fake = metrics.accuracy_real(labels, p_fake), metrics.accuracy_fake(labels, p_fake)
            body.append((name, real, printed[name][0], fake, printed[name][1]))
    columns = (
        DETECTOR,
        Column("accuracy_real", "Ours, real", "accuracy_real", 2),
        Column("paper_real", "Paper, real", digits=2),
        Column("accuracy_fake", "Ours, fake", "accuracy_fake", 2),
        Column("paper_fake", "Paper, fake", digits=2),
    )
    note = f"The paper is TR-Net (arXiv 2203.11433), table 1. {published.WHY_ACCURACY_DIFFERS}"
    return Table("beside", "Accuracy, ours and the paper's", columns, tuple(body), note, beside=True)


def _sources_table(clean: Verdicts) -> Table:
    body = [
        (name, source, metrics.accuracy_real(*_probabilities(real)))
        for name, frame in clean.items()
        for source, real in frame[(frame["label"] == "real") & (frame["source"] != "")].groupby("source")
    ]
    columns = (DETECTOR, Column("source", "Source"), REAL)
    note = "What is missing to 1 are false alarms: real people accused."
    return Table("sources", "Detectors by source of real pictures", columns, tuple(body), note)


def _calibration_table(clean: Verdicts) -> Table:
    numbers = Column("said", "Mean p_fake"), Column("true", "Share of fakes"), Column("count", "Pictures")
    body: list[tuple[Cell, ...]] = []
    for name, frame in clean.items():
        for p_fake, share, count in metrics.reliability_bins(*_probabilities(frame)):
            start = min(int(p_fake * metrics.BINS), metrics.BINS - 1) / metrics.BINS
            body.append((name, f"{start:.1f}", p_fake, share, count))
    note = (
        "A calibrated detector's mean p_fake equals the share of fakes, where fakes are as frequent as in the pictures "
        "it was calibrated on; where they are rarer, as in the world, p_fake says too much."
    )
    columns = (DETECTOR, Column("bin", "p_fake from"), *numbers)
    return Table("calibration", "What stated probabilities are worth", columns, tuple(body), note)


def _roc_plot(name: str, title: str, verdicts: Verdicts) -> Figure | None:
    series, areas = [], []
    for detector, frame in verdicts.items():
        area = metrics.area_under_roc(*_scores(frame))
        if area is not None:
            false_alarms, recalls = metrics.roc_points(*_scores(frame))
            series.append(Series(f"{detector} (AUC {area:.2f})", false_alarms.tolist(), recalls.tolist()))
            areas.append(f"{detector} {area:.2f}")
    if not series:
        return None
    alt = f"Recall over false alarms. Areas under the curve: {', '.join(areas)}."
    axes: dict[str, Any] = {"x_label": "False alarms (share of real pictures)", "y_label": "Recall (share of fakes)"}
    return plots.draw_lines(name, title, alt, series, **axes, diagonal=True, unit=True, markers=False)


def _reliability_plot(clean: Verdicts) -> Figure:
    series, errors = [], []
    for detector, frame in clean.items():
        labels, p_fake = _probabilities(frame)
        bins = metrics.reliability_bins(labels, p_fake)
        series.append(Series(detector, [stated for stated, _, _ in bins], [share for _, share, _ in bins]))
        errors.append(f"{detector} {metrics.calibration_error(labels, p_fake) or 0:.2f}")
    alt = f"Share of fakes over stated probability. Expected calibration errors: {', '.join(errors)}."
    axes: dict[str, Any] = {"x_label": "Stated probability of fake", "y_label": "Share of fakes"}
    return plots.draw_lines("calibration", "Calibration", alt, series, **axes, diagonal=True, unit=True)


def _without_corruption(verdicts: Verdicts) -> Verdicts:
    return {name: _after(frame, NO_CORRUPTION) for name, frame in verdicts.items()}


def _after(frame: pd.DataFrame, text: str) -> pd.DataFrame:
    kind, strength = parse_corruption(text)
    return frame[(frame["corruption"] == kind) & (frame["strength"] == strength)]


def _families(frame: pd.DataFrame) -> list[str]:
    return sorted(set(frame["family"]) - {""})


def _scores(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and log-odds: unlike probabilities, these never saturate into ties."""
    return (frame["label"] == "fake").to_numpy(int), frame["log_odds"].to_numpy(float)


def _probabilities(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return (frame["label"] == "fake").to_numpy(int), frame["p_fake"].to_numpy(float)
