"""What a search over a video found, as HTML: where it stands, and every frame's scores as a picture and a table."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from backend.detectors import registry
from backend.detectors.card import verdict
from tabs.words import SCALE, in_rows, table

if TYPE_CHECKING:
    from backend.counterfactual.film_result import Film, FilmFrame

WIDTH, HEIGHT, LEFT = 320, 120, 26
LEGEND = (
    "<p>Scores, frame by frame: <strong>○ before</strong> (dashed line) and <strong>● after</strong> (full line). The "
    "dashed line at 0.5 is where the verdict turns. A gap is a frame that was skipped.</p>"
)


def scores(frames: Sequence["FilmFrame"]) -> str:
    """Draw p_fake of every frame before and after, as a picture that a screen reader can name."""
    known = [frame for frame in frames if frame.p_original is not None and frame.p_counterfactual is not None]
    if not known:
        return ""
    before, after = (
        [(frame.number, getattr(frame, name)) for frame in known] for name in ("p_original", "p_counterfactual")
    )
    count = len(frames)
    name = (
        f"Scores of {len(known)} of {count} frames {SCALE}: before, {_range(before)}; after the search, {_range(after)}"
    )
    ticks = "".join(f'<text x="0" y="{HEIGHT * (1 - at) + 4:.0f}">{at:g}</text>' for at in (0, 0.5, 1))
    half = HEIGHT / 2
    return (
        f'<svg class="curve film" role="img" aria-label="{escape(name)}" viewBox="0 -10 {WIDTH} {HEIGHT + 20}">{ticks}'
        f'<line x1="{LEFT}" x2="{WIDTH}" y1="{half}" y2="{half}" class="threshold"></line>'
        f"{_line(before, count, 'before')}{_line(after, count, 'after')}</svg>{LEGEND}"
    )


def frame_table(frames: Sequence["FilmFrame"]) -> str:
    """Return the scores of every frame as a table, folded away."""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Frame", "Before", "After", "In the saved video"))
    return (
        "<details><summary>The scores as a table</summary>"
        f'<table class="facts frames"><caption>p_fake of every frame {SCALE}</caption><tr>{head}</tr>'
        f"{''.join(map(_frame_row, frames))}</table></details>"
    )


def retest(film: "Film") -> str:
    """Return what share of the frames each detector calls fake, before and after."""
    title = "<h3>What the other detectors say</h3>"
    if not film.retested:
        return f"{title}<p>There is no other detector to ask.</p>"
    own = film.searched_against
    rows = [
        (registry.card(one.detector).title + note, f"{one.fake_before:.0%}", f"{one.fake_after:.0%}")
        for note, one in ((" (searched against)", own), *(("", one) for one in film.retested))
    ]
    caption = (
        f"Share of the {own.frames} searched frames that a detector calls fake, before they were saved as a video."
    )
    return title + table(("Detector", "Before", "After"), rows, caption)


def settings_line(record: dict) -> str:
    """Return everything that is needed to get the same result again."""
    settings, versions = record["settings"], record["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"Settings: detector {record['detector']}, generator {record['generator']}, levels "
        f"{','.join(settings['levels'])}, at most {settings['steps']} steps for {record['batch']} frames together, "
        f"epsilon {record['epsilon']:g}{in_rows(record)}, kappa {settings['kappa']:g}, "
        f"composite {settings['composite']}; "
        f"{record['seconds']:.1f} seconds; {packages}."
    )


def _frame_row(frame: "FilmFrame") -> str:
    name = f'<th scope="row">{frame.number} ({frame.time:.1f} s)</th>'
    if frame.skipped:
        return f'<tr>{name}<td colspan="3">{escape(frame.skipped)}</td></tr>'
    scores = (frame.p_original, frame.p_counterfactual, frame.p_saved)
    return f"<tr>{name}{''.join(f'<td>{_cell(score)}</td>' for score in scores)}</tr>"


def _line(points: Sequence[tuple[int, float]], count: int, kind: str) -> str:
    """Return one line with a mark at every frame, broken where frames are missing."""
    runs: list[list[tuple[float, float]]] = []
    last = None
    for number, score in points:
        if last is None or number != last + 1:
            runs.append([])
        runs[-1].append((LEFT + 4 + (WIDTH - LEFT - 8) * (number - 1) / max(1, count - 1), HEIGHT * (1 - score)))
        last = number
    lines = "".join(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in run)}"></polyline>' for run in runs)
    marks = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"></circle>' for run in runs for x, y in run)
    return f'<g class="{kind}">{lines}{marks}</g>'


def _range(points: Sequence[tuple[int, float]]) -> str:
    values = [score for _, score in points]
    return f"from {min(values):.2f} to {max(values):.2f}, on average {sum(values) / len(values):.2f}"


def _cell(score: float | None) -> str:
    return "" if score is None else f"{score:.2f} {verdict(score)}"
