"""Steps 1 and 2, which all tabs share: choose a photo, and see what the detectors say about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gradio as gr
import numpy as np
from gradio.events import Dependency
from PIL import Image, ImageDraw, ImageFont

from backend import examples, images, runtime
from backend.alignment import LocatedFace, locate_all, locate_known
from backend.detectors import predict, registry
from backend.detectors.base import SCALE, THRESHOLD, UNSURE_MARGIN, Verdict, verdict
from backend.detectors.combination import GRADE_WORDS, GRADES, is_specialist
from backend.detectors.predict import JudgedFace, describe_p_fake
from backend.detectors.rates import COMBINED, NOT_MEASURED, describe_rates, overall_in_words, rates_of
from backend.errors import UserError
from backend.examples import Example
from backend.faces import Face, choose_face
from backend.origin import read_origin
from backend.settings import SETTINGS
from backend.suitability import find_turn_of_photograph
from tabs.components import (
    SHOWN_SIDE,
    SIGNS,
    Updates,
    alert_html,
    fit_to_page,
    photo_input,
    render,
    result_picture,
)
from tabs.events import PRIVATE, QUICK, VERDICT, with_shown_errors
from tabs.visitors import KEPT_PHOTOS, OpenPhoto, session_folder

UNSURE = (
    f"A detector with a score between {THRESHOLD - UNSURE_MARGIN:.2f} and {THRESHOLD + UNSURE_MARGIN:.2f} is unsure."
)
COUNTED: dict[Verdict, tuple[str, str]] = {
    "signs": ("sees signs of forgery", "see signs of forgery"),
    "unsure": ("is unsure", "are unsure"),
    "no_known_signs": ("sees no signs", "see no signs"),
}
NO_COMBINATION = (
    "The combined answer was made for other models than those installed, so only single detectors are shown."
)
NO_FACE = (
    "No face was found in this picture. Use a photo in which the face is upright, well lit and seen from the front."
)
TURNED_FACE = (
    "No face is upright in this picture, so nothing was checked. One would be if the picture were turned: use the "
    "button above."
)
TURNS = {90: "to the right", 180: "upside down", 270: "to the left"}
CONVERTED_SIDE = 2200  # longest side in pixels of pictures that browsers cannot show
ALMOST = 0.98  # of the limit: a PNG file of noise is hardly larger than its pixels
BLUE = "#1d4ed8"
MAX_LISTED = 12  # faces that are marked and can be picked
NUMBER_SIZE = 1 / 22  # of the numbers beside several faces, as a share of the longer side
SHOWN_FORMATS = {"JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP"}  # by browsers
ANIMATED_FORMATS = {"GIF", "PNG", "WEBP", "AVIF"}  # in others, frames are pages of a scan or a camera's previews
MOVING = "The picture is animated; only its first frame was judged."
RULES = (
    "Use a photo of yourself or of someone who has agreed. For teaching and research, not for commercial use. "
    "What you upload is deleted within about an hour, and no history is kept."
)


class PhotoTab(Protocol):
    """What a tab needs to share the photo; another photo cancels the long events in `running`."""

    running: list[Dependency]

    def outputs(self) -> list[Any]:
        """Return what the methods below may update."""

    def show_for_face(self, face: JudgedFace | None) -> Updates:
        """Return the updates for another face, which clear earlier results; None hides the tab's steps."""

    def show_example(self, example: Example, request: gr.Request) -> Updates:
        """Return the updates that show the stored result of an example, if there is one."""


@dataclass
class ChosenPhoto:
    """The photo that a visitor chose last, so that results of an earlier one are never shown beside it."""

    path: str | None = None


