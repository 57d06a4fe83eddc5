"""Encoder training with every loss, and encoder and generator together, at a toy's size."""

from dataclasses import replace

import pytest
import torch

from backend.errors import UserError
from backend.generators.inversion import Inverter
from backend.generators.stylegan2 import StyleGAN2
from backend.progress import finish
from backend.similarity import batch_ssim
from backend.training import encoder, loop
from backend.training import losses as training_losses
from backend.training.encoder import EncoderSettings, EncoderTask, JointSettings, JointTask
from backend.training.generator import PrincipalCodes
from backend.training.losses import FaceEmbedding, sharpen_pictures
from tests.adversarial_toys import CHANNELS, L1, SIZE, SmallEncoder, pictures, random


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    monkeypatch.setattr(training_losses, "build_perceptual_network", L1)
    monkeypatch.setattr(encoder, "E4EEncoder", SmallEncoder)
    monkeypatch.setattr(
        training_losses, "find_face_embedding", lambda _t: FaceEmbedding("colours", lambda faces: faces.mean((2, 3)))
    )


def inverting(kind, name: str, **changes):
    small = {"input_size": 32, "width": 1.0, "stages": [[32, 4, 4, 1e-3]], "identity_weight": 0.1, "linear": 0}
    return loop.read_settings(kind, name, **(small | {"latent_weight": 0.1} | changes))


def small_generator() -> StyleGAN2:
    torch.manual_seed(1)
    return StyleGAN2(SIZE, mapping_layers=1, channels={int(key): width for key, width in CHANNELS.items()}).eval()


def build(kind, chosen):
    frozen = small_generator().requires_grad_(False)
    shared = {"generator": frozen, "latent_average": torch.zeros(512), "size": SIZE}
    return kind(pictures(), chosen, pictures(2), **shared, **({"codes": None} if kind is EncoderTask else {}))


@pytest.mark.parametrize("recipe", ["encoder_adversarial", "joint", "joint_regression", "squares"])
def test_encoder_runs_with_every_loss_resume_exactly(recipe, tmp_path):
    kind = EncoderTask if recipe == "encoder_adversarial" else JointTask
    if kind is EncoderTask:
        chosen = inverting(EncoderSettings, recipe, statistics_steps=2, feedback=[0.5])
    else:
        squares = {"adversarial_weight": 0.1, "judged_side": 16} if recipe == "squares" else {}
        file = "joint_regression" if squares else recipe
        small = {"discriminator_width": 0.02, "r1_every": 2, "generator_rate": 1e-3}
        chosen = inverting(JointSettings, file, **small, **squares)
    uninterrupted, first, second = (build(kind, chosen) for _ in range(3))
    assert kind is EncoderTask or uninterrupted.count_without_offsets(4) == (0 if recipe == "joint" else 1)
    finish(loop.train_task(uninterrupted, tmp_path / "whole", chosen, log_every=1))
    job = loop.train_task(first, tmp_path / "parts", chosen, log_every=1)
    next(job)
    next(job)
    job.close()
    run = finish(loop.train_task(second, tmp_path / "parts", chosen, log_every=1))
    assert {"identity", "latent", "latent_generator_loss", "delta"} <= set(run.losses)
    if kind is JointTask:
        added = {"joint": {"generator_loss"}, "joint_regression": {"ssim"}, "squares": {"ssim", "generator_loss"}}
        assert {"ssim", "generator_loss"} & set(run.losses) == added[recipe]
    for name, module in uninterrupted.modules.items():
        other = second.modules[name].state_dict()
        assert all(torch.equal(value, other[key]) for key, value in module.state_dict().items()), name
    before, after = small_generator().state_dict(), uninterrupted.generator.state_dict()
    changed = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    expected = {"input", "conv1", "to_rgb1", "convs", "to_rgbs"} if kind is JointTask else set()
    assert changed == expected  # the mapping network stays
    if recipe in {"joint", "squares"}:  # unless it is fitted where no samples were judged
        fitted = uninterrupted.finished()
        unchanged = all(
            torch.equal(value, fitted[f"generator.{key}"]) for key, value in after.items() if "style" in key
        )
        assert unchanged == (recipe == "joint")
    assert uninterrupted.preview().shape == (1, 3, 3 * SIZE, 2 * SIZE)


def test_a_joint_run_without_a_discriminator_draws_some_faces_from_their_base_code_and_fits_the_mapping_to_them():
    chosen = inverting(JointSettings, "joint_regression", base_share=0.5)
    task = build(JointTask, chosen)
    assert task.discriminator_trainer is None
    codes = torch.randn(4, 8, 512, generator=random())
    mixed_codes = task.drop_offsets(codes)
    assert torch.equal(mixed_codes[:2], codes[:2]) and torch.equal(mixed_codes[2:], codes[2:, :1].expand(-1, 8, -1))
    state, before = task.finished(), small_generator().state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, state[f"generator.{name}"])}
    assert changed == {"style.1.weight", "style.1.bias"}  # no step was trained
    base = task.average.base(pictures().float() / 127.5 - 1).mean(0)
    z = torch.randn(256, 512, generator=random())
    drawn = task.generator_average.mapping(z).mean(0)
    assert (drawn - base).square().mean() < 0.1 * base.square().mean()


def test_a_joint_run_with_a_discriminator_leaves_the_mapping_as_it_is():
    task = build(JointTask, inverting(JointSettings, "joint", discriminator_width=0.02))
    state = task.finished()
    assert all(torch.equal(value, state[f"generator.{name}"]) for name, value in small_generator().state_dict().items())


