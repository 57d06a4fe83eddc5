"""Long jobs: generators of steps that return a result."""

import gradio as gr
import pytest

from backend import runtime
from backend.errors import UserError
from backend.progress import Running, Step, counted, finish, within
from tabs.events import WAITS, Turns, duration_in_words, run_in_turn, with_shown_errors


def counting(closed: list[bool], fail: bool = False):
    try:
        for number in range(3):
            if fail and number == 2:
                raise ValueError("broken")
            yield Step(number + 1, 3, f"part {number}")
        return "done"
    finally:
        closed.append(True)


def test_a_loop_sees_every_step_and_keeps_the_result():
    closed: list[bool] = []
    with Running(counting(closed)) as running:
        assert [step.number for step in running] == [1, 2, 3]
    assert running.result == "done" and closed == [True]


def test_leaving_a_loop_closes_the_job_at_once():
    closed: list[bool] = []
    with Running(counting(closed)) as running:
        for _ in running:
            break
        assert not hasattr(running, "result")
    assert closed == [True]


def test_an_error_in_the_loop_and_one_in_the_job_both_close_it():
    closed: list[bool] = []
    with pytest.raises(RuntimeError), Running(counting(closed)) as running:
        for _ in running:
            raise RuntimeError
    with pytest.raises(ValueError, match="broken"):
        finish(counting(closed, fail=True))
    assert closed == [True, True]


def test_a_part_is_counted_in_the_whole_or_keeps_the_number_of_its_step():
    steps: list[Step] = []
    assert finish(counted(counting([]), 10, 4, "A: "), steps.append) == "done"
    assert [(step.number, step.total, step.message) for step in steps] == [
        (5, 10, "A: part 0"),
        (6, 10, "A: part 1"),
        (7, 10, "A: part 2"),
    ]
    steps.clear()
    assert finish(within(counting([]), 4, 10, "B: "), steps.append) == "done"
    assert [(step.number, step.message) for step in steps] == [(4, "B: part 0"), (4, "B: part 1"), (4, "B: part 2")]


def test_the_reason_of_an_error_stays_on_the_page_and_the_bar_goes():
    def fails():
        yield {bar: "half"}
        raise UserError("It is too small.", "Take a larger one.")

    with gr.Blocks() as blocks:
        button, note, bar = gr.Button(), gr.Markdown(), gr.HTML()
        run_in_turn(button, fails, [], [note, bar], starts=[button], note=note, progress=bar)
    handler = next(dependency.fn for dependency in blocks.fns.values() if dependency.name == "fails")
    updates = handler()
    assert [next(updates), next(updates)] == [{note: ""}, {bar: "half"}]
    last = next(updates)
    assert last[bar] == "" and "It is too small. Take a larger one." in last[note]
    with pytest.raises(gr.Error, match="too small"):
        next(updates)


def test_those_who_wait_learn_how_long_once_a_job_like_the_running_one_was_timed(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    turns = Turns()
    assert turns.wait_in_words() == WAITS  # nobody is ahead yet
    with turns.taken_by("search"):
        now[0] += 40
        assert turns.wait_in_words() == WAITS  # nothing like it was timed
    with turns.taken_by("search"):
        now[0] += 10
        assert turns.wait_in_words() == f"{WAITS} The job that runs now takes about 30 seconds more."
        now[0] += 60  # it takes longer than the one before
        assert turns.wait_in_words().endswith("about 1 second more.")
    with pytest.raises(KeyError), turns.taken_by("video"):
        raise KeyError
    with turns.taken_by("video"):
        assert turns.wait_in_words() == WAITS  # a job that failed says nothing of the next
    assert turns.wait_in_words() == WAITS


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 second"), (2, "2 seconds"), (119, "119 seconds"), (150, "2 minutes")]
)
def test_durations_read_like_speech(seconds, text):
    assert duration_in_words(seconds) == text


def test_every_step_of_a_handler_has_its_priority():
    def steps():
        for _ in range(2):
            yield runtime._priority.get()

    handler = with_shown_errors(steps, runtime.LONG_JOB)
    before = runtime._priority.get()
    updates = handler()
    for _ in range(2):
        assert next(updates) == runtime.LONG_JOB and runtime._priority.get() == before
    assert with_shown_errors(runtime._priority.get, runtime.VERDICT)() == runtime.VERDICT
