"""The training harness, the order of examples, and the fakes."""

import csv
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from backend import face_packs, fakes
from backend.errors import UserError
from backend.progress import finish
from backend.training import calibration, degradation, detector, install, loop
from backend.training.trnet import TRNetTrainingSettings
from tests import pictures


@dataclass(frozen=True)
class ToySettings:
    seed: int = 0


class Toy(loop.TrainingTask):
    """A linear fit whose data depends on the step alone."""

    def __init__(self, total: int) -> None:
        torch.manual_seed(0)
        self.net = nn.Linear(4, 1)
        self.optimizer = torch.optim.Adam(self.net.parameters(), 1e-2)
        self.total = total
        self.modules = {"net": self.net}
        self.optimizers = {"net": self.optimizer}

    def preview(self):
        return None

    def step(self, number):
        data = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
        loss = (self.net(data) - data.sum(1, keepdim=True)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    uninterrupted = Toy(30)
    finish(loop.train_task(uninterrupted, tmp_path / "whole", ToySettings(), log_every=5))
    first = Toy(30)
    job = loop.train_task(first, tmp_path / "parts", ToySettings(), log_every=5)
    for _ in range(3):
        next(job)
    job.close()  # what a stop button does, after 15 steps
    second = Toy(30)
    run = finish(loop.train_task(second, tmp_path / "parts", ToySettings(), log_every=5))
    assert run.steps == 30
    assert torch.equal(uninterrupted.net.weight, second.net.weight)
    assert not torch.equal(first.net.weight, second.net.weight)
    with (tmp_path / "parts" / "losses.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["5", "10", "15", "20", "25", "30"]


def test_a_run_of_another_kind_is_not_resumed(tmp_path):
    finish(loop.train_task(Toy(2), tmp_path, ToySettings()))
    other = Toy(2)
    other.modules = {"net": other.net, "critic": other.net}
    with pytest.raises(UserError, match="another kind of run"):
        finish(loop.train_task(other, tmp_path, ToySettings()))


def test_every_epoch_shows_each_picture_once():
    indices = torch.cat([face_packs.draw_indices(10, 4, seed=3, step=step) for step in range(5)])
    assert sorted(indices[:10].tolist()) == list(range(10))
    assert sorted(indices[10:].tolist()) == list(range(10))
    assert indices[:10].tolist() != indices[10:].tolist()
    assert torch.equal(face_packs.draw_indices(10, 4, seed=3, step=2), face_packs.draw_indices(10, 4, seed=3, step=2))


def test_settings_files_are_read_and_unknown_ones_refused():
    assert loop.read_settings(detector.DetectorSettings, "detector", steps=7, lr=None).steps == 7
    with pytest.raises(UserError, match="no setting named"):
        loop.read_settings(ToySettings, "encoder")
    with pytest.raises(UserError, match="no setting named stepz"):
        detector.read_detector_settings("xception", stepz=7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": "abc"}, "steps cannot be 'abc'"),
        ({"pretraining_steps": 1500.5}, "pretraining_steps cannot be 1500.5"),
        ({"lr_generator": "fast"}, "lr_generator cannot be 'fast'"),
        ({"saved": 1}, "as_jpeg cannot be 1"),
        ({"spatial_form": "fine"}, "spatial_form cannot be 'fine'"),
    ],
)
def test_settings_of_another_kind_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        loop.read_settings(TRNetTrainingSettings, "trnet", **changes)
    assert loop.read_settings(TRNetTrainingSettings, "trnet", bound=1, spatial_form="strided").bound == 1


def test_settings_keep_their_old_names():
    read = loop.read_settings(TRNetTrainingSettings, "trnet", ahead=7, kept_share=0.5)
    assert (read.pretraining_steps, read.mixing_share) == (7, 0.5)
    assert detector.read_detector_settings("xception", history={"blur": 2.0}).degradation == {"blur": 2.0}


def faces_and_points():
    size = 128
    photo = np.ascontiguousarray(pictures.hopper()[30:430, 60:460])
    step = photo.shape[0] // size
    target = photo[::step, ::step][:size, :size]
    points = np.array([[47.0, 54], [81, 54], [64, 74], [51, 92], [77, 92]])
    return target, points


def test_swapping_a_face_with_itself_changes_next_to_nothing():
    target, points = faces_and_points()
    for blend in ("feather", "poisson"):
        swapped = fakes.swap_faces(target, target, points, points, blend=blend, feather=2.0)
        assert np.abs(swapped.astype(int) - target).mean() < 0.5


def test_a_swap_leaves_the_surround_untouched_and_changes_the_face():
    target, points = faces_and_points()
    source = np.ascontiguousarray(target[:, ::-1] // 2 + 60)
    mirrored = points.copy()
    mirrored[:, 0] = 128 - points[:, 0]
    mirrored = mirrored[[1, 0, 2, 4, 3]]
    swapped = fakes.swap_faces(target, source, points, mirrored, blend="poisson", feather=2.0)
    mask = fakes.inner_face(points, 128) > 0
    ys, xs = np.nonzero(mask)
    assert np.array_equal(swapped[: ys.min() - 10], target[: ys.min() - 10])
    assert np.array_equal(swapped[:, xs.max() + 12 :], target[:, xs.max() + 12 :])
    assert np.abs(swapped.astype(int) - target)[mask].mean() > 2


def test_a_redrawn_swap_is_the_drawing_inside_the_face_and_the_photograph_outside():
    target, points = faces_and_points()
    source = np.clip(target.astype(int) + 30, 0, 255).astype(np.uint8)
    swapped = fakes.swap_faces(target, source, points, points + 1, blend="feather", feather=2.0)
    drawn = ndimage.gaussian_filter(swapped, (2, 2, 0))
    redrawn = fakes.redraw_face(swapped, drawn, target, points, feather=2.0)
    mask = fakes.inner_face(points, 128) > 0
    within, without = ndimage.binary_erosion(mask, iterations=8), ~ndimage.binary_dilation(mask, iterations=10)
    assert np.array_equal(redrawn[without], target[without])
    matched = fakes.match_colour(drawn, swapped, mask)
    assert np.abs(redrawn - matched)[within].max() < 2
    assert np.abs(redrawn.astype(int) - swapped)[within].mean() > 1
    # A drawing in other colours takes those of the swap; a perfect one leaves the swap, but for the edge.
    darker = (drawn * 0.8).astype(np.uint8)
    dark = fakes.redraw_face(swapped, darker, target, points, feather=2.0)
    off = np.abs(darker.astype(int) - redrawn)[within].mean()
    assert np.abs(dark.astype(int) - redrawn)[within].mean() < off / 4
    same = fakes.redraw_face(swapped, swapped, target, points, feather=2.0)
    assert np.abs(same.astype(int) - swapped)[within].max() <= 1


def test_poisson_blending_reproduces_a_harmonic_ramp():
    ramp = np.repeat(np.repeat(np.linspace(0, 255, 32)[None, :, None], 32, 0), 3, 2)
    flat = np.full_like(ramp, 10.0)
    mask = np.zeros((32, 32), bool)
    assert np.allclose(fakes.poisson_blend(flat, ramp, mask), ramp, atol=1e-6)


def test_the_same_seed_gives_the_same_history_and_another_a_different_one():
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    first, repeated, other = (
        degradation.degrade_picture(picture, np.random.default_rng(seed), degradation.Degradation())
        for seed in (5, 5, 8)
    )
    assert np.array_equal(first, repeated)
    assert first.shape == picture.shape
    assert not np.array_equal(first, other)


def test_swaps_are_reproducible_and_continue_where_they_stopped(tmp_path):
    target, _ = faces_and_points()
    variants = [target, np.ascontiguousarray(target[:, ::-1]), np.clip(target * 0.8 + 20, 0, 255).astype(np.uint8)]
    tensor = torch.from_numpy(np.stack(variants)).permute(0, 3, 1, 2)
    photographs = face_packs.Photographs(["a.png", "b.png", "c.png"], tensor)
    settings = fakes.FakesSettings(per_kind=4, kinds=("swap",), redrawn=0)
    finish(fakes.build_fakes(photographs, tmp_path / "once", None, settings))
    part = fakes.FakesSettings(per_kind=2, kinds=("swap",), redrawn=0)
    finish(fakes.build_fakes(photographs, tmp_path / "twice", None, part))
    finish(fakes.build_fakes(photographs, tmp_path / "twice", None, settings))
    once = {path.name: path.read_bytes() for path in (tmp_path / "once").rglob("*.png")}
    twice = {path.name: path.read_bytes() for path in (tmp_path / "twice").rglob("*.png")}
    assert once
    assert once == twice
    assert set(fakes.read_origins(tmp_path / "once").values()) <= {"a.png", "b.png", "c.png"}


def test_calibration_keeps_the_wanted_share_of_false_alarms():
    randomness = np.random.default_rng(0)
    scores = randomness.normal(-3, 2, 1000)
    threshold = calibration.choose_threshold(scores, false_alarms=0.05)
    assert abs((scores > threshold).mean() - 0.05) < 0.005


def test_the_temperature_makes_normal_scores_probabilities():
    # Of normal classes at -2 and 2 with variance 4, the log-odds at x are exactly x; three times as much is too sure.
    randomness = np.random.default_rng(0)
    exact = np.concatenate([randomness.normal(-2, 2, 4000), randomness.normal(2, 2, 4000)])
    fake = np.repeat([False, True], 4000)
    assert calibration.choose_temperature(exact, fake) == pytest.approx(1, rel=0.1)
    assert calibration.choose_temperature(3 * exact, fake) == pytest.approx(3, rel=0.1)
    assert calibration.choose_temperature(exact / 200, fake) == pytest.approx(1 / 200, rel=0.1)


def test_installing_a_file_writes_an_entry_that_verifies(tmp_path, monkeypatch):
    from backend import settings, weights

    changed = settings.Settings(weights_dir=tmp_path / "weights")
    for module in (install, weights, install):
        monkeypatch.setattr(module, "SETTINGS", changed)
    (tmp_path / "weights").mkdir()
    weights.save_half(tmp_path / "toy.safetensors", {"weight": torch.ones(2, 3)})
    weights.read_entries.cache_clear()
    try:
        entry = install.install_weights(
            "toy", tmp_path / "toy.safetensors", {"width": 0.5}, "three holiday photographs"
        )
        assert entry.state() == "verified"
        assert entry.options["width"] == 0.5
        assert entry.source.endswith("on three holiday photographs")
        assert torch.equal(weights.load_entry("toy")["weight"], torch.ones(2, 3))
        entry.path.write_bytes(entry.path.read_bytes()[:-1] + b"x")
        assert entry.state() == "damaged"
    finally:
        weights.read_entries.cache_clear()
