"""The command line: the same backend as the app, for class, scripts and tests."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.main import get_command

from backend import credentials, runtime, settings
from backend.cli import evaluate, photo, train, weights
from backend.cli.options import Answer, JsonFlag
from backend.errors import UserError

PROGRAM = "python -m backend"
HELP = ["-h", "--help"]

app = typer.Typer(
    help="Face-forgery detectors, explained.",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": HELP},
)


def examples(*, _json: JsonFlag = False) -> Answer:
    """Compute the app's examples again and store their results."""
    from backend import examples

    return {"files": [str(path) for path in examples.build_examples(examples.FOLDER)]}


for command in (
    photo.detect,
    photo.counterfactual,
    photo.explain,
    evaluate.evaluate,
    photo.remove_traces,
    weights.weights,
    evaluate.attack_table,
    evaluate.rates,
    examples,
):
    app.command()(command)
app.add_typer(train.train, name="train")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, or 2 for something the user can change, or 130 if stopped."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        if not set(HELP) & set(given):
            settings.read_environment()  # says what is wrong with the environment
            runtime.device()
            credentials.check_signing()
            runtime.keep_freed_memory()
        answer: Any = get_command(app).main(given, prog_name=PROGRAM, standalone_mode=False)
    except (typer.TyperException, UserError, ModuleNotFoundError) as error:
        return _refuse(_as_user_error(error), as_json=as_json)
    if isinstance(answer, int):  # 0 after --help, 130 after Ctrl-C
        if answer == 130:
            print("Stopped.", file=sys.stderr)
        return answer
    code = int(answer.pop("exit", 0))
    print(json.dumps(answer) if as_json else answer.get("summary") or json.dumps(answer, indent=1))
    return code


def _refuse(error: UserError, *, as_json: bool) -> int:
    print(error, file=sys.stderr)
    if as_json:
        print(json.dumps({"error": error.message, "hint": error.hint}))
    return 2


def _as_user_error(error: typer.TyperException | UserError | ModuleNotFoundError) -> UserError:
    if isinstance(error, UserError):
        return error
    if isinstance(error, ModuleNotFoundError):
        return UserError(
            f"The package {error.name} is missing.", "Install it with: pip install -r requirements-dev.txt"
        )
    message = " ".join(error.format_message().split()).rstrip(".").replace(": Value error, ", ": ")
    context = getattr(error, "ctx", None)
    return UserError(f"{message}.", f"See: {context.command_path if context else PROGRAM} --help")
