"""`python -m backend counterfactual`: one story from a file to a folder of pictures."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backend import images, provenance
from backend.counterfactual import bundle, film, film_command, levels
from backend.counterfactual.search import SearchSettings
from backend.counterfactual.story import Story, explain_photo
from backend.errors import UserError
from backend.generators import choice
from backend.progress import Step, finish


def run(options: argparse.Namespace, on_step: Callable[[Step], None]) -> dict[str, Any]:
    """Search a counterfactual for `options.image`, write pictures and `result.json`, and return the result.

    With `options.video`, do it for a short video.
    """
    if (options.image is None) == (options.video is None):
        raise UserError("Give either a picture or a video.", "Name one picture, or one video after --video.")
    usual = 100 if options.video is None else film.STEPS
    settings = SearchSettings(
        levels=levels.parse(options.level),
        epsilon=options.epsilon,
        lengths=options.lengths,
        steps=usual if options.steps is None else options.steps,
        composite=options.composite,
        refine=options.refine,
        tune=options.tune,
    )
    if options.video is not None:
        if options.tune or options.generator:
            raise UserError("--tune and --generator belong to a picture.", "Leave them out for a video.")
        return film_command.run(options, settings, on_step)
    photo = images.read(options.image)
    inverter = choice.load(options.generator) if options.generator else None
    story = finish(explain_photo(photo, options.detector, settings, options.face, inverter=inverter), on_step)
    answer = story.record() | {"image": options.image.name, "marked": not options.unmarked}
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        answer["files"] = _write(story, options.out, answer, marked=not options.unmarked)
    except OSError:
        raise UserError("The pictures could not be written.", "Choose another folder with --out.") from None
    return answer


def _write(story: Story, out: Path, answer: dict[str, Any], *, marked: bool) -> dict[str, str]:
    encode = provenance.marked_png if marked else provenance.png
    files = {}
    for name, picture in bundle.of(story).pictures().items():
        content = images.encode_png(picture) if name == "crop" else encode(picture, answer)
        (out / f"{name}.png").write_bytes(content)
        files[name] = str(out / f"{name}.png")
    files["result"] = str(out / "result.json")
    (out / "result.json").write_text(json.dumps(answer, indent=1), encoding="utf-8")
    return files
