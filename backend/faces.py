"""Faces in a photo: find them (MTCNN, Zhang et al. 2016), say which are out of scope, follow one, and name its parts.

Coordinates of a picture run from 0 at its left (top) edge to its width (height) at the other: the centre of the
first pixel is at 0.5. So scaling a picture is a plain multiplication, and no half pixel gets lost.
"""

import functools
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from backend.errors import UserError
from backend.images import turned

F = TypeVar("F")

MIN_WIDTH = 40  # of a face, in pixels of the photo
SEARCHED_PIXELS = 1024 * 768  # a larger photo is searched in a reduced copy
TURNED_PIXELS = 512 * 384  # of the copies that are searched for turned faces
TURNS = (90, 270, 180)  # degrees clockwise, the likeliest first
SMALLEST_SEARCHED = 24  # width in pixels, in the reduced copy
MIN_SCORE = 0.9
PADDING = 0.25  # of the shorter side, for the second look
ROOM = 0.2  # that a face needs around it, in its own widths; with less, its landmarks are off by up to 0.14

# The limits of a frontal view. Of 1000 frontal faces, none is beyond 0.35, 0.74 and 0.38.
MAX_NOSE_OFFSET = 0.45  # of the nose from the middle between the eyes, in eye distances
MIN_EYES_TO_MOUTH = 0.5  # eye distance, in distances from eyes to mouth
MIN_EYES_TO_BOX = 0.25  # eye distance, in widths of the face
MAX_OUTSIDE = 0.2  # share of the face's box
MIN_OVERLAP = 0.2  # of two boxes, as intersection over union; at 5 frames a second a head moves by less than its width

FACE_REGIONS = ("eyes", "nose", "mouth", "skin", "surround")
FACE_PARTS = ("eyes", "nose", "mouth", "forehead", "cheeks", "chin", "hairline", "background")

# Half axes of the ellipses, along and across the line of the eyes, in eye distances.
EYE_AXES = (0.30, 0.20)
NOSE_AXES = (0.27, 0.38)
MOUTH_MARGIN, MOUTH_HEIGHT = 0.15, 0.24
FACE_AXES = (1.05, 1.50)
HAIRLINE_SCALE = 1.3  # of the face's ellipse: how far the hairline reaches beyond it
BROWS = 0.35  # eye distances above the eyes, where the forehead begins

Masks = dict[str, np.ndarray]

_finder_lock = threading.Lock()


@dataclass(frozen=True)
class Face:
    """One face in a photo.

    Args:
        box: x0, y0, x1, y1 in photo pixels; it may reach beyond the photo.
        score: How sure the finder is, in [0, 1].
        landmarks: float64 (5, 2), x and y in photo pixels: left eye, right eye, nose, left and right corner of the
            mouth, left and right as the viewer sees them.
    """

    box: tuple[float, float, float, float]
    score: float
    landmarks: np.ndarray = field(compare=False)

    @property
    def width(self) -> float:
        return self.box[2] - self.box[0]

    @property
    def height(self) -> float:
        return self.box[3] - self.box[1]


def find_faces(image: np.ndarray) -> list[Face]:
    """Find all upright faces in a uint8 (H, W, 3) photo, the largest first.

    Where none is found, or one is close to the edge, a second look surrounds the picture with its mirror image: the
    finder cuts its search windows at the edge, and squeezes what is left into a square.
    """
    reduced, scale = _reduce(image)
    if min(reduced.shape[:2]) < SMALLEST_SEARCHED:
        return []
    faces = _search(reduced, 0, scale)
    if not faces or any(_is_near_edge(face, image.shape) for face in faces):
        faces = _search(reduced, int(PADDING * min(reduced.shape[:2])), scale) or faces
    return sorted(faces, key=lambda face: face.width * face.height, reverse=True)


