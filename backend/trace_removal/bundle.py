"""A finished removal as pictures and numbers: what the app shows, stores for its examples and hands out as a zip."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from backend import alignment, images, packing, weights
from backend.alignment import AlignedFace
from backend.counterfactual import traces
from backend.detectors import registry
from backend.detectors.card import verdict
from backend.detectors.choice import suggested
from backend.progress import Job, Step, mapped
from backend.trace_removal import references, resaves
from backend.trace_removal.network import TRNet
from backend.trace_removal.references import References
from backend.trace_removal.removal import Removal, remove
from backend.trace_removal.resaves import Resave
from backend.trace_removal.views import View, views
from backend.verdicts import in_digits
from backend.views import Source

FACES = ("crop", "removed")
RECORD = "removal.json"
NO_REFERENCES = (
    f"The views of the traces need reference statistics, which are not installed; build them: {references.BUILDING}"
)


@dataclass(frozen=True, eq=False)
class Bundle:
    """Everything that is shown of a removal.

    Args:
        record: Of the removal, with `resaves`, `resaves_summary`, `views` (name, title and sentence of each),
            `views_note` (why there are none, or None) and `attention` (the detector whose attention is shown).
        photo: The whole photo, uint8 (H, W, 3).
        aligned: The face in it.
        faces: `crop` and `removed`, uint8 (S, S, 3), without a mark.
        views: By name, uint8 (H, W, 3), each with the face before and after.
    """

    record: dict[str, Any]
    photo: np.ndarray
    aligned: AlignedFace
    faces: dict[str, np.ndarray]
    views: dict[str, np.ndarray]

    def difference(self) -> traces.Residual:
        """Return the signed difference of removal and crop."""
        return traces.residual(self.faces["crop"], self.faces["removed"])

    def pictures(self) -> dict[str, np.ndarray]:
        """Return all pictures, uint8 (H, W, 3), without a mark; of them, only `crop` is not made by the app."""
        pasted = alignment.paste_back(self.photo, self.faces["removed"], self.aligned)
        return {**self.faces, "difference": self.difference().picture, "photo": pasted, **self.views}

    def zip(self) -> bytes:
        """Return a zip file with the record and every picture, marked where the app made it."""
        return packing.zipped(self.record, self.pictures(), own=("crop",), text=self.text())

    def text(self) -> str:
        """Return what happened for people who read no JSON: the summary, every verdict, and what saving again does."""
        lines = [
            f"{registry.card(name).title}: {_said(one['original'])} before, {_said(one['removed'])} after"
            for name, one in self.record["p_fake"].items()
        ]
        verdicts = "\n".join(["What every detector says (probability of fake, 0 to 1):", *lines])
        return "\n\n".join([self.record["summary"], verdicts, self.record["resaves_summary"]])

    def save(self, folder: Path) -> list[Path]:
        """Write what `load` needs, without visible marks, and return the files."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in packing.unmarked({**self.faces, **self.views}, self.record, RECORD).items():
            (folder / name).write_bytes(content)
        return sorted(folder.iterdir())


def _said(p_fake: float) -> str:
    return f"{in_digits(p_fake)} {verdict(p_fake)}"


def make(
    photo: np.ndarray,
    face_number: int | None = None,
    detector: str | None = None,
    *,
    strength: float = 1.0,
    network: TRNet | None = None,
    known: References | None = None,
) -> Job[Bundle]:
    """Remove the traces of one face, save it again in four ways, and draw what is left of the traces.

    Args:
        photo: uint8 (H, W, 3), RGB.
        face_number: Which face, from 1, the largest first; None takes the largest.
        detector: Whose attention is shown; None takes the first that calls the face fake.
        strength: Factor on TR-Net's change; it was trained for 1.
        network: The network; None takes the trained one.
        known: Reference statistics; None takes the installed ones.

    Raises:
        UserError: There is no face, no trained network, or the strength is out of range.
    """
    removing = remove(photo, face_number, strength, network=network)
    removal = yield from mapped(removing, lambda step: replace(step, total=6))
    yield Step(4, 6, "The face is saved again in four ways.", images.to_tensor(removal.removed))
    again = resaves.resave(removal.original, removal.removed, source=Source(removal.photo, removal.aligned))
    yield Step(5, 6, "The traces are drawn.", images.to_tensor(removal.removed))
    before = {name: values[0] for name, values in removal.p_fake.items() if registry.card(name).cam_layer}
    shown = detector or suggested(before)
    if known is None and references.ENTRY in weights.entries():
        known = references.load()
    pictures = {"Before": removal.original, "After": removal.removed}
    drawn = views(pictures, known, shown) if known is not None and shown is not None else []
    return of(removal, again, drawn, shown)


def of(removal: Removal, again: list[Resave], drawn: list[View], attention: str | None) -> Bundle:
    """Return the bundle of a finished removal, its re-saves, and its views where there are any."""
    record = removal.record() | {
        "resaves": resaves.record(again),
        "resaves_summary": resaves.in_words(removal.p_fake, again),
        "views": [{"name": one.name, "title": one.title, "sentence": one.sentence} for one in drawn],
        "views_note": None if drawn else NO_REFERENCES,
        "attention": attention,
    }
    pictures = {one.name: one.picture for one in drawn}
    return Bundle(
        record, removal.photo, removal.aligned, {"crop": removal.original, "removed": removal.removed}, pictures
    )


def load(folder: Path, photo: np.ndarray, aligned: AlignedFace) -> Bundle:
    """Read what `Bundle.save` wrote.

    Args:
        folder: Where it lies.
        photo: The photo that it is about.
        aligned: The face in it.
    """
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    drawn = {name: images.read(folder / f"{name}.png") for name in [*FACES, *(one["name"] for one in record["views"])]}
    return Bundle(record, photo, aligned, {name: drawn.pop(name) for name in FACES}, drawn)
