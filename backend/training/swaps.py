"""Face swaps between two aligned photographs: warp, colour match, blend.

The steps of classical replacement tools: the source's inner face is warped so that its landmarks fall on the
target's, its colours are matched inside the face (Reinhard et al. 2001, section 3), and it is blended with a
feathered mask or in the gradient domain (Perez et al. 2003, section 3). In newer tools a network draws the face:
`redraw_face` has the step that they add.
"""

import warnings

import numpy as np
from scipy import fft, interpolate, ndimage
from skimage import color, draw

Array = np.ndarray
RIM = np.array([[0.0, 0.0], [0.5, 0.0], [1.0, 0.0], [0.0, 0.5], [1.0, 0.5], [0.0, 1.0], [0.5, 1.0], [1.0, 1.0]])


def swap_faces(
    target: Array, source: Array, target_points: Array, source_points: Array, *, blend: str, feather: float
) -> Array:
    """Put the source's face on the target.

    Args:
        target: uint8 (S, S, 3), keeps its hair, outline and background.
        source: uint8 (S, S, 3), gives its inner face.
        target_points: (5, 2) landmarks x, y in pixels: eyes, nose, mouth corners.
        source_points: The same of the source.
        blend: `feather` or `poisson`.
        feather: Width of the soft edge in pixels.

    Returns:
        uint8 (S, S, 3).
    """
    warped = warp_to(source, source_points, target_points)
    inside = inner_face(target_points, target.shape[0]) > 0.5
    matched = match_colour(warped, target, inside)
    if blend == "poisson":
        matched = poisson_blend(matched, target.astype(np.float64), inside)
    return laid_on(matched, target, target_points, feather)


def redraw_face(swapped: Array, drawn: Array, target: Array, target_points: Array, *, feather: float) -> Array:
    """Put a network's drawing of a swap in the swap's place, as tools do whose faces a network draws.

    DeepfakeTIMIT (Korshunov and Marcel 2018, section 2), which is the replacement family of TR-Net's paper, is made so:
    the network draws the face, its colours are matched, and it is blended into the frame.

    Args:
        swapped: uint8 (S, S, 3), what `swap_faces` returned.
        drawn: uint8 (S, S, 3), the network's drawing of all of it.
        target: uint8 (S, S, 3), keeps its hair, outline and background.
        target_points: (5, 2) landmarks of the target in pixels.
        feather: Width of the soft edge in pixels.

    Returns:
        uint8 (S, S, 3).
    """
    matched = match_colour(drawn, swapped, inner_face(target_points, target.shape[0]) > 0.5)
    return laid_on(matched, target, target_points, feather)


def laid_on(face: Array, target: Array, target_points: Array, feather: float) -> Array:
    """Lay a face (S, S, 3) that is in its place already on the target, inside a soft edge; uint8 (S, S, 3)."""
    mask = inner_face(target_points, target.shape[0])
    soft = ndimage.gaussian_filter(ndimage.grey_erosion(mask, size=2 * int(feather / 2) + 1), feather)[..., None]
    background = target.astype(np.float64)
    mixed = background + soft * (face - background)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def inner_face(points: Array, size: int) -> Array:
    """Return a float mask (S, S) in {0, 1} from the brows to the chin."""
    left, right, nose, mouth_left, mouth_right = points
    eyes = (left + right) / 2
    mouth = (mouth_left + mouth_right) / 2
    across = (right - left) / max(1e-6, float(np.linalg.norm(right - left)))
    down = np.array([-across[1], across[0]])
    width = float(np.linalg.norm(right - left))
    height = max(1e-6, float((mouth - eyes) @ down))
    centre = (eyes + mouth + nose) / 3
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    top, bottom = 1.0 * height, 1.15 * height
    rim = [
        centre + across * np.cos(angle) * 1.05 * width + down * np.sin(angle) * (bottom if np.sin(angle) > 0 else top)
        for angle in angles
    ]
    corners = np.array(rim)
    return draw.polygon2mask((size, size), corners[:, ::-1]).astype(np.float64)