def find_other_turn(image: np.ndarray) -> int | None:
    """Return how far a uint8 (H, W, 3) photo in which no face is upright must be turned so that one is.

    Returns:
        Degrees clockwise: 90, 180 or 270 (see `images.turned`); None where no turn shows a face.
    """
    reduced, _ = _reduce(image, TURNED_PIXELS)
    if min(reduced.shape[:2]) < SMALLEST_SEARCHED:
        return None
    for padding in (0, int(PADDING * min(reduced.shape[:2]))):
        found = {
            degrees: max((face.score for face in _search(turned(reduced, degrees), padding, np.ones(2))), default=0.0)
            for degrees in TURNS
        }
        best = max(TURNS, key=lambda degrees: found[degrees])
        if found[best]:
            return best
    return None


def choose_face(faces: Sequence[F], number: int | None = None) -> F:
    """Return the largest face, or the one with this number (from 1, largest first).

    Raises:
        UserError: There is no face, or none with this number.
    """
    if not faces:
        raise UserError(
            "No face was found in this picture.",
            "Use a photo in which the face is upright, well lit and seen from the front.",
        )
    if number is None:
        return faces[0]
    if not 1 <= number <= len(faces):
        count = "only one face" if len(faces) == 1 else f"only {len(faces)} faces"
        raise UserError(f"There is no face number {number} in this picture.", f"It has {count}, counted from 1.")
    return faces[number - 1]


def find_face_again(image: np.ndarray, face: Face) -> Face | None:
    """Find a face anew where it was in another version of the photo, uint8 (H, W, 3); None where it is lost."""
    nearest = min(find_faces(image), key=lambda other: _distance(other, face), default=None)
    return nearest if nearest is not None and _distance(nearest, face) <= face.width / 2 else None


def face_problem(face: Face, image_shape: tuple[int, ...]) -> str | None:
    """Say in one sentence why a face of a photo, (H, W) or (H, W, 3), is out of scope, or return None."""
    return size_problem(face) or edge_problem(face, image_shape) or pose_problem(face)


def size_problem(face: Face) -> str | None:
    """Say in one sentence that a face is too small, or return None."""
    if face.width >= MIN_WIDTH:
        return None
    return f"The face is only {face.width:.0f} pixels wide; at least {MIN_WIDTH} are needed."


def edge_problem(face: Face, image_shape: tuple[int, ...]) -> str | None:
    """Say in one sentence that the edge of a photo, (H, W) or (H, W, 3), cuts a face off, or return None."""
    return "The face is cut off by the edge of the picture." if _is_cut_off(face, image_shape) else None


def pose_problem(face: Face) -> str | None:
    """Say in one sentence that a face is turned away, or return None."""
    if not _is_profile(face):
        return None
    return "The face is turned to the side; the detectors know faces seen from the front."


def _distance(first: Face, second: Face) -> float:
    """Return the distance in photo pixels between the middles of two faces."""
    middles = np.array([[face.box[0] + face.box[2], face.box[1] + face.box[3]] for face in (first, second)]) / 2
    return float(np.linalg.norm(middles[0] - middles[1]))


def _is_near_edge(face: Face, image_shape: tuple[int, ...]) -> bool:
    x0, y0, x1, y1 = face.box
    return min(x0, y0, image_shape[1] - x1, image_shape[0] - y1) < ROOM * face.width


def _is_cut_off(face: Face, image_shape: tuple[int, ...]) -> bool:
    height, width = image_shape[:2]
    if (face.landmarks < 0).any() or (face.landmarks > (width, height)).any():
        return True
    x0, y0, x1, y1 = face.box
    inside = max(min(x1, width) - max(x0, 0), 0) * max(min(y1, height) - max(y0, 0), 0)
    return inside < (1 - MAX_OUTSIDE) * face.width * face.height


def _is_profile(face: Face) -> bool:
    left, right, nose = face.landmarks[:3]
    between = right - left
    distance = float(np.linalg.norm(between))
    middle = (left + right) / 2
    to_mouth = float(np.linalg.norm(face.landmarks[3:].mean(axis=0) - middle))
    if distance < max(MIN_EYES_TO_MOUTH * to_mouth, MIN_EYES_TO_BOX * face.width):
        return True
    return abs(float((nose - middle) @ between)) > MAX_NOSE_OFFSET * distance**2


