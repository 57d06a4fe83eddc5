"""Which detectors a set has."""

import pytest

from backend import weights
from backend.trace_removal import sets


@pytest.fixture
def known(monkeypatch):
    """Registry of two trained sets."""
    names = dict.fromkeys(["lf", "nf", "xception", "meso4", "xception_plain", "lf_plain"])
    monkeypatch.setattr(weights, "entries", lambda: names)


def test_a_set_has_the_detectors_trained_for_it(known):
    asked = ("meso4", "nf", "lf", "xception")
    assert sets.installed("none", asked) == {"xception": "xception_plain", "lf": "lf_plain"}
    assert list(sets.installed("shipped", asked)) == ["xception", "lf", "nf", "meso4"]
    assert sets.installed("weak", asked) == {}


def test_a_set_holds_only_what_was_asked_for(known):
    assert sets.installed("none", ("xception",)) == {"xception": "xception_plain"}
    assert sets.installed("none", ("nf",)) == {}
