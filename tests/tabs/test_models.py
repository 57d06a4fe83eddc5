"""Where the app runs: what is listed, who may fetch, and fetching through the running app."""

import json
import urllib.request
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest

from backend import runtime, weights
from backend.errors import UserError
from backend.generators import inversion
from backend.hub import catalogue, fetching
from backend.hub.fetching import Fetched
from backend.progress import Step
from backend.settings import SETTINGS
from tabs import models as tabs_models
from tabs.models import Choosers, ModelsPanel
from tests import pictures, running
from tests.hub_server import HubServer

NAME = "efficientnet_b0_ffpp"
pytestmark = pytest.mark.skipif(
    not (SETTINGS.weights_dir / "registry.toml").exists(), reason="the models are not in weights/"
)


@pytest.fixture
def panel(tmp_path, monkeypatch) -> ModelsPanel:
    """Return the panel of a page with two choosers, and an empty cache."""
    settings = replace(SETTINGS, cache_dir=tmp_path)
    for module in (weights, tabs_models):
        monkeypatch.setattr(module, "SETTINGS", settings)
    with gr.Blocks():
        return ModelsPanel(Choosers([tabs_models.detector_chooser()], [tabs_models.generator_chooser()]))


def test_everything_here_is_listed_with_size_and_licence(panel, monkeypatch):
    monkeypatch.setattr(runtime, "_loaded", {"detector xception": 1, "inverter generator": 1})
    models = {model.name: model for model in catalogue.list_models()}
    assert {model.state for name, model in models.items() if name in {"xception", "generator", "encoder"}} == {"loaded"}
    assert models["trnet"].state == "here" and models["ffhq_1024"].state == "absent"
    assert models["xception"].bytes == (SETTINGS.weights_dir / "xception.safetensors").stat().st_size
    for model in models.values():
        assert model.title and model.use and model.licence
    text = tabs_models.present_table(list(models.values()))
    assert "Xception" in text and "non-commercial research and teaching" in text and "FFHQ" not in text


def test_only_what_a_tab_uses_is_offered(panel):
    offered = {name: label for label, name in tabs_models.fetchable_choices(catalogue.list_models())}
    assert {"ffhq_1024", "xception_ffpp", NAME, "facenet"} <= offered.keys()
    assert not {"xception", "f3net_ffpp", "ucf_ffpp", "face_parsing"} & offered.keys()
    assert (
        offered["ffhq_1024"] == "FFHQ 1024 (Hub), 1,202 MB" and offered[NAME] == "EfficientNet-B0 (FF++), about 21 MB"
    )
    text = tabs_models.fetchable_html(catalogue.list_models())
    assert "F3-Net (FF++) (f3net_ffpp)" in text and "--from FILE" in text and "<td>about 21 MB</td>" in text


def test_the_hub_profile_says_what_is_missing(panel, monkeypatch):
    assert "Not fetched yet" not in tabs_models.place_html(catalogue.list_models())
    monkeypatch.setattr(tabs_models, "SETTINGS", replace(SETTINGS, profile="hub"))
    text = tabs_models.place_html(catalogue.list_models())
    assert "Not fetched yet: FFHQ 1024 (Hub), Xception (FF++)" in text and "Everything works with the models" in text


def test_a_fetched_model_is_in_the_choosers_at_once(panel, tmp_path, monkeypatch):
    panel._updates()
    (detectors,), (generators,) = panel.choosers.detectors, panel.choosers.generators
    assert NAME not in [name for _, name in detectors.choices] and generators.visible is False

    def done(name):
        for fetched in (NAME, "ffhq_1024"):
            (tmp_path / f"{fetched}.safetensors").write_bytes(b"x")
        yield Step(1, 2, "half of it")
        return Fetched(name, tmp_path, "", "", "", 1, pinned=True, seconds=0.1, summary="It is here.")

    monkeypatch.setattr(fetching, "fetch_model", done)
    *_, last = panel._fetch(NAME)
    assert NAME in [name for _, name in detectors.choices]
    assert [name for _, name in last[detectors].choices] == [name for _, name in detectors.choices]
    assert ("FFHQ 1024 (Hub)", "ffhq_1024") in last[generators].choices and last[generators].visible
    assert last[panel.job.note] == "**Fetched.** It is here." and last[panel.fetch_button].interactive
    assert NAME not in [name for _, name in last[panel.model].choices]
    monkeypatch.setattr(inversion, "SETTINGS", replace(SETTINGS, profile="hub"))
    assert inversion.default_generator() == "ffhq_1024" and panel._begin_page()[generators].value == "ffhq_1024"


