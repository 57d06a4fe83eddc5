"""Cut a face out in the position that a network expects, put an edited one back, and cut each detector's own crop.

A generator draws one crop of a face, while each detector was trained on a crop of its own, wider or larger. A
`DetectorView` is that crop of the photo, to which every change of the generator's crop is added where it lies;
gradients go through it. Coordinates are those of `backend.faces`: the centre of a picture's first pixel is at 0.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from backend import faces, images
from backend.faces import Face

# Where the small models' training faces have their eyes, in sides of the crop.
EYES_HEIGHT = 0.42
EYES_DISTANCE = 0.265

# Where DeepfakeBench's preprocessing puts the eyes, the nose and the corners of the mouth: the five points of ArcFace
# (Deng et al. 2019) in 112 pixels, and a margin that makes the crop 1.3 times as wide.
ARCFACE_POINTS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
DEEPFAKEBENCH_POINTS = (ARCFACE_POINTS / 112 - 0.5) / 1.3 + 0.5

# How far a landmark of an aligned picture may lie from its place, in sides of the crop. The finder is noisy: over 1000
# aligned faces of 128 pixels the largest of five distances has the median 0.011 and the 95th percentile 0.031.
TOLERANCE = 0.04
FEATHER = 0.08  # width of the seam, in sides of the crop
_BAND = 256  # rows that are warped at once, which bounds the memory


@dataclass(frozen=True)
class AlignedFace:
    """A face cut out of a photo.

    Args:
        crop: uint8 (size, size, 3), RGB.
        matrix: float64 (2, 3), from coordinates in the photo to coordinates in the crop.
        template: One of `TEMPLATES`.
        resampled: Whether the crop's pixels were computed; False where they are the photo's own.
        face: Where the face is in the photo.
    """

    crop: np.ndarray = field(compare=False)
    matrix: np.ndarray = field(compare=False)
    template: str
    resampled: bool
    face: Face

    @property
    def landmarks(self) -> np.ndarray:
        """The face's landmarks in crop pixels, float64 (5, 2)."""
        return _apply(self.matrix, self.face.landmarks)


@dataclass(frozen=True)
class FaceFacts:
    """Which face of a photo was taken.

    Args:
        number: From 1, the largest face first.
        problem: Why a result should not be trusted, one sentence, or None.
    """

    number: int
    count: int
    problem: str | None

    @property
    def summary(self) -> str:
        """Which of several faces was taken, and why the result should not be trusted; or an empty text."""
        which = "the largest" if self.number == 1 else f"number {self.number}"
        parts = [f"{self.count} faces were found; {which} was taken."] if self.count > 1 else []
        return " ".join([*parts, *([self.problem] if self.problem else [])])


@dataclass(frozen=True, eq=False)
class LocatedFace:
    """One face of a decoded photo; every crop of it is cut once.

    Args:
        photo: uint8 (H, W, 3), RGB; read-only.
    """

    photo: np.ndarray = field(repr=False)
    face: Face
    number: int = 1
    count: int = 1
    _crops: dict[tuple[str, int], AlignedFace] = field(default_factory=dict, repr=False)

    @property
    def facts(self) -> FaceFacts:
        return FaceFacts(self.number, self.count, faces.face_problem(self.face, self.photo.shape))

    def aligned(self, template: str, size: int) -> AlignedFace:
        """Return the face's crop of `size` pixels; see `align_face`."""
        if (template, size) not in self._crops:
            aligned = align_face(self.photo, self.face, template, size)
            aligned.crop.setflags(write=False)
            self._crops[template, size] = aligned
        return self._crops[template, size]

    def cropped(self, template: str, size: int) -> "CroppedPhoto":
        return CroppedPhoto(self, self.aligned(template, size))

    def __getstate__(self) -> Any:
        """Refuse to be pickled: pixels of a visitor stay in the process and out of the session."""
        raise TypeError("A located face holds a whole photo and is not copied to another process.")


