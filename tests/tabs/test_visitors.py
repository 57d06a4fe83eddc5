"""How much one visitor, and one address, may request in a given time."""

from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest

from backend.errors import UserError
from tabs import visitors


def page(name: str, address: str) -> gr.Request:
    return gr.Request(session_hash=name, client=SimpleNamespace(host=address))


@pytest.fixture
def limit(monkeypatch):
    monkeypatch.setattr(visitors, "SETTINGS", replace(visitors.SETTINGS, visitors_per_address=3))
    return visitors.CallLimit(2, 3600, "Removing traces")


def test_one_visitor_does_not_use_up_what_others_behind_the_same_address_have(limit):
    for _ in range(2):
        limit.check(page("first", "10.0.0.1"))
    with pytest.raises(UserError, match="limited to 2 times in 60 minutes"):
        limit.check(page("first", "10.0.0.1"))
    limit.check(page("second", "10.0.0.1"))


def test_new_pages_do_not_lift_the_limit_of_an_address(limit):
    for name in "abcdef":
        limit.check(page(name, "10.0.0.1"))
    with pytest.raises(UserError, match="6 times in 60 minutes for all who share your address"):
        limit.check(page("g", "10.0.0.1"))
    limit.check(page("g", "10.0.0.2"))  # the refused call was not counted for the page
    limit.check(page("g", "10.0.0.2"))


def test_time_gives_calls_back(limit, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(visitors, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for _ in range(2):
        limit.check(page("first", "10.0.0.1"))
    now[0] = 3601.0
    limit.check(page("first", "10.0.0.1"))


def test_programs_without_a_page_are_counted_by_address(limit):
    for _ in range(2):
        limit.check(None)
    with pytest.raises(UserError, match="limited to 2"):
        limit.check(None)
