"""The endpoints for programs: pictures in, JSON out."""

from typing import Any

import gradio as gr

from backend import verdicts
from backend.counterfactual.search import SearchSettings
from backend.progress import finish
from tabs.common import MODEL, VERDICT, answered, photo_from

MAX_STEPS = 300  # of one call


def add(photo: gr.Image, detector: gr.Dropdown, level: gr.CheckboxGroup, steps: gr.Slider, composite: gr.Radio) -> None:
    """Add the endpoints, which take the tab's own components as their inputs."""
    answer = gr.JSON(visible=False)
    gr.Button(visible=False).click(answered(detect), photo, answer, api_name="detect", **VERDICT)
    gr.Button(visible=False).click(
        answered(counterfactual),
        [photo, detector, level, steps, composite],
        answer,
        api_name="counterfactual",
        **MODEL,
    )


def detect(image: str | None) -> dict[str, Any]:
    """Say what every detector thinks of the faces in a picture.

    Args:
        image: A picture file.

    Returns:
        `faces`, the largest first: `box`, `problem` (why its verdicts should not be trusted, or null) and `verdicts`,
        by detector `p_fake` in [0, 1] and `verdict` (real, fake or uncertain). No face: `faces` is empty.
    """
    judged = verdicts.judge(photo_from(image))
    return {"faces": [_face(face) for face in judged], "note": None if judged else "No face was found."}


def counterfactual(
    image: str | None,
    detector: str,
    level: list[str],
    steps: float,
    composite: Any,
) -> dict[str, Any]:
    """Search what would have to change for a detector to call the largest face of a picture real.

    Args:
        image: A picture file.
        detector: Name of a detector.
        level: Style levels that may change, of S, M and D.
        steps: How many steps at most, up to 300.
        composite: `transfer` or `reconstruction`.

    Returns:
        The numbers of the search; its pictures are made only in the app, where they are marked.
    """
    from backend.counterfactual.story import explain_photo  # its imports would keep the page waiting

    settings = SearchSettings(levels=tuple(level), steps=min(MAX_STEPS, int(steps)), composite=composite)
    return finish(explain_photo(photo_from(image), detector, settings)).record()


def _face(face: verdicts.JudgedFace) -> dict[str, Any]:
    words = face.verdicts()
    return {
        "box": [round(float(value), 1) for value in face.aligned.face.box],
        "problem": face.problem,
        "verdicts": {name: {"p_fake": score, "verdict": words[name]} for name, score in face.p_fake.items()},
    }
