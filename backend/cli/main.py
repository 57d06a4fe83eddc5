"""The command line: the same backend as the app, for class, scripts and tests."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from backend import images, runtime, settings
from backend.alignment import locate_all
from backend.detectors import predict, registry
from backend.errors import UserError
from backend.progress import Step, finish

CommandAnswer = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, or 2 for something the user can change."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        options = _build_parser().parse_args(given)
        settings.read_environment()  # says what is wrong with the environment
        runtime.device()
        runtime.keep_freed_memory()
        answer = options.run(options)
    except UserError as error:
        return _refuse(error, as_json=as_json)
    except ModuleNotFoundError as error:
        missing = UserError(
            f"The package {error.name} is missing.", "Install it with: pip install -r requirements-dev.txt"
        )
        return _refuse(missing, as_json=as_json)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    code = int(answer.pop("exit", 0))
    print(json.dumps(answer) if as_json else answer.get("summary") or json.dumps(answer, indent=1))
    return code


def _refuse(error: UserError, *, as_json: bool) -> int:
    print(str(error), file=sys.stderr)
    if as_json:
        print(json.dumps({"error": error.message, "hint": error.hint}))
    return 2


class _Parser(argparse.ArgumentParser):
    """Turns wrong arguments into the same kind of error as everything else."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the arguments."""
        raise UserError(f"{message[:1].upper()}{message[1:]}.", f"See: {self.prog} --help")


def _detect(options: argparse.Namespace) -> CommandAnswer:
    chosen = [options.detector] if options.detector else None
    if options.detector and options.detector not in {*registry.loadable(), *registry.loadable("all")}:
        raise UserError(
            f"There is no detector named {options.detector}.", f"Choose one of: {', '.join(registry.loadable())}."
        )
    results = [_detect_in_file(path, chosen) for path in options.images]
    lines = []
    for result in results:
        if "error" in result:
            print(f"{result['image']}: {result['error']} {result['hint']}", file=sys.stderr)
            continue
        lines.append(f"{result['image']}: {result.get('note') or ''}".rstrip(": "))
        for number, face in enumerate(result["faces"], 1):
            lines.append(f"  face {number}" + (f" ({face['problem']})" if face["problem"] else ""))
            for name, one in face["verdicts"].items():
                lines.append(f"    {name}: {predict.describe_p_fake(one['p_fake'])}")
    unreadable = all("error" in result for result in results)
    return {"results": results, "summary": "\n".join(lines), "exit": 2 if unreadable else 0}


def _detect_in_file(path: Path, detectors: list[str] | None) -> CommandAnswer:
    try:
        photo = images.read(path)
    except UserError as error:
        return {"image": str(path), "error": error.message, "hint": error.hint}
    judged = [face.record() for face in predict.judge_faces(locate_all(photo), detectors)]
    answer: CommandAnswer = {"image": str(path), "faces": judged}
    if not judged:
        answer["note"] = "No face was found; use a photo in which a face is seen from the front."
    elif len(judged) > 1:
        answer["note"] = f"{len(judged)} faces were found, the largest first."
    return answer


def _counterfactual(options: argparse.Namespace) -> CommandAnswer:
    from backend.cli import photo  # the models' packages take seconds to import

    return photo.run_counterfactual(options, _show_step)


def _explain(options: argparse.Namespace) -> CommandAnswer:
    from backend.cli import photo  # the models' packages take seconds to import

    return photo.run_explain(options, _show_step)


def _evaluate(options: argparse.Namespace) -> CommandAnswer:
    from backend import samples
    from backend.cli import evaluate

    return evaluate.run_evaluate(options, samples.draw_sample_set, _show_step)


def _remove_traces(options: argparse.Namespace) -> CommandAnswer:
    from backend.cli import photo  # the models' packages take seconds to import

    return photo.run_remove_traces(options, _show_step)


def _weights(options: argparse.Namespace) -> CommandAnswer:
    from backend.cli import weights  # the Hub's client and the models' packages take seconds to import

    return weights.run_weights(options, _show_step)


def _train(options: argparse.Namespace) -> CommandAnswer:
    from backend.cli import train  # needs packages of requirements-train.txt

    return train.run_train(options, _show_step)


def _attack_table(options: argparse.Namespace) -> CommandAnswer:
    from backend.evaluate import attack_table  # the models' packages take seconds to import

    faces = attack_table.read_held_out_faces(
        options.data, options.fakes, per_family=options.per_family, seed=options.seed
    )
    settings = attack_table.AttackTableSettings(seed=options.seed)
    if options.attacks:
        settings = dataclasses.replace(settings, attacks=tuple(options.attacks.split(",")))
    if options.white_box:
        settings = dataclasses.replace(settings, white_box=options.white_box)
    return dataclasses.asdict(finish(attack_table.build_attack_table(faces, options.out, settings), _show_step))


