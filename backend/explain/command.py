"""`python -m backend explain`: one explanation from a file to a map, its pictures and `result.json`."""

import argparse
import json
from collections.abc import Callable
from typing import Any

from backend import images
from backend.errors import UserError
from backend.explain.bundle import contents
from backend.explain.explanation import ExplainSettings
from backend.explain.photo import explain_photo
from backend.progress import Step, finish


def run(options: argparse.Namespace, on_step: Callable[[Step], None]) -> dict[str, Any]:
    """Explain a face of `options.image`, write map, pictures and `result.json`, and return the result."""
    settings = ExplainSettings(
        method=options.method,
        reference=options.reference,
        preset=options.preset,
        seed=options.seed,
        towards=options.towards,
        shortcut=options.shortcut,
    )
    proof = None
    if options.proof:
        from backend.explain.proof import proof_settings

        proof = proof_settings(options.seed, shortcut=options.shortcut)
    photo = images.read(options.image)
    made = finish(explain_photo(photo, options.detector, settings, options.face, proof), on_step)
    answer = made.record() | {"image": options.image.name}
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        files = {}
        for name, content in contents(made, answer).items():
            (options.out / name).write_bytes(content)
            files[name.partition(".")[0]] = str(options.out / name)
        answer |= {"map": files["map"], "overlay": files["overlay"]}
        answer["files"] = files | {"result": str(options.out / "result.json")}
        (options.out / "result.json").write_text(json.dumps(answer, indent=1), encoding="utf-8")
    except OSError:
        raise UserError("The pictures could not be written.", "Choose another folder with --out.") from None
    return answer
