"""The commands for one file: `detect`, `counterfactual` (of a picture or a video), `explain` and `remove-traces`.

The packages of the models take seconds to import, so each command imports what it needs.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer

from backend import images, provenance
from backend.alignment import locate
from backend.cli.options import Answer, Detector, Face, Image, JsonFlag, PictureFolder, show_step, write_files
from backend.errors import UserError
from backend.progress import finish

if TYPE_CHECKING:
    from backend.counterfactual.search import SearchSettings


def detect(
    *,
    pictures: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="pictures, videos, folders, or https addresses where allowed")
    ],
    detector: Annotated[str | None, typer.Option(metavar="NAME", help="list only this detector")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="write one row a face")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="write a page to print (HTML)")] = None,
    _json: JsonFlag = False,
) -> Answer:
    """Look for signs of forgery in the faces of pictures and videos."""
    from backend import detection
    from backend.detectors import registry

    if detector and detector not in {*registry.loadable(), *registry.loadable("all")}:
        raise UserError(f"There is no detector named {detector}.", f"Choose one of: {', '.join(registry.loadable())}.")
    job = detection.detect_sources(pictures, [detector] if detector else None)
    detected = finish(job, show_step) if len(pictures) > 1 or Path(pictures[0]).is_dir() else finish(job)
    for one in detected:
        if one.error is not None:
            print(f"{one.name}: {one.error} {one.hint}", file=sys.stderr)
    files: dict[str, str] = {}
    for name, path, write in (("csv", csv, detection.to_csv), ("report", report, detection.report_html)):
        if path is not None:
            files |= write_files(path.parent, {path.name: write(detected).encode()})
            files[name] = files.pop(path.stem)
    return {
        "results": [one.record() for one in detected],
        "files": files,
        "summary": "\n".join(detection.summary_lines(one for one in detected if one.error is None)),
        "exit": 2 if all(one.error is not None for one in detected) else 0,
    }


def counterfactual(
    *,
    image: Annotated[Path | None, typer.Argument(metavar="IMAGE")] = None,
    video: Annotated[
        Path | None, typer.Option(metavar="FILE", help="a video of up to 10 seconds instead of a picture")
    ] = None,
    detector: Detector,
    out: PictureFolder,
    question: Annotated[
        Literal["smallest", "visible", "paper"],
        typer.Option(
            help="the smallest change; a change that one can see, against several detectors; or the paper's search"
        ),
    ] = "smallest",
    level: Annotated[str | None, typer.Option(help="style levels that may change (default: S,M,D)")] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="length of a step in the codes (default: the generator's)")
    ] = None,
    lengths: Annotated[
        Literal["visible", "equal"] | None,
        typer.Option(
            help="steps in the rows of a code: shorter where our generator reacts more, or equal as published"
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="steps at most (default: 100; for a video 40)")] = None,
    composite: Annotated[Literal["transfer", "reconstruction"] | None, typer.Option()] = None,
    inversion: Annotated[
        Literal["codes", "features"] | None,
        typer.Option(help="what stands for the face: codes alone, or with features that no code describes"),
    ] = None,
    face: Face = None,
    refine: Annotated[int | None, typer.Option(metavar="N", help="steps for a closer reconstruction first")] = None,
    tune: Annotated[int | None, typer.Option(metavar="N", help="steps that tune a copy of the generator")] = None,
    generator: Annotated[
        str | None, typer.Option(metavar="NAME", help="one from the Hub, for example ffhq_1024 (default: ours)")
    ] = None,
    unmarked: Annotated[bool, typer.Option("--unmarked", help="leave out the visible mark, for research")] = False,
    _json: JsonFlag = False,
) -> Answer:
    """Search what would take a face below a detector's threshold."""
    from backend.counterfactual import photo as counterfactual_photo
    from backend.counterfactual.search import QUESTIONS, parse_levels
    from backend.counterfactual.video import VIDEO_STEPS
    from backend.generators.inversion import load_inverter

    if (image is None) == (video is None):
        raise UserError("Give either a picture or a video.", "Name one picture, or one video after --video.")
    given: dict[str, Any] = {
        "levels": None if level is None else parse_levels(level),
        "epsilon": epsilon,
        "lengths": lengths,
        "steps": VIDEO_STEPS if video is not None and steps is None else steps,
        "composite": composite,
        "inversion": inversion,
        "refine": refine,
        "tune": tune,
    }
    settings = replace(QUESTIONS[question], **{name: value for name, value in given.items() if value is not None})
    marked = not unmarked
    if video is not None:
        if tune or generator:
            raise UserError("--tune and --generator belong to a picture.", "Leave them out for a video.")
        if question != "smallest":
            raise UserError("A video is searched for the smallest change.", "Leave out --question for a video.")
        if face is not None:
            raise UserError("--face belongs to a picture.", "In a video, the largest face is followed.")
        return _video_counterfactual(video, detector, settings, out, marked=marked)
    assert image is not None
    counterfactual_photo.load_detector(detector)
    located = locate(images.read(image), face)
    inverter = load_inverter(generator) if generator else None
    team = counterfactual_photo.ask_team(located, detector) if question == "visible" else None
    job = counterfactual_photo.find_counterfactual(located, detector, settings, team=team, inverter=inverter)
    result = finish(job, show_step)
    answer = result.record() | {"image": image.name, "marked": marked, "question": question}
    pictures = counterfactual_photo.bundle_counterfactual(result).pictures()
    encode = provenance.marked_png if marked else provenance.unmarked_png
    return _write_pictures(out, pictures, answer, lambda picture: encode(picture, answer))