@dataclass(frozen=True, eq=False)
class DetectorView:
    """A detector's own crop of one photo.

    Args:
        original: The crop, (1, 3, S, S) in [0, 1].
        crop: The generator's crop of the same photo before any change, (1, 3, C, C) in [0, 1].
        theta: Where the view lies in the crop, (1, 2, 3), as `affine_grid` wants it.
        back: The inverse of `theta`, (1, 2, 3).
        weights: How much of a change arrives, (1, 1, S, S) in [0, 1]; it falls smoothly at the crop's edge.
        side: Size in pixels at which the crop is as fine as the view.
    """

    original: Tensor
    crop: Tensor
    theta: Tensor
    back: Tensor
    weights: Tensor
    side: int

    def to(self, device: torch.device) -> "DetectorView":
        moved: Any = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def of(self, crops: Tensor) -> Tensor:
        """Return what is seen of changed crops (N, 3, C', C') in [0, 1]: (N, 3, S, S) in [0, 1], differentiable."""
        change = crops - resize_square(self.crop, crops.shape[-1])
        if self.side < crops.shape[-1]:  # sampling a finer picture point by point would alias
            change = resize_square(change, self.side)
        return (self.original + self.weights * _sample(change, self.theta, self.original.shape[-1])).clamp(0, 1)

    def maps_back(self, maps: np.ndarray) -> np.ndarray:
        """Return maps (N, S, S) over the view as maps over the crop, (N, S, S); 0 where the view does not reach."""
        values = torch.from_numpy(maps)[:, None].to(self.back)
        return _sample(values, self.back, maps.shape[-1])[:, 0].cpu().numpy().astype(maps.dtype)


@dataclass(frozen=True, eq=False)
class CroppedPhoto:
    """A photo and the crop of it that is changed, from which every detector's view can be cut."""

    located: LocatedFace
    aligned: AlignedFace
    _views: dict[tuple[str, int], DetectorView] = field(default_factory=dict, repr=False)

    def view(self, template: str, size: int) -> DetectorView | None:
        """Return the view of a detector for faces of `size` pixels in position `template`; None if it is the crop."""
        if (template, size) == (self.aligned.template, len(self.aligned.crop)):
            return None
        if (template, size) not in self._views:
            self._views[template, size] = self._cut_view(template, size)
        return self._views[template, size]

    def _cut_view(self, template: str, size: int) -> DetectorView:
        seen = self.located.aligned(template, size)
        matrix, weights = locate_crop(seen, self.aligned)
        theta = _theta(matrix, size, len(self.aligned.crop))
        inverse = np.linalg.inv(np.vstack([theta, [0, 0, 1]]))[:2]
        return DetectorView(
            original=images.to_tensor(seen.crop),
            crop=images.to_tensor(self.aligned.crop),
            theta=torch.from_numpy(theta[None]).float(),
            back=torch.from_numpy(inverse[None]).float(),
            weights=torch.from_numpy(weights)[None, None],
            # One pixel of the view is this many of the crop, of which the crop then has so many fewer.
            side=max(1, round(len(self.aligned.crop) / float(abs(np.linalg.det(matrix[:, :2])) ** 0.5))),
        )


def locate_all(photo: np.ndarray) -> list[LocatedFace]:
    """Find all faces of a uint8 (H, W, 3) photo, the largest first."""
    return locate_known(photo, faces.find_faces(photo))


def locate_known(photo: np.ndarray, known: Sequence[Face]) -> list[LocatedFace]:
    """Return the faces of a photo, uint8 (H, W, 3), that were found before, the largest first."""
    pixels = photo.view()
    pixels.setflags(write=False)
    return [LocatedFace(pixels, face, number, len(known)) for number, face in enumerate(known, 1)]


