"""A GPU that is lent for seconds: what crosses the border of the process, and for how long it is asked."""

import pickle
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from tabs import gpu
from tabs.common import MODEL, QUICK, VERDICT


def lent(asked: list[int]) -> ModuleType:
    """Return a package `spaces` that pickles what goes in and out, as the real one does between processes."""
    import inspect

    def lend(task: Any, *, duration: Any) -> Any:
        def once(*values: Any) -> Any:
            asked.append(duration(*values))
            return pickle.loads(pickle.dumps(task(*pickle.loads(pickle.dumps(values)))))

        def stream(*values: Any) -> Iterator[Any]:
            asked.append(duration(*values))
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

        button.click(job, steps, [text, button], **MODEL)
        button.click(verdict, steps, text, **VERDICT)
        button.click(lambda: "quick", None, text, **QUICK)
    return blocks


def request() -> gr.Request:
    return gr.Request(session_hash="abc", client=SimpleNamespace(host="10.0.0.1"))


def test_nothing_happens_where_no_gpu_is_lent(demo, monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda _name: None)
    before = [event.fn for event in demo.fns.values()]
    gpu.use(demo)
    assert [event.fn for event in demo.fns.values()] == before


def test_handlers_work_across_the_border(demo, monkeypatch):
    asked: list[int] = []
    monkeypatch.setitem(sys.modules, "spaces", lent(asked))
    quick = list(demo.fns.values())[2].fn
    gpu.use(demo)
    job, verdict, untouched = demo.fns.values()
    assert untouched.fn is quick
    text, button = job.outputs
    first, second = job.fn(100.0, request())
    assert first == {text: "100.0 for abc at 10.0.0.1"}
    assert set(second) == {text, button}
    assert second[button].constructor_args["interactive"] is False
    assert verdict.fn(3.0) == "verdict 3.0"
    assert asked == [40, gpu.VERDICT_SECONDS]
    # The library reads from the signature that a request is wanted.
    from gradio.helpers import special_args

    inputs, *_ = special_args(job.fn, [100.0], gr.Request(session_hash="abc"))
    assert isinstance(inputs[1], gr.Request)


@pytest.mark.parametrize(
    ("values", "expected"),
    [((0, "quick"), 30), ((300, "quick"), 60), ((100, "full"), 120), ((10**6, "quick"), 120), ((None, None), 30)],
)
def test_the_time_comes_from_the_request_and_has_an_end(values, expected):
    def handler(steps: Any, preset: Any) -> None: ...

    event = SimpleNamespace(fn=handler, concurrency_id="model")
    assert gpu.seconds(event, *values) == expected
