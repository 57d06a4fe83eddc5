"""Tests of finding faces, cutting them out and putting them back."""

import functools
import threading

import numpy as np
import pytest
from PIL import Image

from backend import alignment, faces, images
from backend.errors import UserError
from backend.faces import Face
from tests import pictures

FRONTAL = np.array([[40.0, 50.0], [70.0, 50.0], [55.0, 68.0], [43.0, 82.0], [67.0, 82.0]])
BOX = (25.0, 20.0, 85.0, 100.0)
SHAPE = (120, 110, 3)


@functools.cache
def face_of(name: str) -> Face:
    """Return the one face of a photo, searched once."""
    return faces.choose_face(faces.find_faces(getattr(pictures, name)()))


def moved(landmarks: np.ndarray, box: tuple[float, float, float, float], by: float) -> Face:
    """Return a face that lies further to the right."""
    return Face((box[0] + by, box[1], box[2] + by, box[3]), 1.0, landmarks + (by, 0))


def reduced(picture: np.ndarray, factor: float) -> np.ndarray:
    """Return a copy whose sides are `factor` times as long."""
    size = round(picture.shape[1] * factor), round(picture.shape[0] * factor)
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def template_distance(landmarks: np.ndarray, template: str, size: int) -> float:
    """Return how far the eyes are from where the template has them, in crop pixels."""
    eyes = landmarks[:2]
    if template == "embedded":
        half = alignment.EYES_DISTANCE / 2
        expected = np.array([[0.5 - half, alignment.EYES_HEIGHT], [0.5 + half, alignment.EYES_HEIGHT]]) * size
        return float(np.linalg.norm(eyes - expected, axis=1).max())
    to_mouth = landmarks[3:].mean(axis=0) - eyes.mean(axis=0)
    return float(np.abs(eyes.mean(axis=0) + 0.1 * to_mouth - size / 2).max())


@pytest.mark.parametrize("name", ["astronaut", "hopper"])
def test_one_face(name: str) -> None:
    detected = faces.find_faces(getattr(pictures, name)())
    assert len(detected) == 1
    left, right, nose, mouth_left, mouth_right = detected[0].landmarks
    assert left[0] < nose[0] < right[0]
    assert mouth_left[0] < mouth_right[0]
    assert left[1] < nose[1] < mouth_left[1]
    assert faces.face_problem(detected[0], getattr(pictures, name)().shape) is None


def test_several_faces_largest_first() -> None:
    detected = faces.find_faces(pictures.two_people())
    assert len(detected) == 2
    assert detected[0].box[0] > 512 > detected[1].box[2]
    assert faces.choose_face(detected) is faces.choose_face(detected, 1) is detected[0]
    assert faces.choose_face(detected, 2) is detected[1]
    for number in (0, 3, -1):
        with pytest.raises(UserError, match="only 2 faces"):
            faces.choose_face(detected, number)


@pytest.mark.parametrize(
    "picture",
    [pictures.noise(128, 128), pictures.drawing(), np.zeros((32, 32, 3), np.uint8), pictures.noise(32, 3000)],
)
def test_no_face(picture: np.ndarray) -> None:
    assert faces.find_faces(picture) == []
    with pytest.raises(UserError, match="No face was found"):
        faces.choose_face([])


def test_finding_is_deterministic() -> None:
    first, second = (faces.find_faces(pictures.two_people()) for _ in range(2))
    assert first == second
    assert all(np.array_equal(a.landmarks, b.landmarks) for a, b in zip(first, second, strict=True))


