"""A GPU that is lent for seconds: what passes between the processes, and how long a time is requested."""

import inspect
import pickle
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import gradio as gr
import pytest

import app
from backend.detectors import registry
from backend.generators.refinement import RefineSettings
from backend.settings import SETTINGS
from tabs import gpu
from tabs.events import JOB, QUICK, USES_MODELS, VERDICT
from tabs.photo import ChosenPhoto
from tests import films
from tests.counterfactual.test_video import clip
from tests.tabs.test_app import JOBS, LONG_JOBS, VERDICTS


def spaces_package(durations: list[int]) -> ModuleType:
    """Return a package `spaces` that pickles what goes in and out, as the real one does between processes."""
    import inspect

    def lend(task: Any, *, duration: Any) -> Any:
        def once(*values: Any) -> Any:
            durations.append(duration(*values))
            return pickle.loads(pickle.dumps(task(*pickle.loads(pickle.dumps(values)))))

        def stream(*values: Any) -> Iterator[Any]:
            durations.append(duration(*values))
            for value in task(*pickle.loads(pickle.dumps(values))):
                yield pickle.loads(pickle.dumps(value))

        return stream if inspect.isgeneratorfunction(task) else once

    module = ModuleType("spaces")
    module.GPU = lend
    module.__spec__ = SimpleNamespace()
    return module


@pytest.fixture
def demo() -> gr.Blocks:
    """Return an app with a job, a verdict and a quick event."""
    with gr.Blocks() as blocks:
        steps, text, button = gr.Slider(0, 300), gr.Textbox(), gr.Button()

        def job(steps: float, request: gr.Request) -> Iterator[dict]:
            yield {text: f"{steps} for {request.session_hash} at {request.client.host}"}
            yield {text: gr.Textbox(visible=False), button: gr.Button(interactive=False)}

        def verdict(steps: float) -> str:
            return f"verdict {steps}"

        button.click(job, steps, [text, button], **JOB)
        button.click(verdict, steps, text, **VERDICT)
        button.click(lambda: "quick", None, text, **QUICK)
    return blocks


def request() -> gr.Request:
    return gr.Request(session_hash="abc", client=SimpleNamespace(host="10.0.0.1"))


def test_nothing_happens_where_no_gpu_is_lent(demo, monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda _name: None)
    before = [event.fn for event in demo.fns.values()]
    gpu.ask_for_gpu(demo)
    assert [event.fn for event in demo.fns.values()] == before


def test_handlers_work_across_processes(demo, monkeypatch):
    durations: list[int] = []
    monkeypatch.setitem(sys.modules, "spaces", spaces_package(durations))
    quick = list(demo.fns.values())[2].fn
    gpu.ask_for_gpu(demo)
    job, verdict, untouched = demo.fns.values()
    assert untouched.fn is quick
    text, button = job.outputs
    first, second = job.fn(100.0, request())
    assert first == {text: "100.0 for abc at 10.0.0.1"}
    assert set(second) == {text, button}
    assert second[button].constructor_args["interactive"] is False
    assert verdict.fn(3.0) == "verdict 3.0"
    assert durations == [40, gpu.VERDICT_SECONDS]
    # The library reads from the signature that a request is wanted.
    from gradio.helpers import special_args

    inputs, *_ = special_args(job.fn, [100.0], gr.Request(session_hash="abc"))
    assert isinstance(inputs[1], gr.Request)


@pytest.mark.parametrize(
    ("values", "expected"),
    [((0, "quick"), 30), ((300, "quick"), 60), ((100, "full"), 120), ((10**6, "quick"), 120), ((None, None), 30)],
)
def test_the_time_comes_from_the_request_and_has_an_end(values, expected):
    def handler(steps: Any, preset: Any, method: Any) -> None: ...

    event = SimpleNamespace(fn=handler, concurrency_id="job")
    assert gpu.needed_seconds(event, *values, "gradcam") == expected


def test_all_methods_take_longer_than_one():
    def handler(steps: Any, preset: Any) -> None: ...

    assert gpu.needed_seconds(SimpleNamespace(fn=handler, concurrency_id="job"), 0, "quick") == 60


