"""What is drawn beside a map: its scale, and the deletion and insertion curves."""

import base64
from html import escape

from backend import images
from backend.explain import pictures
from backend.explain.deletion import Curves
from backend.explain.explanation import Explanation


def curves_figure(curves: Curves | None) -> str:
    """Draw the deletion and insertion curves, with their areas and the reason why they mislead."""
    if curves is None:
        return ""
    width, height, left = 320, 120, 26

    def line(values: list[float]) -> str:
        shares = zip(curves.fractions.tolist(), values, strict=True)
        return " ".join(f"{left + (width - left) * x:.1f},{height * (1 - y):.1f}" for x, y in shares)

    name = (
        f"Probability of {curves.predicted} along the map. Deletion, solid, from {float(curves.deletion[0]):.2f} to "
        f"{float(curves.deletion[-1]):.2f}; insertion, dashed, from {float(curves.insertion[0]):.2f} to "
        f"{float(curves.insertion[-1]):.2f}"
    )
    ticks = "".join(f'<text x="0" y="{height * (1 - at) + 4:.0f}">{at:g}</text>' for at in (0, 0.5, 1))
    return (
        f'<svg class="curve" role="img" aria-label="{escape(name)}" viewBox="0 -10 {width} {height + 36}">{ticks}'
        f'<polyline points="{line(curves.deletion.tolist())}"></polyline>'
        f'<polyline points="{line(curves.insertion.tolist())}" style="stroke:#b45309;stroke-dasharray:6 4"></polyline>'
        f'<text x="{left}" y="{height + 20}">0 %</text>'
        f'<text x="{width}" y="{height + 20}" text-anchor="end">100 % of the picture</text></svg>'
        f"<p>The probability of “{curves.predicted}”. Solid, blue: the map's highest pixels are taken away first. "
        f"Dashed, orange: they are put in first.</p><p>{escape(curves.summary)}</p>"
    )


def scale(*, signed: bool, low: str, high: str, middle: str = "") -> str:
    """Draw the scale of a map from left to right, with what its ends mean."""
    bar = base64.b64encode(images.encode_png(pictures.scale_bar(signed=signed))).decode()
    ends = "".join(f"<span>{escape(end)}</span>" for end in (low, middle, high))
    return (
        f'<div style="max-width:420px"><img src="data:image/png;base64,{bar}" alt="" style="width:100%;height:12px">'
        f'<div class="note" style="display:flex;justify-content:space-between;gap:8px">{ends}</div></div>'
    )


def scale_of(made: Explanation) -> str:
    """Draw the scale of one map, with the numbers at its ends."""
    low, high = float(made.saliency.min()), float(made.saliency.max())
    if not made.signed:
        return scale(signed=False, low=f"least: {low:.2g}", high=f"largest: {high:.2g}")
    largest = max(abs(low), abs(high))
    towards = made.settings.towards
    other = "real" if towards == "fake" else "fake"
    return scale(
        signed=True, low=f"for {other}: -{largest:.2g}", middle="for neither: 0", high=f"for {towards}: {largest:.2g}"
    )


def grid_scales(towards: str) -> str:
    """Draw the two scales of a comparison."""
    other = "real" if towards == "fake" else "fake"
    signed = scale(signed=True, low=f"for {other}", middle="for neither", high=f"for {towards}")
    return (
        f"<p>LIME and SHAP, which know both directions:</p>{signed}"
        f"<p>All others:</p>{scale(signed=False, low='least', high='largest of the map')}"
    )