class PhotoStep:
    def __init__(self) -> None:
        self.examples = examples.load_examples()
        self.faces = gr.State([])
        self.chosen = gr.State(ChosenPhoto())  # changed in place, so that a handler under way sees it
        self.tabs: Sequence[PhotoTab] = ()
        gr.Markdown("## 1 Choose a photo")
        with gr.Row():
            with gr.Column(min_width=280):
                self.photo = photo_input("Your photo, with a face seen from the front")
                gr.Markdown(RULES, elem_classes="note")
            with gr.Column(min_width=280, visible=bool(self.examples)):
                gr.Markdown("**Or start from an example.** Its result is stored, so there is nothing to wait for.")
                self.gallery = self._gallery()
        with gr.Column(visible=False) as self.answer:
            gr.Markdown("## 2 What the detectors say")
            self.summary = gr.Markdown(elem_classes="status")
            self.origin = gr.HTML()
            self.moving = gr.Markdown(MOVING, visible=False)
            with gr.Row():
                self.faces_picture = gr.AnnotatedImage(
                    label="Faces found", format="png", height=240, buttons=[], show_legend=False, scale=3, min_width=180
                )
                self.crop = result_picture(
                    "What the detectors see",
                    "The face, cut out and turned upright, as the detectors see it",
                    buttons=["fullscreen"],
                    scale=2,
                    min_width=140,
                )
            self.turn = gr.Button("Turn the photo", visible=False)
            self.which = gr.Radio(label="Which face?", info="Numbered from the largest.", visible=False)
            self.verdicts = gr.HTML()

    def _gallery(self) -> gr.Gallery:
        return gr.Gallery(
            [(str(example.photo_path), example.label) for example in self.examples],
            label="Examples",
            show_label=False,
            format="png",
            columns=4,
            height="auto",
            object_fit="cover",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_classes="examples",
        )

    def connect(self, tabs: Sequence[PhotoTab]) -> None:
        """Wire the events, which update every tab."""
        self.tabs = tabs
        quick: dict[str, Any] = {**QUICK, "cancels": [run for tab in tabs for run in tab.running]}
        # The photo alone shows progress and errors, not every component that may change. "multiple": a second photo
        # waits for the verdicts on the first; by default it would be dropped.
        judging: dict[str, Any] = {**VERDICT, **PRIVATE, "show_progress_on": [self.photo], "trigger_mode": "multiple"}
        below = [component for tab in tabs for component in tab.outputs()]
        outputs = [self.photo, self.faces, *self.outputs(), *below]
        self.gallery.select(with_shown_errors(self._example), self.chosen, outputs, **quick).success(
            with_shown_errors(self._look_where_needed, runtime.VERDICT), [self.chosen, self.faces], outputs, **judging
        )
        self.photo.upload(self._choose, [self.chosen, self.photo], outputs, **quick).success(
            with_shown_errors(self._look, runtime.VERDICT), self.chosen, outputs, **judging
        )
        self.photo.clear(self._forget, self.chosen, outputs, **quick)
        self.turn.click(with_shown_errors(self._turn, runtime.VERDICT), self.chosen, outputs, **judging)
        outputs = [*self.outputs(), *below]
        self.which.input(with_shown_errors(self._pick), [self.faces, self.which], outputs, **quick)
        self.faces_picture.select(with_shown_errors(self._click), self.faces, outputs, **quick)

    def _choose(self, chosen: ChosenPhoto, path: str | None) -> Updates:
        if path != chosen.path:
            KEPT_PHOTOS.drop(chosen.path)
        chosen.path = path
        return {self.faces: [], **self.hide(), **self._show_for_face(None)}

    def _look(self, chosen: ChosenPhoto) -> Updates:
        """Show what the detectors say about the chosen photo, unless another was chosen in the meantime."""
        path = chosen.path
        updates = {} if path is None else self._judge(path)
        return updates if updates and chosen.path == path else {self.faces: gr.skip()}

    def _judge(self, path: str) -> Updates:
        try:
            photo = open_photo(path)
        except UserError as error:
            return {self.faces: [], **self._show_for_face(None), **self.refuse(error)}
        faces = predict.judge_faces(photo.faces)
        updates = {
            self.faces: faces,
            **self.show_faces(photo.pixels, faces, turn=photo.turn),
            **self._show_for_face(faces[0] if faces else None),
        }
        updates[self.origin] = origin_html(path)
        if photo.converted:
            updates[self.photo] = photo.pixels
        if photo.animated:
            updates[self.moving] = gr.Markdown(visible=True)
        return updates

    def _turn(self, chosen: ChosenPhoto, request: gr.Request) -> Updates:
        """Turn the chosen photo so that its face is upright, and show what the detectors say."""
        photo = open_photo(chosen.path)
        pixels = images.turned(photo.pixels, photo.turn)
        path = session_folder(request) / "turned.png"
        path.write_bytes(images.encode_png(pixels))
        KEPT_PHOTOS.drop(chosen.path)
        chosen.path = str(path)
        return {**self._judge(chosen.path), self.photo: pixels}

    def _look_where_needed(self, chosen: ChosenPhoto, faces: list[JudgedFace]) -> Updates:
        """Ask the detectors about an example whose stored result no longer fits them."""
        return {self.faces: gr.skip()} if faces else self._look(chosen)

    def _example(self, chosen: ChosenPhoto, event: gr.SelectData, request: gr.Request) -> Updates:
        example = self.examples[event.index]
        KEPT_PHOTOS.drop(chosen.path)
        chosen.path = str(example.photo_path)
        if examples.is_stale(example):
            pixels = images.read(example.photo_path)
            return {self.photo: pixels, self.faces: [], **self.hide(), **self._show_for_face(None)}
        located = example.located()
        pixels, faces = located[0].photo, example.faces()
        KEPT_PHOTOS.put(chosen.path, OpenPhoto(pixels, located))
        updates: Updates = {self.photo: pixels, self.faces: faces}
        updates |= {**self.show_faces(pixels, faces), **self._show_for_face(faces[0])}
        updates[self.origin] = origin_html(chosen.path)
        for tab in self.tabs:
            updates |= tab.show_example(example, request)
        return updates

    def _pick(self, faces: list[JudgedFace], number: int) -> Updates:
        return {**self.show_face(faces, number), **self._show_for_face(faces[number - 1])}

    def _click(self, faces: list[JudgedFace], event: gr.SelectData) -> Updates:
        number = int(event.index) + 1
        return {self.which: number, **self._pick(faces, number)}

    def _forget(self, chosen: ChosenPhoto) -> Updates:
        return self._choose(chosen, None)

    def _show_for_face(self, face: JudgedFace | None) -> Updates:
        usable = face if face is not None and not face.problem and face.p_fake else None
        return {key: value for tab in self.tabs for key, value in tab.show_for_face(usable).items()}

    def show_faces(self, photo: np.ndarray, faces: Sequence[JudgedFace], number: int = 1, *, turn: int = 0) -> Updates:
        """Return the updates of step 2 for one of the faces, counted from 1; `turn` offers to turn the photo."""
        listed = faces[:MAX_LISTED]
        boxes = [_shown_box(photo, face) for face in listed]
        labels = [f"Face {face.number}" for face in listed]
        return {
            self.answer: gr.Column(visible=True),
            self.faces_picture: gr.AnnotatedImage(
                (_number_faces(fit_to_page(photo), boxes), list(zip(boxes, labels, strict=True))),
                visible=True,
                color_map=dict.fromkeys(labels, BLUE),
            ),
            self.which: gr.Radio(
                [(str(face.number), face.number) for face in listed], value=number, visible=len(faces) > 1
            ),
            self.moving: gr.Markdown(visible=False),
            **self.show_face(faces, number),
            **({self.verdicts: alert_html(TURNED_FACE)} if turn and not faces else {}),
            self.turn: gr.Button(f"Turn the photo {TURNS.get(turn, '')}".strip(), visible=bool(turn and not faces)),
        }

    def show_face(self, faces: Sequence[JudgedFace], number: int) -> Updates:
        crop = faces[number - 1].aligned.crop if faces else None
        return {
            self.crop: gr.Image(crop, visible=crop is not None),
            self.summary: which_face_in_words(faces, number, MAX_LISTED),
            self.verdicts: verdicts_html(faces, number),
        }

    def refuse(self, error: UserError) -> Updates:
        return {
            self.answer: gr.Column(visible=True),
            self.faces_picture: gr.AnnotatedImage(None, visible=False),
            self.crop: gr.Image(None, visible=False),
            self.which: gr.Radio(visible=False),
            self.turn: gr.Button(visible=False),
            self.moving: gr.Markdown(visible=False),
            self.summary: "",
            self.origin: "",
            self.verdicts: alert_html(str(error)),
        }

    def hide(self) -> Updates:
        return {self.answer: gr.Column(visible=False), self.verdicts: "", self.summary: "", self.origin: ""}

    def outputs(self) -> list[Any]:
        pictures = [self.faces_picture, self.crop]
        return [self.answer, *pictures, self.turn, self.which, self.summary, self.origin, self.moving, self.verdicts]


