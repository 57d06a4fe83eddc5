"""What detectors see: their own crop of the photo, and the generator's changes in it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from backend import alignment, faces, images, runtime
from backend.counterfactual.photo import find_counterfactual
from backend.counterfactual.search import SearchSettings, search
from backend.detectors import combination, predict, registry
from backend.detectors.base import Detector
from backend.faces import Face
from backend.progress import finish
from tests.toys import toy_detector, toy_inverter

LANDMARKS = np.array([[170, 190], [232, 194], [200, 232], [176, 262], [226, 264]], dtype=np.float64)
FACE = Face((140.0, 130.0, 262.0, 300.0), 0.99, LANDMARKS)


def photo(seed: int = 0) -> np.ndarray:
    """Return a smooth picture, 400 pixels high and 420 wide, on which resampling loses little."""
    coarse = 0.3 + 0.4 * torch.rand(1, 3, 10, 10, generator=torch.Generator().manual_seed(seed))
    return images.to_array(torch.nn.functional.interpolate(coarse, size=(400, 420), mode="bicubic"))


def wide(name: str = "wide", size: int = 256) -> Detector:
    """Return a toy detector that wants DeepfakeBench's crop."""
    plain = toy_detector(name=name, size=size)
    return Detector(plain.network, replace(plain.card, template="deepfakebench"))


def test_deepfakebench_puts_the_landmarks_where_arcface_has_them_with_a_margin():
    # Landmarks that are the template, turned, scaled and moved, come out at its places exactly.
    angle = 0.2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * 2.5
    landmarks = (alignment.ARCFACE_POINTS - 56) @ turn.T + (190, 210)
    face = Face((100.0, 100.0, 300.0, 330.0), 1.0, landmarks)
    matrix = alignment.align_face(photo(), face, "deepfakebench", 256).matrix
    placed = landmarks @ matrix[:, :2].T + matrix[:, 2]
    # 112 pixels become 256 / 1.3 of 256, in the middle: worked out by hand for the left eye.
    assert placed[0] == pytest.approx([(38.2946 / 112 + 0.15) / 1.3 * 256, (51.6963 / 112 + 0.15) / 1.3 * 256])
    assert placed == pytest.approx(((alignment.ARCFACE_POINTS / 112 + 0.15) / 1.3 * 256), abs=1e-6)


def test_the_similarity_is_the_one_of_least_squares():
    from skimage.transform import SimilarityTransform

    expected = SimilarityTransform.from_estimate(LANDMARKS, alignment.DEEPFAKEBENCH_POINTS * 256)
    matrix = alignment.align_face(photo(), FACE, "deepfakebench", 256).matrix
    assert matrix == pytest.approx(expected.params[:2], abs=1e-6)


@pytest.mark.parametrize(("template", "size"), [("deepfakebench", 256), ("embedded", 224), ("ffhq", 96)])
def test_a_view_is_the_photos_own_crop_until_something_changes(template, size):
    picture = photo()
    source = alignment.LocatedFace(picture, FACE).cropped("embedded", 128)
    view = source.view(template, size)
    view_crop = view.of(images.to_tensor(source.aligned.crop))
    expected = images.to_tensor(alignment.align_face(picture, FACE, template, size).crop)
    assert torch.equal(view_crop, expected)
    assert source.view("embedded", 128) is None


