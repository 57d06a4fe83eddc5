"""What explanations say, as HTML and sentences."""

from collections.abc import Sequence
from html import escape
from typing import Any

from backend.explain import methods
from backend.explain.comparing import Comparison
from backend.explain.comparing_pairs import PairComparison
from backend.explain.photo import ExplainedPhoto
from backend.explain.proof import LEAD, Proof
from backend.explain.segments import places_in_words
from tabs.explain_tests import LAST, Tested
from tabs.words import SCALE, table

DOUBTS = (
    "**How could this be wrong?** A map shows what changes *this detector's* answer, which need not be what is fake. "
    "Another method, another fill for the hidden parts or another seed may point elsewhere; compare them. Where the "
    "test makes the score fall no further than random places do, do not believe the map."
)
PAIR_DOUBTS = (
    "<strong>How could this be wrong?</strong> This is one face and one fake, and the attack saw the detector's "
    "gradients. Where the two photos are not in the same position, the places do not match. The protocol “Maps of "
    "real photos, tested on their fakes” under Evaluate measures many pairs."
)
UNTESTED = (
    "This map was not put to the test: that was not asked for under More options, or the map explains another verdict "
    "than the detector gave."
)
QUICK_AND_FULL = (
    "Quick asks about a quarter as many pictures. On three fakes it ranked the segments nearly as the full count does: "
    "rank correlations of 0.78 (LIME) to 0.94 (RISE)."  # benchmarks/maps.py; all of them stand in the model card
)
USUAL = "LIME, SHAP, SOBOL and RISE explain only the verdict that a detector gave, and “real” with their usual fill."


def about(method: str, seconds: float | None, every: float | None) -> str:
    """Say what a method does, and how long it and all methods take here, with their tests, where that is known."""
    one = methods.method(method)
    said = f"**{one.title}.** {one.about}"
    if seconds is None or every is None:
        return said
    return (
        f"{said} About {_seconds(seconds)} on this machine; a comparison of all methods takes about {_seconds(every)}."
    )


def _seconds(seconds: float) -> str:
    if seconds >= 120:
        return f"{round(seconds / 60)} minutes"
    return "1 second" if seconds < 1.5 else f"{round(seconds)} seconds"


def found(made: ExplainedPhoto) -> str:
    """Say in a few sentences where the detector looked, and whether the test supports the map."""
    explanation = made.explanation
    parts = [made.about_face] if made.about_face else []
    parts.append(f"p_fake is {explanation.p_fake:.2f} {SCALE}.")
    if explanation.degenerate:
        parts.append(explanation.reason)
        if not explanation.explains_verdict:
            parts.append("Under More options, the other verdict can be explained.")
    else:
        towards = explanation.settings.towards
        places = places_in_words(made.top, made.parts, numbered=True)
        parts.append(
            f"**By {explanation.title}, these places speak most for “{towards}”: {places}.**"
            if made.top
            else f"No place speaks for “{towards}”; the map shows what speaks against it."
        )
    if explanation.caution:
        parts.append(explanation.caution)
    if made.proof is not None and (lead := made.proof.lead) is not None:
        parts.append(f"The test below {support_in_words(lead)}.")
    return " ".join(parts)


def support_in_words(lead: float) -> str:
    """Say what a test does for its map, by how much further p_fake fell than in random places."""
    if lead <= 0:
        return "does not support the map"
    return "supports the map" if lead >= LEAD else "is too close to tell whether the map is right"


def hidden_parts(made: ExplainedPhoto) -> str:
    """Say what stood in for hidden parts, and what an attack did to the face for it."""
    explanation = made.explanation
    if not explanation.reference_words:
        return ""
    score = f" Its p_fake is {explanation.p_reference:.2f} {SCALE}." if explanation.p_reference is not None else ""
    parts = [f"Hidden parts showed {explanation.reference_words}.{score}", explanation.attack_words]
    if made.difference is not None:
        parts.append(made.difference.caption)
    return "\n\n".join(part for part in parts if part)


def guess_answer(made: ExplainedPhoto, guess: str) -> str:
    """Compare the visitor's guess with the strongest segment."""
    if not guess or not made.top:
        return ""
    parts = [part for segment in made.top for part in made.parts[segment]]
    if guess in made.parts[made.top[0]]:
        return f"**You guessed: {guess}.** So says the map: its strongest segment lies there."
    if guess in parts:
        return f"**You guessed: {guess}.** Nearly: one of the three strongest segments lies there, not the strongest."
    return f"**You guessed: {guess}.** The map points elsewhere: {', '.join(dict.fromkeys(parts))}."