def test_threads_share_the_finder() -> None:
    detected: list[list[Face]] = []
    threads = [
        threading.Thread(target=lambda: detected.append(faces.find_faces(pictures.astronaut()))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert detected == [[face_of("astronaut")]] * 3


def test_coordinates_follow_a_large_photo() -> None:
    large = faces.choose_face(faces.find_faces(reduced(pictures.hopper(), 5)))
    assert np.abs(large.landmarks / 5 - face_of("hopper").landmarks).max() < 5


def test_face_that_fills_the_picture() -> None:
    x0, y0, x1, y1 = (round(side) for side in face_of("hopper").box)
    tight = pictures.hopper()[y0:y1, x0:x1]
    face = faces.choose_face(faces.find_faces(tight))
    assert np.abs(face.landmarks + (x0, y0) - face_of("hopper").landmarks).max() < 12


def turn_of(picture: np.ndarray) -> int | None:
    """Return how far a picture must be turned; 0 where a face is upright."""
    return 0 if faces.find_faces(picture) else faces.find_other_turn(picture)


@pytest.mark.parametrize(
    ("name", "degrees"),
    [("astronaut", 0), ("astronaut", 90), ("astronaut", 180), ("astronaut", 270), ("hopper", 90), ("hopper", 270)],
)
def test_the_turn_of_a_photo_is_found(name: str, degrees: int) -> None:
    photo = getattr(pictures, name)()
    turn = turn_of(images.turned(photo, degrees))
    assert turn == -degrees % 360
    assert np.array_equal(images.turned(images.turned(photo, degrees), turn), photo)


@pytest.mark.parametrize("picture", [pictures.drawing(), np.zeros((32, 32, 3), np.uint8), pictures.noise(300, 200)])
def test_a_picture_without_a_face_has_no_turn(picture: np.ndarray) -> None:
    assert turn_of(picture) is None


def test_a_turn_is_clockwise() -> None:
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert images.turned(picture, 90)[0, 1].tolist() == picture[0, 0].tolist()
    assert images.turned(picture, 270)[1, 0].tolist() == picture[0, 0].tolist()
    assert np.array_equal(images.turned(picture, 180), picture[::-1, ::-1])
    assert images.turned(picture, 0).tolist() == picture.tolist()


def test_tiny_face_is_a_problem() -> None:
    small = reduced(pictures.astronaut(), 0.4)
    sentence = faces.face_problem(faces.choose_face(faces.find_faces(small)), small.shape)
    assert sentence is not None
    assert "pixels wide" in sentence


def test_turned_photo_is_upright() -> None:
    stored = np.ascontiguousarray(np.rot90(pictures.hopper()))
    photo = images.read(pictures.with_orientation(stored, 6, "PNG"))
    assert np.array_equal(photo, pictures.hopper())
    assert faces.find_faces(photo) == [face_of("hopper")]


def test_cut_off_face_is_a_problem() -> None:
    eye = int(face_of("hopper").landmarks[0, 0])
    cut = np.ascontiguousarray(pictures.hopper()[:, eye + 15 :])
    for face in faces.find_faces(cut):
        assert "cut off" in (faces.face_problem(face, cut.shape) or "")


@pytest.mark.parametrize("by", [-45.0, 45.0, -42.0, 42.0])
def test_landmarks_or_box_outside(by: float) -> None:
    assert "cut off" in (faces.face_problem(moved(FRONTAL, BOX, by), SHAPE) or "")


def test_frontal_face_is_fine() -> None:
    for by in (0.0, -25.0, 25.0):
        assert faces.face_problem(moved(FRONTAL, BOX, by), SHAPE) is None


@pytest.mark.parametrize("nose_x", [40.0, 70.0, 25.0])
def test_profile_by_nose(nose_x: float) -> None:
    landmarks = FRONTAL.copy()
    landmarks[2, 0] = nose_x
    assert "side" in (faces.face_problem(Face(BOX, 1.0, landmarks), SHAPE) or "")


def test_profile_by_eyes() -> None:
    landmarks = FRONTAL.copy()
    landmarks[:2, 0] = (50, 60)
    assert "side" in (faces.face_problem(Face(BOX, 1.0, landmarks), SHAPE) or "")


@pytest.mark.parametrize("name", ["astronaut", "hopper"])
@pytest.mark.parametrize(("template", "size"), [("embedded", 128), ("ffhq", 256)])
def test_alignment_puts_landmarks_in_place(name: str, template: str, size: int) -> None:
    photo, face = getattr(pictures, name)(), face_of(name)
    aligned = alignment.align_face(photo, face, template, size)
    assert aligned.crop.shape == (size, size, 3)
    assert aligned.crop.dtype == np.uint8
    assert aligned.resampled
    mapped = face.landmarks @ aligned.matrix[:, :2].T + aligned.matrix[:, 2]
    assert template_distance(mapped, template, size) < 1e-6
    # The finder itself scatters by a pixel of 128 when the picture changes.
    again = faces.choose_face(faces.find_faces(aligned.crop))
    assert np.linalg.norm(again.landmarks[:2].mean(axis=0) - mapped[:2].mean(axis=0)) < 1.1 * size / 128


@pytest.mark.parametrize("template", ["embedded", "ffhq"])
def test_aligned_crop_is_taken_as_it_is(template: str) -> None:
    crop = alignment.align_face(pictures.hopper(), face_of("hopper"), template, 256).crop
    face = faces.choose_face(faces.find_faces(crop))
    again = alignment.align_face(crop, face, template, 256)
    assert not again.resampled
    assert np.array_equal(again.crop, crop)
    assert again.crop is not crop
    smaller = alignment.align_face(crop, face, template, 128)
    assert smaller.resampled
    assert np.array_equal(smaller.crop, reduced(crop, 0.5))


def test_published_mean_face_of_ffhq_is_aligned() -> None:
    # The mean landmarks of FFHQ at 512 pixels that face restorers align to.
    mean = np.array([[192.98, 239.95], [318.90, 240.19], [256.63, 314.02], [201.26, 371.41], [313.09, 371.15]])
    picture = pictures.noise(512, 512)
    assert not alignment.align_face(picture, Face((0, 0, 512, 512), 1.0, mean), "ffhq", 512).resampled
    assert alignment.align_face(picture, Face((0, 0, 512, 512), 1.0, mean + 40), "ffhq", 512).resampled


def test_crop_of_a_flipped_photo_is_the_flipped_crop() -> None:
    photo, face = pictures.astronaut(), face_of("astronaut")
    mirrored = face.landmarks[[1, 0, 2, 4, 3]] * (-1, 1) + (photo.shape[1], 0)
    other = alignment.align_face(np.ascontiguousarray(photo[:, ::-1]), Face(face.box, 1.0, mirrored), "ffhq", 128)
    crop = alignment.align_face(photo, face, "ffhq", 128).crop
    assert np.abs(other.crop[:, ::-1].astype(int) - crop).max() <= 1


def test_matrix_is_exact() -> None:
    y, x = np.mgrid[0:300, 0:400] + 0.5
    photo = np.stack([x * 0.6, y * 0.8, np.full_like(x, 100)], axis=-1).astype(np.uint8)
    face = Face((120.0, 90.0, 220.0, 230.0), 1.0, FRONTAL + (100, 80))
    aligned = alignment.align_face(photo, face, "embedded", 96)
    back = np.linalg.inv(np.vstack([aligned.matrix, [0, 0, 1]]))
    v, u = np.mgrid[20:76, 20:76] + 0.5
    expected = np.einsum("ij,jhw->ihw", back[:2, :2], np.stack([u, v])) + back[:2, 2, None, None]
    inner_crop = aligned.crop[20:76, 20:76]
    assert np.abs(inner_crop[..., 0] - (expected[0] * 0.6 - 0.5)).max() < 1.5
    assert np.abs(inner_crop[..., 1] - (expected[1] * 0.8 - 0.5)).max() < 1.5


def test_reduction_is_antialiased() -> None:
    y, x = np.mgrid[0:1100, 0:1100]
    stripes = np.repeat((((x + y) % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)
    for stretch in (3.0, 5.5, 8.7):
        face = Face((0, 0, 1, 1), 1.0, FRONTAL * stretch + (20, 20))
        crop = alignment.align_face(stripes, face, "embedded", 64).crop.astype(int)
        assert np.abs(crop - 127.5).max() < 12


def test_photo_is_mirrored_beyond_its_edge() -> None:
    face = moved(FRONTAL, BOX, -25)
    photo = np.full(SHAPE, 90, np.uint8)
    assert (alignment.align_face(photo, face, "embedded", 64).crop == 90).all()


@pytest.mark.parametrize(("template", "size"), [("embedded", 128), ("ffhq", 256), ("ffhq", 40)])
def test_unedited_face_leaves_the_photo_identical(template: str, size: int) -> None:
    photo = pictures.astronaut()
    aligned = alignment.align_face(photo, face_of("astronaut"), template, size)
    assert np.array_equal(alignment.paste_back(photo, aligned.crop, aligned), photo)


@pytest.mark.parametrize("floating", [False, True])
def test_edit_lands_on_the_face_and_nowhere_else(*, floating: bool) -> None:
    photo, face = pictures.astronaut(), face_of("astronaut")
    before = photo.copy()
    aligned = alignment.align_face(photo, face, "embedded", 128)
    edited = (aligned.crop // 2).astype(np.uint8)
    result = alignment.paste_back(photo, edited / np.float32(255) if floating else edited, aligned)
    assert np.array_equal(photo, before)
    y, x = np.mgrid[0 : photo.shape[0], 0 : photo.shape[1]] + 0.5
    crop_points = np.stack([x, y], axis=-1) @ aligned.matrix[:, :2].T + aligned.matrix[:, 2]
    outside = ((crop_points <= 0) | (crop_points >= 128)).any(axis=2)
    assert np.array_equal(result[outside], photo[outside])
    again = alignment.align_face(result, face, "embedded", 128)
    assert np.abs(again.crop[20:108, 20:108].astype(int) - edited[20:108, 20:108]).mean() < 3


def test_aligned_photo_becomes_the_edit() -> None:
    crop = alignment.align_face(pictures.hopper(), face_of("hopper"), "embedded", 128).crop
    aligned = alignment.align_face(crop, faces.choose_face(faces.find_faces(crop)), "embedded", 128)
    edited = pictures.noise(128, 128)
    assert np.array_equal(alignment.paste_back(crop, edited, aligned), edited)
    assert np.array_equal(alignment.paste_back(crop, edited / np.float32(255), aligned), edited)


def test_larger_aligned_photo_is_edited_up_to_its_edge() -> None:
    crop = alignment.align_face(pictures.hopper(), face_of("hopper"), "embedded", 256).crop
    aligned = alignment.align_face(crop, faces.choose_face(faces.find_faces(crop)), "embedded", 128)
    result = alignment.paste_back(crop, np.full((128, 128, 3), 255, np.uint8), aligned)
    assert result[0, 0].min() > crop[0, 0].min()
    assert result.mean() > 240
