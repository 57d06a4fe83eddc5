"""A removal from start to end: face, network, photo, verdicts, re-saves, views, bundle and command line."""

import dataclasses
import io
import json
import zipfile

import numpy as np
import pytest
import torch

from backend import faces, provenance, weights
from backend.alignment import LocatedFace, locate
from backend.cli import photo as cli_photo
from backend.detectors import base, predict, registry
from backend.detectors.base import verdict
from backend.errors import UserError
from backend.progress import finish
from backend.trace_removal import references, removal, views
from backend.trace_removal.network import TRNet
from backend.trace_removal.views import draw_views
from backend.training import data, loop, trnet
from tests.toys import hooks, toy_detector

SIZE = 128
FACE = faces.Face(
    (120.0, 100.0, 280.0, 320.0),
    0.99,
    np.array([[170, 180], [230, 180], [200, 216], [176, 244], [224, 244]], dtype=np.float64),
)


def shift(amount: float) -> TRNet:
    """Return a small network that adds `amount` to every value."""
    network = TRNet(0.125, residual=True)
    with torch.no_grad():
        network.conv_final.bias.fill_(torch.atanh(torch.tensor(amount)))
    return network.eval()


@pytest.fixture
def detectors(monkeypatch):
    """Three toy detectors in place of the registry's, and a finder that always finds the same face."""
    limits = {"toy": 0.7, "strict": 0.3, "blind": 0.95}
    known = {name: toy_detector(threshold=limit, name=name, size=SIZE) for name, limit in limits.items()}
    monkeypatch.setattr(registry, "loadable", lambda: list(known))
    monkeypatch.setattr(registry, "load", known.__getitem__)
    monkeypatch.setattr(registry, "card", lambda name: known[name].card)
    monkeypatch.setattr(faces, "find_faces", lambda image: [FACE])
    return known


@pytest.fixture
def known(detectors):
    """Reference statistics of random pictures."""
    randomness = torch.Generator().manual_seed(0)
    pictures = {
        "real": torch.randint(0, 256, (6, 3, SIZE, SIZE), generator=randomness, dtype=torch.uint8),
        "swap": torch.randint(90, 160, (6, 3, SIZE, SIZE), generator=randomness, dtype=torch.uint8),
    }
    return finish(references.build_references(pictures, []))


def photo(level: int = 200) -> np.ndarray:
    return np.full((400, 440, 3), level, dtype=np.uint8)


def test_a_photo_from_start_to_end(detectors):
    steps = []
    result = finish(removal.remove_traces(locate(photo()), network=shift(-0.2)), steps.append)
    assert (result.original == 200).all() and (result.removed == 149).all()
    assert result.metrics["psnr"] == pytest.approx(20 * np.log10(255 / 51))
    assert result.p_fake["toy"][0] > 0.5 > result.p_fake["toy"][1]
    assert result.turned == ["toy"] and result.p_fake["strict"][1] > 0.5 > result.p_fake["blind"][0]
    assert set(result.p_pasted) == set(detectors) and result.p_pasted["toy"] < 0.5
    assert result.settings.residual and result.difference.largest == 51
    assert "that saw signs of forgery, " in result.summary, result.summary
    assert "seen none of the 3 detectors" in result.summary and "adds to the picture" in result.summary
    assert steps[-1].number == steps[-1].total
    words = [base.verdict(after) for before, after in result.p_fake.values() if base.verdict(before) == "signs"]
    assert (
        f"Of {len(words)} detector" in result.summary and f"{words.count('no_known_signs')} no longer" in result.summary
    )
    assert f"and {words.count('unsure')} " in result.summary
    assert all(hooks(detector) == 0 for detector in detectors.values())
    json.dumps(result.record(), allow_nan=False)