def _number_faces(picture: np.ndarray, boxes: Sequence[tuple[int, int, int, int]]) -> np.ndarray:
    """Write the number of every face at its upper left, if there are several."""
    if len(boxes) < 2:
        return picture
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(max(11, round(max(picture.shape) * NUMBER_SIZE)))
    for number, (x0, y0, _, _) in enumerate(boxes, 1):
        _, _, right, lower = pen.textbbox((x0 + 3, y0 + 1), str(number), font=font)
        pen.rectangle((x0, y0, right + 3, lower + 3), fill=BLUE)
        pen.text((x0 + 3, y0 + 1), str(number), fill="white", font=font)
    return np.asarray(canvas)


def _shown_box(photo: np.ndarray, face: JudgedFace) -> tuple[int, int, int, int]:
    """Return the box of a face in the shown photo, cut at its edges."""
    factor = min(1.0, SHOWN_SIDE / max(photo.shape[:2]))
    height, width = (max(1, round(side * factor)) for side in photo.shape[:2])
    x0, y0, x1, y1 = (round(value * factor) for value in face.aligned.face.box)
    return max(0, x0), max(0, y0), min(width, x1), min(height, y1)


def _convert_for_browser(photo: np.ndarray) -> np.ndarray:
    """Return a photo of at most `CONVERTED_SIDE` pixels, small enough to be uploaded again as PNG."""
    side = CONVERTED_SIDE
    while (small := fit_to_page(photo, side)).nbytes > ALMOST * SETTINGS.max_bytes and side > SHOWN_SIDE // 4:
        side //= 2
    return small


