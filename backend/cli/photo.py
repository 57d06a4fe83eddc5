"""`counterfactual` (of a picture or a video), `explain` and `remove-traces`: from a file to a folder of results."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backend import images, provenance
from backend import video as backend_video
from backend.alignment import locate
from backend.counterfactual import photo, search, video
from backend.counterfactual.photo import PhotoCounterfactual, find_counterfactual, load_detector
from backend.counterfactual.search import SearchSettings
from backend.counterfactual.video import VideoCounterfactual, VideoSearch
from backend.detectors import registry
from backend.errors import UserError
from backend.explain.explanation import ExplainSettings
from backend.explain.photo import explain_photo, explanation_files
from backend.generators import inversion
from backend.progress import Step, finish
from backend.trace_removal import removal
from backend.trace_removal.removal import require_trnet


def run_counterfactual(options: argparse.Namespace, on_step: Callable[[Step], None]) -> dict[str, Any]:
    """Search a counterfactual for `options.image`, write pictures and `result.json`, and return the result.

    With `options.video`, do it for a short video.
    """
    if (options.image is None) == (options.video is None):
        raise UserError("Give either a picture or a video.", "Name one picture, or one video after --video.")
    usual = 100 if options.video is None else video.VIDEO_STEPS
    settings = SearchSettings(
        levels=search.parse_levels(options.level),
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
        return run_counterfactual_video(options, settings, on_step)
    settings.check()
    load_detector(options.detector)
    located = locate(images.read(options.image), options.face)
    inverter = inversion.load_inverter(options.generator) if options.generator else None
    story = finish(find_counterfactual(located, options.detector, settings, inverter=inverter), on_step)
    answer = story.record() | {"image": options.image.name, "marked": not options.unmarked}
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        answer["files"] = _write_counterfactual(story, options.out, answer, marked=not options.unmarked)
    except OSError:
        raise UserError("The pictures could not be written.", "Choose another folder with --out.") from None
    return answer


def _write_counterfactual(
    story: PhotoCounterfactual, out: Path, answer: dict[str, Any], *, marked: bool
) -> dict[str, str]:
    encode = provenance.marked_png if marked else provenance.unmarked_png
    files = {}
    for name, picture in photo.bundle_counterfactual(story).pictures().items():
        content = images.encode_png(picture) if name == "crop" else encode(picture, answer)
        (out / f"{name}.png").write_bytes(content)
        files[name] = str(out / f"{name}.png")
    files["result"] = str(out / "result.json")
    (out / "result.json").write_text(json.dumps(answer, indent=1), encoding="utf-8")
    return files


def run_counterfactual_video(
    options: argparse.Namespace, settings: SearchSettings, on_step: Callable[[Step], None]
) -> dict[str, Any]:
    """Search a counterfactual for every frame of `options.video`, write the results, and return the numbers.

    Interrupted from the keyboard, it writes what was done so far.
    """
    if options.face is not None:
        raise UserError("--face belongs to a picture.", "In a video, the largest face is followed.")
    marked = not options.unmarked
    clip = finish(backend_video.read_video(options.video), on_step)
    search = VideoSearch(clip, options.detector, settings, marked=marked)
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
        answer["files"] = _write_counterfactual_video(film, options.out, answer, marked=marked)
    except OSError:
        raise UserError("The video could not be written.", "Choose another folder with --out.") from None
    return answer


def _write_counterfactual_video(
    film: VideoCounterfactual, out: Path, answer: dict[str, Any], *, marked: bool
) -> dict[str, str]:
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


def run_explain(options: argparse.Namespace, on_step: Callable[[Step], None]) -> dict[str, Any]:
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
        from backend.explain.sufficiency import sufficiency_settings

        proof = sufficiency_settings(options.seed, shortcut=options.shortcut)
    settings.check()
    registry.load(options.detector)
    located = locate(images.read(options.image), options.face)
    made = finish(explain_photo(located, options.detector, settings, proof), on_step)
    answer = made.record() | {"image": options.image.name}
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        files = {}
        for name, content in explanation_files(made, answer).items():
            (options.out / name).write_bytes(content)
            files[name.partition(".")[0]] = str(options.out / name)
        answer |= {"map": files["map"], "overlay": files["overlay"]}
        answer["files"] = files | {"result": str(options.out / "result.json")}
        (options.out / "result.json").write_text(json.dumps(answer, indent=1), encoding="utf-8")
    except OSError:
        raise UserError("The pictures could not be written.", "Choose another folder with --out.") from None
    return answer


def run_remove_traces(options: argparse.Namespace, on_step: Callable[[Step], None]) -> dict[str, Any]:
    """Remove the traces of a face of `options.image`, write pictures and `result.json`, and return the result."""
    require_trnet()
    located = locate(images.read(options.image), options.face)
    made = finish(removal.run_removal(located, strength=options.strength), on_step)
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
