"""What the backend found, as HTML: verdicts with their error rates, tables and the curve of a search."""

from collections.abc import Iterable, Sequence
from html import escape

from backend.detectors import registry
from backend.detectors.card import Card, verdict
from backend.errors import UserError
from backend.progress import Step
from backend.verdicts import JudgedFace, how_often_wrong, in_words

SCALE = "(0 = real, 1 = fake)"
SIGNS = {"fake": "▲", "real": "●", "uncertain": "?"}  # so that colour is never the only carrier
COUNTED = {"fake": "say fake", "real": "say real", "uncertain": "are uncertain"}
NO_FACE = "No face was found in this picture. Use a photo in which a face is upright, well lit and seen from the front."


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
    counts = ", ".join(f"{calls.count(word)} {say}" for word, say in COUNTED.items() if word in calls)
    head = (
        f"<p>Of {len(calls)} detectors, {counts}. Each of them can be wrong; how often stands beside its verdict.</p>"
    )
    cards = "".join(_card(registry.card(name), score) for name, score in face.p_fake.items())
    return f'{head}<div class="cards">{cards}</div>'


def which_face(faces: Sequence[JudgedFace], number: int) -> str:
    """Say which face was taken."""
    if not faces:
        return ""
    if len(faces) == 1:
        return "One face was found. Beside it is the cut-out that the detectors see."
    which = "the largest one" if number == 1 else f"number {number}, counted from the largest"
    return f"{len(faces)} faces were found, and {which} was taken. You can pick another below."


def refusal(error: UserError) -> str:
    """Say why a photo cannot be used, and what to do."""
    return _no_verdict(str(error))


def _no_verdict(reason: str) -> str:
    return f'<div class="answer" role="alert"><h3>No verdict</h3><p>{escape(reason)}</p></div>'


def _card(card: Card, score: float) -> str:
    word = verdict(score)
    title = escape(card.title)
    return (
        f'<section class="card {word}"><h3>{title}</h3>'
        f'<p class="score"><span aria-hidden="true">{SIGNS[word]}</span> {escape(in_words(score))}</p>'
        f'<meter min="0" max="1" value="{score:.3f}" aria-label="{title}: {score:.2f} {SCALE}"></meter>'
        f"<p><strong>How often it is wrong:</strong> {escape(how_often_wrong(card))}</p>"
        f"<details><summary>More about {title}</summary><p>Learned from: {escape(card.trained_on)}</p>"
        f"<p>Known failures: {escape(card.known_failures)}</p><p>{escape(card.paper)}</p></details></section>"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """Return a table whose first column names the rows."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    return f'<table class="facts"><caption>{escape(caption)}</caption><tr>{top}</tr>{body}</table>'


def listing(items: Iterable[str]) -> str:
    """Return sentences as a list."""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def progress(step: Step, scores: Sequence[float]) -> str:
    """Return where a running search stands: step, sentence and the curve of p_fake so far."""
    label = f"Step {step.number} of at most {step.total}"
    return (
        f'<div class="progress"><p><strong>{label}.</strong> {escape(step.message)}</p>'
        f'<progress max="{max(1, step.total)}" value="{step.number}" aria-label="{label}"></progress>'
        f"{curve(scores, step.total)}</div>"
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
