"""Compiled networks answer as PyTorch does, are kept on disk, and step back where they do not agree."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

from backend import engine
from backend.settings import SETTINGS

openvino = pytest.importorskip("openvino")
SIZE = (16, 16)


class Network(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.convolution, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.convolution(images).relu().mean((2, 3)))[:, 0]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "SETTINGS", replace(SETTINGS, cache_dir=tmp_path, engine="auto"))
    return tmp_path / engine.FOLDER


def answers(network, count):
    images = torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return network(images)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_any_number_of_pictures_gets_the_answers_of_pytorch(cache, count):
    network = Network().eval()
    compiled = engine.compile_network(network, SIZE, "toy")
    assert torch.allclose(answers(compiled, count), answers(network, count), atol=1e-5)


def test_two_networks_may_be_asked_at_once(cache):
    networks = [Network(seed).eval() for seed in (0, 1)]
    compiled = [engine.compile_network(network, SIZE, "toy") for network in networks]
    images = torch.rand(5, 3, *SIZE)
    for asked in compiled:
        asked.start(images)
    for asked, network in zip(compiled, networks, strict=True):
        assert torch.allclose(asked.wait(), network(images), atol=1e-5)


def test_answers_that_nobody_waited_for_do_not_mix_with_the_next(cache):
    network = Network().eval()
    compiled = engine.compile_network(network, SIZE, "toy")
    compiled.start(torch.ones(40, 3, *SIZE))
    assert torch.allclose(answers(compiled, 3), answers(network, 3), atol=1e-5)


def test_a_converted_network_is_kept_and_read_again(cache, monkeypatch):
    network = Network().eval()
    engine.compile_network(network, SIZE, "toy")
    (folder,) = cache.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["network.bin", "network.xml"]
    monkeypatch.setattr(openvino, "convert_model", lambda *_, **__: pytest.fail("it was converted again"))
    again = engine.compile_network(network, SIZE, "toy")
    assert torch.allclose(answers(again, 3), answers(network, 3), atol=1e-5)


def test_other_weights_or_facts_are_another_network(cache):
    for network, facts in ((Network(0), ()), (Network(1), ()), (Network(0), ("threshold 2",))):
        engine.compile_network(network.eval(), SIZE, "toy", facts)
    assert len(list(cache.iterdir())) == 3


def test_a_network_that_answers_otherwise_stays_with_pytorch(cache, monkeypatch, caplog):
    compiled = engine._compile
    monkeypatch.setattr(engine, "_compile", lambda _, *rest: compiled(Network(1).eval(), *rest))
    with caplog.at_level(logging.WARNING):
        assert engine.compile_network(Network(0).eval(), SIZE, "toy") is None
    assert "toy stays with PyTorch: OpenVINO's answers differ by" in caplog.text


def test_a_network_that_cannot_be_converted_stays_with_pytorch(cache, monkeypatch, caplog):
    def refuse(*_, **__):
        raise RuntimeError("unknown operation")

    monkeypatch.setattr(openvino, "convert_model", refuse)
    assert engine.compile_network(Network().eval(), SIZE, "toy") is None
    assert "toy stays with PyTorch: OpenVINO cannot run it" in caplog.text
    assert not cache.exists() or not list(cache.iterdir())


def test_a_damaged_file_in_the_cache_stays_with_pytorch(cache):
    network = Network().eval()
    engine.compile_network(network, SIZE, "toy")
    (file,) = cache.rglob("*.bin")
    file.write_bytes(b"\0" * file.stat().st_size)
    assert engine.compile_network(network, SIZE, "toy") is None


def test_a_folder_that_cannot_be_written_to_does_not_matter(cache, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(engine, "SETTINGS", replace(SETTINGS, cache_dir=tmp_path / "file", engine="auto"))
    assert engine.compile_network(Network().eval(), SIZE, "toy") is not None


@pytest.mark.parametrize("why", ["setting", "package"])
def test_without_openvino_everything_stays_with_pytorch(cache, monkeypatch, why):
    if why == "setting":
        monkeypatch.setattr(engine, "SETTINGS", replace(SETTINGS, engine="torch"))
    else:
        monkeypatch.setattr(engine.importlib.util, "find_spec", lambda _: None)
    assert engine.compile_network(Network().eval(), SIZE, "toy") is None
