"""The explanation tab's handlers, with a detector that reads one patch in place of the models."""

import dataclasses
import io
import json
import sys
import threading
import time
import zipfile
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch

import backend.explain
from backend import faces, images, runtime
from backend.cli import main
from backend.detectors import predict, registry
from backend.detectors.inference import default_batch
from backend.explain import photo
from backend.explain.base import EXPLAINERS, general_methods
from backend.explain.explanation import ExplainSettings
from backend.explain.sufficiency import sufficiency_settings
from backend.settings import ROOT, SETTINGS
from tabs import explain_result
from tabs.explain import ExplainTab
from tabs.photo import ChosenPhoto, PhotoStep, open_photo
from tests.patch_toys import SIZE, face, patch_detector, untextured

FEW = {"lime": 120, "shap": 120, "sobol": 4, "rise": 200, "gradcam": 1, "gradcampp": 1, "xrai": 4}
REQUEST = SimpleNamespace(session_hash="explaintest")
OPTIONS = {"reference": "adversarial", "preset": "quick", "shortcut": True, "seed": 0, "towards": "fake"}
# Where the crop expects the eyes, so that a picture of its size is taken as it is.
EYES = np.array([[23.52, 26.88], [40.48, 26.88], [32, 36], [26, 46], [38, 46]])
pytestmark = pytest.mark.skipif(
    not (SETTINGS.weights_dir / "registry.toml").exists(), reason="the models are not in weights/"
)


@pytest.fixture
def toy_model(monkeypatch):
    """Put a toy in place of every model, and a finder that always finds the same face."""
    for name, samples in FEW.items():
        explainer = dataclasses.replace(EXPLAINERS[name], samples={**EXPLAINERS[name].samples, "quick": samples})
        monkeypatch.setitem(EXPLAINERS._items, name, explainer)
    detector = patch_detector()
    monkeypatch.setattr(registry, "load", lambda _name: detector)
    monkeypatch.setattr(registry, "loadable", lambda: ["patch"])
    monkeypatch.setattr(registry, "card", lambda _name: detector.card)
    monkeypatch.setattr("backend.weights.model_hashes", lambda _names: {})
    monkeypatch.setattr(faces, "find_faces", lambda image: [faces.Face((0.0, 0.0, *image.shape[:2]), 0.99, EYES)])
    monkeypatch.setattr(faces, "face_problem", lambda _face, _shape: None)
    return detector


@pytest.fixture
def tab(toy_model):
    with gr.Blocks():
        return ExplainTab(PhotoStep())


def save_photo(folder, picture, name="photo.png"):
    """Write a face (1, 3, S, S) as a photo and return its path."""
    path = folder / name
    path.write_bytes(images.encode_png(images.to_array(picture)))
    return str(path)


def choose_photo(path):
    """Return the photo as a visitor chose it, and its faces as they were found in step 2."""
    return ChosenPhoto(path), predict.judge_faces(open_photo(path).faces, [])


def ask(tab, path, method="lime", guess="", proof=True, **options):
    values = OPTIONS | options
    return tab._explain(*choose_photo(path), 1, "patch", method, *values.values(), proof, guess, REQUEST)


def read_zip(update):
    with zipfile.ZipFile(update.value["path"] if isinstance(update.value, dict) else update.value) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_one_map_with_everything_that_belongs_to_it(tab, tmp_path):
    *before, last = ask(tab, save_photo(tmp_path, face()), guess="nose")
    assert before[0][tab.job.stop].interactive and not last[tab.job.stop].interactive
    result = tab.result
    assert last[result.map_column].visible and not last[result.grid].visible
    assert "these places speak most for a forgery: 1 " in last[result.summary]
    assert "The test below is too close to tell" in last[result.summary]
    assert "You guessed: nose" in last[result.guess_text]
    assert "for a forgery: " in last[result.scale] and "against a forgery: -" in last[result.scale]
    assert "Random places" in last[result.sufficiency] and "Sufficiency@3" in last[result.sufficiency]
    assert last[result.curves_column].visible
    assert "Deletion: area" in last[result.curves] and "never saw in training" in last[result.curves]
    assert last[result.curves].count("<polyline") == 2
    assert last[result.reference_column].visible and last[result.difference].visible
    assert "Changes x" in last[result.attack] and "White-box shortcut" in last[result.attack]
    assert "float32 (" in last[result.settings] or "bfloat16 (" in last[result.settings]
    files = read_zip(last[result.download])
    assert set(files) == {
        *("record.json", "map.npy", "crop.png", "map_picture.png", "overlay.png", "reference.png", "difference.png")
    }
    record = json.loads(files["record.json"])
    assert np.load(io.BytesIO(files["map.npy"])).shape == (SIZE, SIZE)
    assert record["precision"]["reason"] and len(record["curves"]["deletion"]) == 51
    assert record["proof"]["sufficiency"][2]["value"] > record["proof"]["sufficiency"][2]["random"]


