"""The app's examples: their pictures and the stored results that a click shows at once.

`python -m backend examples` draws them again. Three faces are the embedded generator's, two are swaps between such
faces, two are portraits in the public domain, so nobody's consent is needed and nothing has to be downloaded.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backend import alignment, faces, images, weights
from backend.counterfactual import photo
from backend.counterfactual.photo import CounterfactualBundle
from backend.detectors import predict, registry
from backend.detectors.predict import JudgedFace, suggest_detector
from backend.errors import UserError
from backend.faces import Face
from backend.generators import inversion
from backend.generators.inversion import Inverter
from backend.progress import finish
from backend.settings import SETTINGS

if TYPE_CHECKING:
    from backend.trace_removal.removal import RemovalBundle

FOLDER = SETTINGS.weights_dir.parent / "examples"
GENERATED, SWAPPED = 3, 2
TRUNCATION = 0.7
LAST_SEED = 80
REMOVAL = "removal"  # folder of a stored removal, in that of an example's results
FEATHER = 2.5  # of a swap, in pixels


@dataclass(frozen=True)
class Example:
    """A picture that a visitor can start from.

    Args:
        file: Its file name in the folder.
        label: What it shows and how it was made, in a few words.
        detector: Which detector the stored result explains.
        folder: Where it lies.
    """

    file: str
    label: str
    detector: str
    folder: Path

    @property
    def photo_path(self) -> Path:
        """Return the picture's file."""
        return self.folder / self.file

    @property
    def results(self) -> Path:
        """Return the folder of the stored result."""
        return self.folder / "results" / self.photo_path.stem

    def faces(self) -> list[JudgedFace]:
        """Return the stored verdicts, so that no model has to run."""
        photo = images.read(self.photo_path)
        stored = json.loads((self.results / "faces.json").read_text(encoding="utf-8"))
        return [_face(photo, number, one) for number, one in enumerate(stored, 1)]

    def bundle(self) -> CounterfactualBundle:
        """Return the stored result."""
        return photo.load_counterfactual(self.results, images.read(self.photo_path), self.faces()[0].aligned)

    def removal(self) -> "RemovalBundle | None":
        """Return the stored removal of traces, or None where there is none."""
        from backend.trace_removal import removal as removals

        folder = self.results / REMOVAL
        if not (folder / removals.REMOVAL_RECORD).exists():
            return None
        return removals.load_removal(folder, images.read(self.photo_path), self.faces()[0].aligned)


def load_examples(folder: Path = FOLDER) -> list[Example]:
    """Return the examples in a folder; none where it was not built."""
    index = folder / "index.json"
    if not index.exists():
        return []
    return [Example(**row, folder=folder) for row in json.loads(index.read_text(encoding="utf-8"))]


def is_stale(example: Example) -> bool:
    """Say whether a stored result was made by other models than the registry names now."""
    try:
        records = [example.results / "story.json", *(example.results / REMOVAL).glob("*.json")]
        used = [json.loads(path.read_text(encoding="utf-8"))["weights"] for path in records]
    except (OSError, ValueError, KeyError):
        return True
    if set(example.faces()[0].p_fake) != set(registry.loadable("embedded")):
        return True
    return any(weights.changed_models(one) for one in used)


def build_examples(out: Path = FOLDER) -> list[Path]:
    """Draw the examples, run the app's own search on each and store everything; return the files."""
    from backend.counterfactual.photo import find_counterfactual  # these imports would keep the app's page waiting
    from backend.trace_removal import removal as removals

    inverter = inversion.load_embedded_inverter()
    rows = []
    out.mkdir(parents=True, exist_ok=True)
    for name, label, picture in _pictures(inverter):
        (out / f"{name}.png").write_bytes(images.encode_png(picture, {"Comment": label}))
        judged = predict.judge_faces(picture, registry.loadable("embedded"))
        detector = suggest_detector(judged[0].p_fake) or registry.loadable("embedded")[0]
        example = Example(f"{name}.png", label, detector, out)
        photo.bundle_counterfactual(finish(find_counterfactual(picture, detector))).save(example.results)
        if removals.TRNET_ENTRY in weights.read_entries():
            finish(removals.run_removal(picture, detector=detector)).save(example.results / REMOVAL)
        text = json.dumps([_stored(face) for face in judged], indent=1)
        (example.results / "faces.json").write_text(text + "\n", encoding="utf-8")
        rows.append({"file": example.file, "label": label, "detector": detector})
    (out / "index.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return sorted(path for path in out.rglob("*") if path.is_file())


def _pictures(inverter: Inverter) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield name, label and uint8 pixels of every example."""
    import matplotlib.cbook
    import skimage.data

    from backend import fakes

    drawn = _faces_in_scope(inverter, GENERATED + 2 * SWAPPED)
    for number in range(GENERATED):
        yield f"generated_{number + 1}", f"Invented face {number + 1}", drawn[number][0]
    for number in range(SWAPPED):
        target, source = drawn[GENERATED + 2 * number], drawn[GENERATED + 2 * number + 1]
        blend = ("feather", "poisson")[number % 2]
        picture = fakes.swap_faces(target[0], source[0], target[1], source[1], blend=blend, feather=FEATHER)
        yield f"swapped_{number + 1}", f"Swapped face {number + 1}", picture
    yield "collins", "Photo: E. Collins (NASA)", skimage.data.astronaut()[:320, 70:390]
    hopper = str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    yield "hopper", "Photo: G. Hopper (US Navy)", images.read(hopper)[:400, 60:460]


def _faces_in_scope(inverter: Inverter, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw faces until `count` of them are found and in scope; return pixels and landmarks (5, 2)."""
    from backend import fakes

    kept = []
    for seed in range(LAST_SEED):
        picture = images.to_array(fakes.draw_samples(inverter, 1, seed=seed, truncation=TRUNCATION))
        found = faces.find_faces(picture)
        if found and faces.face_problem(found[0], picture.shape) is None:
            kept.append((picture, found[0].landmarks))
        if len(kept) == count:
            return kept
    raise UserError(f"The generator drew only {len(kept)} usable faces.", "Train it for longer.")


def _stored(judged: JudgedFace) -> dict[str, Any]:
    face = judged.aligned.face
    return {
        "box": [round(value, 2) for value in face.box],
        "score": round(face.score, 4),
        "landmarks": np.round(face.landmarks, 3).tolist(),
        "problem": judged.problem,
        "p_fake": judged.p_fake,
    }


def _face(photo: np.ndarray, number: int, stored: dict[str, Any]) -> JudgedFace:
    x0, y0, x1, y1 = stored["box"]
    face = Face((x0, y0, x1, y1), stored["score"], np.array(stored["landmarks"]))
    aligned = alignment.align_face(photo, face, predict.EMBEDDED_TEMPLATE, registry.EMBEDDED_SIZE)
    return JudgedFace(number, aligned, stored["problem"], stored["p_fake"])