def test_pixels_outside_the_face_stay_as_they_were(detectors):
    randomness = np.random.default_rng(0)
    original = randomness.integers(0, 256, (400, 440, 3), dtype=np.uint8)
    result = finish(removal.remove_traces(locate(original), network=shift(-0.3)))
    corners = np.array([[0, 0], [SIZE, 0], [0, SIZE], [SIZE, SIZE]], dtype=np.float64)
    inverse = np.linalg.inv(result.aligned.matrix[:, :2])
    outline = (corners - result.aligned.matrix[:, 2]) @ inverse.T
    (left, top), (right, bottom) = np.floor(outline.min(0)).astype(int), np.ceil(outline.max(0)).astype(int)
    outside = np.ones(original.shape[:2], dtype=bool)
    outside[max(0, top) : bottom, max(0, left) : right] = False
    assert outside.any()
    assert np.array_equal(result.pasted[outside], original[outside])
    middle = (top + bottom) // 2, (left + right) // 2
    assert result.pasted[middle].tolist() != original[middle].tolist()


def test_a_stronger_removal_says_that_it_is_one(detectors):
    result = finish(removal.remove_traces(locate(photo()), strength=1.5, network=shift(-0.2)))
    assert (result.removed == 124).all() and result.settings.strength == 1.5  # 200 - 1.5 * 51 = 123.5
    assert "1.5 times what TR-Net was trained to make" in result.summary
    with pytest.raises(UserError, match="strength"):
        finish(removal.remove_traces(locate(photo()), strength=3.0, network=shift(-0.2)))


def test_a_network_that_changes_nothing_says_so(detectors):
    result = finish(removal.remove_traces(locate(photo()), network=TRNet(0.125, residual=True).eval()))
    assert result.metrics["psnr"] is None and np.array_equal(result.pasted, photo())
    assert "left the face as it was" in result.summary


def test_both_pictures_are_judged_after_saving_again(detectors):
    original = np.full((SIZE, SIZE, 3), 200, dtype=np.uint8)
    removed = np.full((SIZE, SIZE, 3), 150, dtype=np.uint8)
    resaves = removal.judge_resaves(original, removed)
    assert [resave.name for resave in resaves] == ["jpeg_90", "jpeg_75", "webp_80", "half_size"]
    for resave in resaves:
        before, after = resave.p_fake["toy"]
        assert before > 0.5 > after
    before = {"toy": (0.9, 0.1), "strict": (0.9, 0.8), "blind": (0.2, 0.1)}
    summary = removal.resaves_in_words(before, resaves)
    assert "the one detector" in summary and "0 after JPEG 90" in summary and "0 after half size and back" in summary
    assert "no verdict" in removal.resaves_in_words({"toy": (0.9, 0.9)}, resaves)
    assert "No detector saw signs in the face" in removal.resaves_in_words({"toy": (0.1, 0.1)}, resaves)


def test_a_detector_with_its_own_crop_sees_that_crop_saved_again(detectors, monkeypatch):
    wide = toy_detector(threshold=0.7, name="wide", size=2 * SIZE)
    wide.card = dataclasses.replace(wide.card, template="deepfakebench")
    monkeypatch.setitem(detectors, "wide", wide)
    picture = np.full((300, 320, 3), 200, dtype=np.uint8)
    source = LocatedFace(picture, FACE).cropped(predict.EMBEDDED_TEMPLATE, SIZE)
    removed = np.full((SIZE, SIZE, 3), 150, dtype=np.uint8)
    for resave in removal.judge_resaves(source.aligned.crop, removed, ["toy", "wide"], source):
        assert list(resave.p_fake) == ["toy", "wide"]
        assert resave.p_fake["wide"][0] == pytest.approx(resave.p_fake["toy"][0], abs=0.02)
        # Around the crop the photo is as bright as before.
        assert resave.p_fake["wide"][1] > resave.p_fake["toy"][1] + 0.02