def partial_swap(target: Array, swapped: Array, randomness: np.random.Generator) -> Array:
    """Keep a swap in one random soft ellipse of the face only, as part edits do; uint8 (S, S, 3).

    It turns a few thousand swaps into as many as training asks for.
    """
    size = target.shape[0]
    rows, columns = np.mgrid[0:size, 0:size]
    row, column = randomness.normal([0.55 * size, 0.5 * size], 0.08 * size)
    height, width = randomness.uniform(0.14, 0.4, 2) * size
    edge = randomness.uniform(0.02, 0.1)
    distance = np.hypot((rows - row) / height, (columns - column) / width)
    mask = np.clip((1 - distance) / edge + 0.5, 0, 1)[..., None]
    mixed = target + mask * (swapped.astype(np.float64) - target)
    return np.rint(mixed).astype(np.uint8)


def warp_to(source: Array, source_points: Array, target_points: Array) -> Array:
    """Warp uint8 (S, S, 3) by a thin-plate spline so that the landmarks meet; float64 result in [0, 255]."""
    size = source.shape[0]
    rim = RIM * (size - 1)
    spline = interpolate.RBFInterpolator(
        np.concatenate([target_points, rim]), np.concatenate([source_points, rim]), kernel="thin_plate_spline"
    )
    step = 4  # the spline is smooth: a coarse grid, interpolated, is exact to a fraction of a pixel
    axis = np.arange(0, size + step, step, dtype=np.float64)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    coarse = spline(grid.reshape(-1, 2)).reshape(*grid.shape)
    rows, columns = np.mgrid[0:size, 0:size] / step
    where = [ndimage.map_coordinates(coarse[..., axis_], [rows, columns], order=1) for axis_ in (1, 0)]
    channels = [
        ndimage.map_coordinates(source[..., c].astype(np.float64), where, order=1, mode="reflect") for c in range(3)
    ]
    return np.stack(channels, axis=-1)


def match_colour(face: Array, target: Array, mask: Array) -> Array:
    """Give the face the target's mean and spread of Lab colours inside the mask; float64 in [0, 255]."""
    lab = color.rgb2lab(np.clip(face, 0, 255) / 255)
    wanted = color.rgb2lab(target / 255.0)[mask]
    present = lab[mask]
    gain = np.clip(wanted.std(0) / (present.std(0) + 1e-6), 0.6, 1.6)
    shifted = (lab - present.mean(0)) * gain + wanted.mean(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # colours outside the gamut are expected, and clipped
        return np.clip(color.lab2rgb(shifted), 0, 1) * 255


def poisson_blend(face: Array, target: Array, mask: Array) -> Array:
    """Blend in the gradient domain: the face's gradients inside the mask, the target's outside and on the rim."""
    out = np.empty_like(target)
    for channel in range(3):
        inside, outside = face[..., channel], target[..., channel]
        horizontal = np.where(mask[:, 1:] & mask[:, :-1], np.diff(inside, axis=1), np.diff(outside, axis=1))
        vertical = np.where(mask[1:] & mask[:-1], np.diff(inside, axis=0), np.diff(outside, axis=0))
        divergence = np.diff(horizontal, axis=1)[1:-1] + np.diff(vertical, axis=0)[:, 1:-1]
        out[..., channel] = _solve_poisson(divergence, outside)
    return np.clip(out, 0, 255)


def _solve_poisson(divergence: Array, border: Array) -> Array:
    """Solve the Poisson equation on a rectangle whose border is given, by sine transforms."""
    height, width = border.shape
    right = divergence.copy()
    right[0] -= border[0, 1:-1]
    right[-1] -= border[-1, 1:-1]
    right[:, 0] -= border[1:-1, 0]
    right[:, -1] -= border[1:-1, -1]
    rows = 2 * np.cos(np.pi * np.arange(1, height - 1) / (height - 1)) - 2
    columns = 2 * np.cos(np.pi * np.arange(1, width - 1) / (width - 1)) - 2
    spectrum = fft.dstn(right, type=1) / (rows[:, None] + columns[None])
    solved = border.copy()
    solved[1:-1, 1:-1] = fft.idstn(spectrum, type=1)
    return solved
