"""`python -m backend counterfactual --video`: one short video to an MP4, its frames and `result.json`."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backend import video
from backend.counterfactual.film import FilmSearch
from backend.counterfactual.film_result import Film
from backend.counterfactual.search import SearchSettings
from backend.errors import UserError
from backend.progress import Step, finish


def run(options: argparse.Namespace, settings: SearchSettings, on_step: Callable[[Step], None]) -> dict[str, Any]:
    """Search a counterfactual for every frame of `options.video`, write the results, and return the numbers.

    Interrupted from the keyboard, it writes what was done so far.
    """
    if options.face is not None:
        raise UserError("--face belongs to a picture.", "In a video, the largest face is followed.")
    marked = not options.unmarked
    clip = finish(video.reading(options.video), on_step)
    search = FilmSearch(clip, options.detector, settings, marked=marked)
    try:
        film = finish(search.run(), on_step)
    except KeyboardInterrupt:
        done = search.so_far()
        if done is None:
            raise
        film = done
    answer = film.record() | {"video": options.video.name, "marked": marked}
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        answer["files"] = _write(film, options.out, answer, marked=marked)
    except OSError:
        raise UserError("The video could not be written.", "Choose another folder with --out.") from None
    return answer


def _write(film: Film, out: Path, answer: dict[str, Any], *, marked: bool) -> dict[str, str]:
    video_file = {"video": ("counterfactual.mp4", film.mp4)} if film.mp4 else {}
    contents = video_file | {
        "frames": ("frames.zip", film.zip(marked=marked)),
        "result": ("result.json", json.dumps(answer, indent=1).encode()),
    }
    if not film.mp4:
        (out / "counterfactual.mp4").unlink(missing_ok=True)  # of an earlier call
    for name, content in contents.values():
        (out / name).write_bytes(content)
    return {kind: str(out / name) for kind, (name, _) in contents.items()}
