"""How detectors are trained: batches, objectives, what is fitted beforehand, and the command from data to file."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from backend import weights
from backend.cli import main
from backend.detectors import base, registry
from backend.detectors.dct_a import DCTA
from backend.detectors.lf import LF
from backend.detectors.nf import NoiseFingerprints
from backend.errors import UserError
from backend.images import like_photographs
from backend.progress import finish
from backend.signals import wiener_residual
from backend.training import calibration, data, degradation, detector, loop
from backend.training.augmentation import UNVARIED, Variation, vary_picture


def examples(kinds, size=16, origins=None):
    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (len(kinds), 3, size, size), dtype=np.uint8))
    return data.LabelledPictures(pictures, np.array(kinds), None if origins is None else np.array(origins))


def drawn_from(labelled, **changes):
    settings = {
        "size": 8,
        "shares": {"swap": 0.5, "edit": 0.5},
        "defence": lambda picture, _: picture,
        "partial_share": 0.0,
        "adversarial_share": 0.5,
        "seed": 3,
    }
    return data.LabelledBatches(labelled, **(settings | changes))


def test_a_batch_holds_each_fake_beside_its_photograph_with_the_same_history():
    # Each fake equals its photograph here, so after one history they must still be equal.
    labelled = examples(["real", "real", "real", "edit", "swap"], origins=[-1, -1, -1, 2, 0])
    labelled.pictures[3], labelled.pictures[4] = labelled.pictures[2], labelled.pictures[0]
    source = drawn_from(labelled, defence=degradation.defence_named("shipped"))
    changed = False
    for number in range(6):
        batch = source.draw(number)
        assert batch.labels.tolist() == [0.0] * 4 + [1.0] * 4
        assert batch.kinds[:4] == ["real"] * 4 and set(batch.kinds[4:]) <= {"swap", "edit"}
        assert torch.equal(batch.images[:4], batch.images[4:])
        originals = [labelled.pictures[index].float() / 255 for index in (0, 2)]
        changed |= not any(torch.equal(image, original) for image in batch.images for original in originals)
        assert torch.equal(batch.images, source.draw(number).images)
    assert changed


def test_framing_and_colours_vary_alike_for_a_fake_and_its_photograph():
    labelled = examples(["real", "real", "edit", "swap"], origins=[-1, -1, 1, 0])
    labelled.pictures[2], labelled.pictures[3] = labelled.pictures[1], labelled.pictures[0]
    source = drawn_from(labelled, variation=Variation(shift=3, colours=0.2))
    batch = source.draw(0)
    assert torch.equal(batch.images[:4], batch.images[4:])
    assert len({image.numpy().tobytes() for image in batch.images[:4]}) == 4


def test_a_varied_picture_is_displaced_by_whole_pixels_or_in_other_colours():
    picture = np.random.default_rng(0).integers(60, 190, (16, 16, 3), dtype=np.uint8)
    assert vary_picture(picture, np.random.default_rng(1), UNVARIED) is picture
    shifted = vary_picture(picture, np.random.default_rng(1), Variation(shift=3))
    places = [
        (y, x)
        for y in range(7)
        for x in range(7)
        if np.array_equal(
            shifted[3:13, 3:13], np.pad(picture, ((3, 3), (3, 3), (0, 0)))[y + 3 : y + 13, x + 3 : x + 13]
        )
    ]
    assert len(places) == 1
    coloured = vary_picture(picture, np.random.default_rng(1), Variation(colours=0.1)).astype(float)
    for channel in range(3):  # a straight line, but for rounding and the ends of the range
        inside = (coloured[..., channel] > 0) & (coloured[..., channel] < 255)
        old, new = picture[..., channel][inside], coloured[..., channel][inside]
        slope, offset = np.polyfit(old, new, 1)
        assert abs(new - (slope * old + offset)).max() <= 0.7 and 0.85 <= slope <= 1.15


def test_an_undefended_detector_learns_pictures_without_variation():
    labelled = examples(["real", "edit"], origins=[-1, 0])
    undefended = detector.read_detector_settings("xception", defence="none", batch=4)
    assert undefended.shift and detector.build_batches("xception", labelled, undefended).variation == UNVARIED
    shipped = detector.read_detector_settings("xception", batch=4)
    assert detector.build_batches("xception", labelled, shipped).variation == Variation(shipped.shift, shipped.colours)


def test_a_fake_by_others_stands_beside_photographs_of_its_own_source():
    labelled = examples(["real", "swap", "real", "real", "edit"])
    labelled = replace(labelled, sources=np.array(["celeba", "theirs", "theirs_real", "ffhq", "other"]))
    drawn = [
        drawn_from(labelled, compared_with={"theirs": ["theirs_real"], "other": ["nowhere"]}).draw(n) for n in range(60)
    ]
    beside = {"swap": set(), "edit": set()}
    photographs = {index: labelled.pictures[index].float() / 255 for index in (0, 2, 3)}
    for batch in drawn:
        for place, kind in enumerate(batch.kinds[4:]):
            images = (batch.images[place], batch.images[place].flip(-1))
            beside[kind] |= {
                i for i, photograph in photographs.items() if any(torch.equal(photograph, image) for image in images)
            }
    assert beside == {"swap": {2}, "edit": {0, 2, 3}}  # any photograph where none of its source are there


def test_sources_are_folders_or_beginnings_of_names():
    names = ["celeba_01.jpg", "ffhq_02.jpg", "wild_real/wild_real_7.jpg", "plain.jpg"]
    assert [data.source_of(name) for name in names] == ["celeba", "ffhq", "wild_real", "plain.jpg"]


def test_attacked_fakes_take_half_of_the_places():
    labelled = examples(["real", "swap", "edit", "attacked"])
    kinds = [kind for number in range(100) for kind in drawn_from(labelled).draw(number).kinds[4:]]
    assert 0.42 < kinds.count("attacked") / len(kinds) < 0.58
    without = examples(["real", "swap", "edit"])
    assert "attacked" not in drawn_from(without).draw(0).kinds


def test_the_strong_defence_attacks_training_fakes_in_memory():
    labelled = examples(["real", "swap", "real", "edit", "swap"], size=32, origins=[-1, 0, -1, 2, 0])
    attacked = finish(data.add_attacked(labelled, "noise", seed=4))
    assert attacked.kinds.tolist() == [*labelled.kinds.tolist(), "attacked", "attacked", "attacked"]
    assert attacked.origins.tolist() == [*labelled.origins.tolist(), 0, 2, 0]  # each keeps its photograph
    assert torch.equal(attacked.pictures[:5], labelled.pictures)
    change = (attacked.pictures[5:].float() - labelled.pictures[[1, 3, 4]].float()).abs().mean((1, 2, 3))
    assert (change > 1).all() and (change < 25).all()
    again = finish(data.add_attacked(labelled, "noise", seed=4, limit=2))
    assert again.kinds.tolist().count("attacked") == 2
    with pytest.raises(UserError, match="no attack named fog"):
        finish(data.add_attacked(labelled, "fog", seed=0))
    with pytest.raises(UserError, match="no fakes to attack"):
        finish(data.add_attacked(examples(["real"]), "noise", seed=0))


def test_kinds_without_a_share_and_missing_photographs_are_refused():
    with pytest.raises(UserError, match="of the kind morph"):
        drawn_from(examples(["real", "swap", "morph"]))
    with pytest.raises(UserError, match="photographs and fakes"):
        drawn_from(examples(["swap", "edit"]))


class Fixed(nn.Module):
    """Returns the same raw output whatever it sees."""

    def __init__(self, raw, **attributes):
        super().__init__()
        self.raw = nn.Parameter(torch.tensor(raw))
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, images):
        return self.raw

    def forward_with_extras(self, images, fake):
        return self.raw, {"further": 2 * fake.sum()}


def batch_of(kinds):
    labels = torch.tensor([float(kind != "real") for kind in kinds])
    return data.LabelledBatch(torch.zeros(len(kinds), 3, 4, 4), labels, kinds)


def test_every_patch_is_labelled_as_its_picture():
    # Softmax of (ln 3, 0), fake then real, is 3/4 and 1/4.
    maps = Fixed([[[[3.0, 1.0]], [[1.0, 3.0]]], [[[3.0, 3.0]], [[1.0, 1.0]]]])
    with torch.no_grad():
        maps.raw.log_()
    card = detector.untrained_card("patch_cnn")
    log_odds, terms = detector.patch_objective(maps, torch.zeros(2, 3, 4, 4), batch_of(["real", "swap"]), card)
    expected = -np.log([0.25, 0.75, 0.75, 0.75]).mean()
    assert terms["patches"].item() == pytest.approx(expected, rel=1e-5)
    assert log_odds.tolist() == pytest.approx([0.0, np.log(3)], abs=1e-5)


def test_sources_are_named_and_unknown_fakes_are_any_but_real():
    network = Fixed([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5]], sources=("real", "swap", "edit"))
    with torch.no_grad():
        network.raw.log_()
    card = detector.untrained_card("lf")
    batch = batch_of(["real", "edit", "attacked"])
    log_odds, terms = detector.source_objective(network, batch.images, batch, card)
    assert terms["sources"].item() == pytest.approx(-np.log([0.6, 0.1, 0.8]).mean(), rel=1e-5)
    assert log_odds.tolist() == pytest.approx(np.log([0.3 / 0.6, 0.3 / 0.6, 0.5 / 0.2]).tolist(), rel=1e-4)


def test_further_losses_are_added_and_the_classification_is_flooded():
    card = detector.untrained_card("xception")
    certain = Fixed([[9.0, -9.0], [-9.0, 9.0]], flood=0.04)
    log_odds, terms = detector.extras_objective(certain, torch.zeros(2, 3, 4, 4), batch_of(["real", "swap"]), card)
    assert terms["cross_entropy"].item() == pytest.approx(0.08, abs=1e-4)  # as far above the level as it was below
    assert terms["further"].item() == 2
    assert log_odds.tolist() == [-18, 18]


def test_dct_a_is_standardised_by_its_training_pictures():
    labelled = examples(["real"] * 6 + ["swap"] * 6, size=32)
    source = drawn_from(labelled, size=32)
    network = DCTA(input_size=32)
    detector.prepare_network(network, source)
    training_images = torch.cat([source.draw(number).images for number in range(detector.FITTED_BATCHES)])
    spectra = (network.log_spectrum(training_images * 255) - network.mean) / network.std
    assert spectra.mean(0).abs().max() < 1e-3
    torch.testing.assert_close(spectra.std(0, correction=0), torch.ones(3, 32, 32), atol=1e-3, rtol=0)


def test_fingerprints_are_mean_residuals_whatever_the_run_was_stopped_at(tmp_path):
    labelled = examples(["real"] * 3 + ["swap"] * 5 + ["edit"] * 2)
    settings = replace(detector.read_detector_settings("nf", defence="none"), batch=2)

    def task():
        return detector.FingerprintTask(NoiseFingerprints(("swap", "edit"), 16), labelled, settings)

    uninterrupted, first, second = task(), task(), task()
    assert uninterrupted.total == 4
    finish(loop.train_task(uninterrupted, tmp_path / "whole", settings, log_every=1))
    job = loop.train_task(first, tmp_path / "parts", settings, log_every=1)
    next(job), next(job)
    job.close()
    finish(loop.train_task(second, tmp_path / "parts", settings, log_every=1))
    for place, kind in enumerate(("swap", "edit")):
        mean = wiener_residual(like_photographs(labelled.of_kind(kind)).float() / 255).mean(0)
        for trained in (uninterrupted, second):
            torch.testing.assert_close(trained.finished().fingerprints[place], mean / mean.square().mean().sqrt())
    with pytest.raises(UserError, match="no fakes of the kind swap"):
        detector.FingerprintTask(NoiseFingerprints(("swap",), 16), examples(["real", "edit"]), settings)


def test_a_threshold_can_balance_both_accuracies():
    scores = np.array([-3.0, -2.0, -1.0, 0.5, 1.5, 2.0])
    fake = np.array([False, False, True, False, True, True])
    threshold = calibration.choose_balanced_threshold(scores, fake)
    assert threshold in (-1.5, 1.0)  # five of six right, either way


@pytest.mark.parametrize(
    ("architecture", "precision"),
    [("patch_cnn", "float32"), ("patch_cnn", "bfloat16"), ("dct_a", "float32"), ("lf", "float32")],
)
def test_training_lowers_the_loss_on_fakes_that_can_be_told_apart(architecture, precision):
    labelled = examples(["real"] * 8 + ["swap"] * 8, size=32, origins=[-1] * 8 + list(range(8)))
    labelled.pictures[8:] = labelled.pictures[:8] // 2 + 100
    changes = {"batch": 8, "warmup": 1, "steps": 16, "partial_share": 0.0, "precision": precision}
    settings = replace(detector.read_detector_settings(architecture, defence="none"), **changes)
    torch.manual_seed(0)
    network = (
        LF(input_size=32, width=0.125)
        if architecture == "lf"
        else registry.build_embedded(architecture, {"input_size": 32})
    )
    card = detector.untrained_card(architecture)
    detector.prepare_network(network, detector.build_batches(architecture, labelled, settings))
    task = detector.build_detector_task(architecture, network, card, labelled, settings)
    computed = set()
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    first.register_forward_hook(lambda _layer, _inputs, output: computed.add(output.dtype))
    losses = [task.step(number)["loss"] for number in range(16)]
    assert computed <= {torch.bfloat16 if precision == "bfloat16" else torch.float32}
    assert {weight.dtype for weight in task.finished().state_dict().values()} <= {torch.float32, torch.int64}
    assert np.mean(losses[-3:]) < 0.85 * losses[0]


@pytest.fixture
def data_folder(tmp_path):
    """Write photographs, and fakes that are dimmer, as PNG files of 128 pixels."""
    randomness = np.random.default_rng(5)
    photographs = randomness.integers(60, 256, (60, 16, 16, 3), dtype=np.uint8)

    def save(path, small):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small).resize((128, 128), Image.Resampling.BICUBIC).save(path)

    for number, small in enumerate(photographs):
        save(tmp_path / "data" / f"{number:02}.png", small)
    for part, members in (("train", range(60)), ("val", range(4))):
        rows = []
        for number in members:
            name = f"swap/swap_{number:06}.png"
            save(tmp_path / "fakes" / part / name, photographs[number] // 3)
            rows.append({"file": name, "kind": "swap", "target": f"{number:02}.png", "source": "", "seed": "0"})
        with (tmp_path / "fakes" / part / "manifest.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return tmp_path


def test_a_fake_goes_where_its_photograph_goes(data_folder):
    split = data.read_labelled(data_folder / "data", [data_folder / "fakes"], 128)
    for part in (split.training, split.calibrating):
        for index in np.flatnonzero(part.kinds == "swap"):
            photograph = part.pictures[part.origins[index]].float()
            assert (photograph / 3 - part.pictures[index].float()).abs().mean() < 3
    assert (split.measuring.kinds == "swap").sum() == 4
    assert len(split.calibrating.of_kind("real")) == len(split.calibrating.of_kind("swap")) > 0


def test_the_command_trains_from_given_weights_and_names_the_plain_set(data_folder, capsys):
    torch.manual_seed(9)
    start = data_folder / "start.safetensors"
    weights.save_half(start, registry.build_embedded("meso4", {}).state_dict())
    out = data_folder / "out" / "meso4.safetensors"
    command = ["train", "detector", "meso4", "--data", str(data_folder / "data"), "--out", str(out), "--json"]
    command += ["--fakes", str(data_folder / "fakes"), "--steps", "2", "--defence", "none"]
    overrides = ["--set", "mirrored=true", "--set", "lr=1e-3"]
    assert main.main([*command, "--initial", str(start), *overrides]) == 0
    report = json.loads(capsys.readouterr().out)
    options = report["options"]["meso4_plain"]
    assert options["architecture"] == "meso4" and options["defence"] == "none" and options["mirrored"] is True
    recorded, _, photographs = options["source"].partition(", on ")
    expected = "python -m backend train detector meso4 --steps 2 --defence none --initial start.safetensors"
    assert recorded == f"{expected} --set lr=0.001 --set mirrored=true" and photographs
    assert report["run"]["settings"]["initial"].startswith("start.safetensors, sha256 ")
    assert {rate["kind"] for rate in options["errors"]} == {"real", "swap"}
    trained, before = weights.read_checkpoint(out), weights.read_checkpoint(start)
    network = registry.build_embedded("meso4", {}).eval()
    network.load_state_dict(trained)
    split = data.read_labelled(data_folder / "data", [data_folder / "fakes"], 128)
    for mirrored in (True, False):  # calibrated as it will judge
        card = replace(detector.untrained_card("meso4"), mirrored=mirrored)
        calibrated = calibration.calibrate_detector(network, card, split.calibrating, "meso4", "none")
        assert (calibrated["threshold"] == pytest.approx(options["threshold"], rel=1e-4)) is mirrored
    largest_change = (trained["conv1.weight"].float() - before["conv1.weight"].float()).abs().max()
    assert 0 < largest_change < 0.05

    weights.save_half(start, registry.build_embedded("patch_cnn", {}).state_dict())
    assert main.main([*command, "--initial", str(start)]) == 2
    assert "another network" in json.loads(capsys.readouterr().out)["error"]
    assert main.main([*command, "--initial", "installed"]) == 2  # there is no plain entry
    assert main.main([*command, "--set", "mirrored=False"]) == 2
    assert "mirrored cannot be" in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]


def test_the_undefended_set_judges_pictures_as_they_are():
    assert (
        detector.read_detector_settings("f3net").mirrored
        and detector.read_detector_settings("f3net", defence="weak").mirrored
    )
    assert not detector.read_detector_settings("f3net", defence="none").mirrored
    assert detector.read_detector_settings("f3net", defence="none", mirrored=True).mirrored


class Grain(nn.Module):
    """Log-odds of fake: how much neighbouring pixels differ, less what photographs have."""

    def forward(self, images):
        return ((images - nn.functional.avg_pool2d(images, 3, 1, 1)).abs().mean((1, 2, 3)) * 100 - 1)[:, None]


@pytest.mark.parametrize("defence", ["shipped", "none"])
def test_probabilities_are_calibrated_on_saved_fakes(defence):
    randomness = np.random.default_rng(0)
    smooth = randomness.integers(60, 200, (40, 3, 4, 4), dtype=np.uint8).repeat(8, 2).repeat(8, 3)
    fine = smooth.astype(int) + randomness.integers(-3, 4, smooth.shape)  # which saving takes away for the most part
    pictures = torch.from_numpy(np.concatenate([smooth, fine.clip(0, 255).astype(np.uint8)]))
    saved_pictures = data.LabelledPictures(like_photographs(pictures), np.repeat(["real", "edit"], 40))
    unsaved = data.LabelledPictures(torch.cat([saved_pictures.pictures[:40], pictures[40:]]), saved_pictures.kinds)
    card = detector.untrained_card("meso4")
    card = replace(card, outputs="one logit, fake high")
    saved_calibration, unsaved_calibration = (
        calibration.calibrate_detector(Grain(), card, labelled, "meso4", defence)
        for labelled in (saved_pictures, unsaved)
    )
    assert unsaved_calibration["threshold"] == saved_calibration["threshold"]  # photographs alone decide it
    scores = calibration.measure_log_odds(base.Detector(Grain(), card).eval(), like_photographs(unsaved.pictures))
    fake = unsaved.kinds != "real"
    expected = calibration.choose_temperature(scores - unsaved_calibration["threshold"], fake)
    assert unsaved_calibration["temperature"] == pytest.approx(expected, rel=1e-3)
    raw = calibration.measure_log_odds(base.Detector(Grain(), card).eval(), unsaved.pictures)
    assert calibration.choose_temperature(raw - unsaved_calibration["threshold"], fake) != pytest.approx(
        expected, rel=0.1
    )