def test_a_stop_ends_the_download(panel, monkeypatch):
    closed = []

    def endless(_name):
        try:
            while True:
                yield Step(1, 2, "some of it")
        finally:
            closed.append(True)

    monkeypatch.setattr(fetching, "fetch_model", endless)
    job = panel._fetch(NAME)
    next(job), next(job)
    job.close()
    assert closed == [True]


def test_where_it_is_switched_off_nobody_fetches(panel, monkeypatch):
    monkeypatch.setattr(tabs_models, "SETTINGS", replace(SETTINGS, fetch=False))
    with pytest.raises(UserError, match="Visitors cannot fetch models here"):
        next(panel._fetch(NAME))
    assert panel._updates()[panel.asking].visible is False
    with gr.Blocks():
        closed = ModelsPanel(Choosers([], []))
    assert "switched it off" in closed.job.note.value and closed.asking.visible is False


@pytest.mark.slow
def test_the_hub_profile_starts_without_a_network_and_fetches_once_there_is_one(tmp_path):
    """The real app: first nothing answers at the address of the Hub, then a Hub does."""
    client_library = pytest.importorskip("gradio_client")
    photo = tmp_path / "photo.png"
    photo.write_bytes(pictures.encode(pictures.astronaut(), "PNG"))
    port = running.free_port()
    settings = {"PROFILE": "hub", "HF_ENDPOINT": f"http://127.0.0.1:{port}", "WEIGHTS_CACHE": str(tmp_path / "cache")}
    with running.app(**settings) as address:
        with urllib.request.urlopen(f"{address}/health", timeout=30) as answer:
            assert json.loads(answer.read())["profile"] == "hub"
        client = client_library.Client(address, verbose=False)

        def call(name: str, *values: object) -> list:
            """Call an endpoint that the page uses and no listing names, and return all its outputs."""
            place = next(
                dependency["id"] for dependency in client.config["dependencies"] if dependency["api_name"] == name
            )
            client.endpoints[place].is_valid = True
            job = client.submit(*values, fn_index=place)
            job.result(timeout=120)
            return [json.dumps(output, ensure_ascii=False) for output in job.outputs()]

        def detectors() -> set[str]:
            answer = client.predict(client_library.handle_file(photo), api_name="/detect")
            return set(answer["faces"][0]["verdicts"])

        assert "Not fetched yet: FFHQ 1024" in call("_begin_page")[-1]
        embedded = detectors()
        assert len(embedded) > 3 and NAME not in embedded
        assert "The Hub was not reached" in call("_fetch", NAME)[-1]
        assert detectors() == embedded
        hub = HubServer(port)
        try:
            running.host_a_detector(hub, tmp_path)
            texts = call("_fetch", NAME)
        finally:
            hub.close()
        assert "Fetched" in texts[-1] and "its hash was not known beforehand" in texts[-1].lower()
        assert any("MB" in text for text in texts[:-1])
        assert detectors() == embedded | {NAME}
        # The chooser of the programs' endpoint took it in too: the search begins, or says that the face is real.
        result = client.predict(
            client_library.handle_file(photo), NAME, ["D"], 5, "transfer", api_name="/counterfactual"
        )
        assert result["detector"] == NAME
    assert Path(tmp_path / "cache" / f"{NAME}.safetensors").is_file()
