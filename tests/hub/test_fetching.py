"""Fetching from the Hub: with the Hub's own client, against a small Hub on loopback."""

import errno
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file

from backend import runtime, weights
from backend.cli import main
from backend.detectors import registry
from backend.detectors.mesonet import DeepfakeBenchMeso4
from backend.errors import UserError
from backend.hub import download, fetching
from backend.hub.fetching import fetch_to_cache
from backend.progress import finish
from backend.settings import SETTINGS
from tests.hub_server import HubServer

BLOCK = 4096  # bytes that the client writes at a time in these tests
ENTRY = """
[{name}]
title = "Meso-4 (a test)"
profile = "hub"
form = "meso4_deepfakebench"
architecture = "meso4_deepfakebench"
repo = "owner/meso"
revision = "{revision}"
file = "folder/meso4.pth"
sha256 = "{sha256}"
bytes = {size}
licence = "CC0"
source = "a test"
input_size = 256
trained_on = "nothing"
known_failures = "everything"
{more}
"""


@dataclass
class Place:
    """Where the tests fetch from and to."""

    hub: HubServer
    cache: Path
    registry: Path
    content: bytes

    def entry(self, name: str = "meso4_here", *, pinned: bool = True, sha256: str = "", more: str = "") -> None:
        """Add an entry to the registry."""
        digest = sha256 or (weights.hashlib.sha256(self.content).hexdigest() if pinned else "")
        fields = {"revision": "c" * 40, "sha256": digest, "size": len(self.content), "more": more}
        with (self.registry / "hub.toml").open("a", encoding="utf-8") as file:
            file.write(ENTRY.format(name=name, **fields))
        weights.read_entries.cache_clear()

    def cached_names(self) -> list[str]:
        """Return what lies in the cache, without locks."""
        return sorted(path.name for path in self.cache.rglob("*") if path.is_file() and path.suffix != ".lock")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> bytes:
    """Return a checkpoint in DeepfakeBench's layout."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("published") / "meso4.pth"
    torch.save({f"backbone.{key}": value for key, value in DeepfakeBenchMeso4().state_dict().items()}, path)
    return path.read_bytes()


@pytest.fixture
def place(tmp_path, monkeypatch, checkpoint) -> Iterator[Place]:
    """Start a Hub with one file, and an empty cache."""
    hub = HubServer()
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "registry.toml").write_text("")
    settings = replace(SETTINGS, weights_dir=folder, cache_dir=tmp_path / "cache", hub_endpoint=hub.url)
    for module in (weights, registry, download, fetching):
        monkeypatch.setattr(module, "SETTINGS", settings)
    monkeypatch.setattr(runtime, "_loaded", {})
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", BLOCK)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _seconds: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    weights.read_entries.cache_clear()
    hub.add("owner/meso", "folder/meso4.pth", checkpoint)
    yield Place(hub, settings.cache_dir, folder, checkpoint)
    hub.close()
    weights.read_entries.cache_clear()


def test_a_model_is_fetched_checked_converted_and_judges(place):
    place.entry()
    assert registry.loadable() == []
    steps = []
    path = fetch_to_cache("meso4_here", steps.append)
    assert place.cached_names() == ["meso4_here.json", "meso4_here.safetensors"]
    assert [step.number for step in steps] == sorted(step.number for step in steps)
    assert steps[-1].number == steps[-1].total and "MB" in steps[0].message
    expected = {
        key.removeprefix("backbone."): value for key, value in torch.load(_saved(place), weights_only=True).items()
    }
    tensors = load_file(path)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in tensors)
    entry = weights.find_entry("meso4_here")
    assert entry.state() == "verified"
    assert entry.receipt()["source_sha256"] == entry.sha256
    assert registry.loadable() == ["meso4_here"] and registry.loadable("embedded") == []
    detector = registry.load("meso4_here")
    assert detector.card.title == "Meso-4 (a test)" and detector.card.errors == ()
    network = DeepfakeBenchMeso4().eval()
    network.load_state_dict(expected)
    faces = torch.rand(2, 3, 256, 256)
    with torch.no_grad():
        raw = network(faces * 2 - 1)
        torch.testing.assert_close(detector.logit_fake(faces), raw[:, 1] - raw[:, 0])


def test_the_login_reaches_the_hub_and_not_its_storage(place, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    place.entry()
    fetch_to_cache("meso4_here")
    logins = {path.split("/")[1]: headers.get("authorization") for _, path, headers in place.hub.requests}
    assert logins == {"owner": "Bearer hf_secret", "storage": None}


@pytest.mark.parametrize("linked", [True, False])
def test_a_download_cut_three_times_completes(place, linked):
    hosted = place.hub.files["owner/meso", "folder/meso4.pth"]
    hosted.cuts, hosted.linked = 3, linked
    place.entry()
    fetch_to_cache("meso4_here")
    ranges = place.hub.ranges()
    assert len(ranges) == 4 and ranges[0] == ""
    starts = [int(header.removeprefix("bytes=").removesuffix("-")) for header in ranges[1:]]
    assert starts == sorted(starts) and starts[0] >= len(place.content) // 2 - BLOCK
    assert weights.find_entry("meso4_here").state() == "verified"


def test_a_stopped_download_goes_on_where_it_stopped(place):
    place.entry()
    with closing(fetching.fetch_model("meso4_here")) as job:
        step = next(job)
        while step.number < 30:
            step = next(job)
    (part,) = place.cached_names()
    assert part.endswith(".part") and registry.loadable() == []
    size = next(place.cache.rglob("*.part")).stat().st_size
    if size < len(place.content):  # the thread may have had time for the rest
        fetch_to_cache("meso4_here")
        assert place.hub.ranges()[-1] == f"bytes={size}-"
    fetch_to_cache("meso4_here")
    assert weights.find_entry("meso4_here").state() == "verified"


def test_a_lost_connection_is_reported_and_keeps_what_was_fetched(place):
    hosted = place.hub.files["owner/meso", "folder/meso4.pth"]
    hosted.cuts = 10**6
    place.entry()
    with pytest.raises(UserError, match=r"was interrupted after .* MB") as caught:
        fetch_to_cache("meso4_here")
    assert "goes on where it stopped" in caught.value.hint
    assert not weights.find_entry("meso4_here").path.exists()
    hosted.cuts = 0
    fetch_to_cache("meso4_here")
    assert place.hub.ranges()[-1] != "" and weights.find_entry("meso4_here").state() == "verified"


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, "", "asks for a login"),
        (401, "GatedRepo", "is gated"),
        (403, "GatedRepo", "is gated"),
        (404, "RepoNotFound", "asks for a login|no repository"),
        (404, "EntryNotFound", "no longer has the file"),
        (404, "RevisionNotFound", "no longer has the revision"),
        (429, "", "too many requests"),
        (503, "", "answered with error 503"),
    ],
)
def test_every_refusal_gives_one_sentence(place, status, code, message):
    hosted = place.hub.files["owner/meso", "folder/meso4.pth"]
    hosted.status, hosted.code = status, code
    place.entry()
    with pytest.raises(UserError, match=message) as caught:
        fetch_to_cache("meso4_here")
    assert "\n" not in str(caught.value) and caught.value.hint
    assert place.cached_names() == [] and weights.find_entry("meso4_here").state() == "absent"


def test_being_offline_gives_one_sentence(place, monkeypatch):
    place.entry()
    place.hub.close()
    with pytest.raises(UserError, match="Hub was not reached") as caught:
        fetch_to_cache("meso4_here")
    assert "weights fetch meso4_here --from PATH" in caught.value.hint
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set|Hub was not reached"):
        fetch_to_cache("meso4_here")


@pytest.mark.parametrize("pinned", [True, False])
def test_a_wrong_hash_is_refused_and_deleted(place, pinned):
    hosted = place.hub.files["owner/meso", "folder/meso4.pth"]
    hosted.served = bytes(len(place.content))
    place.entry(pinned=pinned)
    with pytest.raises(UserError, match="its hash is another one"):
        fetch_to_cache("meso4_here")
    assert place.cached_names() == []


def test_a_file_that_is_not_the_pinned_one_is_refused_whatever_the_hub_says(place):
    place.entry(sha256="0" * 64)
    with pytest.raises(UserError, match="its hash is another one"):
        fetch_to_cache("meso4_here")
    assert place.cached_names() == []


def test_a_full_disk_gives_one_sentence_before_and_during_a_download(place, monkeypatch):
    place.entry()
    usage = shutil.disk_usage(place.registry)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(UserError, match=r"no room on the disk .* are needed"):
            fetch_to_cache("meso4_here")
    with monkeypatch.context() as patch:
        patch.setattr(fetching, "save_file", _no_space)
        with pytest.raises(UserError, match="no room on the disk"):
            fetch_to_cache("meso4_here")
    assert not [name for name in place.cached_names() if name.startswith((".", "meso4_here"))]
    request_count = len(place.hub.ranges())
    fetch_to_cache("meso4_here")
    assert len(place.hub.ranges()) == request_count  # what had come whole is not fetched again
    assert weights.find_entry("meso4_here").state() == "verified"


def _no_space(*_arguments) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_folder_that_cannot_be_written_gives_one_sentence(place, monkeypatch):
    place.entry()
    place.cache.write_text("a file in its place")
    with pytest.raises(UserError):
        fetch_to_cache("meso4_here")


def test_a_conversion_that_dies_leaves_what_was_there(place, monkeypatch):
    place.entry()
    path = fetch_to_cache("meso4_here")
    before = path.read_bytes()

    def half(tensors, target) -> None:
        Path(target).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        fetch_to_cache("meso4_here")
    assert path.read_bytes() == before and weights.find_entry("meso4_here").state() == "verified"
    assert place.cached_names() == ["meso4.pth", "meso4_here.json", "meso4_here.safetensors"]


@pytest.mark.parametrize("damage", ["cut", "changed", "no receipt"])
def test_a_damaged_file_is_never_loaded(place, damage):
    place.entry()
    path = fetch_to_cache("meso4_here")
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-100])
    elif damage == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        weights.find_entry("meso4_here").receipt_path.unlink()
    with pytest.raises(UserError, match=r"is damaged.*weights fetch meso4_here"):
        registry.load("meso4_here")
    fetch_to_cache("meso4_here")
    registry.load("meso4_here")


def test_a_mirror_is_tried(place):
    place.hub.files["owner/meso", "folder/meso4.pth"].status = 404
    place.hub.add("another/copy", "m.pth", place.content, linked=False)
    place.entry(more='mirrors = [{ repo = "nobody/here", file = "x" }, { repo = "another/copy", file = "m.pth" }]')
    done = finish(fetching.fetch_model("meso4_here"))
    assert done.pinned and done.origin == "another/copy/m.pth at main"


def test_an_unknown_hash_is_recorded_and_a_changed_file_refused(place):
    place.entry(pinned=False)
    done = finish(fetching.fetch_model("meso4_here"))
    assert not done.pinned and done.source_sha256 in done.summary
    torch.manual_seed(1)
    other = place.cache.parent / "other.pth"
    torch.save({f"backbone.{key}": value for key, value in DeepfakeBenchMeso4().state_dict().items()}, other)
    place.hub.add("owner/meso", "folder/meso4.pth", other.read_bytes())
    with pytest.raises(UserError, match="changed on the Hub"):
        fetch_to_cache("meso4_here")
    assert weights.find_entry("meso4_here").receipt()["source_sha256"] == done.source_sha256


def test_two_fetches_at_once_are_refused(place):
    place.entry()
    with closing(fetching.fetch_model("meso4_here")) as job:
        next(job)
        with pytest.raises(UserError, match="is being fetched already"):
            fetch_to_cache("meso4_here")
        with ThreadPoolExecutor(1) as elsewhere:  # the last step may run in another thread than the first
            elsewhere.submit(finish, job).result()
    fetch_to_cache("meso4_here")


def test_the_command_fetches_lists_and_verifies(place, capsys):
    def run(*arguments: str) -> tuple[int, dict, str]:
        code = main.main(["weights", *arguments, "--json"])
        output = capsys.readouterr()
        return code, json.loads(output.out), output.err

    place.entry()
    place.entry("absent")
    code, answer, _ = run("list")
    assert code == 0 and [row["state"] for row in answer["entries"]] == ["absent", "absent"]
    code, answer, progress = run("fetch", "meso4_here")
    assert code == 0 and answer["entries"][0]["verified"] and answer["fetched"][0]["pinned"]
    assert "102/102 meso4_here is here." in progress
    code, answer, _ = run("verify")
    assert code == 0 and [(row["name"], row["verified"]) for row in answer["entries"]] == [("meso4_here", True)]
    path = weights.find_entry("meso4_here").path
    path.write_bytes(path.read_bytes()[:-1])
    code, answer, errors = run("verify")
    assert code == 2 and "meso4_here" in answer["error"] and answer["hint"] in errors
    code, answer, _ = run("fetch")  # what is damaged, and nothing that nobody asked for
    assert code == 0 and [row["name"] for row in answer["entries"]] == ["meso4_here"]
    code, answer, errors = run("fetch", "absent", "--from", str(place.cache / "nothing.pth"))
    assert code == 2 and set(answer) == {"error", "hint"} and "Traceback" not in errors


def _saved(place: Place) -> Path:
    path = place.cache.parent / "expected.pth"
    path.write_bytes(place.content)
    return path