def test_a_linear_path_begins_with_the_principal_codes_and_all_else_with_nothing():
    task = build(JointTask, inverting(JointSettings, "joint_regression", linear=5))
    faces = pictures().float() / 127.5 - 1
    assert task.average(faces)[:, 1:].std() > 0  # what the encoder knew
    codes = PrincipalCodes(512, 0.25)
    codes.basis.normal_(0, 0.02, generator=random())
    task.fit_linear_path(codes)
    for network in (task.encoder, task.average):
        rows = network.eval()(faces) + task.latent_average
        assert torch.equal(rows, rows[:, :1].expand_as(rows)) and torch.equal(rows[:, 0, 5:], torch.zeros(6, 507))
        assert torch.allclose(rows[:, 0, :5], codes(faces)[:, :5], atol=0.05)  # six pictures, and more pixels


def test_the_encoder_learns_from_its_last_look_but_where_it_looks_once():
    task = build(JointTask, inverting(JointSettings, "joint_regression", feedback=[0.5, 0.3], precision="float32"))
    faces = pictures(4).float() / 127.5 - 1
    once = build(JointTask, inverting(JointSettings, "joint_regression", feedback=[], precision="float32")).encode(
        faces
    )
    codes = task.encode(faces, once=1)
    assert codes.requires_grad and torch.allclose(codes[3:], once[3:], atol=1e-6)
    lacking, read = torch.zeros_like(faces[:3]), once[:3]
    for amount in (0.5, 0.3):
        drawn = task.generator.synthesize(read + task.latent_average).clamp(-1, 1)
        lacking = lacking + amount * (faces[:3] - drawn)
        before, read = read, task.encoder(faces[:3], lacking)
        assert not torch.allclose(read, before, atol=1e-4)
    assert torch.allclose(codes[:3], read, atol=1e-5)
    parameters = [weight for weight in task.encoder.parameters() if weight.requires_grad]
    gradients, expected_gradients = (
        torch.autograd.grad(encoded.sum(), parameters)
        for encoded in (codes[:3], task.encoder(faces[:3], lacking.detach()))
    )
    assert all(
        torch.allclose(gradient, expected, rtol=1e-3, atol=1e-4)
        for gradient, expected in zip(gradients, expected_gradients, strict=True)
    )
    assert torch.allclose(task.encode(faces, once=4), once, atol=1e-6)
    inverter = Inverter(task.generator, task.average, task.latent_average[None], "small", "embedded", 0.01, [0.5, 0.3])
    assert torch.allclose(task.average_codes(faces, task.generator), inverter.invert(faces / 2 + 0.5), atol=1e-5)


def test_a_discriminator_sees_random_squares():
    chosen = inverting(JointSettings, "joint_regression", adversarial_weight=0.1, judged_side=16)
    task = build(JointTask, chosen)
    faces = pictures().float()
    squares = task.crop_for_discriminator(faces, random())
    corners = set()
    for square, face in zip(squares, faces, strict=True):
        windows = face.unfold(1, 16, 1).unfold(2, 16, 1).movedim(0, 2)  # row, column, colour, height, width
        corners.add(tuple((windows == square).flatten(2).all(2).nonzero()[0].tolist()))  # a window of its own face
    assert squares.shape == (6, 3, 16, 16) and len(corners) > 3
    assert torch.equal(
        task.crop_for_discriminator(faces[..., :8, :8], random()), faces[..., :8, :8]
    )  # smaller than a square


class Marked(torch.nn.Module):
    """A distance that notes what it was shown."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def forward(self, first, second):
        self.shown.append((first.detach(), second.detach()))
        return (first - second).abs().mean((1, 2, 3))


def test_every_loss_weighs_what_the_settings_say(monkeypatch):
    network = Marked()
    monkeypatch.setattr(training_losses, "build_perceptual_network", lambda: network)
    chosen = inverting(
        JointSettings,
        "joint_regression",
        perceptual_share=0.5,
        enlarged_share=0.5,
        sharpened=0.5,
        pixel_weight=0.4,
        ssim_weight=0.3,
        latent_weight=0.0,
    )
    task = build(JointTask, chosen)
    faces = pictures(3).float() / 127.5 - 1
    drawn, losses, loss = task.inversion(task.encode(faces), faces, SIZE, random())
    faces = sharpen_pictures(faces, 0.5).clamp(-1, 1)
    assert losses["l1"].item() == pytest.approx((drawn - faces).abs().mean().item(), rel=1e-5)
    [(compared, reference)] = network.shown
    assert compared.shape == reference.shape == (2, 3, SIZE, SIZE)
    whole_faces = [index for index, face in enumerate(faces[:2]) if torch.equal(face, reference[0])]
    assert len(whole_faces) == 1 and torch.equal(compared[0], drawn[whole_faces[0]])
    assert not any(torch.equal(face, reference[1]) for face in faces)  # a part
    assert losses["perceptual"].item() == pytest.approx((compared - reference).abs().mean().item(), rel=1e-2)
    assert losses["ssim"].item() == pytest.approx(
        1 - batch_ssim((drawn + 1) / 2, (faces + 1) / 2).mean().item(), abs=1e-5
    )
    weights_of = {"l1": 0.4, "l2": 0.4, "delta": chosen.delta_weight, "perceptual": chosen.perceptual_weight}
    weights_of |= {"ssim": 0.3, "identity": chosen.identity_weight}
    assert loss.item() == pytest.approx(
        sum(weights_of[name] * value.item() for name, value in losses.items()), rel=1e-4
    )


def test_an_identity_loss_without_a_network_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(training_losses, "find_face_embedding", lambda _template: None)
    chosen = inverting(EncoderSettings, "encoder")
    with pytest.raises(UserError, match="no network for the identity loss"):
        build(EncoderTask, chosen)
    assert build(EncoderTask, replace(chosen, identity_weight=0.0)).embedding is None
