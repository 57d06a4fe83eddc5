"""`python -m backend remove-traces`: one removal from a file to a folder of marked pictures."""

import argparse
import json
from collections.abc import Callable
from typing import Any

from backend import images, provenance, weights
from backend.errors import UserError
from backend.progress import Step, finish
from backend.trace_removal import bundle, trnet


def require_trained() -> None:
    """Say how to train TR-Net where its weights are not installed.

    Raises:
        UserError: There is no entry in the registry.
    """
    if trnet.ENTRY not in weights.entries():
        raise UserError("TR-Net is not trained yet, so no traces can be removed.", f"Train it with: {trnet.TRAINING}.")


def run(options: argparse.Namespace, on_step: Callable[[Step], None]) -> dict[str, Any]:
    """Remove the traces of a face of `options.image`, write pictures and `result.json`, and return the result."""
    require_trained()
    made = finish(bundle.make(images.read(options.image), options.face, strength=options.strength), on_step)
    answer = made.record | {"image": options.image.name, "marked": True}
    files = {}
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        for name, picture in made.pictures().items():
            path = options.out / f"{name}.png"
            # The crop alone is the visitor's own picture.
            content = images.encode_png(picture) if name == "crop" else provenance.marked_png(picture, answer)
            path.write_bytes(content)
            files[name] = str(path)
        files["result"] = str(options.out / "result.json")
        answer["files"] = files
        (options.out / "result.json").write_text(json.dumps(answer, indent=1), encoding="utf-8")
    except OSError:
        raise UserError("The pictures could not be written.", "Choose another folder with --out.") from None
    return answer
