"""Where the parts of a face are, from five landmarks and the proportions of a frontal face."""

import numpy as np

REGIONS = ("eyes", "nose", "mouth", "skin", "surround")
PARTS = ("eyes", "nose", "mouth", "forehead", "cheeks", "chin", "hairline", "background")
# Half axes of the ellipses, along and across the line of the eyes, in eye distances.
EYE = (0.30, 0.20)
NOSE = (0.27, 0.38)
MOUTH_MARGIN, MOUTH_HEIGHT = 0.15, 0.24
FACE = (1.05, 1.50)
HAIR = 1.3  # of the face's ellipse: how far the hairline reaches beyond it
BROWS = 0.35  # eye distances above the eyes, where the forehead begins

Masks = dict[str, np.ndarray]


class _Frame:
    """Coordinates along and across the line of the eyes, in eye distances from the point between them.

    Args:
        landmarks: (5, 2), x and y in crop pixels: left and right eye, nose, left and right corner of the mouth.
        shape: Height and width of the crop.
    """

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
        """Return where a point in crop pixels is."""
        return self._turned(*(point - self.origin))

    def ellipse(self, centre: tuple[float, float], axes: tuple[float, float]) -> np.ndarray:
        """Return which pixels (H, W) lie in an ellipse."""
        return ((self.along - centre[0]) / axes[0]) ** 2 + ((self.across - centre[1]) / axes[1]) ** 2 <= 1

    def face(self, scale: float = 1.0) -> np.ndarray:
        """Return which pixels (H, W) lie in the oval of the face, scaled."""
        return self.ellipse((self.mouth[0] / 2, self.mouth[1] / 2), (FACE[0] * scale, FACE[1] * scale))

    def features(self) -> Masks:
        """Return eyes, nose and mouth; they may overlap."""
        return {
            "eyes": self.ellipse(self.left, EYE) | self.ellipse(self.right, EYE),
            "nose": self.ellipse((0.7 * self.nose[0], 0.7 * self.nose[1]), NOSE),
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
        Boolean (H, W) by region, in the order of `REGIONS`.
    """
    frame = _Frame(landmarks, shape)
    return _first_come(frame.features() | {"skin": frame.face(), "surround": np.ones(shape, dtype=bool)})


def part_masks(landmarks: np.ndarray, shape: tuple[int, int]) -> Masks:
    """Draw the eight parts of a face; every pixel belongs to exactly one.

    They divide the regions: the skin into forehead, cheeks and chin, and what surrounds the face into hairline
    (the band around its upper half) and background.

    Args:
        landmarks: (5, 2), as for `region_masks`.
        shape: Height and width of the crop.

    Returns:
        Boolean (H, W) by part, in the order of `PARTS`.
    """
    frame = _Frame(landmarks, shape)
    skin = frame.face()
    return _first_come(
        frame.features()
        | {
            "forehead": skin & (frame.across < -BROWS),
            "cheeks": skin & (frame.across < frame.mouth[1]),
            "chin": skin,
            "hairline": frame.face(HAIR) & (frame.across < 0),
            "background": np.ones(shape, dtype=bool),
        }
    )


def _first_come(drawn: Masks) -> Masks:
    """Give every pixel to the first that claims it."""
    free = np.ones_like(next(iter(drawn.values())))
    masks = {}
    for name, mask in drawn.items():
        masks[name] = mask & free
        free &= ~mask
    return masks
