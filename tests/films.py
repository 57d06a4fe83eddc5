"""Short videos for the tests, all made in memory."""

import io
from fractions import Fraction

import av
import numpy as np
from av.video.frame import VideoFrame
from PIL import Image

from backend import images
from backend.settings import ROOT

UPRIGHT = (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)  # how an MP4 says that nothing is turned


def encode(frames: list[np.ndarray], rate: float = 5, kind: str = "mp4", codec: str = "libx264") -> bytes:
    """Return frames, uint8 (H, W, 3) with even sides, as a video file."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1000))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.options = {"crf": "12"} if codec == "libx264" else {}
        for pixels in frames:
            container.mux(stream.encode(VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def turned(content: bytes) -> bytes:
    """Return an MP4 whose player has to turn it by a quarter to the right, as phones write it."""
    words = [word.to_bytes(4, "big", signed=True) for word in UPRIGHT]
    upright = b"".join(words)
    first = content.index(upright)  # of the whole; the second is that of the pictures
    place = content.index(upright, first + 1)
    right = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    return content[:place] + b"".join(word.to_bytes(4, "big", signed=True) for word in right) + content[place + 36 :]


def moving_face(count: int = 6, *, hidden: tuple[int, ...] = (), side: int = 160) -> list[np.ndarray]:
    """Return frames (240, 360, 3) in which one of the app's example faces moves over soft colours.

    Args:
        count: How many.
        hidden: Frames, from 0, in which it is not there.
        side: Size of the face's picture.
    """
    example = images.read(ROOT / "examples" / "generated_1.png")
    face = np.asarray(Image.fromarray(example).resize((side, side), Image.Resampling.LANCZOS))
    y, x = np.mgrid[0:240, 0:360]
    background = np.stack([60 + x * 0.3, 70 + y * 0.3, np.full(x.shape, 120.0)], axis=-1).astype(np.uint8)
    frames = []
    for number in range(count):
        frame = background.copy()
        if number not in hidden:
            left, top = 40 + 12 * number, 40 - 3 * number
            frame[top : top + side, left : left + side] = face
        frames.append(frame)
    return frames