def test_saving_again_really_changes_the_pixels():
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    changed = {name: np.asarray(save(Image.fromarray(pixels))) for name, (_, save) in removal.RESAVE_KINDS.items()}
    errors = {name: float(np.abs(saved.astype(int) - pixels).mean()) for name, saved in changed.items()}
    assert all(saved.shape == pixels.shape for saved in changed.values())
    assert 0 < errors["jpeg_90"] < errors["jpeg_75"] < errors["half_size"]


def test_references_survive_a_file(known, tmp_path):
    weights.save_half(tmp_path / "traces.safetensors", known.tensors())
    from safetensors.torch import load_file

    read = references.references_from_tensors(load_file(tmp_path / "traces.safetensors"), known.options())
    assert read.kinds == ["swap"] and read.count == {"real": 6, "swap": 6}
    assert np.allclose(read.spectrum["real"], known.spectrum["real"], rtol=1e-3)
    assert read.correlation["swap"]["swap"] == pytest.approx(known.correlation["swap"]["swap"], abs=1e-3)
    assert known.power["real"].shape == (2, SIZE // 2) and known.fingerprint["swap"].shape == (3, SIZE, SIZE)
    assert not read.knows("toy")


def test_a_summary_says_what_still_holds(detectors):
    result = finish(removal.remove_traces(locate(photo()), network=shift(-0.004)))
    names = [name for name, (before, _) in result.p_fake.items() if verdict(before) == "signs"]
    assert not result.turned and len(names) == 2
    assert "All 2 detectors that saw signs still do" in result.summary, result.summary
    assert result.summary.index("still do") < result.summary.index("PSNR")


def test_a_match_that_photographs_reach_too_does_not_count(known):
    kind = known.kinds[0]
    mean, deviation = known.correlation[kind][references.REAL]
    for reached, sentence in (
        (mean + 3 * deviation, f"{views.group_title(kind)} best"),
        (mean, "no fingerprint clearly"),
    ):
        assert sentence in views._noise_sentence({"Before": dict.fromkeys(known.kinds, reached)}, known)


def test_references_hold_the_attention_of_a_detector(detectors):
    bright = torch.zeros(4, 3, SIZE, SIZE, dtype=torch.uint8)
    bright[:, :, :, : SIZE // 2] = 255  # the toy's map is its brightness
    attention = references.mean_attention("toy", bright)
    assert attention.shape == (32, 32)
    assert float(attention[:, :14].min()) > 0.9 and float(attention[:, 18:].max()) < 0.1


def test_every_view_is_a_picture_with_a_sentence(known):
    before = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    for pictures in ({"Before": before, "After": before // 2}, {"This face": before}):
        drawn = draw_views(pictures, known, "toy")
        assert [view.name for view in drawn] == ["spectrum", "power", "noise", "attention"]
        for view in drawn:
            assert view.picture.dtype == np.uint8 and view.picture.shape[1] == round(
                views.FIGURE_WIDTH * views.FIGURE_DPI
            )
            assert view.picture.std() > 5 and view.sentence.endswith(".")
    half = draw_views({"Before": before, "After": before // 2}, known, "toy")[0].sentence
    assert "after: 6.0 dB less" in half or "after: 6.1 dB less" in half  # half the values, a quarter of the power


def test_views_measure_what_they_say(known):
    even = np.full((SIZE, SIZE, 3), 128, dtype=np.uint8)
    assert np.abs(views.noise_residual(even)[2:-2, 2:-2]).max() < 1e-3
    ramp = np.zeros((64, 64))
    ramp[20, 32] = 1
    assert views.strongest_part(ramp) == "the eyes"
    ramp[45, 1] = 2
    assert views.strongest_part(ramp) == "the sides of the picture"
    mean, deviation = np.zeros(4), np.ones(4)
    assert views.count_outside_band(np.array([0.5, 2.0, -3.0, 1.0]), mean, deviation) == 2
    assert views.high_frequency_mean(np.full((64, 64), -3.0)) == pytest.approx(-3)
    pictures = torch.randint(90, 160, (6, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert set(views.fingerprint_correlations(pictures[0].permute(1, 2, 0).numpy(), known)) == {"swap"}


def test_a_bundle_is_saved_loaded_and_packed(known, tmp_path):
    located = locate(photo())
    bundle = finish(removal.run_removal(located, detector="toy", network=shift(-0.2), known=known))
    assert [view["name"] for view in bundle.record["views"]] == ["spectrum", "power", "noise", "attention"]
    assert bundle.record["views_note"] is None and set(bundle.record["resaves"]) == set(removal.RESAVE_KINDS)
    bundle.save(tmp_path)
    loaded = removal.load_removal(tmp_path, located)
    assert loaded.record == json.loads(json.dumps(bundle.record))
    for name, picture in bundle.pictures().items():
        stored = loaded.pictures()[name]
        if name in bundle.views:  # diagrams keep 256 colours
            assert np.abs(stored.astype(int) - picture).mean() < 1.5
        else:
            assert np.array_equal(stored, picture)
    archive = zipfile.ZipFile(io.BytesIO(bundle.zip()))
    names = {"crop", "removed", "difference", "photo", "spectrum", "power", "noise", "attention"}
    assert set(archive.namelist()) == {f"{name}.png" for name in names} | {"record.json", "summary.txt"}
    text = archive.read("summary.txt").decode()
    assert text.startswith(bundle.record["summary"]) and text.count(" before, ") == 3
    assert provenance.read_record(archive.read("removed.png"))["turned"] == ["toy"]
    assert provenance.read_record(archive.read("crop.png")) is None


def test_the_command_writes_marked_pictures(known, tmp_path, monkeypatch):
    from backend import images

    monkeypatch.setattr(removal, "load_trnet", lambda: shift(-0.2))
    monkeypatch.setattr(removal, "load_trnet", lambda: shift(-0.2))
    monkeypatch.setattr(references, "load_references", lambda: known)
    monkeypatch.setattr(weights, "read_entries", lambda: {removal.TRNET_ENTRY: None})
    monkeypatch.setattr(weights, "model_hashes", lambda _: {})
    (tmp_path / "photo.png").write_bytes(images.encode_png(photo()))
    answer = cli_photo.remove_traces(image=tmp_path / "photo.png", out=tmp_path / "out")
    assert {"p_fake", "metrics", "seconds", "files", "summary"} <= set(answer)
    assert answer["p_fake"]["toy"]["original"] > 0.5 > answer["p_fake"]["toy"]["removed"]
    assert answer["views"] == [] and "references" in answer["views_note"]
    stored = images.read(tmp_path / "out" / "removed.png")
    assert not np.array_equal(stored, np.full_like(stored, 149)) and (stored[: SIZE // 2] == 149).all()
    assert provenance.read_record((tmp_path / "out" / "photo.png").read_bytes())["marked"] is True
    json.dumps(answer, allow_nan=False)


def test_without_weights_the_command_says_how_to_train(monkeypatch):
    monkeypatch.setattr(weights, "read_entries", dict)
    with pytest.raises(UserError, match="python -m backend train trnet"):
        removal.require_trnet()


def test_a_trained_network_is_measured_by_kind(tmp_path):
    values = torch.full((4, 3, SIZE, SIZE), 100, dtype=torch.uint8)
    held_out = data.Pairs(values, values + 20, torch.tensor([1, 1, 2, 2]), ("edit", "swap"))
    metrics = trnet.measure_removals(shift(-0.2), held_out)
    assert set(metrics) == {"edit", "swap"} and metrics["edit"]["count"] == 2
    assert metrics["swap"]["psnr"] == pytest.approx(20 * np.log10(255 / 51), abs=0.01)
    (tmp_path / "losses.csv").write_text("step,seconds,a,b\n1,0.1,2.0,\n2,0.2,1.0,3.0\n")
    assert loop.draw_curves(tmp_path / "losses.csv", tmp_path / "curves.png").stat().st_size > 1000
