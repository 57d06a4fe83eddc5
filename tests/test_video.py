"""Short videos: what is read, what is refused before it is decoded, and the one face that is followed."""

import io
import json

import av
import numpy as np
import pytest

from backend import faces, provenance, video
from backend.errors import UserError
from backend.faces import Face
from backend.progress import finish
from tests import films, pictures


def read(content: bytes) -> video.Clip:
    return finish(video.read_video(content))


def soft(count: int, height: int = 40, width: int = 64) -> list[np.ndarray]:
    """Return frames of soft colours, each a little brighter than the one before."""
    return [
        np.clip(pictures.ramp(height, width).astype(int) + number, 0, 255).astype(np.uint8) for number in range(count)
    ]


def test_what_was_written_is_read_again():
    frames = soft(12, 42, 66)
    clip = read(video.encode_mp4(frames, 5, {}))
    assert clip.size == clip.source_size == (66, 42) and len(clip.frames) == 12
    assert clip.rate == 5 and clip.seconds == pytest.approx(2.4) and clip.times == pytest.approx(np.arange(12) / 5)
    for number, (before, after) in enumerate(zip(frames, clip.frames, strict=True)):
        assert np.abs(before.astype(int) - after).mean() < 4, number  # its colours are those that went in


def test_an_odd_side_loses_a_pixel():
    assert read(video.encode_mp4(soft(2, 41, 65), 5, {})).size == (64, 40)


@pytest.mark.parametrize(("kind", "codec"), [("mp4", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mjpeg")])
def test_the_usual_formats_are_read(kind, codec):
    clip = read(films.encode(soft(4), kind=kind, codec=codec))
    assert len(clip.frames) == 4 and clip.size == (64, 40)


def test_five_frames_a_second_are_taken_and_fifty_in_all(monkeypatch):
    steps = []
    clip = finish(video.read_video(films.encode(soft(45), rate=30)), steps.append)
    assert clip.times == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4], abs=0.02)
    assert clip.source_rate == pytest.approx(30) and clip.rate == pytest.approx(5, rel=0.02)
    assert len(steps) == 8 and steps[-1].number == steps[-1].total
    monkeypatch.setattr(video, "MAX_FRAMES", 3)
    assert len(read(films.encode(soft(45), rate=30)).frames) == 3


def test_a_video_of_a_phone_is_turned_upright():
    frames = soft(3)
    clip = read(films.turned(films.encode(frames)))
    assert clip.size == clip.source_size == (40, 64)
    assert np.abs(np.rot90(frames[0], -1).astype(int) - clip.frames[0]).mean() < 4


def test_large_frames_are_reduced(monkeypatch):
    monkeypatch.setattr(video, "MAX_SIDE", 32)
    clip = read(films.encode(soft(3)))
    assert clip.size == (32, 20) and clip.source_size == (64, 40)


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MAX_SECONDS", 0.5, r"longer than 0 seconds \(2\)"),
        ("MAX_SOURCE_PIXELS", 64 * 40 - 1, "64 by 40 pixels, which is too many"),
        ("MAX_SOURCE_RATE", 0.5, "too many frames"),
        ("MIN_SIDE", 41, "only 64 by 40 pixels"),
        ("CODECS", set(), r"coded in a way \(h264\)"),
    ],
)
def test_limits_are_checked_before_anything_is_decoded(limit, value, message, monkeypatch):
    def never(*_arguments):
        pytest.fail("a frame was decoded")

    monkeypatch.setattr(video, "_timed", never)
    monkeypatch.setattr(video, limit, value)
    with pytest.raises(UserError, match=message) as caught:
        read(films.encode(soft(12)))
    assert caught.value.hint


def test_a_file_that_lies_about_its_length_is_stopped_while_it_is_read(monkeypatch):
    monkeypatch.setattr(video, "_seconds", lambda *_: 0.0)
    monkeypatch.setattr(video, "MAX_SECONDS", 0.5)
    with pytest.raises(UserError, match="longer than"):
        read(films.encode(soft(12)))


