"""What the training commands say about their data, and what they start from."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backend import face_packs, fakes, weights
from backend.cli import main
from backend.errors import UserError
from backend.generators import inversion
from backend.generators.stylegan2 import StyleGAN2
from backend.training import encoder, generator, install, loop
from tests.generators.test_inversion import small_inverter


def folder_of_pictures(folder, count: int):
    folder.mkdir()
    for number in range(count):
        Image.fromarray(np.full((16, 16, 3), 8 * number, np.uint8)).save(folder / f"{number}.png")
    return folder


def test_only_the_shipped_packs_get_the_shipped_description(tmp_path, monkeypatch):
    data = folder_of_pictures(tmp_path / "mine", 3)
    assert install.describe_photographs(data) == "3 aligned photographs, supplied by whoever trained it"
    assert install.describe_photographs(data, "my family") == "my family"
    monkeypatch.setattr(install, "SHIPPED_NAMES", install.hash_names(["x/0.png", "1.png", "y/2.png"]))
    assert install.describe_photographs(data) == install.SHIPPED_PHOTOGRAPHS
    learned = install.describe_training_data("my family", ["real", "ciplab_real", "swap", "swap", "odd"])
    assert learned == "my family; and fakes: odd, face swaps"


def test_the_shipped_packs_are_known_by_their_names(shared_folder):
    assert install.describe_photographs(shared_folder / "faces") == install.SHIPPED_PHOTOGRAPHS


def test_names_are_those_of_what_is_read(tmp_path):
    data = folder_of_pictures(tmp_path / "mine", 3)
    assert face_packs.list_names(data) == face_packs.load_photographs(data, 16).names
    with pytest.raises(UserError, match="no pictures"):
        face_packs.list_names(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--packs", "real-*"), "no pack named real-*.tar"), (("--redrawn", "1.5"), "--redrawn must be between")],
)
def test_fakes_that_cannot_be_made_are_refused_in_one_sentence(tmp_path, capsys, options, message):
    data = folder_of_pictures(tmp_path / "mine", 3)
    assert main.main(["train", "fakes", "--data", str(data), "--out", str(tmp_path / "out"), *options, "--json"]) == 2
    assert message in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "out").exists()


def small_generator() -> StyleGAN2:
    return StyleGAN2(16, mapping_layers=1, channels={4: 4, 8: 4, 16: 4})


def test_a_run_starts_from_half_precision_weights(tmp_path):
    trained, network, average = small_generator(), small_generator(), small_generator()
    state = {f"generator.{key}": value for key, value in trained.state_dict().items()}
    path = tmp_path / "generator.safetensors"
    weights.save_half(path, state | {"latent_average": torch.zeros(6, 512)})
    label = loop.load_initial(str(path), "generator", (network, average), "generator.")
    assert label == f"generator.safetensors, sha256 {weights.file_hash(path)}"
    for module in (network, average):
        for weight, expected in zip(module.state_dict().values(), trained.state_dict().values(), strict=True):
            assert weight.dtype == torch.float32 and torch.equal(weight, expected.half().float())
    with pytest.raises(UserError, match="another network"):
        loop.load_initial(str(path), "generator", (StyleGAN2(16, mapping_layers=2),), "generator.")
    with pytest.raises(UserError, match="no file"):
        loop.load_initial(str(tmp_path / "absent.safetensors"), "generator", (network,))


def test_the_installed_generator_and_encoder_can_be_trained_on(tmp_path, monkeypatch):
    data = folder_of_pictures(tmp_path / "mine", 30)
    tasks = []

    def no_training(task, folder, settings, **_pace):
        tasks.append((task, settings))
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train_task", no_training)
    for part in ("generator", "encoder"):
        with pytest.raises(KeyboardInterrupt):
            train = generator.train_generator if part == "generator" else encoder.train_encoder
            looks = weights.find_entry("encoder").options.get("feedback", [])
            extra = {} if part == "generator" else {"codes": None, "feedback": looks}
            train(data, tmp_path / "out", print, initial="installed", **extra)
    (first, settings), (second, others) = tasks
    assert settings.initial.startswith("generator.safetensors") and others.initial.startswith("encoder.safetensors")
    stored = weights.load_entry("generator")
    assert torch.equal(first.generator.conv1.conv.weight, stored["generator.conv1.conv.weight"])
    stored = weights.load_entry("encoder")["body.0.res_layer.1.weight"]
    begun_with = second.encoder.body[0].res_layer[1].weight  # of more channels where the recipe's encoder is larger
    assert torch.equal(begun_with[: len(stored), : stored.shape[1]], stored)


def test_looks_are_handed_from_training_to_use_and_not_forgotten(tmp_path, monkeypatch):
    def no_steps(task, folder, settings, **_pace):
        yield from ()
        return loop.TrainingRun(0, 0.0, {}, dataclasses.asdict(settings))

    monkeypatch.setattr(loop, "train_task", no_steps)
    data, out = folder_of_pictures(tmp_path / "mine", 30), tmp_path / "out"
    out.mkdir()
    looks = [0.5, 0.25, 0.1, 0.05]  # more than any recipe has
    report = encoder.train_encoder(data, out, print, codes=None, initial="installed", feedback=looks)
    options = report["options"]["encoder"]
    assert options["feedback"] == looks
    tensors, encoded = weights.load_entry("generator"), weights.read_checkpoint(Path(report["files"]["encoder"]))
    known = weights.find_entry("generator").options
    assert inversion.build_embedded_inverter(tensors, encoded, known, options, "generator").feedback == looks
    assert list(inversion.load_embedded_inverter().feedback) == weights.find_entry("encoder").options.get(
        "feedback", []
    )
    monkeypatch.setitem(weights.find_entry("encoder").options, "feedback", looks)
    for train in (encoder.train_encoder, encoder.train_joint):
        with pytest.raises(UserError, match="looks at a face 5 times"):
            train(data, out, print, codes=None, **({"initial": "installed"} if "encoder" in train.__name__ else {}))


def test_the_step_of_a_search_is_stated_in_one_place():
    assert weights.find_entry("generator").options["epsilon"] == install.GENERATOR_EPSILON


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_samples_and_reconstructions_are_the_same_on_a_gpu():
    on_cpu, on_gpu = small_inverter(), small_inverter().to(torch.device("cuda"))
    pictures = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    ours, theirs = (encoder.reconstruct_pictures(inverter, pictures, batch=2) for inverter in (on_cpu, on_gpu))
    assert (ours.int() - theirs.int()).abs().max() <= 1
    ours, theirs = (fakes.draw_samples(inverter, 3, seed=1, truncation=0.7).cpu() for inverter in (on_cpu, on_gpu))
    assert torch.allclose(ours, theirs, atol=1e-3)
