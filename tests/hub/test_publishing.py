"""Publishing our own models, and an app without them that fetches them from there."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from backend import runtime, weights
from backend.cli import main
from backend.detectors import registry
from backend.errors import UserError
from backend.hub import download, fetching, publishing
from backend.hub.fetching import fetch_to_cache
from backend.progress import finish
from backend.settings import ROOT, SETTINGS
from tests.hub_server import COMMIT, HubServer

ENTRY = """
[{name}]
profile = "embedded"
file = "{name}.safetensors"
sha256 = "{sha256}"
bytes = {bytes}
licence = "CC0"
source = "a test"
"""
REPO = "owner/models"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[HubServer]:
    """Start a Hub, and put two models into a folder of weights."""
    server = HubServer()
    server.token = "hf_secret"
    folder = tmp_path / "weights"
    folder.mkdir()
    text = ""
    for number, name in enumerate(("one", "two")):
        path = folder / f"{name}.safetensors"
        save_file({"a": torch.full((100,), float(number))}, path)
        text += ENTRY.format(name=name, sha256=weights.file_hash(path), bytes=path.stat().st_size)
    (folder / "registry.toml").write_text(text)
    (folder / "MODELCARD.md").write_text("# Model card\n\nWhat they were trained on.\n")
    settings = replace(SETTINGS, weights_dir=folder, cache_dir=tmp_path / "cache", hub_endpoint=server.url)
    settings = replace(settings, weights_repo=REPO)
    for module in (weights, registry, download, fetching, publishing):
        monkeypatch.setattr(module, "SETTINGS", settings)
    monkeypatch.setattr(runtime, "_loaded", {})
    # The Hub's newer storage needs servers of its own; the client falls back to the one that git-lfs defines.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    weights.read_entries.cache_clear()
    yield server
    server.close()
    weights.read_entries.cache_clear()


def test_models_card_and_registry_are_uploaded_as_one_commit(hub, capsys):
    assert main.main(["weights", "publish", "--repo", REPO, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["revision"] == COMMIT and answer["repo"] == REPO
    assert hub.repos == {REPO: False}
    (commit,) = hub.commits
    assert set(commit.files) == {"one.safetensors", "two.safetensors", "registry.toml", "README.md", "LICENSE.md"}
    folder = weights.SETTINGS.weights_dir
    for name in ("one.safetensors", "two.safetensors", "registry.toml"):
        assert commit.files[name] == (folder / name).read_bytes()
    card = commit.files["README.md"].decode()
    assert card.startswith("---\nlicense: other\n") and "What they were trained on." in card
    # A second time, nothing that is there already is sent again.
    sent = len([request for request in hub.requests if request[0] == "PUT"])
    finish(publishing.publish_models(REPO))
    assert len([request for request in hub.requests if request[0] == "PUT"]) == sent == 2


def test_an_app_without_its_models_fetches_them_from_there(hub, capsys):
    finish(publishing.publish_models(REPO))
    folder = weights.SETTINGS.weights_dir
    content = (folder / "one.safetensors").read_bytes()
    (folder / "one.safetensors").unlink()
    (folder / "two.safetensors").write_bytes(b"damaged")
    assert main.main(["weights", "fetch", "--json"]) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)["entries"]} == {"one", "two"}
    assert (folder / "one.safetensors").read_bytes() == content
    assert weights.find_entry("two").state() == "verified"
    assert {path.name for path in folder.iterdir()} == {
        "MODELCARD.md",
        "one.safetensors",
        "registry.toml",
        "two.safetensors",
    }


def test_the_app_fetches_what_is_missing_when_it_starts(hub, monkeypatch):
    finish(publishing.publish_models(REPO))
    assert fetching.fetch_missing() == []
    weights.find_entry("one").path.unlink()
    assert fetching.fetch_missing() == ["one"] and weights.find_entry("one").state() == "verified"
    monkeypatch.setattr(fetching, "SETTINGS", replace(fetching.SETTINGS, weights_repo=""))
    weights.find_entry("one").path.unlink()
    assert fetching.fetch_missing() == []


def test_another_file_under_the_same_name_is_refused(hub):
    finish(publishing.publish_models(REPO))
    path = weights.find_entry("one").path
    path.unlink()
    hub.add(REPO, "one.safetensors", b"something else")
    with pytest.raises(UserError, match="its hash is another one"):
        fetch_to_cache("one")
    assert not path.exists()


def test_without_a_repository_the_app_is_to_be_installed_again(hub, monkeypatch):
    monkeypatch.setattr(fetching, "SETTINGS", replace(fetching.SETTINGS, weights_repo=""))
    with pytest.raises(UserError, match=r"ships with the app.*WEIGHTS_REPO"):
        fetch_to_cache("one")


def test_a_damaged_model_is_not_published(hub):
    weights.find_entry("two").path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="two is missing or damaged"):
        finish(publishing.publish_models(REPO))
    assert hub.commits == []


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_a_refused_login_gives_one_sentence(hub, monkeypatch, token):
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=r"login|know who you are"):
        finish(publishing.publish_models(REPO))


def test_an_interrupted_upload_gives_one_sentence(hub):
    hub.upload_status = 400
    with pytest.raises(UserError, match=r"broke off|answered with error"):
        finish(publishing.publish_models(REPO))
    assert hub.commits == []


def test_a_missing_network_gives_one_sentence(hub):
    hub.close()
    with pytest.raises(UserError, match="was not reached"):
        finish(publishing.publish_models(REPO))


@pytest.mark.parametrize("repo", ["models", "a/b/c", "../x/y", "https://huggingface.co/a/b"])
def test_a_name_that_is_no_repository_is_refused(hub, repo):
    with pytest.raises(UserError, match="is not a repository"):
        finish(publishing.publish_models(repo))


def test_the_card_that_is_published_is_the_projects(hub):
    text = (ROOT / "weights" / "MODELCARD.md").read_text(encoding="utf-8")
    assert not text.startswith("---")
    assert Path(ROOT / "LICENSE").exists()
