"""Fine-tuning of a published encoder: the paper's losses, what is left out, and the whole command at a small size."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from backend import faces, images, similarity, weights
from backend.cli import main
from backend.errors import UserError
from backend.generators import dlib_resnet, inversion
from backend.generators.e4e import E4EEncoder
from backend.generators.inversion import Inverter
from backend.similarity import PerceptualDistance
from backend.training import finetune, loop, losses
from backend.training.finetune import FinetuneLosses, FinetuneSettings, FinetuneTask
from backend.training.losses import FaceEmbedding
from benchmarks import filled
from tests.detectors.test_own_crop_views import FACE

SIZE, WIDTH = 16, 0.0625
SETTINGS = FinetuneSettings(steps=2, batch=2, rate=1e-4, l2_weight=1.0, lpips_weight=0.8, identity_weight=0.5, seed=0)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A checkpoint in the published layout, 16 pixels in place of 1024 and a narrow encoder."""
    monkeypatch.setattr(inversion, "E4EEncoder", partial(E4EEncoder, width=WIDTH))
    file = tmp_path / "e4e.pt"
    torch.save(filled.e4e(SIZE, width=WIDTH), file)
    return file


def l1_distance(first, second):
    return (first - second).abs().flatten(1).mean(1)


def embed(pictures):
    """Return unit vectors: the mean colours."""
    return torch.nn.functional.normalize(pictures.mean((2, 3)), dim=1)