def _examples(_: argparse.Namespace) -> CommandAnswer:
    from backend import examples

    return {"files": [str(path) for path in examples.build_examples(examples.FOLDER)]}


def _show_step(step: Step) -> None:
    print(f"{step.number}/{step.total} {step.message}", file=sys.stderr, flush=True)


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m backend", description="Face-forgery detectors, explained.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    detect = _add_command(commands, "detect", _detect, "say what the detectors think of the faces in pictures")
    detect.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    detect.add_argument("--detector", metavar="NAME", help="ask only this detector")

    _add_counterfactual(commands)

    _add_explain(commands)

    measure = _add_command(
        commands, "evaluate", _evaluate, "measure detectors, attacks and explanations on many pictures"
    )
    measure.add_argument("protocol", metavar="PROTOCOL", help="what to measure, for example detectors, or all")
    pictures = measure.add_mutually_exclusive_group(required=True)
    pictures.add_argument("--data", type=Path, metavar="DIR", help="folder or zip with real/ and fake/")
    pictures.add_argument("--sample", action="store_true", help="the bundled sample set, too small to conclude from")
    measure.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the run and its report")
    measure.add_argument("--preset", choices=("quick", "full"), default="quick", help="(default: %(default)s)")
    measure.add_argument("--set", action="append", metavar="NAME=VALUE", help="change a setting of the preset")
    measure.add_argument("--resume", action="store_true", help="go on with a run that was interrupted")
    measure.add_argument("--compare", type=Path, metavar="DIR", help="folder of an earlier run of the protocol")
    measure.add_argument("--engine", choices=("local", "ray"), default="local", help="(default: %(default)s)")
    measure.add_argument("--ray-address", metavar="ADDRESS", help="of a running cluster (default: start one here)")
    measure.add_argument("--workers", type=int, metavar="N", help="0 works in this process (default: GPUs, else cores)")

    removal = _add_command(commands, "remove-traces", _remove_traces, "remove the traces of a fake face with TR-Net")
    removal.add_argument("image", type=Path, metavar="IMAGE")
    removal.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the pictures")
    removal.add_argument("--face", type=int, metavar="N", help="which face, 1 is the largest")
    removal.add_argument(
        "--strength", type=float, default=1.0, metavar="X", help="factor on TR-Net's change, 0.25 to 2 (default: 1)"
    )

    files = _add_command(commands, "weights", _weights, "list, verify, fetch or publish the model files")
    add_weights_arguments(files)

    attacked = _add_command(commands, "attack-table", _attack_table, "measure every attack against every detector")
    attacked.add_argument("--data", required=True, type=Path, metavar="DIR", help="photographs that measure")
    attacked.add_argument("--fakes", required=True, type=Path, metavar="DIR", help="held-out fakes, a folder a family")
    attacked.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for table.csv and table.json")
    attacked.add_argument("--per-family", type=int, metavar="N", help="fakes of each family (default: all)")
    attacked.add_argument("--attacks", metavar="A,B", help="which (default: one form of each)")
    attacked.add_argument(
        "--white-box", metavar="NAME", help="whose gradient FGSM, MIFGSM and PGD see (default: xception)"
    )
    attacked.add_argument("--seed", type=int, default=0)

    _add_command(commands, "examples", _examples, "draw the app's examples again and store their results")

    add_train_arguments(_add_command(commands, "train", _train, "train a model that ships with the app"))
    return parser


def _add_counterfactual(commands: Any) -> None:
    search = _add_command(commands, "counterfactual", _counterfactual, "search what would make a detector say real")
    search.add_argument("image", nargs="?", type=Path, metavar="IMAGE")
    search.add_argument("--video", type=Path, metavar="FILE", help="a video of up to 10 seconds instead of a picture")
    search.add_argument("--detector", required=True, metavar="NAME")
    search.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the pictures")
    search.add_argument("--level", default="S,M,D", help="style levels that may change (default: %(default)s)")
    search.add_argument("--epsilon", type=float, help="length of a step in the codes (default: the generator's)")
    search.add_argument(
        "--lengths",
        choices=("visible", "equal"),
        default="visible",
        help="steps in the rows of a code: shorter where our generator reacts more, or equal as published "
        "(default: %(default)s)",
    )
    search.add_argument("--steps", type=int, help="steps at most (default: 100; for a video 40)")
    search.add_argument("--composite", choices=("transfer", "reconstruction"), default="transfer")
    search.add_argument("--face", type=int, metavar="N", help="which face, 1 is the largest")
    search.add_argument("--refine", type=int, default=0, metavar="N", help="steps for a closer reconstruction first")
    search.add_argument("--tune", type=int, default=0, metavar="N", help="steps that tune a copy of the generator")
    search.add_argument("--generator", metavar="NAME", help="one from the Hub, for example ffhq_1024 (default: ours)")
    search.add_argument("--unmarked", action="store_true", help="leave out the visible mark, for research")


