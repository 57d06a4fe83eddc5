"""Turn a short video file into frames and frames into an MP4, and nothing else."""

import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from PIL import Image

from backend.errors import UserError
from backend.progress import Job, Step
from backend.settings import SETTINGS

# The decoders of rare formats are the least tested ones, and some formats are lists that name other files.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
CODECS = {"h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg", "prores"}
MAX_SECONDS = 10.0
SLACK_SECONDS = 0.5  # what cameras and players call ten seconds is often a little more
MISSING_SECONDS = 1.0  # at the end; of a file that is whole, only the last frame's own time is
MAX_SOURCE_RATE = 240  # frames a second, in the file
MAX_SOURCE_PIXELS = 4096 * 2304  # of one frame of the file
RATE = 5  # frames a second that are taken
MAX_FRAMES = 50  # that are taken
MAX_SIDE = 960  # pixels of the longer side, to which larger frames are reduced
MIN_SIDE = 32
SHARPNESS = "18"  # x264's constant rate factor; nobody sees the loss, but traces are lost all the same

_OTHER_FILE = "Use an MP4, MOV, WebM or AVI file."


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of a video, upright.

    Args:
        frames: uint8 (H, W, 3), RGB, all of one size.
        times: When each is shown, in seconds from the first.
        rate: Frames a second, of those that were taken.
        source_rate: Frames a second in the file.
        source_size: Width and height in the file, upright.
    """

    frames: tuple[np.ndarray, ...] = field(repr=False)
    times: tuple[float, ...]
    rate: float
    source_rate: float
    source_size: tuple[int, int]
    seconds: float

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.frames[0].shape[:2]
        return width, height


def read_video(source: bytes | Path) -> Job[Clip]:
    """Decode a short video: at most RATE frames a second, MAX_FRAMES in all; its sound is not looked at.

    What the file (its content or its path) says of itself is checked before it is decoded, and again meanwhile.

    Raises:
        UserError: It is not a video of a known kind, is damaged, or is too large or too long.
    """
    try:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        _check_bytes(size)
        file = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    except OSError:
        raise UserError("The video file could not be opened.", "Check its name, or choose it again.") from None
    with file:
        # As a file that is open already, it can name no other file and no address.
        try:
            container = av.open(file, options={"format_whitelist": CONTAINERS})
        except Exception:  # noqa: BLE001 - openers raise anything on what is not a video, and all of it means the same
            raise UserError("This file is not a video that can be read here.", _OTHER_FILE) from None
        with container:
            assert isinstance(container, InputContainer)
            return (yield from _decoded(container))


def video_seconds(path: Path) -> float:
    """Return the seconds that a file says it lasts, at most MAX_SECONDS, or MAX_SECONDS where it does not say."""
    try:
        with path.open("rb") as file, av.open(file, options={"format_whitelist": CONTAINERS}) as container:
            assert isinstance(container, InputContainer)
            return min(MAX_SECONDS, _seconds(container, container.streams.video[0]) or MAX_SECONDS)
    except Exception:  # noqa: BLE001 - openers raise anything; `read_video` says why
        return MAX_SECONDS


def encode_mp4(frames: Sequence[np.ndarray], rate: float, metadata: Mapping[str, str]) -> bytes:
    """Encode frames as MP4 (H.264), which every browser plays.

    Args:
        frames: uint8 (H, W, 3), all of one size; an odd side loses its last pixel, which the format cannot hold.
        rate: Frames a second.
        metadata: `title`, `comment`, `description`: the names that the format knows.
    """
    height, width = (side - side % 2 for side in frames[0].shape[:2])
    # The index goes to the front, so that players need not wait for the end; this takes a real file.
    with tempfile.TemporaryDirectory(prefix="face-forgery-") as folder:
        path = Path(folder) / "video.mp4"
        _write(path, [frame[:height, :width] for frame in frames], rate, metadata)
        return path.read_bytes()


def _write(path: Path, frames: Sequence[np.ndarray], rate: float, metadata: Mapping[str, str]) -> None:
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        container.metadata.update(metadata)
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": SHARPNESS, "preset": "fast"}
        # Without these, players guess how colours were coded, and differ.
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = int(Colorspace.ITU709)
        context.color_range = int(ColorRange.MPEG)
        for pixels in frames:
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
        container.mux(stream.encode())


def _check_bytes(count: int) -> None:
    if not count:
        raise UserError("The file is empty.", _OTHER_FILE)
    if count > SETTINGS.max_video_bytes:
        limit = SETTINGS.max_video_bytes / 1e6
        raise UserError(f"The video file is larger than {limit:g} MB.", "Use a shorter one, or a smaller copy of it.")


def _decoded(container: InputContainer) -> Job[Clip]:
    stream = _checked(container)
    frames: list[np.ndarray] = []
    times: list[float] = []
    source_rate = float(stream.average_rate or stream.guessed_rate or 0)
    source_size, last, count = (0, 0), 0.0, 0
    expected = min(MAX_FRAMES, max(1, round(_seconds(container, stream) * min(RATE, source_rate or RATE))))
    for time, frame in _timed(container, stream, source_rate or 25.0):
        count, last = count + 1, time
        if count > MAX_SOURCE_RATE * (MAX_SECONDS + SLACK_SECONDS):
            raise UserError("The video has too many frames.", "Use a shorter one.")
        if time > MAX_SECONDS + SLACK_SECONDS:
            raise _too_long(time)
        _check_pixels(frame.width, frame.height)
        # A hair early is in time: files round the times of their frames.
        if len(frames) < MAX_FRAMES and time >= len(frames) / RATE - 1e-3:
            pixels, size = _upright(frame, stream.sample_aspect_ratio or Fraction(1))
            if frames and pixels.shape != frames[0].shape:
                raise UserError("The frames of this video have different sizes.", "Save it again, or use another.")
            source_size = source_size if frames else size
            frames.append(pixels)
            times.append(time)
            yield Step(min(len(frames), expected), expected, "The video is read.")
    if last + MISSING_SECONDS < _seconds(container, stream):
        raise _damaged()
    if len(frames) < 2:
        raise UserError("This video has no more than one picture.", "Use a longer one, or a photo in step 1.")
    rate = (len(times) - 1) / max(times[-1], 1e-3)
    seconds = last + 1 / (source_rate or rate)
    return Clip(tuple(frames), tuple(times), min(float(RATE), rate), source_rate, source_size, seconds)


def _checked(container: InputContainer) -> VideoStream:
    if not container.streams.video:
        raise UserError("This file has no pictures, only sound.", _OTHER_FILE)
    stream = container.streams.video[0]
    context = stream.codec_context
    name = context.codec.canonical_name
    if name not in CODECS:
        raise UserError(f"The pictures of this video are coded in a way ({name}) that is not read here.", _OTHER_FILE)
    _check_pixels(context.width, context.height)
    context.options = {"max_pixels": str(MAX_SOURCE_PIXELS)}
    seconds = _seconds(container, stream)
    if seconds > MAX_SECONDS + SLACK_SECONDS:
        raise _too_long(seconds)
    if stream.frames > MAX_SOURCE_RATE * (MAX_SECONDS + SLACK_SECONDS):
        raise UserError("The video has too many frames.", "Use a shorter one.")
    return stream


def _seconds(container: InputContainer, stream: VideoStream) -> float:
    """Return how long the file says that it is, 0 where it does not say."""
    if container.duration:  # of what is played: the stream may hold more, which an editor cut off
        return container.duration / av.time_base
    return float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0


def _timed(container: InputContainer, stream: VideoStream, rate: float) -> Iterator[tuple[float, VideoFrame]]:
    """Yield the frames with their times in seconds from the first."""
    first: float | None = None
    count = 0
    try:
        for frame in container.decode(stream):
            at = frame.time if frame.time is not None else count / rate
            first = at if first is None else first
            yield max(0.0, at - first), frame
            count += 1
    except av.FFmpegError:
        raise _damaged() from None


def _upright(frame: VideoFrame, aspect: Fraction) -> tuple[np.ndarray, tuple[int, int]]:
    """Return a frame as it is to be seen, no larger than MAX_SIDE, and its width and height in the file.

    `aspect` is the width of its pixels in heights: some videos have pixels that are not square.
    """
    quarters = round(frame.rotation / 90) % 4
    pixels = np.rot90(frame.to_ndarray(format="rgb24"), quarters)  # counterclockwise, as the file means it
    height, width = pixels.shape[:2]
    across = float(aspect if quarters % 2 == 0 else 1 / aspect) if aspect > 0 else 1.0
    wide, high = width * max(1.0, across), height / min(1.0, across)
    factor = min(1.0, MAX_SIDE / max(wide, high))
    size = max(1, round(wide * factor)), max(1, round(high * factor))
    if size != (width, height):
        resized = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
        pixels = np.asarray(resized)
    return np.ascontiguousarray(pixels), (width, height)


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_SOURCE_PIXELS:
        raise UserError(
            f"The frames of this video have {width} by {height} pixels, which is too many.", "Use a smaller copy of it."
        )
    if min(width, height) < MIN_SIDE:
        raise UserError(
            f"The frames of this video have only {width} by {height} pixels.",
            f"Use one that is at least {MIN_SIDE} pixels wide and high.",
        )


def _damaged() -> UserError:
    return UserError("The video is damaged or incomplete.", "Save it again, or use another copy of it.")


def _too_long(seconds: float) -> UserError:
    return UserError(
        f"The video is longer than {MAX_SECONDS:.0f} seconds ({seconds:.0f}).", "Cut a part out of it, and use that."
    )


def save_as_frame(picture: np.ndarray, crf: int, *, moved: bool) -> np.ndarray:
    """Return uint8 (S, S, 3) as a frame of an H.264 video; a moved frame is predicted from the one before it."""
    sides = picture.shape[:2]
    picture = np.pad(picture, ((0, sides[0] % 2), (0, sides[1] % 2), (0, 0)), mode="edge")  # its colours lie 2 x 2
    height, width = picture.shape[:2]
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.thread_count = Fraction(1, 25), 1
    encoder.options = {"crf": str(crf), "preset": "veryfast", "tune": "zerolatency"}
    packets = []
    for number, pixels in enumerate([np.roll(picture, (1, -1), (0, 1)), picture] if moved else [picture]):
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts = number
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    frames = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    return frames[-1].to_ndarray(format="rgb24")[: sides[0], : sides[1]]