@pytest.mark.parametrize("side", [128, 512])
@pytest.mark.parametrize(("template", "size"), [("deepfakebench", 256), ("embedded", 224)])
def test_a_change_is_seen_as_in_the_photo_with_the_face_put_back(side, template, size):
    picture = photo()
    source = alignment.LocatedFace(picture, FACE).cropped("embedded", side)
    change = np.zeros((side, side, 3))
    change[side // 4 : side // 2, side // 3 : side // 2] = (60, -40, 20)
    smooth = torch.from_numpy(change).permute(2, 0, 1)[None].float()
    smooth = alignment.resize_square(alignment.resize_square(smooth, 16), side)[0].permute(1, 2, 0).numpy()
    edited = np.clip(source.aligned.crop + smooth, 0, 255).round().astype(np.uint8)
    view_crop = images.to_array(source.view(template, size).of(images.to_tensor(edited)))
    pasted = alignment.paste_back(picture, edited, source.aligned)
    expected = alignment.align_face(pasted, FACE, template, size).crop
    before = alignment.align_face(picture, FACE, template, size).crop
    assert np.abs(expected.astype(int) - before).max() > 30
    assert np.abs(view_crop.astype(int) - expected).max() <= 5
    assert np.abs(view_crop.astype(int) - expected).mean() < 0.5


def test_a_small_drawing_of_the_crop_is_seen_alike():
    picture = photo()
    source = alignment.LocatedFace(picture, FACE).cropped("ffhq", 512)
    view = source.view("deepfakebench", 256)
    large = (images.to_tensor(source.aligned.crop) + 0.1).clamp(0, 1)
    assert (view.of(large) - view.of(alignment.resize_square(large, 256))).abs().max() < 0.02


def test_gradients_reach_the_drawing_and_maps_come_back():
    picture = photo()
    source = alignment.LocatedFace(picture, FACE).cropped("embedded", 64)
    view = source.view("deepfakebench", 96)
    crop = images.to_tensor(source.aligned.crop).requires_grad_()
    view.of(crop).sum().backward()
    assert (crop.grad[..., 16:48, 16:48] > 0).all()
    middle = np.zeros((1, 96, 96), np.float32)
    x, y = FACE.landmarks[2] @ alignment.align_face(picture, FACE, "deepfakebench", 96).matrix[:, :2].T
    x, y = np.array([x, y]) + alignment.align_face(picture, FACE, "deepfakebench", 96).matrix[:, 2]
    middle[0, int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3] = 1
    back = view.maps_back(middle)[0]
    rows, columns = np.nonzero(back > 0.5)
    expected = FACE.landmarks[2] @ source.aligned.matrix[:, :2].T + source.aligned.matrix[:, 2]
    assert columns.mean() / 96 * 64 == pytest.approx(expected[0], abs=1.5)
    assert rows.mean() / 96 * 64 == pytest.approx(expected[1], abs=1.5)


@pytest.fixture
def both(monkeypatch):
    """An embedded detector and one with a crop of its own, and a finder that always finds the same face."""
    known = {"toy": toy_detector(size=128), "wide": wide()}
    monkeypatch.setattr(registry, "loadable", lambda: list(known))
    monkeypatch.setattr(registry, "load", known.__getitem__)
    monkeypatch.setattr(combination, "read_combination", lambda: None)
    monkeypatch.setattr(faces, "find_faces", lambda image: [FACE, FACE])
    return known


def test_every_detector_judges_its_own_crop(both, monkeypatch):
    captured: dict[str, torch.Tensor] = {}
    for name, detector in both.items():
        detector.network.register_forward_hook(lambda _net, inputs, _out, name=name: captured.update({name: inputs[0]}))
    picture = photo()
    judged = predict.judge_faces(alignment.locate_all(picture))
    own_crop = images.to_tensor(alignment.align_face(picture, FACE, "deepfakebench", 256).crop)
    assert torch.equal(captured["wide"], torch.cat([own_crop, own_crop]))
    # What embedded detectors are asked, and answer, is what it was without views.
    crop = images.to_tensor(judged[0].aligned.crop)
    assert torch.equal(captured["toy"], torch.cat([crop, crop]))
    assert judged[0].p_fake["toy"] == round(both["toy"].p_fake(torch.cat([crop, crop])).tolist()[0], 6)
    assert judged[0].p_fake["wide"] == round(both["wide"].p_fake(own_crop)[0].item(), 6)
    assert predict.judge_faces(alignment.locate_all(picture), [])[0].p_fake == {}


def test_the_embedded_detectors_see_the_bare_crop():
    picture = photo()
    source = predict.embedded_crop(alignment.LocatedFace(picture, FACE))
    crops = images.to_tensor(source.aligned.crop)
    for name in registry.loadable("embedded"):
        assert predict.cut_for_detector(registry.card(name), crops, source) is crops


def test_a_search_turns_a_detector_through_its_own_crop(both):
    picture = np.full((400, 420, 3), 200, dtype=np.uint8)
    result = finish(
        find_counterfactual(alignment.locate(picture), "wide", SearchSettings(kappa=0.1), inverter=toy_inverter(128))
    )
    assert result.flipped and result.p_fake["original"] == pytest.approx(
        both["wide"].p_fake(images.to_tensor(alignment.align_face(picture, FACE, "deepfakebench", 256).crop)).item()
    )
    # The crop is smaller than what the detector sees, so it has to be darkened by more than the 27 levels otherwise.
    assert result.search.steps[0] > 9 and (result.counterfactual == 200 - 3 * int(result.search.steps[0])).all()
    assert result.p_pasted == pytest.approx(result.p_fake["counterfactual"], abs=0.02)
    assert result.cams.maps.shape == (2, 256, 256)
    assert set(result.retest) == {"toy"}


def test_a_search_without_a_photo_shows_every_detector_the_face_itself():
    face = torch.full((1, 3, 128, 128), 200 / 255)
    inverter = toy_inverter(128)
    with runtime.MODEL_LOCK:
        result = finish(search(inverter, wide(), face, SearchSettings(kappa=0.1)))
    assert result.flipped.all() and result.steps.tolist() == [9]
