"""Follow one face through the frames of a video."""

from collections.abc import Iterable, Sequence

from backend.faces import Face

MIN_OVERLAP = 0.2  # of two boxes, as intersection over union; at 5 frames a second a head moves by less than its width


def largest(found: Sequence[Sequence[Face]]) -> list[Face | None]:
    """Return the track of the largest face of a video: the same face in every frame, None where it is not seen.

    From the frame in which it is largest, the face is followed in both directions: in each frame it is the one whose
    box overlaps most with where it was seen last.

    Args:
        found: The faces of every frame.
    """
    track: list[Face | None] = [None] * len(found)
    faces = [(face.width * face.height, number, face) for number, frame in enumerate(found) for face in frame]
    if not faces:
        return track
    _, start, face = max(faces, key=lambda one: one[:2])
    track[start] = face
    for numbers in (range(start + 1, len(found)), range(start - 1, -1, -1)):
        last = face
        for number in numbers:
            track[number] = _nearest(found[number], last)
            last = track[number] or last
    return track


def overlap(one: Face, other: Face) -> float:
    """Return the intersection over union of two boxes, in [0, 1]."""
    left, top = max(one.box[0], other.box[0]), max(one.box[1], other.box[1])
    right, bottom = min(one.box[2], other.box[2]), min(one.box[3], other.box[3])
    shared = max(0.0, right - left) * max(0.0, bottom - top)
    whole = one.width * one.height + other.width * other.height - shared
    return shared / whole if whole > 0 else 0.0


def _nearest(faces: Iterable[Face], last: Face) -> Face | None:
    best = max(faces, key=lambda face: overlap(face, last), default=None)
    return best if best is not None and overlap(best, last) >= MIN_OVERLAP else None
