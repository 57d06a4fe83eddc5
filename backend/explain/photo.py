"""Explain one face of a photo: find it, cut it out, explain it, and name the places on the face."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from backend import alignment, faces, images, made_with
from backend.detectors import registry
from backend.detectors.card import Card
from backend.explain import pictures
from backend.explain.explaining import explain
from backend.explain.explanation import NAMED, ExplainSettings, Explanation
from backend.explain.segments import places_in_words, rank, segment_parts
from backend.progress import Job

if TYPE_CHECKING:
    from backend.counterfactual.traces import Residual
    from backend.explain.deletion import Curves
    from backend.explain.proof import Proof, ProofSettings

ENLARGED = 4  # how much larger than the crop its pictures are, so that the mark covers little


@dataclass(frozen=True, eq=False)
class ExplainedPhoto:
    """An explanation of a face in a photo.

    Args:
        aligned: The crop that the detector saw, and where it lies in the photo.
        face_number: Which face was taken, from 1, the largest first.
        face_count: How many were found.
        problem: Why the result should not be trusted, one sentence, or None.
        explanation: The map.
        parts: Names of the parts of the face that each segment falls in.
        proof: The test of the map, where it was asked for and there was a map of the verdict that the detector gave.
        curves: The deletion and insertion curves that go with the test.
    """

    aligned: alignment.AlignedFace
    face_number: int
    face_count: int
    problem: str | None
    explanation: Explanation
    parts: list[tuple[str, ...]]
    proof: "Proof | None"
    curves: "Curves | None" = None

    @property
    def top(self) -> list[int]:
        """Return the segments that speak most for the verdict, the strongest first."""
        scores = self.explanation.segment_scores
        if self.explanation.degenerate:
            return []
        best = rank(scores)[:NAMED].tolist()
        return [segment for segment in best if scores[segment] > 0 or not self.explanation.signed]

    @property
    def about_face(self) -> str:
        """Say which of several faces was taken, and why the result should not be trusted; or nothing."""
        parts = []
        if self.face_count > 1:
            which = "the largest" if self.face_number == 1 else f"number {self.face_number}"
            parts.append(f"{self.face_count} faces were found; {which} was taken.")
        if self.problem:
            parts.append(self.problem)
        return " ".join(parts)

    @property
    def summary(self) -> str:
        """Tell in one paragraph of plain words what was done and found."""
        parts = [self.about_face] if self.about_face else []
        parts.append(self.explanation.summary)
        if self.top:
            parts.append(f"They lie here: {places_in_words(self.top, self.parts)}.")
        if self.proof is not None:
            parts.append(self.proof.summary)
        return " ".join(parts)

    def record(self) -> dict[str, Any]:
        """Return what a program reads and what a saved picture carries, as plain values for JSON."""
        scores = self.explanation.segment_scores
        return self.explanation.record() | {
            "regions": [
                {"segment": one, "score": float(scores[one]), "parts": list(self.parts[one])} for one in self.top
            ],
            "proof": None if self.proof is None else _proof_record(self.proof),
            "curves": None if self.curves is None else _curves_record(self.curves),
            "scale": pictures.scale_words(self.explanation),
            "face": {
                "number": self.face_number,
                "count": self.face_count,
                "box": [float(value) for value in self.aligned.face.box],
                "problem": self.problem,
                "resampled": self.aligned.resampled,
            },
            "weights": made_with.hashes([self.explanation.detector]),
            "versions": made_with.versions(),
            "summary": self.summary,
        }

    def drawings(self) -> dict[str, np.ndarray]:
        """Return the pictures of the result, uint8 (H, W, 3), without a mark."""
        side = ENLARGED * self.aligned.crop.shape[0]
        crop = np.asarray(Image.fromarray(self.aligned.crop).resize((side, side), Image.Resampling.LANCZOS))
        made = self.explanation
        laid = pictures.overlay(crop, made)
        drawn = {"overlay": pictures.outlined(laid, made.labels, self.top)}
        if not made.degenerate:
            drawn["map_picture"] = pictures.coloured(made)
        if made.reference_image is not None:
            drawn["reference"] = images.to_array(made.reference_image)
        if (difference := self.difference) is not None:
            drawn["difference"] = difference.picture
        return drawn

    @cached_property
    def difference(self) -> "Residual | None":
        """What the adversarial image changes, amplified; None without one."""
        return pictures.reference_difference(images.to_tensor(self.aligned.crop), self.explanation)


def cut_face(photo: np.ndarray, card: Card, face_number: int | None = None) -> tuple[alignment.AlignedFace, int]:
    """Cut a face out of a photo as one detector wants it.

    Args:
        photo: uint8 (H, W, 3), RGB.
        card: Of the detector.
        face_number: Which face, from 1, the largest first; None takes the largest.

    Returns:
        The crop and where it lies, and how many faces there are.

    Raises:
        UserError: There is no such face.
    """
    found = faces.find(photo)
    face = faces.choose(found, face_number)
    return alignment.align(photo, face, card.template, card.input_size), len(found)


def explain_photo(
    photo: np.ndarray,
    detector_name: str,
    settings: ExplainSettings | None = None,
    face_number: int | None = None,
    proof: "ProofSettings | None" = None,
) -> Job[ExplainedPhoto]:
    """Explain what a detector says of one face of a photo.

    Args:
        photo: uint8 (H, W, 3), RGB.
        detector_name: A detector with an entry in the registry.
        settings: Settings of the explanation.
        face_number: Which face, from 1, the largest first; None takes the largest.
        proof: Test the map with these settings, and follow the score along it; None leaves both out.

    Yields:
        The steps of the explanation, and then those of the test.

    Raises:
        UserError: There is no such detector, no face, no model file, or a setting is out of its range.
    """
    settings = settings or ExplainSettings()
    settings.check()
    detector = registry.load(detector_name)
    aligned, count = cut_face(photo, detector.card, face_number)
    face, crop = aligned.face, images.to_tensor(aligned.crop)
    made = yield from explain(crop, detector, settings)
    tested = followed = None
    # The test moves the verdict that the detector gave; a map of the other one has another meaning.
    if proof is not None and not made.degenerate and made.explains_verdict:
        from backend.explain.deletion import curves
        from backend.explain.proof import prove

        tested = yield from prove(crop, detector, made.saliency, made.labels, proof)
        followed = yield from curves(crop, detector, made.saliency)
    landmarks = face.landmarks @ aligned.matrix[:, :2].T + aligned.matrix[:, 2]
    return ExplainedPhoto(
        aligned=aligned,
        face_number=face_number or 1,
        face_count=count,
        problem=faces.problem(face, photo.shape),
        explanation=made,
        parts=segment_parts(made.labels, landmarks),
        proof=tested,
        curves=followed,
    )


def _proof_record(proof: "Proof") -> dict[str, Any]:
    """Return sufficiency by number of segments, and that of random ones; None where there is no result."""
    controls = proof.random_mean if proof.settings.draws else proof.sufficiency * float("nan")
    pairs = zip(proof.settings.tops, proof.sufficiency.tolist(), controls.tolist(), strict=True)
    return {
        "sufficiency": [{"k": k, "value": _number(value), "random": _number(random)} for k, value, random in pairs],
        "predicted": proof.predicted,
        "attack": proof.attack,
        "settings": asdict(proof.settings),
        "images": proof.image_count,
        "calls": proof.call_count,
        "seconds": proof.seconds,
        "summary": proof.summary,
    }


def _curves_record(curves: "Curves") -> dict[str, Any]:
    """Return the areas and the points of both curves."""
    return {
        "deletion_auc": curves.deletion_auc,
        "insertion_auc": curves.insertion_auc,
        "fractions": curves.fractions.tolist(),
        "deletion": curves.deletion.tolist(),
        "insertion": curves.insertion.tolist(),
        "fill": curves.settings.fill,
        "images": curves.image_count,
        "calls": curves.call_count,
        "seconds": curves.seconds,
        "summary": curves.summary,
    }


def _number(value: float) -> float | None:
    return value if value == value else None  # noqa: PLR0124 - only a missing value differs from itself
