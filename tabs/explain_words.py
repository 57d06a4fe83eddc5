"""What explanations say, as HTML and sentences, and the tests that go with them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any

from backend.progress import Job, Step
from tabs.words import table

if TYPE_CHECKING:
    from torch import Tensor

    from backend.detectors.card import Detector
    from backend.explain.comparing import Comparison
    from backend.explain.explanation import ExplainSettings, Explanation
    from backend.explain.photo import ExplainedPhoto
    from backend.explain.proof import Proof, ProofSettings

DOUBTS = (
    "**How could this be wrong?** A map shows what changes *this detector's* answer, which need not be what is fake. "
    "Another method, another fill for the hidden parts or another seed may point elsewhere; compare them. Where the "
    "test below makes the score fall no further than random places do, do not believe the map."
)
SHORTCUT_DELTA = 4 / 255  # of pixels in [0, 1]
LAST = 3  # segments of the test that a comparison shows


def about(method: str, seconds: float) -> str:
    """Say what a method does and how long it takes here."""
    from backend.explain import methods

    one = methods.method(method)
    return f"**{one.title}.** {one.about} About {max(1, round(seconds))} seconds on this machine, without the test."


def progress(step: Step) -> str:
    """Return where a running explanation stands."""
    share = step.number / max(1, step.total)
    return (
        f'<div class="progress"><p>{escape(step.message)}</p>'
        f'<progress max="1" value="{share:.3f}" aria-label="{share:.0%} done"></progress></div>'
    )


def proof_settings(seed: int, *, shortcut: bool, tops: tuple[int, ...] = (1, 2, 3), draws: int = 3) -> "ProofSettings":
    """Return the test that goes with a map."""
    from backend.attacks import nes
    from backend.attacks.nes import NESSettings
    from backend.explain.proof import ITERATIONS, ProofSettings

    # PGD does not stop where the verdict turns, so with the full budget every place would do.
    budget = SHORTCUT_DELTA if shortcut else NESSettings.delta
    attack = NESSettings(iterations=ITERATIONS, delta=budget, seed=seed)
    return ProofSettings(tops=tops, attack=nes.white_box(attack) if shortcut else attack, draws=draws, seed=seed)


def tested_maps(
    compare: "Callable[[Tensor, Detector, ExplainSettings], Job[Comparison]]",
    crop: "Tensor",
    detector: "Detector",
    settings: "ExplainSettings",
) -> Job["Comparison"]:
    """Pass on the steps of a comparison, with the sufficiency of every finished map in the step's values."""
    from backend.explain.comparing import Finished
    from backend.explain.proof import prove

    # One test for all, the fast one: eleven slow ones would take minutes.
    test = proof_settings(settings.seed, shortcut=True, tops=(LAST,), draws=0)
    job = compare(crop, detector, settings)
    try:
        while True:
            try:
                step = next(job)
            except StopIteration as end:
                return end.value
            if isinstance(step, Finished) and step.explanation is not None and not step.explanation.degenerate:
                made = step.explanation
                proof = yield from _quietly(prove(crop, detector, made.saliency, made.labels, test), step)
                yield replace(step, values={"sufficiency": float(proof.sufficiency[0])})
            else:
                yield step
    finally:
        job.close()


def _quietly(job: Job["Proof"], step: Step) -> Job["Proof"]:
    """Run a job under the number of a step, so that the progress bar does not jump."""
    try:
        while True:
            try:
                inner = next(job)
            except StopIteration as end:
                return end.value
            yield Step(step.number, step.total, inner.message)
    finally:
        job.close()


def guess_answer(made: "ExplainedPhoto", guess: str) -> str:
    """Compare the visitor's guess with the strongest segment."""
    if not guess or not made.top:
        return ""
    parts = [part for segment in made.top for part in made.parts[segment]]
    if guess in made.parts[made.top[0]]:
        return f"**You guessed: {guess}.** So says the map: its strongest segment lies there."
    if guess in parts:
        return f"**You guessed: {guess}.** Nearly: one of the three strongest segments lies there, not the strongest."
    return f"**You guessed: {guess}.** The map points elsewhere: {', '.join(dict.fromkeys(parts))}."


def proof_table(proof: "Proof | None") -> str:
    """Return the test of a map as a table with its one-paragraph reading."""
    if proof is None:
        return ""
    if proof.already_real:
        return f"<p>{escape(proof.summary)}</p>"
    control = proof.random_mean.tolist() if proof.settings.draws else [float("nan")] * len(proof.settings.tops)
    rows = [
        (
            f"Top {top}" if top > 1 else "The strongest",
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
        "the score fell: higher is better for the map."
    )
    head = ("Segments", "p_fake after", "Sufficiency", "Random places")
    return table(head, rows, caption) + f"<p>{escape(proof.summary)}</p>"


def grid_caption(made: "Explanation", sufficiency: float | None) -> str:
    """Name one map of a comparison, with its test."""
    if made.degenerate:
        return f"{made.title}: nothing to show"
    tested = "" if sufficiency is None else f" · sufficiency {sufficiency:.2f}"
    return f"{made.title}{tested}"


def grid_summary(done: Sequence[tuple["Explanation", float | None]]) -> str:
    """Say which map of a comparison stood the test best."""
    tested = sorted(((fall, made.title) for made, fall in done if fall is not None), reverse=True)
    if not tested:
        return "No map shows anything: the detector calls this face real, or its answer never changes."
    best, worst = tested[0], tested[-1]
    return (
        f"**{len(tested)} maps were tested** by attacking only their {LAST} strongest segments (PGD). The score fell "
        f"most for {best[1]} ({best[0]:.2f}) and least for {worst[1]} ({worst[0]:.2f}). Sufficiency: higher is better "
        "for the map; all on one scale from least (dark blue) to largest (yellow), or from orange (real) to purple "
        "(fake) for signed maps."
    )


def settings_line(record: dict[str, Any]) -> str:
    """Return what is needed to get the same map again."""
    packages = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    asked = record["inferences"]
    return (
        f"Settings: detector {record['detector']}, method {record['method']}, reference {record['reference']}, "
        f"preset {record['preset']}, seed {record['seed']}; {asked['images']} pictures in {asked['calls']} calls; "
        f"{record['seconds']:.1f} seconds; {packages}."
    )


def _p(value: float) -> str:
    return "none" if value != value else f"{value:.2f}"  # noqa: PLR0124 - only a missing value differs from itself


def _signed(value: float) -> str:
    return "none" if value != value else f"{value:+.2f}"  # noqa: PLR0124 - as above
