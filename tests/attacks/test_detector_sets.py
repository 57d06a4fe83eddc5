"""Which detectors a set has."""

import pytest

from backend import weights
from backend.attacks import registry


@pytest.fixture
def known(monkeypatch):
    """Registry of two trained sets."""
    names = dict.fromkeys(["lf", "nf", "xception", "meso4", "xception_plain", "lf_plain"])
    monkeypatch.setattr(weights, "read_entries", lambda: names)


def test_a_set_has_the_detectors_trained_for_it(known):
    names = ("meso4", "nf", "lf", "xception")
    assert registry.installed_with_defence("none", names) == {"xception": "xception_plain", "lf": "lf_plain"}
    assert list(registry.installed_with_defence("shipped", names)) == ["xception", "lf", "nf", "meso4"]
    assert registry.installed_with_defence("weak", names) == {}


def test_a_set_holds_only_what_was_asked_for(known):
    assert registry.installed_with_defence("none", ("xception",)) == {"xception": "xception_plain"}
    assert registry.installed_with_defence("none", ("nf",)) == {}
