"""Compiled networks answer as PyTorch does, are kept on disk, and step back where they do not agree."""

import gc
import logging
import os
import sys
import weakref
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
    monkeypatch.setattr(engine.runtime, "device", lambda: torch.device("cpu"))
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
        before = set(cache.iterdir()) if cache.exists() else set()
        engine.compile_network(network.eval(), SIZE, "toy", facts)
        (folder,) = cache.iterdir()  # what was kept before is of no use any more
        assert folder not in before


def test_networks_of_other_names_stay_in_the_cache_and_broken_off_writes_go(cache):
    engine.compile_network(Network(0).eval(), SIZE, "toy")
    stale, fresh = (cache / f"{engine.UNFINISHED}{age}" for age in ("stale", "fresh"))
    stale.mkdir(), fresh.mkdir()
    os.utime(stale, (0, 0))
    engine.compile_network(Network(1).eval(), SIZE, "toy-2")
    names = sorted(path.name.rpartition("-")[0] for path in cache.iterdir())
    assert names == ["toy", "toy_2", engine.UNFINISHED.rstrip("-")]
    assert fresh.exists()


def test_a_network_that_answers_otherwise_stays_with_pytorch(cache, monkeypatch, caplog):
    convert = engine._convert
    monkeypatch.setattr(engine, "_convert", lambda _, size: convert(Network(1).eval(), size))
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


@pytest.mark.parametrize("damage", ["zeros", "cut", "text"])
def test_a_damaged_file_in_the_cache_is_made_again(cache, damage):
    network = Network().eval()
    engine.compile_network(network, SIZE, "toy")
    (weights,), (graph,) = cache.rglob("*.bin"), cache.rglob("*.xml")
    size = weights.stat().st_size
    if damage == "text":
        graph.write_text("<net")
    else:
        weights.write_bytes(b"\0" * (size if damage == "zeros" else size // 2))
    for _ in range(2):
        again = engine.compile_network(network, SIZE, "toy")
        assert torch.allclose(answers(again, 3), answers(network, 3), atol=1e-5)
    (weights,) = cache.rglob("*.bin")
    assert weights.stat().st_size == size and any(weights.read_bytes())


def test_openvino_reports_nothing():
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__.endswith("telemetry_stub")


def test_a_network_that_nobody_needs_is_freed(cache):
    compiled = engine.compile_network(Network().eval(), SIZE, "toy")
    answers(compiled, 3)
    seen = weakref.ref(compiled)
    del compiled
    gc.collect()
    assert seen() is None


def test_a_full_disk_does_not_matter(cache, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Can't write: no space left on device")

    monkeypatch.setattr(openvino, "save_model", fail)
    assert engine.compile_network(Network().eval(), SIZE, "toy") is not None
    assert not list(cache.iterdir())


def test_a_folder_that_cannot_be_written_to_does_not_matter(cache, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(engine, "SETTINGS", replace(SETTINGS, cache_dir=tmp_path / "file", engine="auto"))
    assert engine.compile_network(Network().eval(), SIZE, "toy") is not None


@pytest.mark.parametrize("why", ["setting", "package", "broken package"])
def test_without_openvino_everything_stays_with_pytorch(cache, monkeypatch, why):
    if why == "broken package":
        monkeypatch.setitem(sys.modules, "openvino", None)
    elif why == "setting":
        monkeypatch.setattr(engine, "SETTINGS", replace(SETTINGS, engine="torch"))
    else:
        monkeypatch.setattr(engine.importlib.util, "find_spec", lambda _: None)
    assert engine.compile_network(Network().eval(), SIZE, "toy") is None