def test_a_fill_is_shown_too_and_the_test_can_be_left_out(tab, tmp_path):
    *_, last = ask(tab, save_photo(tmp_path, face()), "sobol", proof=False, reference="original")
    result = tab.result
    assert last[result.reference_column].visible and not last[result.difference].visible
    assert "Hidden parts showed the blurred face" in last[result.attack]
    assert "This map was not tested" in last[result.sufficiency] and not last[result.curves_column].visible
    assert "least: " in last[result.scale]


def test_the_verdict_real_is_explained_with_the_usual_fill(tab, tmp_path, toy_model):
    toy_model.network.slope = -toy_model.network.slope  # now the chessboard speaks for real
    *_, last = ask(tab, save_photo(tmp_path, face()), "rise", towards="real")
    explanation = last[tab.result.state].explanation
    assert explanation.reference == "original" and explanation.settings.towards == "real" and not explanation.degenerate
    *_, refused = ask(tab, save_photo(tmp_path, face()), "rise")
    assert not refused[tab.result.map_column].visible
    assert (
        "sees no signs of forgery to explain" in refused[tab.result.summary]
        and "More options" in refused[tab.result.summary]
    )


def test_a_map_of_the_other_verdict_is_not_tested(tab, tmp_path, toy_model):
    class Both(type(toy_model.network)):
        """Also has a second place that speaks for real."""

        def forward(self, pictures):
            return super().forward(pictures) - self.features(pictures[:, :1] * self.corner).mean((2, 3))

    toy_model.network.__class__ = Both
    corner = toy_model.network.patch.flip(2, 3)
    toy_model.network.register_buffer("corner", corner)
    *_, last = ask(tab, save_photo(tmp_path, face()), "gradcam", towards="real")
    assert last[tab.result.state].sufficiency is None and last[tab.result.state].curves is None
    if last[tab.result.map_column].visible:
        assert "another verdict" in last[tab.result.sufficiency]


def updates_of(steps, component):
    """Return the value of a component at every step that updated it."""
    return [step[component].value for step in steps if component in step and step[component].visible]


def compare_all(tab, path, **options):
    return tab._compare(*choose_photo(path), 1, "patch", *(OPTIONS | options).values(), REQUEST)


def test_all_maps_stand_in_one_grid_with_their_test(tab, tmp_path):
    steps = list(compare_all(tab, save_photo(tmp_path, face())))
    grids = updates_of(steps, tab.result.grid)
    assert [len(grid) for grid in grids] == list(range(1, 12))
    captions = [entry["caption"] for entry in grids[-1]]
    assert captions[0].startswith("LIME, original reference · sufficiency 0.")
    assert captions[-1].startswith("XRAI · sufficiency 0.")
    assert updates_of(steps, tab.result.scales)[-1].count("data:image/png") == 2
    last = steps[-1]
    assert "11 maps were tested" in last[tab.result.summary] and "random places" in last[tab.result.summary]
    assert "detector patch" in last[tab.result.settings] and "pictures in" in last[tab.result.settings]
    records = json.loads(read_zip(last[tab.result.download])["record.json"])
    assert len(records) == 11 and all(record["sufficiency"] >= record["random"] - 0.05 for record in records)


def test_maps_of_a_verdict_that_was_not_given_have_no_sufficiency(tab, tmp_path):
    *_, last = compare_all(tab, save_photo(tmp_path, untextured()))
    assert (
        "none was tested" in last[tab.result.summary]
        and "sees no signs of forgery to explain" in last[tab.result.summary]
    )


@pytest.mark.parametrize("what", ["explain", "compare", "pair"])
def test_a_stop_takes_one_batch(tab, tmp_path, toy_model, what, monkeypatch):
    monkeypatch.setattr(runtime, "fast_bfloat16", lambda _device: False)  # to see whether it will do, more is asked
    path, threads = save_photo(tmp_path, face()), threading.active_count()
    toy_model.train()
    jobs = {
        "explain": lambda: ask(tab, path, "shap", reference="original"),
        "compare": lambda: compare_all(tab, path),
        "pair": lambda: tab.pair._test(
            path, *choose_photo(save_photo(tmp_path, untextured(), "fake.png")), 1, "patch", 0
        ),
    }
    if what == "pair":
        toy_model.network.slope = -toy_model.network.slope
    job = jobs[what]()
    counts = []
    for _ in range(5):
        next(job)
        counts.append(toy_model.network.images)
    job.close()
    assert toy_model.network.images == counts[-1] > counts[0]  # nothing is asked after the stop
    # And no step before it asks about more than one batch, and the face and what stands in for it once or twice.
    assert max(np.diff(counts)) <= default_batch(torch.device("cpu")) + 4
    assert toy_model.training and threading.active_count() == threads


