"""The address that tells a container's keeper whether the app answers, and whether its models are loaded."""

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from backend import runtime
from backend.settings import SETTINGS

PATH = "/health"


def health(_: Request) -> JSONResponse:
    """Say that the app answers, where it runs, and what is loaded; nothing about visitors."""
    loaded = runtime.loaded_names()
    return JSONResponse(
        {"status": "ok", "profile": SETTINGS.profile, "device": str(runtime.device()), "loaded": loaded}
    )


def routes() -> list[Route]:
    """Return the routes to add to the app."""
    return [Route(PATH, health)]