def locate(photo: np.ndarray, number: int | None = None) -> LocatedFace:
    """Find the largest face of a uint8 (H, W, 3) photo, or the one with this number (from 1, largest first).

    Raises:
        UserError: There is no face, or none with this number.
    """
    return faces.choose_face(locate_all(photo), number)


def locate_again(photo: np.ndarray, located: LocatedFace) -> LocatedFace | None:
    """Find a face anew in an edited version of its photo, uint8 (H, W, 3); None where it is lost."""
    face = faces.find_face_again(photo, located.face)
    return None if face is None else LocatedFace(photo, face, located.number, located.count)


def align_face(image: np.ndarray, face: Face, template: str, size: int) -> AlignedFace:
    """Cut a face out of a photo so that its eyes are where `template` has them.

    A square picture that is aligned already is taken whole, and without any resampling where it has the right
    size: resampling would wipe out traces that detectors look for.

    Args:
        image: The photo, uint8 (H, W, 3).
        face: A face in it.
        template: "embedded" (eyes level), "ffhq" (Karras et al. 2019, from eyes and mouth), or "deepfakebench" (Yan
            et al. 2023, from all five landmarks).
        size: Side of the crop in pixels.
    """
    matrix = TEMPLATES[template](face.landmarks, size)
    height, width = image.shape[:2]
    whole = _whole_picture(width, size)
    displacements = np.linalg.norm(_apply(matrix, face.landmarks) - _apply(whole, face.landmarks), axis=1)
    if height == width and displacements.max() <= TOLERANCE * size:
        if width == size:
            return AlignedFace(image.copy(), whole, template, resampled=False, face=face)
        resized = Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS)
        return AlignedFace(np.array(resized), whole, template, resampled=True, face=face)
    crop = _warp(image, _invert(matrix), (size, size))
    return AlignedFace(_to_uint8(crop), matrix, template, resampled=True, face=face)


def paste_back(photo: np.ndarray, edited: np.ndarray, aligned: AlignedFace) -> np.ndarray:
    """Return the photo with the edit in it; what was not edited keeps its exact values.

    Only the difference between the edited and the original crop is warped back, with a soft seam, so the photo's
    own detail survives wherever the edit leaves it alone.

    Args:
        photo: The photo that the crop was cut from, uint8 (H, W, 3).
        edited: The edited crop, uint8, or floating point in [0, 1], (size, size, 3).
        aligned: What `align_face` returned.
    """
    values = edited.astype(np.float32) * (1 if edited.dtype == np.uint8 else 255)
    if not aligned.resampled:
        return _to_uint8(values)
    size = len(aligned.crop)
    left, top, right, bottom = _bounds(_invert(aligned.matrix), (size, size), photo.shape)
    # From coordinates in that part of the photo to coordinates in the crop.
    matrix = _shift(aligned.matrix, left, top)
    shape = (bottom - top, right - left)
    change = _warp(values - aligned.crop, matrix, shape)
    if not np.array_equal(aligned.matrix, _whole_picture(photo.shape[1], size)):
        change *= _seam(matrix, shape, size)[..., None]
    result = photo.copy()
    result[top:bottom, left:right] = _to_uint8(photo[top:bottom, left:right] + change)
    return result


def locate_crop(seen: AlignedFace, crop: AlignedFace) -> tuple[np.ndarray, np.ndarray]:
    """Return how `seen`, a crop of S pixels, lies in another crop of the same photo.

    Returns:
        The matrix (2, 3) from coordinates in `seen` to coordinates in `crop`, and weights float32 (S, S): how much of
        a change of `crop` arrives at a pixel of `seen`, with the seam of `paste_back`.
    """
    inverse = _invert(seen.matrix)
    linear = crop.matrix[:, :2] @ inverse[:, :2]
    matrix = np.column_stack([linear, _apply(crop.matrix, inverse[None, :, 2])[0]])
    shape = seen.crop.shape[:2]
    if not crop.matrix[0, 1] and not crop.matrix[:, 2].any():  # the whole photo, which has no seam
        return matrix, np.ones(shape, dtype=np.float32)
    return matrix, _seam(matrix, shape, len(crop.crop))


