"""What the backend found, as HTML: verdicts with their error rates, tables and the curve of a search."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from backend.counterfactual import regions
from backend.counterfactual.bundle import Bundle
from backend.counterfactual.levels import WORDS
from backend.counterfactual.regions import RegionChange
from backend.detectors import registry
from backend.detectors.card import THRESHOLD, UNCERTAIN_MARGIN, Card, verdict
from backend.errors import UserError
from backend.progress import Step
from backend.verdicts import JudgedFace, how_often_wrong, how_often_wrong_in_short, in_digits, in_words

SCALE = "(0 = real, 1 = fake)"
SIGNS = {"fake": "▲", "real": "●", "uncertain": "?"}  # so that colour is never the only carrier
UNCERTAIN = (
    f"A score between {THRESHOLD - UNCERTAIN_MARGIN:.2f} and {THRESHOLD + UNCERTAIN_MARGIN:.2f} is called uncertain."
)
COUNTED = {"fake": ("says", "say", "fake"), "real": ("says", "say", "real"), "uncertain": ("is", "are", "uncertain")}
NO_FACE = (
    "No face was found in this picture. Use a photo in which a face is upright, well lit and seen from the front; turn "
    "it first if it lies on its side or stands on its head."
)


def answer(faces: Sequence[JudgedFace], number: int) -> str:
    """Return every detector's verdict on one face, from 1, or the reason why there is none."""
    if not faces:
        return _no_verdict(NO_FACE)
    face = faces[number - 1]
    if face.problem:
        return _no_verdict(f"{face.problem} What the detectors say would mean nothing.")
    if not face.p_fake:
        return _no_verdict("No detector is installed here.")
    calls = list(face.verdicts().values())
    counts = ", ".join(
        f"{calls.count(word)} {one if calls.count(word) == 1 else many} {rest}"
        for word, (one, many, rest) in COUNTED.items()
        if word in calls
    )
    head = (
        f'<p class="said">Of {len(calls)} detectors, {counts}. Each of them can be wrong: how often is said with its '
        f"verdict, and it is more often on photographs from other sources. {UNCERTAIN}</p>"
    )
    cards = "".join(_card(registry.card(name), score) for name, score in face.p_fake.items())
    return f'{head}<div class="cards">{cards}</div>'


def which_face(faces: Sequence[JudgedFace], number: int, listed: int) -> str:
    """Say which face was taken, from 1, and which ones can be: the `listed` largest."""
    if not faces:
        return ""
    if len(faces) == 1:
        return "One face was found. With it is the cut-out that the detectors see."
    which = "the largest one" if number == 1 else f"number {number}, counted from the largest"
    others = "another" if len(faces) <= listed else f"another of the {listed} largest"
    return f"{len(faces)} faces were found, and {which} was taken. You can pick {others} below."


def refusal(error: UserError, title: str = "No verdict") -> str:
    """Say what cannot be done, for example why a photo cannot be used, and what to do."""
    return _no_verdict(str(error), title)


def _no_verdict(reason: str, title: str = "No verdict") -> str:
    return f'<div class="answer" role="alert"><h3>{escape(title)}</h3><p>{escape(reason)}</p></div>'


