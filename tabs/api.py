"""The endpoints for programs, which take pictures and return JSON, and the health check."""

from typing import Any

import gradio as gr
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from backend import runtime
from backend.alignment import locate, locate_all
from backend.counterfactual.search import SearchSettings
from backend.detectors import predict
from backend.progress import finish
from backend.settings import SETTINGS
from tabs.events import JOB, VERDICT, with_shown_errors
from tabs.photo import read_photo

MAX_STEPS = 300  # of one call


def health(_: Request) -> JSONResponse:
    """Say that the app answers, where it runs, and what is loaded; nothing about visitors."""
    loaded = runtime.loaded_names()
    return JSONResponse(
        {"status": "ok", "profile": SETTINGS.profile, "device": str(runtime.device()), "loaded": loaded}
    )


def health_routes() -> list[Route]:
    return [Route("/health", health)]


def add_endpoints(
    photo: gr.Image, detector: gr.Dropdown, level: gr.CheckboxGroup, steps: gr.Slider, composite: gr.Radio
) -> None:
    """Add the endpoints; their inputs are the tab's components."""
    answer = gr.JSON(visible=False)
    gr.Button(visible=False).click(
        with_shown_errors(detect, runtime.VERDICT), photo, answer, api_name="detect", **VERDICT
    )
    gr.Button(visible=False).click(
        with_shown_errors(counterfactual),
        [photo, detector, level, steps, composite],
        answer,
        api_name="counterfactual",
        **JOB,
    )


def detect(image: str | None) -> dict[str, Any]:
    """Say what every detector thinks of the faces in a picture.

    Args:
        image: A picture file.

    Returns:
        `faces`, the largest first: `box`, `problem` (why its answers mean nothing, or null), `combined` (the answer
        of several detectors: `grade`, which is none, few, mixed or strong, `p_fake`, `detectors`, `summary`) and
        `verdicts`, by detector `p_fake` in [0, 1] and `verdict` (signs, unsure or no_known_signs). No face: `faces` is
        empty. No answer says that a picture is real.
    """
    judged = predict.judge_faces(locate_all(read_photo(image)))
    return {"faces": [face.record() for face in judged], "note": None if judged else "No face was found."}


def counterfactual(image: str | None, detector: str, level: list[str], steps: float, composite: Any) -> dict[str, Any]:
    """Find what would have to change for a detector to see no signs of forgery in the largest face of a picture.

    Args:
        image: A picture file.
        detector: Name of a detector.
        level: Style levels that may change: S, M or D.
        steps: Most steps, up to 300.
        composite: `transfer` or `reconstruction`.

    Returns:
        The numbers of the search. Pictures are made only in the app, which marks them.
    """
    from backend.counterfactual.photo import find_counterfactual  # its imports would keep the page waiting

    settings = SearchSettings(levels=tuple(level), steps=min(MAX_STEPS, int(steps)), composite=composite)
    settings.check()
    return finish(find_counterfactual(locate(read_photo(image)), detector, settings)).record()
