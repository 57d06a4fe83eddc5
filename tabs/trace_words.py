"""What a removal did, as tables and sentences."""

from html import escape
from typing import TYPE_CHECKING, Any

from backend.detectors import registry
from backend.detectors.card import verdict
from backend.verdicts import how_often_wrong_in_short, in_digits
from tabs.words import SIGNS, table

if TYPE_CHECKING:
    from backend.trace_removal.comparison import Comparison

DOUBTS = (
    "**How could this be wrong?** TR-Net is small and was trained on a few thousand pairs; what it leaves standing may "
    "fall to a larger one. A detector that keeps its verdict may rest on what is in the picture, or on a trace that "
    "TR-Net does not know. Saving the picture again brings some traces back and destroys others. A turned verdict says "
    "that the detector is fragile, and nothing about whether the photo is real."
)

NO_BREAK = "\u00a0"
KEY = ", ".join(f"{sign} {word}" for word, sign in SIGNS.items()) + "."


def verdict_table(record: dict[str, Any]) -> str:
    """Return what every detector says before and after, with how often it is wrong."""
    rows = [
        (
            registry.card(name).title,
            _cell(one["original"]),
            _cell(one["removed"]),
            how_often_wrong_in_short(registry.card(name)),
        )
        for name, one in record["p_fake"].items()
    ]
    caption = "None of these detectors took part in training TR-Net. p_fake: 0 = real, 1 = fake."
    return _wide(table(("Detector", "Before", "After", "How often it is wrong"), rows, caption), "wide told")


def resave_table(record: dict[str, Any]) -> str:
    """Return what the detectors say of the changed face after it was saved again."""
    from backend.trace_removal.resaves import SAVES

    ways = record["resaves"]
    names = list(record["p_fake"])
    rows = [
        (
            registry.card(name).title,
            _short(record["p_fake"][name]["removed"]),
            *(_short(ways[way][name]["removed"]) for way in ways),
        )
        for name in names
    ]
    head = ("Detector", "Not saved again", *(SAVES[way][0] for way in ways))
    caption = f"p_fake of the face without traces, after saving it again. {KEY}"
    return _wide(table(head, rows, caption)) + f"<p>{escape(record['resaves_summary'])}</p>"


def settings_line(record: dict[str, Any]) -> str:
    """Return what is needed to get the same result again."""
    settings = ", ".join(f"{name} {value}" for name, value in record["settings"].items())
    packages = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"Settings of TR-Net: {settings}; {record['seconds']:.1f} seconds; {packages}."


def comparison_table(made: "Comparison") -> str:
    """Return every attack with its likeness and the verdicts after it."""
    names = list(made.p_fake)
    rows = [("The face itself", "", *(_short(made.p_fake[name]) for name in names))]
    rows += [
        (one.title, _likeness(one.psnr, one.ssim), *(_short(one.p_fake[name]) for name in names))
        for one in made.attacks
    ]
    head = ("Attack", "Likeness", *(registry.card(name).title for name in names))
    caption = (
        f"p_fake after every attack. {KEY} Likeness: PSNR and SSIM (1 = the same). FGSM, MIFGSM and PGD know "
        "Xception's gradients, the others know no detector."
    )
    text = _wide(table(head, rows, caption))
    if made.missing:
        text += f"<p>Not installed, so not run: {escape(', '.join(made.missing))}.</p>"
    return text


def _wide(html: str, kind: str = "wide") -> str:
    return f'<div class="{kind}" tabindex="0" role="region" aria-label="Table">{html}</div>'


def _likeness(psnr: float | None, ssim: float | None) -> str:
    return "equal" if psnr is None or ssim is None else f"{psnr:.1f} dB, {ssim:.3f}"


def _cell(score: float) -> str:
    word = verdict(score)
    return f"{SIGNS[word]}{NO_BREAK}{in_digits(score)} {word}"


def _short(score: float) -> str:
    return f"{SIGNS[verdict(score)]}{NO_BREAK}{in_digits(score)}"