def _card(card: Card, score: float) -> str:
    word = verdict(score)
    title = escape(card.title)
    mirrored = "<p>It looks at the face and at its mirror image, and judges by both.</p>" if card.mirrored else ""
    return (
        f'<section class="card {word}"><h3>{title}</h3>'
        f'<p class="score"><span aria-hidden="true">{SIGNS[word]}</span> {escape(in_words(score))}</p>'
        f'<meter min="0" max="1" value="{score:.3f}" aria-label="{title}: {score:.2f} {SCALE}"></meter>'
        f"<p><strong>How often it is wrong:</strong> {escape(how_often_wrong_in_short(card))}</p>"
        f"<details><summary>More about {title}</summary><p>{escape(how_often_wrong(card))}</p>"
        f"<p>Learned from: {escape(card.trained_on)}</p>{mirrored}"
        f"<p>Known failures: {escape(card.known_failures)}</p><p>{escape(card.paper)}</p></details></section>"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """Return a table whose first column names the rows."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    return f'<table class="facts"><caption><span>{escape(caption)}</span></caption><tr>{top}</tr>{body}</table>'


def listing(items: Iterable[str]) -> str:
    """Return sentences as a list."""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def progress(step: Step, below: str = "") -> str:
    """Return where a running job stands, with HTML `below` the bar, such as a curve."""
    share = step.number / max(1, step.total)
    return (
        f'<div class="progress"><p>{escape(step.message)}</p>'
        f'<progress max="1" value="{share:.3f}" aria-label="{share:.0%} done"></progress>{below}</div>'
    )


def curve(scores: Sequence[float], total: int) -> str:
    """Draw p_fake over the steps with the threshold, as a small picture that a screen reader can name."""
    if not scores:
        return ""
    width, height, left = 320, 120, 26
    points = " ".join(
        f"{left + (width - left) * number / max(1, total - 1):.1f},{height * (1 - value):.1f}"
        for number, value in enumerate(scores)
    )
    name = f"Curve of p_fake: it began at {scores[0]:.2f} and is at {scores[-1]:.2f} {SCALE}"
    ticks = "".join(f'<text x="0" y="{height * (1 - at) + 4:.0f}">{at:g}</text>' for at in (0, 0.5, 1))
    return (
        f'<svg class="curve" role="img" aria-label="{name}" viewBox="0 -10 {width} {height + 20}">{ticks}'
        f'<line x1="{left}" x2="{width}" y1="{height / 2}" y2="{height / 2}" class="threshold"></line>'
        f'<polyline points="{points}"></polyline></svg>'
        "<p>Curve: the detector's score, step by step. The dashed line at 0.5 is where its verdict turns.</p>"
    )


def result_texts(bundle: Bundle) -> dict[str, str]:
    """Return the text below every picture of a result."""
    record = bundle.record
    p_fake, metrics = record["p_fake"], record["metrics"]
    before, after = record["cam_empty"]["original"], record["cam_empty"]["counterfactual"]
    return {
        "crop": f"**The face**<br>{_short(p_fake['original'])}",
        "inversion": f"**Reconstruction**<br>{_short(p_fake['inversion'])}",
        "counterfactual": f"**Counterfactual**<br>{_short(p_fake['counterfactual'])}",
        "trio": f"Left, what the detector saw. In the middle, what the generator makes of it (its inversion): "
        f"{likeness(metrics)} Right, the face after the search. All numbers: 0 = real, 1 = fake.",
        "residual": f"{bundle.residual().caption} "
        f"{regions.in_words([RegionChange(**one) for one in record['regions']])}",
        "before": record.get("cam_missing") or cam_text("the face", empty=before),
        "after": record.get("cam_missing") or cam_text("the counterfactual", empty=after),
        "pasted": pasted_text(record["p_pasted"]),
    }


def likeness(metrics: Mapping[str, float | None]) -> str:
    """Put the quality of a reconstruction into words."""
    psnr, ssim = metrics["psnr_inversion"], metrics["ssim_inversion"]
    if psnr is None or ssim is None:
        return "it equals the face."
    word = next(word for limit, word in QUALITIES if psnr >= limit)
    return f"{word} ({psnr:.1f} dB PSNR, SSIM {ssim:.2f}; 1 = equal)."


# In dB. Below 20, the person is often not recognised.
QUALITIES = (
    (28.0, "a close likeness"),
    (23.0, "a fair likeness"),
    (19.0, "a rough likeness"),
    (float("-inf"), "a poor likeness, so read what follows with care"),
)


def cam_text(what: str, *, empty: bool) -> str:
    """Say what a Grad-CAM map of `what` shows."""
    if empty:
        return f"For {what}, the map is empty: at this layer, nothing in the picture speaks for “fake”."
    return (
        f"For {what}: yellow regions speak most for “fake”, dark blue ones least. Brightness compares within one map."
    )


def pasted_text(p_fake: float | None) -> str:
    """Say what the detector makes of the whole photo with the changed face."""
    if p_fake is None:
        return "In the whole photo, the face is not found again."
    return f"Found and cut out of the whole photo anew: {in_words(p_fake)}."


def changes(record: dict[str, Any]) -> str:
    """Return what changed in the codes and in the face, as lists."""
    moved = record["latent_change"]["levels"]
    most = max(moved.values()) or 1.0
    opened = record["settings"]["levels"]
    codes = [
        f"{level} ({WORDS[level]}): moved by {value:.3f} on average, {_amount(value / most)}"
        if level in opened
        else f"{level} ({WORDS[level]}): kept closed"
        for level, value in moved.items()
    ]
    parts = [
        f"{REGIONS.get(one['region'], one['region'])}: {one['share']:.0%} of the change "
        f"on {one['area']:.0%} of the picture"
        for one in record["regions"]
    ]
    return (
        "<h3>What changed in the latent code</h3><p>The latent code (W+) is the list of styles that the generator "
        f"draws from.</p>{listing(codes)}<h3>What changed in the face</h3>{listing(parts)}"
    )


REGIONS = {"eyes": "Eyes", "nose": "Nose", "mouth": "Mouth", "skin": "Rest of the face", "surround": "Around the face"}


def _amount(share: float) -> str:
    if share > 0.999:
        return "the most of the three"
    return "about as much" if share > 0.8 else "less" if share > 0.4 else "much less"


def retest(record: dict[str, Any]) -> str:
    """Return what the detectors say that were not attacked, before and after."""
    title = "<h3>What the other detectors say</h3>"
    if not record["retest"]:
        return f"{title}<p>There is no other detector to ask.</p>"
    rows = [
        (registry.card(name).title, _cell(one["original"]), _cell(one["counterfactual"]))
        for name, one in record["retest"].items()
    ]
    caption = "The search did not look at these detectors. p_fake: 0 = real, 1 = fake."
    return title + table(("Detector", "Before", "After"), rows, caption)


def _short(score: float) -> str:
    return in_words(score).split(" (")[0]


def _cell(score: float) -> str:
    return f"{in_digits(score)} {verdict(score)}"


def settings_line(record: dict[str, Any]) -> str:
    """Return everything that is needed to get the same result again."""
    settings, versions = record["settings"], record["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"Settings: detector {record['detector']}, generator {record['generator']}, levels {record['level']}, "
        f"{record['steps']} of at most {settings['steps']} steps, epsilon {record['epsilon']:g}{in_rows(record)}, "
        f"kappa {settings['kappa']:g}, composite {record['composite']}, {settings.get('refine', 0)} steps for a closer "
        f"reconstruction, seed {settings['seed']}; "
        f"{record['seconds']:.1f} seconds; {packages}."
    )


def in_rows(record: dict[str, Any]) -> str:
    """Say that steps differed between rows, where they did."""
    lengths = record.get("lengths") or [record["epsilon"]]
    low, high = min(lengths), max(lengths)
    return f" ({low:g} to {high:g} in single rows)" if low < high else ""