def proof_table(proof: Proof | None) -> str:
    """Return the test of a map as a table with its one-paragraph reading."""
    if proof is None:
        return ""
    if proof.already_real:
        return f"<p>{escape(proof.summary)}</p>"
    control = proof.random_mean.tolist() if proof.settings.draws else [float("nan")] * len(proof.settings.tops)
    rows = [
        (
            f"Strongest {top}" if top > 1 else "The strongest",
            _p(after),
            _signed(fall),
            _signed(random),
        )
        for top, after, fall, random in zip(
            proof.settings.tops, proof.p_after.tolist(), proof.sufficiency.tolist(), control, strict=True
        )
    ]
    caption = (
        f"p_fake was {proof.p_before:.2f}. Only these segments were attacked ({proof.attack}). Sufficiency is how far "
        "p_fake fell: higher is better for the map."
    )
    head = ("Segments", "p_fake after", "Sufficiency", "Random places")
    return table(head, rows, caption) + f"<p>{escape(proof.summary)}</p>"


def pair_table(found: PairComparison) -> str:
    """Return how far the fake's score falls for every method, the furthest first, with random places for comparison."""
    said = f"<p>{escape(found.summary)}</p>"
    if not found.done:
        return said
    tops = found.settings.pair.proof.tops
    falls = [(made.method.title, proof.proof.sufficiency.tolist()) for made, proof in found.done if proof is not None]
    falls.append(("Random places", found.random_mean.tolist()))
    falls.sort(key=lambda one: one[1][-1], reverse=True)
    rows = [(title, *map(_signed, own)) for title, own in falls]
    rows += [(made.method.title, *["no map"] * len(tops)) for made, proof in found.done if proof is None]
    reasons = sorted({made.reason for made, _ in found.done if made.degenerate})
    caption = (
        f"How far p_fake of the fake falls ({found.p_fake_photo:.2f} before) when only the "
        f"{', '.join(map(str, tops))} segments that speak most for “real” in the real photo are attacked in the fake. "
        "Further is better; a map below the random places is not to be believed here."
    )
    shown = table(("Map", *(f"Top {top}" for top in tops)), rows, caption)
    why = "".join(f"<p>{escape(reason)}</p>" for reason in reasons)
    return f'{said}<div class="wide">{shown}</div>{why}<p>{PAIR_DOUBTS}</p>'


def grid_caption(one: Tested, title: str = "") -> str:
    """Name one map of a comparison, with its test; its own title where no other is given."""
    title = title or one.explanation.title
    if one.explanation.degenerate:
        return f"{title}: nothing to show"
    return title if one.sufficiency is None else f"{title} · sufficiency {one.sufficiency:.2f}"


def grid_summary(done: Sequence[Tested]) -> str:
    """Say which map of a comparison stood the test best, and why some show nothing."""
    tested = sorted(
        ((one.sufficiency, one.explanation.title) for one in done if one.sufficiency is not None), reverse=True
    )
    reasons = " ".join(sorted({one.explanation.reason for one in done if one.explanation.degenerate}))
    if not tested:
        shown = sum(not one.explanation.degenerate for one in done)
        return f"{shown} of {len(done)} maps show something; none was tested. {reasons}".strip()
    best, worst = tested[0], tested[-1]
    random = [one.random for one in done if one.random is not None]
    chance = f", and by {sum(random) / len(random):.2f} on average for random places of the same size" if random else ""
    return (
        f"**{len(tested)} maps were tested** by attacking only their {LAST} strongest segments (PGD). p_fake fell most "
        f"for {best[1]} ({best[0]:.2f}) and least for {worst[1]} ({worst[0]:.2f}){chance}. *Sufficiency* is this fall: "
        f"higher is better for the map. {reasons}"
    ).strip()


def settings_line(record: dict[str, Any]) -> str:
    """Return what is needed to get the same map again."""
    packages = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    asked, precision = record["inferences"], record["precision"]
    numbers = f" {precision['dtype']} ({precision['reason'].rstrip('.')});" if precision else ""
    return (
        f"Settings: detector {record['detector']}, method {record['method']}, verdict {record['towards']}, "
        f"reference {record['reference']}, preset {record['preset']}, seed {record['seed']}; {asked['images']} "
        f"pictures in {asked['calls']} calls;{numbers} {record['seconds'] + record['attack_seconds']:.1f} seconds; "
        f"{packages}."
    )


def comparison_line(whole: Comparison) -> str:
    """Return what is needed to get the same comparison again."""
    chosen, asked = whole.settings, whole.inferences
    attack = f" One adversarial image served all maps. {whole.attacked.summary}" if whole.attacked else ""
    return (
        f"Settings: detector {whole.detector}, verdict {chosen.towards}, preset {chosen.preset}, seed {chosen.seed}; "
        f"{asked.images} pictures in {asked.calls} calls; {whole.seconds:.1f} seconds with the tests.{attack}"
    )


def _p(value: float) -> str:
    return "none" if value != value else f"{value:.2f}"  # noqa: PLR0124 - only a missing value differs from itself


def _signed(value: float) -> str:
    return "none" if value != value else f"{value:+.2f}"  # noqa: PLR0124 - as above