def _video_counterfactual(path: Path, detector: str, settings: "SearchSettings", out: Path, *, marked: bool) -> Answer:
    """Search a counterfactual for every frame of a video; interrupted from the keyboard, write what was done so far."""
    from backend import video
    from backend.counterfactual.video import VideoSearch

    search = VideoSearch(finish(video.read_video(path), show_step), detector, settings, marked=marked)
    try:
        result = finish(search.run(), show_step)
    except KeyboardInterrupt:
        partial = search.so_far()
        if partial is None:
            raise
        result = partial
    answer = result.record() | {"video": path.name, "marked": marked}
    contents = {"frames.zip": result.zip(marked=marked), "result.json": _json_bytes(answer)}
    if result.mp4:
        contents = {"counterfactual.mp4": result.mp4} | contents
    files = write_files(out, contents, stale=() if result.mp4 else ("counterfactual.mp4",))
    answer["files"] = {"video" if kind == "counterfactual" else kind: file for kind, file in files.items()}
    return answer


def explain(
    *,
    image: Image,
    detector: Detector,
    method: Annotated[str, typer.Option(metavar="NAME", help="lime, shap, sobol, rise, gradcam, ...")],
    reference: Annotated[
        Literal["original", "adversarial"],
        typer.Option(help="what a hidden part shows: the method's usual fill, or the face after an attack"),
    ] = "adversarial",
    preset: Annotated[Literal["quick", "full", "as_released"], typer.Option()] = "quick",
    towards: Annotated[Literal["fake", "real"], typer.Option(help="the verdict to explain")] = "fake",
    shortcut: Annotated[
        bool, typer.Option("--shortcut", help="attack with the detector's gradient instead of NES")
    ] = False,
    sufficiency: Annotated[
        bool, typer.Option("--sufficiency", help="attack only the highest segments, to test the map")
    ] = False,
    proof: Annotated[bool, typer.Option("--proof", hidden=True)] = False,
    face: Face = None,
    seed: int = 0,
    out: PictureFolder,
    _json: JsonFlag = False,
) -> Answer:
    """Show where a detector looked."""
    from backend.detectors import registry
    from backend.explain.explanation import ExplainSettings
    from backend.explain.photo import explain_photo, explanation_files
    from backend.explain.sufficiency import sufficiency_settings

    settings = ExplainSettings(
        method=method, reference=reference, preset=preset, seed=seed, towards=towards, shortcut=shortcut
    )
    test = sufficiency_settings(seed, shortcut=shortcut) if sufficiency or proof else None
    registry.load(detector)
    result = finish(explain_photo(locate(images.read(image), face), detector, settings, test), show_step)
    answer = result.record() | {"image": image.name}
    files = write_files(out, explanation_files(result, answer))
    answer |= {"map": files["map"], "overlay": files["overlay"]}
    return _write_result(out, answer, files)


def remove_traces(
    *,
    image: Image,
    out: PictureFolder,
    face: Face = None,
    strength: Annotated[float, typer.Option(metavar="X", help="factor on TR-Net's change, 0.25 to 2")] = 1.0,
    _json: JsonFlag = False,
) -> Answer:
    """Remove the traces of a fake face with TR-Net."""
    from backend.trace_removal import removal

    removal.require_trnet()
    result = finish(removal.run_removal(locate(images.read(image), face), strength=strength), show_step)
    answer = result.record | {"image": image.name, "marked": True}
    return _write_pictures(out, result.pictures(), answer, lambda picture: provenance.marked_png(picture, answer))


def _write_pictures(
    out: Path, pictures: Mapping[str, np.ndarray], answer: Answer, encode: Callable[[np.ndarray], bytes]
) -> Answer:
    """Write pictures, of which the crop alone is the visitor's own and stays unmarked, and `result.json`."""
    contents = {
        f"{name}.png": images.encode_png(picture) if name == "crop" else encode(picture)
        for name, picture in pictures.items()
    }
    return _write_result(out, answer, write_files(out, contents))


def _write_result(out: Path, answer: Answer, files: dict[str, str]) -> Answer:
    """Write `result.json`, which names all files, and return its content."""
    answer = answer | {"files": files | {"result": str(out / "result.json")}}
    write_files(out, {"result.json": _json_bytes(answer)})
    return answer


def _json_bytes(answer: Answer) -> bytes:
    return json.dumps(answer, indent=1).encode()
