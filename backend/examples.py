"""The app's examples: their pictures and the stored results that a click shows at once.

`python -m backend examples` draws them again. Three faces are the embedded generator's, two are swaps between such
faces, two are portraits in the public domain, so nobody's consent is needed and nothing has to be downloaded.
"""

import functools
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backend import images, weights
from backend.alignment import LocatedFace, locate_all, locate_known
from backend.counterfactual.photo import (
    COUNTERFACTUAL_RECORD,
    CounterfactualBundle,
    bundle_counterfactual,
    find_counterfactual,
    load_counterfactual,
)
from backend.detectors import predict, registry
from backend.detectors.combination import combine
from backend.detectors.predict import JudgedFace, suggest_detector
from backend.errors import UserError
from backend.faces import Face
from backend.generators import inversion
from backend.generators.inversion import Inverter
from backend.progress import finish
from backend.settings import SETTINGS
from backend.suitability import Suitability
from backend.trace_removal.removal import REMOVAL_RECORD, TRNET_ENTRY, RemovalBundle, load_removal, run_removal

FOLDER = SETTINGS.weights_dir.parent / "examples"
GENERATED, SWAPPED = 3, 2
TRUNCATION = 0.7
LAST_SEED = 80
REMOVAL = "removal"  # folder of a stored removal, in that of an example's results
FEATHER = 2.5  # of a swap, in pixels


@dataclass(frozen=True)
class Example:
    """A picture that a visitor can start from, and the results of one detector that are stored for it."""

    file: str
    label: str
    detector: str
    folder: Path

    @property
    def photo_path(self) -> Path:
        return self.folder / self.file

    @property
    def results(self) -> Path:
        return self.folder / "results" / self.photo_path.stem

    def located(self) -> list[LocatedFace]:
        """Return the stored faces of the picture, so that no finder has to run."""
        return _read_faces(self)

    def faces(self) -> list[JudgedFace]:
        """Return the stored verdicts, so that no detector has to run."""
        return [
            JudgedFace(
                face.number,
                predict.embedded_crop(face).aligned,
                stored["problem"],
                stored["p_fake"],
                combine(stored["p_fake"]),
                Suitability.from_record(stored["suitability"]),
            )
            for face, stored in zip(self.located(), self.stored_faces(), strict=True)
        ]

    def stored_faces(self) -> list[dict[str, Any]]:
        """Return the records of the faces, the largest first."""
        return json.loads((self.results / "faces.json").read_text(encoding="utf-8"))

    def bundle(self) -> CounterfactualBundle:
        return load_counterfactual(self.results, self.located()[0])

    def removal(self) -> RemovalBundle | None:
        folder = self.results / REMOVAL
        return load_removal(folder, self.located()[0]) if (folder / REMOVAL_RECORD).exists() else None


def load_examples(folder: Path = FOLDER) -> list[Example]:
    """Return the examples in a folder; none where it was not built."""
    index = folder / "index.json"
    if not index.exists():
        return []
    return [Example(**row, folder=folder) for row in json.loads(index.read_text(encoding="utf-8"))]


def is_stale(example: Example) -> bool:
    """Say whether a stored result was made by other models than the registry names now."""
    try:
        records = [example.results / COUNTERFACTUAL_RECORD, *(example.results / REMOVAL).glob("*.json")]
        used = [json.loads(path.read_text(encoding="utf-8"))["weights"] for path in records]
    except (OSError, ValueError, KeyError):
        return True
    if set(example.stored_faces()[0]["p_fake"]) != set(registry.loadable("embedded")):
        return True
    return any(weights.changed_models(hashes) for hashes in used)


def build_examples(out: Path = FOLDER) -> list[Path]:
    """Draw the examples, run the app's own search on each and store everything; return the files."""
    inverter = inversion.load_embedded_inverter()
    rows = []
    out.mkdir(parents=True, exist_ok=True)
    for name, label, picture in _pictures(inverter):
        (out / f"{name}.png").write_bytes(images.encode_png(picture, {"Comment": label}))
        located = locate_all(picture)
        judged = predict.judge_faces(located, registry.loadable("embedded"))
        detector = suggest_detector(judged[0].p_fake) or registry.loadable("embedded")[0]
        example = Example(f"{name}.png", label, detector, out)
        bundle_counterfactual(finish(find_counterfactual(located[0], detector))).save(example.results)
        if TRNET_ENTRY in weights.read_entries():
            finish(run_removal(located[0], detector)).save(example.results / REMOVAL)
        text = json.dumps([_stored(face) for face in judged], indent=1)
        (example.results / "faces.json").write_text(text + "\n", encoding="utf-8")
        rows.append({"file": example.file, "label": label, "detector": detector})
    (out / "index.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return sorted(path for path in out.rglob("*") if path.is_file())


def _pictures(inverter: Inverter) -> Iterator[tuple[str, str, np.ndarray]]:
    import matplotlib.cbook
    import skimage.data

    from backend import fakes

    count = GENERATED + 2 * SWAPPED
    drawn = list(itertools.islice(draw_faces(inverter, range(LAST_SEED)), count))
    if len(drawn) < count:
        raise UserError(f"The generator drew only {len(drawn)} usable faces.", "Train it for longer.")
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


def draw_faces(inverter: Inverter, seeds: Iterable[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield uint8 pixels and landmarks (5, 2) of the invented faces that the finder accepts, one a seed at most."""
    from backend import fakes

    for seed in seeds:
        picture = images.to_array(fakes.draw_samples(inverter, 1, seed=seed, truncation=TRUNCATION))
        located = locate_all(picture)
        if located and located[0].facts.problem is None:
            yield picture, located[0].face.landmarks


def _stored(judged: JudgedFace) -> dict[str, Any]:
    face = judged.aligned.face
    return {
        "box": list(face.box),
        "score": face.score,
        "landmarks": face.landmarks.tolist(),
        "problem": judged.problem,
        "p_fake": judged.p_fake,
        "suitability": None if judged.suitability is None else judged.suitability.record(),
    }


@functools.lru_cache(maxsize=8)
def _read_faces(example: Example) -> list[LocatedFace]:
    known = [
        Face(tuple(stored["box"]), stored["score"], np.array(stored["landmarks"])) for stored in example.stored_faces()
    ]
    return locate_known(images.read(example.photo_path), known)