def test_too_many_bytes_are_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "large.mp4"
    path.write_bytes(bytes(101))
    monkeypatch.setattr(video, "SETTINGS", type("S", (), {"max_video_bytes": 100}))
    with pytest.raises(UserError, match=r"larger than 0\.0001 MB"):
        finish(video.read_video(path))


def damaged() -> dict[str, bytes]:
    content = films.encode(soft(12), kind="matroska")
    return {
        "empty": b"",
        "text": b"no video at all" * 100,
        "a picture": pictures.encode(pictures.ramp(), "PNG"),
        "a list of other files": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\n/etc/passwd\n",
        "the names of other files": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "its first half": content[: len(content) // 2],
        "its first bytes": content[:200],
        "one picture": films.encode(soft(1)),
        "only sound": sound(),
    }


def sound() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4410), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize("what", damaged())
def test_a_file_that_is_no_video_gives_one_sentence(what):
    with pytest.raises(UserError) as caught:
        read(damaged()[what])
    assert caught.value.hint and "\n" not in str(caught.value)


def test_a_missing_file_gives_one_sentence(tmp_path):
    with pytest.raises(UserError, match="could not be opened"):
        finish(video.read_video(tmp_path / "none.mp4"))


def test_every_frame_is_marked_and_the_file_says_what_it_is():
    frames = [np.full((120, 160, 3), 200, np.uint8) for _ in range(5)]
    content = provenance.marked_mp4(frames, 5, {"p": np.float32(0.5)})
    for frame in read(content).frames:
        assert frame[-8:, :30].min() < 90 and np.abs(frame[:60].astype(int) - 200).max() < 6
    with av.open(io.BytesIO(content)) as container:
        metadata = container.metadata
    assert metadata["title"] == provenance.SIGN and metadata["comment"] == provenance.NOTE
    assert json.loads(metadata["description"]) == {"p": 0.5}
    assert read(provenance.unmarked_mp4(frames, 5, {})).frames[0][-8:, :30].min() > 190


def box(x: float, y: float, side: float = 100) -> Face:
    return Face((x, y, x + side, y + side), 0.99, np.zeros((5, 2)))


def test_the_largest_face_is_followed_both_ways():
    # Another face is larger than ours at first and at the end, and never as large as ours in the middle.
    others = [box(400, 0, 110), box(400, 0, 110), box(400, 0, 110), box(400, 0, 110)]
    ours = [box(0, 0), box(30, 0), box(50, 0, 130), box(70, 0)]
    assert faces.track_largest_face([list(pair) for pair in zip(others, ours, strict=True)]) == ours


def test_frames_without_the_face_are_empty_and_it_is_found_again():
    track = faces.track_largest_face([[box(0, 0)], [], [box(500, 0, 50)], [box(20, 5)]])
    assert track == [box(0, 0), None, None, box(20, 5)]
    assert faces.track_largest_face([[], []]) == [None, None]


def test_overlap_by_hand():
    assert faces.box_overlap(box(0, 0), box(0, 0)) == 1
    assert faces.box_overlap(box(0, 0), box(50, 0)) == pytest.approx(1 / 3)
    assert faces.box_overlap(box(0, 0), box(100, 0)) == 0


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("size", [(128, 128), (33, 47)])
def test_a_picture_saved_as_a_frame_stays_where_it_was_and_loses_more_at_a_higher_rate_factor(size, moved):
    rows, columns = np.mgrid[: size[0], : size[1]]
    picture = np.stack([rows * 5 % 256, columns * 4 % 256, 120 + 0 * rows], 2).astype(np.uint8)
    losses = []
    for rate_factor in (10, 25, 40):
        saved = video.save_as_frame(picture, rate_factor, moved=moved)
        assert saved.shape == picture.shape and saved.dtype == np.uint8
        losses.append(float(np.abs(saved.astype(float) - picture).mean()))
    assert losses == sorted(losses) and losses[0] < 12
