"""Views of the traces in a face, each a picture and a short text: spectrum, power, noise, attention.

Every view takes one or more pictures by label, uint8 (S, S, 3), such as `{"Before": face, "After": removed}`, and
references of the same size.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from backend import images, runtime, signals
from backend.detectors import base, registry
from backend.markup import join_in_words
from backend.trace_removal.references import REAL, References, log_profile, log_spectrum

FIGURE_WIDTH = 4.2  # inches
FIGURE_DPI = 170  # dots per inch: 714 pixels wide, twice the width of a phone
FONT_SIZE = 9.5
STRENGTH_COLOURS = "cividis"  # its brightness rises steadily, for every kind of colour vision and in print
SIGNED_COLOURS = "PuOr"  # orange and purple differ for every kind of colour vision
# Okabe and Ito's colours; every line has its own dashes too.
LINE_STYLES = (("#0072B2", "--"), ("#D55E00", "-"), ("#009E73", "-."), ("#CC79A7", ":"))
DIFFERENCE_LIMIT = 30.0  # dB at the ends of the colour scale of differences
SMOOTHING_WINDOW = 5  # frequencies over which a difference is averaged: the spectrum of one picture scatters by 6 dB
HIGH_FREQUENCY_FROM = 0.7  # of the highest radius
COVERED_PERCENT = 99.0  # of the residual's values lie within the grey scale
GREY_LEVELS = 255  # residuals are shown in grey levels
CLEAR_DEVIATIONS = 2.0  # a match is clear this many standard deviations above the mean of photographs
MAP_COLUMNS = 3
# Lower ends of the parts of an aligned face, as shares of its height.
FACE_PARTS = (
    (0.3, "the forehead and hair"),
    (0.5, "the eyes"),
    (0.63, "the nose"),
    (0.8, "the mouth"),
    (1.0, "the chin"),
)
SIDE_BORDER = 0.14  # share of the width at each side that is not the face


@dataclass(frozen=True, eq=False)
class TraceView:
    """One view of traces."""

    name: str  # for programs
    title: str
    picture: np.ndarray  # uint8 (H, W, 3)
    sentence: str  # how to read the picture


def draw_figure(height: float, paint: Callable[[Any], None]) -> np.ndarray:
    """Return a figure that `paint` fills, 4.2 inches by `height` inches, as uint8 (H, W, 3)."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": FONT_SIZE, "axes.titlesize": FONT_SIZE, "axes.labelsize": FONT_SIZE}):
        figure = Figure(figsize=(FIGURE_WIDTH, height), dpi=FIGURE_DPI, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        paint(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def group_title(group: str) -> str:
    return base.FAKE_KINDS.get(group, group)


def draw_spectrum_view(pictures: Mapping[str, np.ndarray], references: References) -> TraceView:
    """Draw the log power and its difference from real photographs, one column per picture."""
    spectra = {label: log_spectrum(images.to_tensor(picture))[0].numpy() for label, picture in pictures.items()}
    differences = {label: smooth_difference(values - references.spectrum[REAL]) for label, values in spectra.items()}
    low, high = np.percentile(references.spectrum[REAL], (1, 99.9))

    def paint(figure: Any) -> None:
        grid = figure.subplots(2, len(spectra), squeeze=False)
        for column, label in enumerate(spectra):
            power = grid[0][column].imshow(spectra[label], cmap=STRENGTH_COLOURS, vmin=low, vmax=high)
            change = grid[1][column].imshow(
                differences[label], cmap=SIGNED_COLOURS, vmin=-DIFFERENCE_LIMIT, vmax=DIFFERENCE_LIMIT
            )
            grid[0][column].set(title=label, xticks=[], yticks=[])
            grid[1][column].set(title=f"{label} minus real", xticks=[], yticks=[])
        figure.colorbar(power, ax=list(grid[0]), label="log power, dB")
        figure.colorbar(change, ax=list(grid[1]), label="difference, dB")

    picture = draw_figure(4.2 if len(spectra) > 1 else 6.4, paint)
    return TraceView("spectrum", "Spectrum", picture, _spectrum_sentence(differences))


def smooth_difference(values: np.ndarray) -> np.ndarray:
    """Return the mean of (H, W) over 5 x 5 windows, which wrap around at the edges."""
    wide = np.pad(values, SMOOTHING_WINDOW // 2, mode="wrap")
    return np.lib.stride_tricks.sliding_window_view(wide, (SMOOTHING_WINDOW, SMOOTHING_WINDOW)).mean((-2, -1))


def high_frequency_mean(difference: np.ndarray) -> float:
    """Return the mean over the high frequencies of (S, S), frequency 0 in the middle."""
    side = difference.shape[0]
    place = torch.arange(side) - side // 2
    radius = torch.hypot(place[:, None].float(), place[None].float()).numpy()
    return float(difference[(radius >= HIGH_FREQUENCY_FROM * side / 2) & (radius < side / 2)].mean())


def _spectrum_sentence(differences: Mapping[str, np.ndarray]) -> str:
    parts = []
    for label, difference in differences.items():
        level = high_frequency_mean(difference)
        parts.append(f"{label.lower()}: {abs(level):.1f} dB {'less' if level < 0 else 'more'}")
    return (
        "Low frequencies are in the middle, fine detail is at the edge; white is like the mean of real photographs, "
        f"orange weaker, purple stronger. Power of the fine detail against real photographs, {join_in_words(parts)}."
    )


def draw_power_view(pictures: Mapping[str, np.ndarray], references: References) -> TraceView:
    """Draw the power at each radius, one line per picture."""
    lines = {label: log_profile(images.to_tensor(picture))[0].numpy() for label, picture in pictures.items()}
    mean, deviation = references.power[REAL]
    radii = np.arange(len(mean))

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        axes.fill_between(radii, mean - deviation, mean + deviation, color="0.82", label="real: mean ± deviation")
        axes.plot(radii, mean, color="0.35", linewidth=1)
        for row, ((label, line), (colour, dashes)) in enumerate(zip(lines.items(), LINE_STYLES, strict=False)):
            # The first line is dashed and lies on top, so that the second shows through where they agree.
            axes.plot(radii, line, color=colour, linestyle=dashes, linewidth=1.8, label=label, zorder=9 - row)
        axes.set(xlabel="cycles across the face (right: fine detail)", ylabel="power, dB", xlim=(0, len(mean) - 1))
        axes.legend(frameon=False)

    return TraceView("power", "Power over frequency", draw_figure(3.0, paint), _power_sentence(lines, mean, deviation))


def count_outside_band(line: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> int:
    """Count the radii at which a line is more than one deviation from the mean."""
    return int((np.abs(line - mean) > deviation).sum())


def _power_sentence(lines: Mapping[str, np.ndarray], mean: np.ndarray, deviation: np.ndarray) -> str:
    parts = [
        f"{label.lower()}, {count_outside_band(line, mean, deviation)} of {len(mean)}" for label, line in lines.items()
    ]
    return (
        "The grey band holds about two thirds of the real photographs; a face whose line leaves it has too little or "
        f"too much of some detail. Frequencies outside the band: {join_in_words(parts)}."
    )


def draw_noise_view(pictures: Mapping[str, np.ndarray], references: References) -> TraceView:
    """Draw the residuals, and below them the correlations with every fingerprint."""
    noise = {label: noise_residual(picture) for label, picture in pictures.items()}
    limit = max(0.5, *(float(np.percentile(np.abs(residual), COVERED_PERCENT)) for residual in noise.values()))
    correlations = {label: fingerprint_correlations(picture, references) for label, picture in pictures.items()}

    def paint(figure: Any) -> None:
        top, bottom = figure.subfigures(2, 1, height_ratios=(1.7 if len(noise) > 1 else 3.2, 1.7))
        grid = top.subplots(1, len(noise), squeeze=False)[0]
        for axes, (label, residual) in zip(grid, noise.items(), strict=True):
            image = axes.imshow(residual, cmap="gray", vmin=-limit, vmax=limit)
            axes.set(title=label, xticks=[], yticks=[])
        top.colorbar(image, ax=list(grid), label="grey levels")
        _draw_correlation_bars(bottom.subplots(), correlations, references)
        bottom.legend(loc="outside lower center", frameon=False, fontsize="small", ncols=2)

    picture = draw_figure(4.2 if len(noise) > 1 else 5.6, paint)
    return TraceView("noise", "Noise fingerprint", picture, _noise_sentence(correlations, references))


def noise_residual(picture: np.ndarray) -> np.ndarray:
    """Return the Wiener residual (S, S) of a uint8 picture (S, S, 3), averaged over colours, in grey levels."""
    return signals.wiener_residual(images.to_tensor(picture))[0].mean(0).numpy() * GREY_LEVELS


def fingerprint_correlations(picture: np.ndarray, references: References) -> dict[str, float]:
    """Return the correlation in [-1, 1] of a uint8 picture (S, S, 3) with the fingerprint of every kind of fake."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    correlations = signals.fingerprint_correlations(pixels, references.fingerprint)
    return {kind: float(values[0]) for kind, values in correlations.items()}


def _draw_correlation_bars(axes: Any, correlations: Mapping[str, Mapping[str, float]], references: References) -> None:
    kinds = references.kinds
    height = 0.8 / len(correlations)
    for place, kind in enumerate(kinds):
        mean, deviation = references.correlation[kind][REAL]
        axes.fill_betweenx(
            (place - 0.45, place + 0.45), mean - 2 * deviation, mean + 2 * deviation, color="0.85",
            label="real photographs" if place == 0 else None,
        )  # fmt: skip
        mean_of_kind = references.correlation[kind][kind][0]
        axes.plot([mean_of_kind, mean_of_kind], [place - 0.45, place + 0.45], color="black", linewidth=1.5,
                  label="mean of that kind" if place == 0 else None)  # fmt: skip
    for row, (label, values) in enumerate(correlations.items()):
        colour, _ = LINE_STYLES[row % len(LINE_STYLES)]
        places = [place + (row - (len(correlations) - 1) / 2) * height for place in range(len(kinds))]
        axes.barh(places, [values[kind] for kind in kinds], height * 0.8, color=colour, label=label,
                  hatch=("//", "", "..", "xx")[row % 4], edgecolor="white", linewidth=0)  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_yticks(range(len(kinds)), [group_title(kind) for kind in kinds])
    axes.invert_yaxis()
    axes.set_xlabel("correlation with the fingerprint of")


def _noise_sentence(correlations: Mapping[str, Mapping[str, float]], references: References) -> str:
    first = next(iter(correlations.values()))
    kind = max(first, key=lambda name: first[name])
    correlations_in_words = ", ".join(f"{label.lower()} {values[kind]:+.3f}" for label, values in correlations.items())
    mean, deviation = references.correlation[kind][REAL]
    real, of_kind = (f"{m:+.3f} ± {d:.3f}" for m, d in (references.correlation[kind][group] for group in (REAL, kind)))
    matches = f"it matches the fingerprint of {group_title(kind)} best"
    if first[kind] <= mean + CLEAR_DEVIATIONS * deviation:
        matches = f"it matches no fingerprint clearly, and that of {group_title(kind)} no better than photographs do"
    return (
        f"What is left when the picture's content is taken away; {matches}: {correlations_in_words}. "
        f"Real photographs reach {real}, {group_title(kind)} {of_kind}."
    )


def draw_attention_view(pictures: Mapping[str, np.ndarray], references: References, detector: str) -> TraceView:
    """Draw the detector's map of each picture, and its mean maps where they were measured with its current weights."""
    from backend.detectors.gradcam import grad_cam

    network = registry.load(detector)
    batch = torch.cat([images.to_tensor(picture) for picture in pictures.values()]).to(runtime.device())
    cams = grad_cam(network, batch)
    means = references.attention[detector] if references.knows(detector) else {}
    maps = {
        (label if not empty else f"{label}: nothing"): strength
        for label, strength, empty in zip(pictures, cams.maps, cams.empty, strict=True)
    }
    order = [REAL, *(kind for kind in references.kinds if kind in means)] if means else []
    maps |= {f"mean of\n{_short_group_title(group)}": means[group] for group in order}

    rows = math.ceil(len(maps) / MAP_COLUMNS)

    def paint(figure: Any) -> None:
        grid = figure.subplots(rows, MAP_COLUMNS, squeeze=False).ravel()
        for axes in grid[len(maps) :]:
            axes.set_axis_off()
        for axes, (label, strength) in zip(grid, maps.items(), strict=False):
            image = axes.imshow(strength, cmap=STRENGTH_COLOURS, vmin=0, vmax=1, interpolation="bilinear")
            axes.set(title=label, xticks=[], yticks=[])
        figure.colorbar(image, ax=list(grid), location="bottom", label="strength (0 = none, 1 = largest)", aspect=40)

    picture = draw_figure(0.7 + 1.75 * rows, paint)
    return TraceView("attention", "Attention", picture, _attention_sentence(network.card.title, pictures, cams, means))


def strongest_part(strength: np.ndarray) -> str:
    """Name the part of an aligned face in which a map (H, W) is strongest."""
    row, column = np.unravel_index(int(strength.argmax()), strength.shape)
    across = (column + 0.5) / strength.shape[1]
    if not SIDE_BORDER <= across <= 1 - SIDE_BORDER:
        return "the sides of the picture"
    down = (row + 0.5) / strength.shape[0]
    return next(name for limit, name in FACE_PARTS if down <= limit)


def _short_group_title(group: str) -> str:
    return "real" if group == REAL else group_title(group).removeprefix("generator ")


def _attention_sentence(
    title: str, pictures: Mapping[str, np.ndarray], cams: Any, means: Mapping[str, np.ndarray]
) -> str:
    parts = [
        f"{label.lower()}, nothing in it speaks for a forgery"
        if empty
        else f"{label.lower()}, most at {strongest_part(strength)}"
        for label, strength, empty in zip(pictures, cams.maps, cams.empty, strict=True)
    ]
    sentence = f"Bright regions speak for a forgery to {title}: {'; '.join(parts)}."
    groups: dict[str, list[str]] = {}
    for group, strength in means.items():
        if group != REAL:
            groups.setdefault(strongest_part(strength), []).append(group_title(group))
    if not groups:
        return f"{sentence} Its mean maps were not measured with the weights that it has now."
    fakes = "; ".join(f"at {where}, in {join_in_words(kinds)}" for where, kinds in groups.items())
    return f"{sentence} Averaged over many fakes it looks most {fakes}."


def draw_views(pictures: Mapping[str, np.ndarray], references: References, detector: str) -> list[TraceView]:
    """Draw all four views; `detector` is the one whose attention is shown."""
    return [
        draw_spectrum_view(pictures, references),
        draw_power_view(pictures, references),
        draw_noise_view(pictures, references),
        draw_attention_view(pictures, references, detector),
    ]