def _reduce(image: np.ndarray, pixels: int = SEARCHED_PIXELS) -> tuple[np.ndarray, np.ndarray]:
    """Return a copy of at most `pixels` and its scale (2,): reduced pixels in one of the photo, x and y."""
    height, width = image.shape[:2]
    factor = (pixels / (height * width)) ** 0.5
    if factor >= 1:
        return image, np.ones(2)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    reduced = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(reduced), np.array(size) / (width, height)


def _search(image: np.ndarray, padding: int, scale: np.ndarray) -> list[Face]:
    """Search a picture with `padding` pixels of its mirror image around it; return faces in photo pixels."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
    with _finder_lock:
        boxes, scores, landmarks = _run_finder(padded)
    faces = []
    for box, score, points in zip(boxes, scores, landmarks, strict=True):
        corners = np.asarray(box, dtype=np.float64).reshape(2, 2) - padding
        middle = corners.mean(axis=0)
        # A face beyond the edge is a mirror image that only the padding made.
        if score >= MIN_SCORE and (middle >= 0).all() and (middle <= (width, height)).all():
            x0, y0, x1, y1 = (corners / scale).ravel().tolist()
            faces.append(Face((x0, y0, x1, y1), float(score), (np.float64(points) - padding) / scale))
    return faces


def _run_finder(image: np.ndarray) -> tuple[Any, Any, Any]:
    """Return boxes (N, 4), scores (N,) and landmarks (N, 5, 2) in pixels of the picture."""
    try:
        boxes, scores, landmarks = _finder().detect(np.ascontiguousarray(image), landmarks=True)
    except (IndexError, RuntimeError):  # the finder stumbles where a candidate lies wholly outside the picture
        return (), (), ()
    return ((), (), ()) if boxes is None else (boxes, scores, landmarks)


@functools.cache
def _finder() -> Any:
    """Return the one face finder; its import and its weights wait for the first photo."""
    from facenet_pytorch import MTCNN

    finder = MTCNN(keep_all=True, min_face_size=SMALLEST_SEARCHED, device=torch.device("cpu"))
    return finder.eval().requires_grad_(requires_grad=False)


def track_largest_face(frames: Sequence[Sequence[Face]]) -> list[Face | None]:
    """Return the track of the largest face of a video: the same face in every frame, None where it is not seen.

    From the frame in which it is largest, the face is followed in both directions: in each frame it is the one whose
    box overlaps most with where it was seen last. `frames` holds the faces of every frame.
    """
    track: list[Face | None] = [None] * len(frames)
    faces = [(face.width * face.height, number, face) for number, frame in enumerate(frames) for face in frame]
    if not faces:
        return track
    _, start, face = max(faces, key=lambda entry: entry[:2])
    track[start] = face
    for numbers in (range(start + 1, len(frames)), range(start - 1, -1, -1)):
        last = face
        for number in numbers:
            track[number] = _best_overlap(frames[number], last)
            last = track[number] or last
    return track


def box_overlap(first: Face, second: Face) -> float:
    """Return the intersection over union of two boxes, in [0, 1]."""
    left, top = max(first.box[0], second.box[0]), max(first.box[1], second.box[1])
    right, bottom = min(first.box[2], second.box[2]), min(first.box[3], second.box[3])
    shared = max(0.0, right - left) * max(0.0, bottom - top)
    union = first.width * first.height + second.width * second.height - shared
    return shared / union if union > 0 else 0.0


def _best_overlap(faces: Iterable[Face], last: Face) -> Face | None:
    best = max(faces, key=lambda face: box_overlap(face, last), default=None)
    return best if best is not None and box_overlap(best, last) >= MIN_OVERLAP else None


class _FaceFrame:
    """Coordinates along and across the line of the eyes, in eye distances from the point between them."""

    def __init__(self, landmarks: np.ndarray, shape: tuple[int, int]) -> None:
        left, right, nose, mouth_left, mouth_right = landmarks.astype(np.float64)
        self.distance = float(np.linalg.norm(right - left)) or 1.0
        self.direction = (right - left) / self.distance
        self.origin = (left + right) / 2
        x, y = np.arange(shape[1]) + 0.5 - self.origin[0], np.arange(shape[0])[:, None] + 0.5 - self.origin[1]
        self.along, self.across = self._turned(x, y)  # (H, W) each; across grows towards the chin
        self.left, self.right, self.nose = self.place(left), self.place(right), self.place(nose)
        self.mouth = self.place((mouth_left + mouth_right) / 2)
        self.half_mouth = float(np.linalg.norm(mouth_right - mouth_left)) / 2 / self.distance + MOUTH_MARGIN

    def place(self, point: np.ndarray) -> tuple[float, float]:
        return self._turned(*(point - self.origin))

    def ellipse(self, centre: tuple[float, float], axes: tuple[float, float]) -> np.ndarray:
        return ((self.along - centre[0]) / axes[0]) ** 2 + ((self.across - centre[1]) / axes[1]) ** 2 <= 1

    def face(self, scale: float = 1.0) -> np.ndarray:
        return self.ellipse((self.mouth[0] / 2, self.mouth[1] / 2), (FACE_AXES[0] * scale, FACE_AXES[1] * scale))

    def features(self) -> Masks:
        """Return eyes, nose and mouth; they may overlap."""
        return {
            "eyes": self.ellipse(self.left, EYE_AXES) | self.ellipse(self.right, EYE_AXES),
            "nose": self.ellipse((0.7 * self.nose[0], 0.7 * self.nose[1]), NOSE_AXES),
            "mouth": self.ellipse(self.mouth, (self.half_mouth, MOUTH_HEIGHT)),
        }

    def _turned(self, x: np.ndarray, y: np.ndarray) -> tuple:
        cosine, sine = self.direction
        return (x * cosine + y * sine) / self.distance, (y * cosine - x * sine) / self.distance


def region_masks(landmarks: np.ndarray, shape: tuple[int, int]) -> Masks:
    """Draw the five regions of a face; every pixel belongs to exactly one.

    Args:
        landmarks: (5, 2), x and y in crop pixels: left and right eye, nose, left and right corner of the mouth.
        shape: Height and width of the crop.

    Returns:
        Boolean (H, W) by region, in the order of `FACE_REGIONS`.
    """
    frame = _FaceFrame(landmarks, shape)
    return _first_come(frame.features() | {"skin": frame.face(), "surround": np.ones(shape, dtype=bool)})


def part_masks(landmarks: np.ndarray, shape: tuple[int, int]) -> Masks:
    """Draw the eight parts of a face; every pixel belongs to exactly one.

    They divide the regions: the skin into forehead, cheeks and chin, and what surrounds the face into hairline
    (the band around its upper half) and background. The arguments are those of `region_masks`.

    Returns:
        Boolean (H, W) by part, in the order of `FACE_PARTS`.
    """
    frame = _FaceFrame(landmarks, shape)
    skin = frame.face()
    return _first_come(
        frame.features()
        | {
            "forehead": skin & (frame.across < -BROWS),
            "cheeks": skin & (frame.across < frame.mouth[1]),
            "chin": skin,
            "hairline": frame.face(HAIRLINE_SCALE) & (frame.across < 0),
            "background": np.ones(shape, dtype=bool),
        }
    )


def _first_come(claims: Masks) -> Masks:
    """Give every pixel to the first mask that claims it."""
    free = np.ones_like(next(iter(claims.values())))
    masks = {}
    for name, mask in claims.items():
        masks[name] = mask & free
        free &= ~mask
    return masks