def test_a_pair_takes_the_time_of_all_methods():
    def handler(real_path: Any, chosen: Any) -> None: ...

    assert gpu.needed_seconds(SimpleNamespace(fn=handler, concurrency_id="job"), "real", "fake") == 60


def test_a_verdict_about_an_earlier_photo_is_dropped(monkeypatch):
    package = spaces_package([])
    with gr.Blocks() as blocks:
        text, button, chosen = gr.Textbox(), gr.Button(), gr.State(ChosenPhoto())
        button.click(lambda photo: {text: str(photo.path)}, chosen, [text], **VERDICT)
    unchanged, replaced = ChosenPhoto("a"), ChosenPhoto("a")
    lend = package.GPU

    def slow(task: Any, *, duration: Any) -> Any:
        once = lend(task, duration=duration)

        def run(photo: ChosenPhoto) -> Any:
            answer = once(photo)
            if photo is replaced:
                photo.path = "b"  # while the other process was at it, with a copy
            return answer

        return run

    package.GPU = slow
    monkeypatch.setitem(sys.modules, "spaces", package)
    gpu.ask_for_gpu(blocks)
    (event,) = blocks.fns.values()
    assert event.fn(unchanged) == {text: "a"}
    assert event.fn(replaced) == {text: gr.skip()}


@pytest.fixture(scope="module")
def requested() -> dict[str, tuple[Any, Any]]:
    """Return the app's requests to `spaces` by handler: the event, and the function that gives the seconds."""
    durations: list[Any] = []
    package = spaces_package([])
    package.GPU = lambda task, *, duration: durations.append(duration) or task
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "spaces", package)
        demo = app.build()
    events = [event for event in demo.fns.values() if event.fn is not None and event.concurrency_id in USES_MODELS]
    assert len(events) == len(durations)
    return {event.fn.__name__: (event, duration) for event, duration in zip(events, durations, strict=True)}


def first_request(event: Any, **values: Any) -> list[Any]:
    """Return what a freshly opened page sends, except for the named values."""
    names = list(inspect.signature(event.fn).parameters)
    usual = [getattr(block, "value", None) for block in event.inputs]
    sent = [values.get(name, value) for name, value in zip(names, usual, strict=False)]
    return sent + [gpu.Visitor("abc", gpu.Client("10.0.0.1"))] * ("request" in names)


needs_models = pytest.mark.skipif(
    not (SETTINGS.weights_dir / "registry.toml").exists(), reason="the models are not in weights/"
)


@needs_models
def test_every_long_action_and_every_verdict_requests_a_gpu_and_nothing_else_does(requested):
    assert set(requested) == JOBS | LONG_JOBS | VERDICTS
    for name, (event, duration) in requested.items():
        needed = duration(*first_request(event))
        assert (needed == gpu.VERDICT_SECONDS) if name in VERDICTS else (30 <= needed <= gpu.MOST_SECONDS), name


@needs_models
def test_the_requested_time_depends_on_the_settings(requested, tmp_path):
    def needed(name: str, **values: Any) -> int:
        event, duration = requested[name]
        return duration(*first_request(event, **values))

    search = needed("_search", steps=100, closer=False)
    assert (search, needed("_search", steps=300, closer=False)) == (40, 60)
    assert needed("_search", steps=100, closer=True) == round(40 + RefineSettings.steps / 10)
    assert needed("counterfactual", steps=200) == 50
    quick, full = needed("_explain", preset="quick"), needed("_explain", preset="full")
    assert (quick, full) == (30, 90)
    assert needed("_run", protocol="detectors") == 30 and needed("_run", protocol="counterfactual") == 120
    path = tmp_path / "film.mp4"
    path.write_bytes(films.encode(list(clip(*[200] * 8).frames), rate=4))
    # Two seconds are ten frames: one alone, and two batches of five of which one is not full; 40 + 2 steps each.
    name = registry.loadable()[0]
    assert needed("_search_video", video=str(path), detector=name, steps=40) == 30 + round(3 * 42 / 10)
    path.write_bytes(b"no video")  # ten seconds are reckoned with, in eleven batches
    assert needed("_search_video", video=str(path), detector=name, steps=40) == 30 + round(11 * 42 / 10)
    assert needed("_search_video", video=None) == 30