def chosen_face(chosen: ChosenPhoto, faces: Sequence[JudgedFace], number: int | None) -> LocatedFace:
    """Return one face of the chosen photo, by its number from 1; None takes the largest.

    Raises:
        UserError: There is no photo, it cannot be read, or it has no such face.
    """
    photo = open_photo(chosen.path, [face.aligned.face for face in faces] or None)
    return choose_face(photo.faces, number)


def open_photo(path: str | None, known: Sequence[Face] | None = None) -> OpenPhoto:
    """Return a photo with its faces, decoded and searched only if it is not kept.

    Faces that are `known` are not searched for again. The photo is then not kept: another may have been chosen since,
    and theirs must not be taken for its faces.

    Raises:
        UserError: There is no photo, or it cannot be read.
    """
    if path is not None and (kept := KEPT_PHOTOS.get(path)) is not None:
        return kept
    pixels, path = read_photo(path), str(path)
    with Image.open(Path(path)) as picture:
        converted = picture.format not in SHOWN_FORMATS
        animated = picture.format in ANIMATED_FORMATS and getattr(picture, "is_animated", False)
    if converted:  # the page gets it as PNG, which must stay below the limit on bytes
        pixels = _convert_for_browser(pixels)
    faces = locate_all(pixels) if known is None else locate_known(pixels, known)
    turn = 0 if faces else find_turn_of_photograph(pixels) or 0
    photo = OpenPhoto(pixels, faces, converted, animated, turn)
    if known is None:
        KEPT_PHOTOS.put(path, photo)
    return photo


def read_photo(path: str | None) -> np.ndarray:
    """Return the pixels of the visitor's photo.

    Raises:
        UserError: None was chosen, or it cannot be read.
    """
    if path is None:
        raise UserError("There is no photo yet.", "Choose one in step 1.")
    return images.read(Path(path))


def verdicts_html(faces: Sequence[JudgedFace], number: int) -> str:
    """Return every detector's verdict on one face, counted from 1, or the reason why there is none."""
    if not faces:
        return alert_html(NO_FACE)
    face = faces[number - 1]
    if not face.p_fake:
        return alert_html("No detector is installed here.")
    calls = list(face.verdicts().values())
    counts = ", ".join(
        f"{calls.count(word)} {verbs[calls.count(word) > 1]}" for word, verbs in COUNTED.items() if word in calls
    )
    measured = rates_of(COMBINED)
    return render(
        "verdicts",
        combined=face.combined,
        grades=[(grade, GRADE_WORDS[grade].rpartition(": ")[2].capitalize()) for grade in GRADES],
        missed=describe_rates(COMBINED) if measured else "",
        measured=[*measured.in_full, *overall_in_words()] if measured else [],
        no_combination=NO_COMBINATION,
        suitability=face.suitability,
        problems=problems_in_words(face),
        total=len(calls),
        counts=counts,
        unsure=UNSURE,
        verdicts=[_verdict_facts(name, score) for name, score in face.p_fake.items()],
        scale=SCALE,
    )


def problems_in_words(face: JudgedFace) -> list[str]:
    """Return why the answers about a face mean nothing, and what to do, one or two sentences a reason."""
    if face.suitability is None:
        return [face.problem] if face.problem else []
    return [f"{check.reason} {check.advice}".strip() for check in face.suitability.problems]


def origin_html(path: str) -> str:
    """Return what the file of a photo says about its origin, apart from what the detectors say."""
    return render("origin", lines=read_origin(Path(path)).lines)


def which_face_in_words(faces: Sequence[JudgedFace], number: int, listed: int) -> str:
    """Say which face was taken, counted from 1, and that any of the `listed` largest can be picked."""
    if not faces:
        return ""
    if len(faces) == 1:
        return "One face was found. Beside it is the crop that the detectors see."
    which = "the largest one" if number == 1 else f"number {number}, counted from the largest"
    others = "another" if len(faces) <= listed else f"another of the {listed} largest"
    return f"{len(faces)} faces were found, and {which} was taken. You can pick {others} below."


def _verdict_facts(name: str, score: float) -> dict[str, Any]:
    """Return the template's variables for the verdict of one detector."""
    card, call, measured = registry.card(name), verdict(score), rates_of(name)
    return {
        "card": card,
        "call": call,
        "sign": SIGNS[call],
        "score": score,
        "score_in_words": describe_p_fake(score),
        "specialist": is_specialist(name),
        "rates_in_short": describe_rates(name),
        "rates": measured.in_full if measured else [NOT_MEASURED],
    }