def pictures(count: int = 4) -> torch.Tensor:
    return (torch.rand(count, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 255).byte()


def task(inverter: Inverter, **changes) -> FinetuneTask:
    losses = FinetuneLosses(PerceptualDistance("L1", l1_distance), FaceEmbedding("colours", embed), ())
    return FinetuneTask(pictures(), replace(SETTINGS, **changes), pictures(2), inverter, losses)


def test_the_settings_are_those_of_the_paper():
    settings = loop.read_settings(FinetuneSettings, "finetune")
    assert (settings.l2_weight, settings.lpips_weight, settings.identity_weight) == (1.0, 0.8, 0.5)
    assert (settings.rate, settings.batch, settings.steps) == (1e-4, 8, 80_000)


def test_the_size_of_a_published_generator_is_read_from_its_file(checkpoint):
    inverter = inversion.read_e4e_inverter(checkpoint)
    assert (
        inverter.size == SIZE and inversion._published_size({f"decoder.to_rgbs.{n}.bias": 0 for n in range(8)}) == 1024
    )


def test_a_step_follows_the_sum_of_the_losses_and_moves_the_encoder_alone(checkpoint):
    inverter = inversion.read_e4e_inverter(checkpoint)
    training = task(inverter)
    decoder = {name: value.clone() for name, value in inverter.generator.state_dict().items()}
    statistics = {name: value.clone() for name, value in training.encoder.named_buffers()}
    weights_before = {name: value.detach().clone() for name, value in training.encoder.named_parameters()}
    from backend.training.loop import draw_faces

    batch = draw_faces(training.pictures, 2, 0, 0)
    drawn, target = training.reconstruct(batch)
    assert drawn.shape == target.shape == (2, 3, SIZE, SIZE)
    cosine = (embed((drawn + 1) / 2) * embed((target + 1) / 2)).sum(1).mean()
    loss = (drawn - target).square().mean() + 0.8 * l1_distance(drawn, target).mean() + 0.5 * (1 - cosine)
    expected = torch.autograd.grad(loss, list(training.encoder.parameters()), allow_unused=True)
    values = training.step(0)
    assert set(values) == {"l2", "lpips", "identity"}
    assert values["identity"] == pytest.approx(1 - float(cosine.detach()), abs=1e-5)
    moved_count = 0
    for (name, weight), slope in zip(training.encoder.named_parameters(), expected, strict=True):
        change = weight.detach() - weights_before[name]
        if slope is None:  # nothing that is drawn depends on it
            assert not change.any(), name
            continue
        steep = slope.abs() > 1e-5
        moved_count += int(steep.sum())
        # Adam's first step is its rate against the sign.
        assert torch.allclose(change[steep], -1e-4 * slope.sign()[steep], atol=2e-6), name
    assert moved_count > 1000
    assert all(torch.equal(value, decoder[name]) for name, value in inverter.generator.state_dict().items())
    assert all(torch.equal(value, statistics[name]) for name, value in training.encoder.named_buffers())


def test_steps_bring_the_drawings_closer(checkpoint):
    training = task(inversion.read_e4e_inverter(checkpoint), rate=1e-3)
    first = training.step(0)["l2"]
    for number in range(1, 12):
        last = training.step(number)["l2"]
    assert last < first and training.preview().shape == (1, 3, 2 * SIZE, 2 * SIZE)


def test_missing_losses_are_reported(monkeypatch):
    monkeypatch.setattr(weights, "read_entries", dict)
    monkeypatch.setattr(dlib_resnet, "dlib_resnet_path", lambda: None)
    monkeypatch.setattr(similarity, "lpips_missing", lambda: "absent")
    monkeypatch.setattr(similarity, "best_perceptual_distance", lambda: PerceptualDistance("1 - SSIM", l1_distance))
    result = finetune.find_losses("ffhq")
    assert result.embedding is None and result.perceptual.name == "1 - SSIM"
    assert [sentence.split(" is ")[0] for sentence in result.left_out] == ["LPIPS", "The identity loss"]
    monkeypatch.setattr(similarity, "lpips_missing", lambda: None)
    monkeypatch.setattr(losses, "find_face_embedding", lambda template: FaceEmbedding("colours", embed))
    assert finetune.find_losses("ffhq").left_out == ("ArcFace is replaced by colours: it was not fetched.",)
    monkeypatch.setattr(losses, "find_face_embedding", lambda template: FaceEmbedding("ArcFace", embed))
    assert finetune.find_losses("ffhq").left_out == ()


def test_the_command_writes_a_checkpoint_that_can_be_loaded(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(faces, "find_faces", lambda photo: [FACE] if photo.mean() > 40 else [])
    monkeypatch.setattr(
        finetune, "find_losses", lambda _t: FinetuneLosses(PerceptualDistance("L1", l1_distance), None, ("No ID.",))
    )
    data = tmp_path / "own"
    data.mkdir()
    for number in range(4):
        photo = np.full((400, 420, 3), 60 * number, dtype=np.uint8)
        (data / f"{number}.png").write_bytes(images.encode_png(photo))
    out = tmp_path / "out"
    command = ["train", "encoder", "--from", str(checkpoint), "--data", str(data), "--out", str(out), "--steps", "1"]
    assert main.main([*command, "--json"]) == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert report["left_out"] == ["No ID."] and "No ID." in output.err and "No ID." in report["summary"]
    assert report["metrics"]["faces"] == 3  # the black picture has no face
    assert report["metrics"]["held_out"] >= 1 and report["run"]["settings"]["lpips_weight"] == 0.8
    tuned, before = inversion.read_e4e_inverter(out / "e4e_finetuned.pt"), inversion.read_e4e_inverter(checkpoint)
    for name, value in before.generator.state_dict().items():
        assert torch.equal(tuned.generator.state_dict()[name], value)
    assert torch.equal(tuned.latent_average, before.latent_average)
    assert not torch.equal(tuned.encoder.styles[0].linear.weight, before.encoder.styles[0].linear.weight)


def test_mistakes_give_one_sentence(checkpoint, tmp_path, monkeypatch, capsys):
    base = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main.main(["train", "generator", "--from", str(checkpoint), *base]) == 2
    assert "No such option: --from" in capsys.readouterr().err
    (tmp_path / "one.png").write_bytes(images.encode_png(np.zeros((50, 50, 3), np.uint8)))
    assert main.main(["train", "encoder", "--from", str(tmp_path / "absent.pt"), *base]) == 2
    assert "There is no file named absent.pt" in capsys.readouterr().err
    monkeypatch.setattr(faces, "find_faces", lambda photo: [])
    with pytest.raises(UserError, match="Only 0 of 1 photographs has a face"):
        finetune.finetune_encoder(str(checkpoint), tmp_path, tmp_path / "out", lambda _step: None)