def _embedded_matrix(landmarks: np.ndarray, size: int) -> np.ndarray:
    left, right = landmarks[:2]
    return _similarity((left + right) / 2, (right - left) / (2 * EYES_DISTANCE), (0.5, EYES_HEIGHT), size)


def _ffhq_matrix(landmarks: np.ndarray, size: int) -> np.ndarray:
    left, right = landmarks[:2]
    eyes, mouth = (left + right) / 2, landmarks[3:].mean(axis=0)
    eye_to_eye, eye_to_mouth = right - left, mouth - eyes
    x = eye_to_eye - _quarter_turn(eye_to_mouth)
    x *= max(np.linalg.norm(eye_to_eye) * 2.0, np.linalg.norm(eye_to_mouth) * 1.8) / np.linalg.norm(x)
    return _similarity(eyes + 0.1 * eye_to_mouth, x, (0.5, 0.5), size)


def _deepfakebench_matrix(landmarks: np.ndarray, size: int) -> np.ndarray:
    """Return the similarity that brings the landmarks closest to their places (least squares, Umeyama 1991)."""
    centre = landmarks.mean(axis=0)
    # As complex numbers, a rotation with a scale is one factor.
    source = (landmarks - centre) @ (1, 1j)
    target = (DEEPFAKEBENCH_POINTS - DEEPFAKEBENCH_POINTS.mean(axis=0)) @ (1, 1j) * size
    factor = np.vdot(source, target) / np.vdot(source, source)
    linear = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.column_stack([linear, DEEPFAKEBENCH_POINTS.mean(axis=0) * size - linear @ centre])


TEMPLATES = {"embedded": _embedded_matrix, "ffhq": _ffhq_matrix, "deepfakebench": _deepfakebench_matrix}


def _similarity(anchor: np.ndarray, half_side: np.ndarray, place: tuple[float, float], size: int) -> np.ndarray:
    """Return the matrix that puts `anchor` (2,) at `place` and turns `half_side` (2,) into half the crop's width."""
    x, y = half_side, _quarter_turn(half_side)
    linear = np.stack([x, y]) * (size / 2) / (x @ x)
    return np.column_stack([linear, np.array(place) * size - linear @ anchor])


def _quarter_turn(vector: np.ndarray) -> np.ndarray:
    return np.array([-vector[1], vector[0]])


def _whole_picture(side: int, size: int) -> np.ndarray:
    """Return the matrix of plain scaling from `side` to `size` pixels."""
    return np.array([[size / side, 0.0, 0.0], [0.0, size / side, 0.0]])


def _apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def _invert(matrix: np.ndarray) -> np.ndarray:
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def _shift(matrix: np.ndarray, left: int, top: int) -> np.ndarray:
    """Return the matrix for points that are counted from (left, top)."""
    return np.column_stack([matrix[:, :2], matrix[:, 2] + matrix[:, :2] @ (left, top)])


def _bounds(matrix: np.ndarray, shape: tuple[int, int], target: tuple[int, ...], margin: float = 0) -> np.ndarray:
    """Return left, top, right, bottom of the part of a `target` picture that a mapped (H, W) picture covers."""
    height, width = shape
    corners = _apply(matrix, np.array([[0, 0], [width, 0], [0, height], [width, height]], dtype=np.float64))
    limits = np.array([target[1], target[0]])
    low = np.clip(np.floor(corners.min(axis=0) - margin), 0, limits - 1)
    high = np.clip(np.ceil(corners.max(axis=0) + margin), low + 1, limits)
    return np.concatenate([low, high]).astype(int)