def test_a_pair_shows_the_fall_for_every_method(tab, tmp_path, toy_model):
    toy_model.network.slope = -toy_model.network.slope
    photos = save_photo(tmp_path, face()), save_photo(tmp_path, untextured(), "fake.png")
    *before, last = tab.pair._test(photos[0], *choose_photo(photos[1]), 1, "patch", 0)
    assert before[0][tab.pair.job.stop].interactive and not last[tab.pair.job.stop].interactive
    for method in general_methods():
        assert f">{EXPLAINERS[method].title}<" in last[tab.pair.answer]
    assert "Random places" in last[tab.pair.answer] and "Top 3" in last[tab.pair.answer]
    assert "How could this be wrong?" in last[tab.pair.answer]
    assert [len(maps) for maps in updates_of(before, tab.pair.maps)] == list(range(1, 8))
    *_, wrong = tab.pair._test(photos[1], *choose_photo(photos[0]), 1, "patch", 0)
    assert "another detector or another pair" in wrong[tab.pair.answer]


def test_seconds_come_from_a_measurement(tab, monkeypatch):
    monkeypatch.setattr(photo, "seconds_a_picture", lambda _name: 0.01)
    text = tab._about("patch", "lime", "original", "full", True, False)
    assert "LIME" in text and "About 20 seconds" in text  # 2000 pictures
    settings = ExplainSettings("sobol", "original")
    plain = photo.expected_seconds("patch", settings)
    sufficiency = sufficiency_settings(0, shortcut=True)
    # Twelve attacks of twelve steps, a backward pass counted as two forward ones, and two curves of 51 pictures.
    assert photo.expected_seconds("patch", settings, sufficiency) - plain == pytest.approx(0.01 * (12 * 12 * 3 + 102))
    slow = sufficiency_settings(0, shortcut=False)
    assert photo.expected_seconds("patch", settings, slow) - plain == pytest.approx(0.01 * (12 * 50 * 81 + 102))


def test_a_slower_detector_takes_longer(toy_model):
    photo._measured_seconds.cache_clear()
    quick = photo.seconds_a_picture("patch")
    toy_model.network.register_forward_hook(lambda *_: time.sleep(0.2))
    photo._measured_seconds.cache_clear()
    assert photo.seconds_a_picture("patch") >= 0.2 / photo.PROBE_PICTURES
    assert photo.seconds_a_picture("patch") > quick > 0
    photo._measured_seconds.cache_clear()


def test_another_face_sets_off_the_expected_seconds(tab):
    judged = SimpleNamespace(p_fake={"patch": 0.9})
    first, second = (tab.show_for_face(judged)[tab.face_changed] for _ in range(2))
    assert second > first > 0
    assert tab.face_changed not in tab.show_for_face(None)


def test_segments_are_numbered_in_their_order():
    crop = np.full((200, 200, 3), 128, np.uint8)
    labels = np.zeros((100, 100), dtype=np.int64)
    labels[:, 50:] = 1
    plain = photo.outline_segments(crop, torch.from_numpy(labels), [])
    assert (plain == crop).all()
    numbered = photo.outline_segments(crop, torch.from_numpy(labels), [1, 0])
    first, second = numbered[90:110, 140:160], numbered[90:110, 40:60]
    assert (first != 128).any() and (second != 128).any() and not np.array_equal(first, second)
    again = photo.outline_segments(crop, torch.from_numpy(labels), [0, 1])
    assert np.array_equal(again[90:110, 40:60], first)


def test_expected_times_are_put_in_words():
    assert explain_result.method_in_words("rise", 1.2, 61.4).endswith(
        "About 1 second on this machine; a comparison of all methods takes about 61 seconds."
    )
    assert "4 minutes" in explain_result.method_in_words("rise", 240, 1)


@pytest.fixture
def brightness(tmp_path, monkeypatch):
    """Add the explainer of CONTRIBUTING.md by one new file."""
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = guide.partition("### An explainer")[2].partition("```python\n")[2].partition("```")[0]
    (tmp_path / "brightness.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(backend.explain, "__path__", [*backend.explain.__path__, str(tmp_path)])
    EXPLAINERS.discover()
    yield
    EXPLAINERS._items.pop("brightness")
    EXPLAINERS._orders.pop("brightness")
    del sys.modules["backend.explain.brightness"]


def test_a_new_explainer_is_one_new_file(brightness, tab, capsys, tmp_path):
    assert (
        tab.method.choices[-1] == ("Brightness", "brightness") and len(tab.method.choices) == len(FEW) + 2
    )  # with the mask
    path = save_photo(tmp_path, face())
    *_, last = ask(tab, path, "brightness")
    assert "By Brightness" in last[tab.result.summary]
    code = main.main(
        ["explain", path, "--detector", "patch", "--method", "brightness", "--out", str(tmp_path), "--json"]
    )
    assert code == 0 and json.loads(capsys.readouterr().out)["method"] == "brightness"
    assert main.main(["explain", path, "--detector", "patch", "--method", "none", "--out", str(tmp_path)]) == 2
    assert "mask, brightness." in capsys.readouterr().err
