"""What the environment may set, and how a mistake in it is reported."""

import dataclasses
import json
import os
import subprocess
import sys
from typing import Annotated, Literal

import pytest
import torch
from pydantic import Field

from backend import runtime, settings
from backend.cli import main
from backend.errors import UserError

WRONG = {
    "PROFILE": ["cloud", "Hub "],
    "DEVICE": ["gpu", "cuda:", "cuda:x", "cpu\n"],
    "GRADIO_SERVER_PORT": ["80x", "-1", "0", "70000", "7860.0"],
    "MAX_UPLOAD_BYTES": ["20 MB", "0"],
    "MAX_UPLOAD_PIXELS": ["many", "1e6"],
    "QUEUE_SIZE": ["none", "-3"],
    "MAX_VIDEO_BYTES": ["60 MB", "0"],
    "FETCH": ["yes", "0"],
}


def test_every_variable_has_a_default_which_an_empty_value_selects():
    assert settings.read_environment({}) == settings.Settings()
    assert settings.read_environment(dict.fromkeys(WRONG, "")) == settings.Settings()


def test_every_variable_is_read():
    variables = {
        "PROFILE": "hub",
        "DEVICE": "cuda:1",
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_SERVER_PORT": "8080",
        "MAX_UPLOAD_BYTES": "1000",
        "MAX_UPLOAD_PIXELS": "2000",
        "QUEUE_SIZE": "3",
    }
    result = settings.read_environment(variables)
    assert result == settings.Settings("hub", "cuda:1", "0.0.0.0", 8080, 1000, 2000, 3)
    assert settings.read_environment({"ENGINE": "torch"}).engine == "torch"


@pytest.mark.parametrize(
    ("variables", "allowed"),
    [
        ({}, True),
        ({"SPACE_ID": "owner/space"}, False),
        ({"SPACE_ID": "owner/space", "FETCH": "on"}, True),
        ({"FETCH": "off"}, False),
        ({"FETCH": "auto", "SPACE_ID": "owner/space"}, False),
    ],
)
def test_visitors_of_a_space_fetch_nothing_unless_it_is_allowed(variables, allowed):
    assert settings.read_environment(variables).fetch is allowed


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_value_gives_one_sentence_that_names_the_variable(name, value):
    with pytest.raises(UserError, match=name) as caught:
        settings.read_environment({name: value})
    assert caught.value.hint.startswith("Set it to")


def test_the_command_line_refuses_a_wrong_value_with_exit_code_2(monkeypatch, capsys):
    monkeypatch.setenv("QUEUE_SIZE", "long")
    assert main.main(["weights", "list", "--json"]) == 2
    output = capsys.readouterr()
    assert json.loads(output.out)["error"] == "QUEUE_SIZE cannot be 'long'."
    assert len(output.err.strip().splitlines()) == 1


def test_a_missing_device_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, available in (("cpu", True), ("cuda", True), ("cuda:1", True), ("cuda:2", False)):
        monkeypatch.setattr(runtime, "SETTINGS", dataclasses.replace(settings.SETTINGS, device=name))
        if available:
            assert runtime.device() == torch.device(name)
            continue
        with pytest.raises(UserError, match="cuda:2"):
            runtime.device()
        assert main.main(["weights", "list"]) == 2
        assert "DEVICE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"), [("GRADIO_SERVER_PORT", "80x"), ("DEVICE", "cuda:99"), ("C2PA_KEY", "absent.pem")]
)
def test_the_app_refuses_a_wrong_value_before_it_starts(name, value):
    done = subprocess.run(
        [sys.executable, "app.py"],
        cwd=settings.ROOT,
        env={**os.environ, name: value},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert name in done.stderr and "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


@settings.validated
@dataclasses.dataclass(frozen=True)
class ToySettings:
    """Settings of a test."""

    form: Literal["round", "square"] = "round"
    count: Annotated[int, Field(ge=1)] = 3
    shares: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (0.5,)

    def __post_init__(self):
        if self.form == "square" and self.count == 1:
            raise UserError("One square is too few.", "Use 2.")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"form": "flat"}, "form cannot be 'flat'. It must be round or square."),
        ({"count": 0}, "count cannot be 0. It must be at least 1."),
        ({"count": "many"}, "count cannot be 'many'. It must be a whole number."),
        ({"shares": [0.2, 2.0]}, "shares cannot contain 2.0. Each value must be at most 1."),
        ({"shares": []}, "shares cannot be []. It must have at least 1 item."),
        ({"shares": 1}, "shares cannot be 1. It must be a list."),
        ({"colour": "red"}, "There is no setting colour. Leave it out."),
        ({"form": "square", "count": 1}, "One square is too few. Use 2."),
    ],
)
def test_a_settings_class_refuses_wrong_values_in_plain_sentences(wrong, sentence):
    with pytest.raises(UserError) as error:
        ToySettings(**wrong)
    assert str(error.value) == sentence
    with pytest.raises(UserError):
        dataclasses.replace(ToySettings(), **wrong)


def test_a_settings_class_stays_a_frozen_dataclass():
    toy = ToySettings("square", 4)
    assert dataclasses.asdict(toy) == {"form": "square", "count": 4, "shares": (0.5,)}
    assert toy == ToySettings(form="square", count="4") and ToySettings.count == 3 and ToySettings.__doc__
    with pytest.raises(dataclasses.FrozenInstanceError):
        toy.count = 5