def _seam(matrix: np.ndarray, shape: tuple[int, int], size: int) -> np.ndarray:
    """Return weights (H, W): 1 inside the crop, falling smoothly to 0 at its edge and beyond."""
    height, width = shape
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    weights = np.ones(shape, dtype=np.float32)
    for a, b, c in matrix:
        along = np.float32(a * x + c) + np.float32(b * y)
        inward = np.clip(np.minimum(along, size - along) / (FEATHER * size), 0, 1)
        weights *= inward * inward * (3 - 2 * inward)
    return weights


def _warp(source: np.ndarray, matrix: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resample a picture, bicubic and antialiased; beyond its edge it is mirrored.

    Args:
        source: (H, W, 3), any number type.
        matrix: (2, 3), from coordinates in the result to coordinates in `source`.
        shape: Height and width of the result.

    Returns:
        float32 (height, width, 3), in the units of `source`.
    """
    step = float(abs(np.linalg.det(matrix[:, :2])) ** 0.5)  # source pixels in one of the result
    left, top, right, bottom = _bounds(matrix, shape, source.shape, margin=4 * max(step, 1))
    matrix = np.column_stack([matrix[:, :2], matrix[:, 2] - (left, top)])  # its results count from (left, top)
    factor = max(1, int(step + 1e-6))
    texture = _block_means(source[top:bottom, left:right], factor)
    # Averaging blocks leaves a reduction below 2; taking 2 x 2 samples a pixel takes care of the rest.
    samples = 2 if step > 1 + 1e-6 else 1
    bands = []
    for start in range(0, shape[0], _BAND):
        rows = min(_BAND, shape[0] - start)
        grid = _sampling_grid(_shift(matrix, 0, start) / factor, (rows, shape[1]), samples, texture)
        sampled = F.grid_sample(texture, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
        bands.append(F.avg_pool2d(sampled, samples))
    return torch.cat(bands, dim=2)[0].permute(1, 2, 0).numpy()


def _block_means(source: np.ndarray, factor: int) -> Tensor:
    """Average blocks of factor x factor pixels of (H, W, 3); return float32 (1, 3, H / factor, W / factor)."""
    height, width = source.shape[:2]
    filling = ((0, -height % factor), (0, -width % factor), (0, 0))
    blocks = np.pad(source, filling, mode="edge") if factor > 1 else source
    shape = (blocks.shape[0] // factor, factor, blocks.shape[1] // factor, factor, 3)
    means = blocks.reshape(shape).mean(axis=(1, 3), dtype=np.float32)
    return torch.from_numpy(means).permute(2, 0, 1)[None].contiguous()


def _sampling_grid(matrix: np.ndarray, shape: tuple[int, int], samples: int, texture: Tensor) -> Tensor:
    """Return the grid (1, H * samples, W * samples, 2) in [-1, 1] at which `texture` is sampled."""
    y, x = ((torch.arange(count * samples, dtype=torch.float64) + 0.5) / samples for count in shape)
    axes = [a * x[None] + b * y[:, None] + c for a, b, c in matrix.tolist()]
    sides = (texture.shape[3], texture.shape[2])
    return torch.stack([2 * axis / side - 1 for axis, side in zip(axes, sides, strict=True)], dim=-1)[None].float()


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


def resize_square(pictures: Tensor, size: int) -> Tensor:
    """Bring square pictures (N, C, H, W) to `size` pixels, antialiased."""
    if pictures.shape[-2:] == (size, size):
        return pictures
    return F.interpolate(pictures, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def _sample(pictures: Tensor, theta: Tensor, size: int) -> Tensor:
    grid = F.affine_grid(theta.expand(len(pictures), -1, -1), [len(pictures), 1, size, size], align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _theta(matrix: np.ndarray, size: int, other: int) -> np.ndarray:
    """Turn a matrix between pixels of pictures of `size` and `other` into one between coordinates in [-1, 1]."""
    linear = matrix[:, :2] * size / other
    centre = matrix[:, :2].sum(axis=1) * size / 2 + matrix[:, 2]
    return np.column_stack([linear, 2 * centre / other - 1])
