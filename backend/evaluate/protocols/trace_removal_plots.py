"""Plots of the trace-removal protocol."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from backend.evaluate import deep_features, naming, plots, published
from backend.evaluate.metrics.metric import mean
from backend.evaluate.plots import Figure, Series
from backend.evaluate.protocols.trace_removal_rows import (
    NONE,
    attacks,
    defences_of,
    feature_kinds,
    groups,
    mean_array,
    mean_of_six,
    of_kind,
    real_power,
    real_spectrum,
    title,
    without_strengths,
)
from backend.evaluate.rows import Row
from backend.trace_removal import sets, trnet
from backend.trace_removal.attacks import STRENGTHS
from backend.trace_removal.references import References

if TYPE_CHECKING:
    from backend.evaluate.protocols.trace_removal import TraceRemovalConfig

DRAWN = 600  # pictures of a group in a map of features
LIMIT = 12.0  # dB at which the colours of a difference end
ACROSS, HEADING = 4, 7  # maps in a row; pixels above a map for its name


def plots_of(rows: Sequence[Row], config: "TraceRemovalConfig", reference: References | None) -> list[Figure]:
    """Return all plots; arguments as of `trace_removal_tables.tables`."""
    cost = _cost(of_kind(rows, "verdict"), of_kind(rows, "picture"), config)
    rows = without_strengths(rows)
    verdicts, measured = of_kind(rows, "verdict"), of_kind(rows, "picture")
    drawn = [
        _accuracy(verdicts, config),
        _families(verdicts, config),
        cost,
        _power(measured, reference),
        _spectra(measured, reference),
        *(_features(kind, measured, config) for kind in feature_kinds(measured)),
    ]
    return [one for one in drawn if one is not None]


def _accuracy(verdicts: Sequence[Row], config: "TraceRemovalConfig") -> Figure | None:
    """Draw the mean of the six by attack, beside the paper's."""
    shown = attacks(verdicts)
    if not shown:
        return None
    series = [
        Series(f"ours, {sets.DEFENCES[one].title}", (), [_value(verdicts, one, attack) for attack in shown])
        for one in defences_of(verdicts, config)
    ]
    for one in ("none", "weak"):
        printed = [published.TRACE_REMOVAL_MEANS[one].get(attack, float("nan")) for attack in shown]
        series.append(Series(f"paper, {sets.DEFENCES[one].title}", (), printed))
    labels = [title(attack) for attack in shown]
    alt = f"Share of fakes still found, mean of the six detectors. {plots.spoken(series, labels)}"
    return plots.bars("accuracy", "Fakes still found after each attack", alt, labels, series, y_label="Still found")


def _families(verdicts: Sequence[Row], config: "TraceRemovalConfig") -> Figure | None:
    families = sorted({row["family"] for row in verdicts if row["label"] == "fake"})
    defences = defences_of(verdicts, config)
    if not families or not defences:
        return None
    last = defences[-1]
    series = [
        Series(title(attack), (), [_value(verdicts, last, attack, family) for family in families])
        for attack in attacks(verdicts)
    ]
    name = sets.DEFENCES[last].title
    labels = [naming.family(family) for family in families]
    alt = f"Share of fakes still found by family, detectors trained with {name}. {plots.spoken(series, labels)}"
    return plots.bars("families", "Fakes still found, by family", alt, labels, series, y_label="Still found")


def _cost(verdicts: Sequence[Row], measured: Sequence[Row], config: "TraceRemovalConfig") -> Figure | None:
    """Draw what each attack achieves over what it costs; all strengths of TR-Net share a colour."""
    defences = defences_of(verdicts, config)
    places: dict[str, list[tuple[float, float]]] = {}
    said = []
    for attack in attacks(verdicts):
        psnr = mean(row.get("psnr") for row in measured if row["attack"] == attack).value
        if attack != NONE and psnr is not None and defences:
            left = _value(verdicts, defences[-1], attack)
            own = title(trnet.ENTRY) if attack in STRENGTHS else title(attack)
            places.setdefault(own, []).append((psnr, left))
            said.append(f"{title(attack)} {left:.2f} at {psnr:.1f} dB")
    if not places:
        return None
    series = [Series(name, [one for one, _ in own], [one for _, one in own]) for name, own in places.items()]
    alt = f"Share of fakes still found over PSNR; low and right is the better attack. {', '.join(said)}."
    labels = "PSNR (dB)", "Fakes still found"
    name = "What an attack achieves and costs"
    return plots.points("cost", name, alt, series, x_label=labels[0], y_label=labels[1], share=True)