def _add_explain(commands: Any) -> None:
    explain = _add_command(commands, "explain", _explain, "show where a detector looked")
    explain.add_argument("image", type=Path, metavar="IMAGE")
    explain.add_argument("--detector", required=True, metavar="NAME")
    explain.add_argument("--method", required=True, metavar="NAME", help="lime, shap, sobol, rise, gradcam, ...")
    explain.add_argument(
        "--reference",
        choices=("original", "adversarial"),
        default="adversarial",
        help="what a hidden part shows: the method's usual fill, or the face after an attack (default: %(default)s)",
    )
    explain.add_argument("--preset", choices=("quick", "full", "as_released"), default="quick")
    explain.add_argument("--towards", choices=("fake", "real"), default="fake", help="the verdict to explain")
    explain.add_argument("--shortcut", action="store_true", help="attack with the detector's gradient instead of NES")
    explain.add_argument("--proof", action="store_true", help="attack only the highest segments, to test the map")
    explain.add_argument("--face", type=int, metavar="N", help="which face, 1 is the largest")
    explain.add_argument("--seed", type=int, default=0)
    explain.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the map and the pictures")


def _add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], CommandAnswer],
    about: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=about, description=about)
    command.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
    command.set_defaults(run=run)
    return command


WEIGHTS_ACTIONS = ("list", "verify", "fetch", "publish")


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """Add them to the parser of the command."""
    parser.add_argument("action", choices=WEIGHTS_ACTIONS)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which models (fetch: default is what is missing)")
    parser.add_argument("--from", dest="source", metavar="PATH", help="a file to take instead of downloading one")
    parser.add_argument("--repo", metavar="OWNER/NAME", help="where to publish")
    parser.add_argument("--private", action="store_true", help="make a new repository private")


TRAIN_TARGETS = ("generator", "encoder", "joint", "detector", "fakes", "ganprintr", "trnet", "references")


def add_train_arguments(train: argparse.ArgumentParser) -> None:
    """Add them to the parser of the command."""
    train.add_argument("what", choices=TRAIN_TARGETS)
    train.add_argument("name", nargs="?", help="which detector")
    train.add_argument(
        "--data", required=True, type=Path, metavar="DIR", help="folder of aligned faces, or of tar packs"
    )
    train.add_argument("--out", required=True, type=Path, metavar="PATH")
    train.add_argument(
        "--describe", metavar="TEXT", help="what the photographs are, for the model card (default: how many)"
    )
    train.add_argument(
        "--fakes",
        type=Path,
        action="append",
        metavar="DIR",
        help="for detectors: folder with train/ and val/ of fakes; repeat it for several",
    )
    train.add_argument(
        "--defence",
        choices=("shipped", "none", "weak"),
        help="for detectors: what training pictures go through; none gives NAME_plain (default: shipped)",
    )
    train.add_argument(
        "--adversarial",
        metavar="ATTACK",
        help="for detectors: learn fakes after this attack too, the strong defence (noise, ganprintr, trnet, ...)",
    )
    train.add_argument(
        "--initial",
        metavar="FILE",
        help="for generator, encoder, trnet and detectors: weights to start from, or `installed` (default: random)",
    )
    train.add_argument(
        "--recipe",
        metavar="NAME",
        help="for generator: regression (default), adversarial, or continued, its second half on a CPU; for encoder: "
        "regression or adversarial, as its generator; for joint: adversarial (default), or regression, which a CPU can "
        "do; for trnet: embedded (default), paper or code",
    )
    train.add_argument(
        "--minutes", type=float, metavar="N", help="for generator, encoder and joint: stop after N minutes"
    )
    train.add_argument("--packs", default="*", help="for fakes: which tar packs to use (default: all)")
    train.add_argument("--kinds", default="swap,reconstruction,edit,sample", help="for fakes: which (default: all)")
    train.add_argument("--per-kind", type=int, default=1000, help="for fakes: how many of each kind")
    train.add_argument(
        "--redrawn", type=float, default=0.5, metavar="SHARE", help="for fakes: of the swaps, whose face is drawn"
    )
    train.add_argument(
        "--codes", type=Path, help="for encoder, joint and --recipe continued: codes.safetensors of the generator's run"
    )
    train.add_argument(
        "--from",
        dest="source",
        metavar="FILE",
        help="for encoder: a published e4e checkpoint, or ffhq_1024 where it was fetched, to fine-tune on --data",
    )
    train.add_argument("--steps", type=int, help="for detectors, ganprintr, trnet and encoder --from: training steps")
    train.add_argument(
        "--set", action="append", metavar="NAME=VALUE", help="change a setting of the settings file; repeat it"
    )
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--install", action="store_true", help="put the result into weights/ and the registry")
