"""The face of a sample, found and cut out as the app does it with a photo."""

from pathlib import Path

import numpy as np

from backend import alignment, faces, images
from backend.alignment import AlignedFace
from backend.detectors import registry
from backend.errors import UserError
from backend.evaluate.data import Dataset
from backend.evaluate.memory import remembered
from backend.views import Source

SIZE = registry.EMBEDDED_SIZE
TEMPLATE = "embedded"
_KEPT = 32  # crops of a process, because the settings of one picture follow each other


def crop(data: Dataset, name: str, *, size: int = SIZE, template: str = TEMPLATE) -> AlignedFace:
    """Return the largest face of a sample; a crop that is aligned already is taken as it is.

    Raises:
        UserError: The file is no picture, or no face in it is in scope; the message says why.
    """
    return _cut(data.path(name), size, template)


def source_of(data: Dataset, name: str) -> Source:
    """Return a sample with its face, from which every detector's own crop can be cut.

    Raises:
        UserError: As `crop`.
    """
    return Source(images.read(data.path(name)), crop(data, name))


def problem(data: Dataset, name: str) -> str | None:
    """Say in one sentence why a sample cannot be used, or return None."""
    try:
        crop(data, name)
    except UserError as error:
        return error.message
    return None


def crop_pair(
    data: Dataset, fake: str, *, size: int = SIZE, template: str = TEMPLATE
) -> tuple[AlignedFace, AlignedFace]:
    """Return the faces of a fake's original and of the fake, cut out alike where both pictures have one size.

    Raises:
        UserError: As `crop`, or the fake has no original here.
    """
    original = data.by_name[fake].pair
    if original not in data.by_name:
        raise UserError("The original of this fake is not among the pictures.", "Give both the same name.")
    real, made = images.read(data.path(original)), images.read(data.path(fake))
    face = _found(real)
    aligned = alignment.align(real, face, template, size)
    other = face if made.shape == real.shape else _found(made)
    return aligned, alignment.align(made, other, template, size)


@remembered(_KEPT)
def _cut(path: Path, size: int, template: str) -> AlignedFace:
    photo = images.read(path)
    return alignment.align(photo, _found(photo), template, size)


def _found(photo: np.ndarray) -> faces.Face:
    face = faces.choose(faces.find(photo))
    reason = faces.problem(face, photo.shape)
    if reason is not None:
        raise UserError(reason, "Use a photo in which a face is upright, large enough and seen from the front.")
    return face