def _power(measured: Sequence[Row], reference: References | None) -> Figure | None:
    real = real_power(measured, reference)
    found = groups(measured)
    if real is None or not found:
        return None
    radii = list(range(1, len(real[0])))
    low, high = (real[0] + sign * real[1] for sign in (-1, 1))
    series = [Series("real photographs ± std", radii, real[0][1:].tolist(), low[1:].tolist(), high[1:].tolist())]
    means = {name: mean_array(own, "power") for name, own in found.items()}
    series += [Series(name, radii, one[1:].tolist()) for name, one in means.items()]
    last = ", ".join(f"{name} {one[-1] - real[0][-1]:+.1f}" for name, one in means.items())
    alt = f"Mean power over spatial frequency. Distance to real photographs at the highest frequency in dB: {last}."
    labels = "Frequency (periods a picture)", "Power (dB)"
    name = "Power spectral density before and after"
    return plots.lines("power", name, alt, series, x_label=labels[0], y_label=labels[1], markers=False)


def _spectra(measured: Sequence[Row], reference: References | None) -> Figure | None:
    """Draw how far each mean spectrum is from that of real photographs, side by side."""
    real = real_spectrum(measured, reference)
    found = groups(measured)
    if real is None or not found:
        return None
    maps = {name: mean_array(own, "spectrum") - real for name, own in found.items()}
    side = len(real)
    height, width = side + HEADING, side + 2
    sheet = np.full((-(-len(maps) // ACROSS) * height, ACROSS * width), np.nan)
    corners = [(number // ACROSS * height + HEADING, number % ACROSS * width) for number in range(len(maps))]
    for (top, left), one in zip(corners, maps.values(), strict=True):
        sheet[top : top + side, left : left + side] = one

    def draw(axes: Any) -> None:
        shade = axes.imshow(sheet, cmap="PuOr", vmin=-LIMIT, vmax=LIMIT, interpolation="nearest")
        for (top, left), name in zip(corners, maps, strict=True):
            axes.text(left, top - 1.5, name)
        axes.axis("off")
        axes.figure.colorbar(shade, ax=axes, label="dB against real photographs", shrink=0.8)

    said = ", ".join(f"{name} {np.abs(one).mean():.1f}" for name, one in maps.items())
    alt = f"Mean spectrum minus that of real photographs, low frequencies in the middle. Mean difference in dB: {said}."
    title_ = "Spectra against real photographs"
    return plots.figure("spectra", title_, alt, draw, x_label="", y_label="", legend=False)


def _features(kind: str, measured: Sequence[Row], config: "TraceRemovalConfig") -> Figure | None:
    column = f"features_{kind}"
    found = groups([row for row in measured if column in row])
    kept = {name: np.array([row[column] for row in own[:DRAWN]]) for name, own in found.items()}
    if sum(map(len, kept.values())) < 4:
        return None
    flat = deep_features.flat_map(np.concatenate(list(kept.values())), config.seed)
    series, start = [], 0
    for name, one in kept.items():
        part = flat[start : start + len(one)]
        series.append(Series(name, part[:, 0].tolist(), part[:, 1].tolist()))
        start += len(one)
    whose = naming.detector(config.features) if kind == "detector" else f"TR-Net's {kind} discriminator"
    counts = ", ".join(f"{len(one)} {name}" for name, one in kept.items())
    alt = f"Features of {whose} in two dimensions; near points are alike, axes and sizes mean nothing. {counts}."
    name = f"t-SNE of the features of {whose}"
    return plots.points(f"features_{kind}", name, alt, series, x_label="", y_label="")


def _value(verdicts: Sequence[Row], defence: str, attack: str, family: str = "") -> float:
    value = mean_of_six(verdicts, defence, attack, family).value
    return float("nan") if value is None else value
