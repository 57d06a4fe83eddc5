"""Wherever detectors judge, one that was trained on another crop sees that crop of the photo."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from backend import alignment, faces, images
from backend.attacks import fgsm
from backend.attacks import registry as attacks_registry
from backend.detectors import predict, registry
from backend.detectors.predict import OwnCropDetector
from backend.evaluate.dataset import open_data
from backend.evaluate.protocols import counterfactual, trace_removal
from backend.generators import inversion
from backend.progress import finish
from backend.trace_removal import comparison
from tabs.evaluate import Quiz, QuizRound
from tests.detectors.test_own_crop_views import FACE
from tests.toys import toy_detector, toy_inverter

SIZE = registry.EMBEDDED_SIZE
OWN = ("deepfakebench", 2 * SIZE)
INSIDE, AROUND = 200, 60  # grey levels of the face, and of what is around it


@pytest.fixture
def captured(monkeypatch):
    """Put two toys in place of the models, and return the pictures that each was shown, by its name."""
    own_detector = toy_detector(5, 0.3, "own", OWN[1])
    own_detector.card = replace(own_detector.card, template=OWN[0], title="Own")
    plain = toy_detector(5, 0.3, "xception", SIZE)  # the name of the white box
    known = {"xception": plain, "own": own_detector}
    seen: dict[str, list] = {name: [] for name in known}
    for name, detector in known.items():
        detector.network.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0].detach()))
    monkeypatch.setattr(registry, "load", known.__getitem__)
    monkeypatch.setattr(registry, "loadable", lambda: list(known))
    monkeypatch.setattr(registry, "card", lambda name: known[name].card)
    monkeypatch.setattr(faces, "find_faces", lambda _image: [FACE])
    return seen


@pytest.fixture
def photo():
    """Return a photo whose face is bright where the embedded crop lies and dark around it."""
    picture = np.full((400, 420, 3), AROUND, np.uint8)
    picture[130:300, 140:262] = INSIDE
    return picture


@pytest.fixture
def data(tmp_path, photo):
    """Return the photo as a real picture and as a fake."""
    for folder in ("real", "fake/swap"):
        path = tmp_path / "data" / folder / "one.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(images.encode_png(photo))
    return open_data(tmp_path / "data", tmp_path)


def own_crop(photo):
    return alignment.align_face(photo, FACE, *OWN).crop


def test_detectors_are_grouped_by_the_crop_that_they_need(captured):
    assert predict.group_by_crop() == {("embedded", SIZE): ["xception"], OWN: ["own"]}
    assert predict.group_by_crop(["own"]) == {OWN: ["own"]}


def test_a_detector_that_looks_for_itself_is_the_same_detector(captured, photo):
    source = predict.embedded_crop(alignment.locate(photo))
    crop = images.to_tensor(source.aligned.crop)
    own_detector, view = registry.load("own"), source.view(*OWN)
    wrapped = OwnCropDetector(own_detector, view)
    assert torch.equal(wrapped.p_fake(crop), own_detector.p_fake(view.of(crop)))
    assert wrapped.card is own_detector.card and wrapped.network is own_detector.network
    attacked = finish(fgsm.attack(crop, wrapped, fgsm.FGSMSettings()))
    # The gradient reaches the crop through the view: what is changed there lowers the score of the view.
    assert float(attacked.p_after) < float(attacked.p_before)


def test_the_quiz_shows_each_detector_its_own_crop(captured, photo, data):
    quiz = Quiz.__new__(Quiz)
    quiz.score = "score"
    crop, crops = quiz._cut(data.path("real/one.png"), list(predict.group_by_crop()))
    assert crop.shape == (SIZE, SIZE, 3) and np.array_equal(crops["embedded", SIZE], crop)
    assert np.array_equal(crops[OWN], own_crop(photo))
    html = quiz._judge(QuizRound([crop] * 2, [crops] * 2, [True, False], [True, True]))
    assert "Own" in html and "Toy" in html and "You" in html
    assert torch.equal(captured["own"][0], images.to_tensor(own_crop(photo)).expand(2, -1, -1, -1))


def test_a_detector_added_during_the_quiz_is_left_out(captured, photo, data):
    quiz = Quiz.__new__(Quiz)
    crop, crops = quiz._cut(data.path("real/one.png"), [("embedded", SIZE)])
    html = quiz._judge(QuizRound([crop] * 2, [crops] * 2, [True, False], [True, True]))
    assert "Own" not in html and "Toy" in html and not captured["own"]


def test_compared_attacks_are_judged_in_each_detector_s_own_crop(captured, photo, monkeypatch):
    monkeypatch.setattr(comparison, "compared_attacks", lambda: ("noise", "fgsm"))
    result = finish(comparison.compare_attacks(alignment.locate(photo)))
    (images_seen,) = captured["own"][-1:]
    assert images_seen.shape == (3, 3, OWN[1], OWN[1])  # the face and two attacks
    assert torch.equal(images_seen[0], images.to_tensor(own_crop(photo))[0]) and not torch.equal(
        images_seen[0], images_seen[1]
    )
    assert set(result.p_fake) == {"xception", "own"}


def test_evaluate_searches_and_judges_in_each_detector_s_own_crop(captured, photo, data, monkeypatch):
    monkeypatch.setattr(inversion, "load_embedded_inverter", lambda: toy_inverter(SIZE))
    names = ("xception", "own")
    config = counterfactual.CounterfactualConfig(
        detectors=names, attacked=("own",), methods=("transfer", "fgsm"), ablated=(), steps=2
    )
    protocol = counterfactual.CounterfactualProtocol(config)
    items = protocol.items(data)
    assert len(items) == 2
    for item in items:
        rows = finish(protocol.run_item(item, data))
        before = {row["judge"]: row["p_original"] for row in rows}
        assert before["own"] < before["xception"] - 0.02  # its crop holds more of what is dark
    # Around the embedded crop, which alone is changed, every picture is the photo's own.
    corner = images.to_tensor(own_crop(photo))[..., :8, :8]
    assert all((image[..., :8, :8] == corner).all() for image in captured["own"])


def test_trace_removal_is_evaluated_in_each_detector_s_own_crop(captured, photo, data, monkeypatch):
    monkeypatch.setattr(
        attacks_registry, "installed_with_defence", lambda _defence, names: {name: name for name in names}
    )
    config = trace_removal.TraceRemovalConfig(detectors=("xception", "own"), defences=("shipped",), attacks=("fgsm",))
    protocol = trace_removal.TraceRemovalProtocol(config)
    monkeypatch.setattr(trace_removal, "shipped_references", lambda: None)
    monkeypatch.setattr(protocol.__class__, "_features", lambda _self, _picture: {})
    for item in protocol.items(data):
        rows = finish(protocol.run_item(item, data))
        scores = {row["detector"]: row["p_fake"] for row in rows if row["kind"] == "verdict"}
        assert scores["own"] < scores["xception"] - 0.02
