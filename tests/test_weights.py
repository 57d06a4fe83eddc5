"""Model files: the registry, hashes, and what is refused."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from backend import weights
from backend.errors import UserError
from backend.settings import SETTINGS


class Hostile:
    """Unpickles into a call."""

    def __reduce__(self):
        return (print, ("this must never run",))


def shipped() -> dict[str, weights.Entry]:
    """Return the entries whose files are part of the repository."""
    return {name: entry for name, entry in weights.read_entries().items() if entry.profile == "embedded"}


def test_every_entry_is_here_and_verified():
    assert shipped()
    for name, entry in shipped().items():
        assert entry.state() == "verified", name
        assert entry.bytes == entry.path.stat().st_size
        assert entry.bytes <= 15_000_000, name
        assert entry.licence
        assert entry.source
    for use, limit in (("app", 40_000_000), ("evaluate", 30_000_000)):
        assert sum(entry.bytes for entry in shipped().values() if entry.use == use) <= limit
    undefended = {name for name, entry in shipped().items() if entry.options.get("defence", "shipped") != "shipped"}
    assert {name for name, entry in shipped().items() if entry.use == "evaluate"} == undefended


def test_every_file_in_weights_is_named_in_the_registry():
    named = {entry.file for entry in shipped().values()}
    assert {path.name for path in SETTINGS.weights_dir.glob("*.safetensors")} == named
    pickles = {".pt", ".pth", ".pkl", ".ckpt", ".h5"}
    assert not [path for path in SETTINGS.weights_dir.rglob("*") if path.suffix in pickles]


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match="Choose one of"):
        weights.find_entry("nothing")


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, capsys):
    path = tmp_path / "model.pt"
    torch.save({"state_dict": Hostile()}, path)
    with pytest.raises(UserError, match="carries more than tensors"):
        weights.read_checkpoint(path)
    plain = tmp_path / "plain.pkl"
    plain.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(UserError):
        weights.read_checkpoint(plain)
    assert "never run" not in capsys.readouterr().out


def test_tensors_and_plain_values_are_read(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"state_dict": {"a": torch.ones(2)}, "opts": {"size": 1024, "names": ["x"]}, "step": 3}, path)
    content = weights.read_checkpoint(path)
    assert torch.equal(content["state_dict"]["a"], torch.ones(2))
    assert content["opts"] == {"size": 1024, "names": ["x"]}


@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04 broken zip", bytes(range(256)) * 40])
def test_damaged_files_get_a_sentence(tmp_path, content):
    for name in ("model.pt", "model.safetensors"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            weights.read_checkpoint(path)
        assert str(tmp_path) not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_truncated_safetensors_file_gets_a_sentence(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match="not a readable"):
        weights.read_checkpoint(path)


def test_counters_of_batch_norm_are_not_written_and_not_missed(tmp_path):
    saved, read = torch.nn.Sequential(torch.nn.BatchNorm2d(2)), torch.nn.Sequential(torch.nn.BatchNorm2d(2))
    saved(torch.randn(4, 2, 3, 3))
    weights.save_half(tmp_path / "a.safetensors", saved.state_dict())
    content = weights.read_checkpoint(tmp_path / "a.safetensors")
    assert set(content) == {"0.weight", "0.bias", "0.running_mean", "0.running_var"}
    read.load_state_dict(content, strict=True)
    assert read[0].num_batches_tracked == 0
    assert torch.equal(read[0].running_var, saved[0].running_var.half().float())


def test_half_precision_is_written_and_read_as_float32(tmp_path):
    weights.save_half(tmp_path / "a.safetensors", {"x": torch.tensor([0.1]), "n": torch.tensor([3])})
    content = weights.read_checkpoint(tmp_path / "a.safetensors")
    assert content["x"].dtype == torch.float16
    assert content["n"].dtype == torch.int64
