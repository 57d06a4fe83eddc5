"""`evaluate`: one protocol, or all, over a folder, a zip or the sample set; `rates`; and the older `attack-table`."""

import json
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from backend import settings
from backend.cli.options import Answer, Changes, JsonFlag, show_changed_steps, show_step
from backend.errors import UserError
from backend.progress import Step, finish

if TYPE_CHECKING:
    from backend.evaluate.dataset import Dataset
    from backend.evaluate.engines import Engine
    from backend.evaluate.protocols.base import Protocol
    from backend.evaluate.runs import Evaluation

ALL_PROTOCOLS = "all"
UNFINISHED_RUNS = ".runs"  # folder of unfinished runs, inside that of the results


def evaluate(
    *,
    protocol: Annotated[str, typer.Argument(metavar="PROTOCOL", help="what to measure, for example detectors, or all")],
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="folder or zip with real/ and fake/")] = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="the bundled sample set, too small to conclude from")
    ] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder of the run and its report")],
    preset: Annotated[
        Literal["quick", "full", "attack-table"], typer.Option(help="attack-table is of the protocol trace-removal")
    ] = "quick",
    changes: Changes = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with a run that was interrupted")] = False,
    compare: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder of an earlier run of the protocol")
    ] = None,
    engine: Annotated[Literal["local", "ray"], typer.Option()] = "local",
    ray_address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="of a running cluster (default: start one here)")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="0 works in this process (default: GPUs, else cores)")
    ] = None,
    _json: JsonFlag = False,
) -> Answer:
    """Measure detectors, attacks and explanations on many pictures."""
    from backend import samples
    from backend.evaluate import dataset, engines, report, store
    from backend.evaluate.protocols.base import PROTOCOLS, configure_protocol

    if (data is None) != sample:
        raise UserError("Give either --data or --sample.", "See: python -m backend evaluate --help")
    changed_settings = settings.parse_setting_changes(changes)
    command = typed_command(protocol, data, out, preset, changes or (), engine)
    earlier = None
    if protocol == ALL_PROTOCOLS:
        if compare is not None:
            raise UserError("Only one protocol at a time can be compared.", "Name one instead of all.")
        chosen = [configure_protocol(kind, preset, changed_settings) for kind in PROTOCOLS.values()]
        work = out / UNFINISHED_RUNS
        if work.exists() and not resume:
            raise UserError(
                "The folder holds unfinished runs.", "Go on with them by --resume, or name another with --out."
            )
    else:
        chosen = [configure_protocol(PROTOCOLS.find(protocol), preset, changed_settings)]
        work = out
        earlier = None if compare is None else report.load_report_of(chosen[0].name, compare)
    runner = engines.choose_engine(engine, workers, ray_address)
    store.make_run_folder(work)
    pictures = dataset.open_data(samples.draw_sample_set(work / "sample") if data is None else data, work)
    if protocol == ALL_PROTOCOLS:
        return _evaluate_all(chosen, pictures, out, runner, command)
    return _evaluate_one(chosen[0], pictures, out, runner, command, earlier, resume=resume)


def typed_command(protocol: str, data: Path | None, out: Path, preset: str, changes: Sequence[str], engine: str) -> str:
    """Return the command as a person would type it; folders and files by their last name only."""
    from backend.evaluate.store import without_folders

    words = ["python", "-m", "backend", "evaluate", protocol]
    words += ["--sample"] if data is None else ["--data", data.name]
    words += ["--out", out.name, "--preset", preset]
    for change in changes:
        words += ["--set", without_folders(change)]
    if engine != "local":
        words += ["--engine", engine]
    return shlex.join(words)


def _evaluate_one(
    protocol: "Protocol",
    pictures: "Dataset",
    out: Path,
    engine: "Engine",
    command: str,
    earlier: "Evaluation | None",
    *,
    resume: bool,
) -> Answer:
    from backend.evaluate import report, runs

    show_step(Step(0, 0, f"Settings: {json.dumps(vars(protocol.config))}"))
    evaluation = finish(runs.run_protocol(protocol, pictures, out, engine=engine, resume=resume), show_changed_steps())
    differences = [] if earlier is None else report.compare_reports(earlier, evaluation)
    files = report.write_report(evaluation, out, command, differences)
    return {
        "protocol": evaluation.protocol,
        "settings": evaluation.about["settings"],
        "rows": [{"table": table.name} | record for table in evaluation.tables for record in table.records()],
        "counts": dict(evaluation.counts),
        "skipped": [{"name": name, "reason": reason} for name, reason in evaluation.skipped],
        "differences": [{"table": table.name} | record for table in differences for record in table.records()],
        "limits": list(evaluation.limits),
        "files": files,
        "seconds": round(evaluation.seconds, 3),
        "summary": f"{evaluation.summary} See {files['html']}.",
    }


def _evaluate_all(
    protocols: "list[Protocol]", pictures: "Dataset", out: Path, engine: "Engine", command: str
) -> Answer:
    """Run every protocol, and keep each result in the folder `out` as soon as it is finished.

    A protocol that cannot measure these pictures is named, and the others go on.
    """
    from backend.evaluate import report, runs

    started = time.perf_counter()
    work = out / UNFINISHED_RUNS
    findings, left_out, files = {}, {}, {}
    for protocol in protocols:
        folder = work / protocol.name
        try:
            evaluation = finish(
                runs.run_protocol(protocol, pictures, folder, engine=engine, resume=True),
                show_changed_steps(protocol.title),
            )
        except UserError as error:
            left_out[protocol.name] = str(error)
            continue
        report.write_report(evaluation, folder, command)
        files[protocol.name] = str(report.keep_result(folder, out / protocol.name))
        findings[protocol.name] = evaluation.finding or evaluation.summary
    if not left_out:
        shutil.rmtree(work)
    lines = [f"{name}: {text}" for name, text in findings.items()]
    lines += [f"{name} was left out: {reason}" for name, reason in left_out.items()]
    return {
        "protocol": ALL_PROTOCOLS,
        "findings": findings,
        "left_out": left_out,
        "files": files,
        "seconds": round(time.perf_counter() - started, 3),
        "summary": "\n".join(lines),
        "exit": 2 if left_out else 0,
    }


def attack_table(
    *,
    data: Annotated[Path, typer.Option(metavar="DIR", help="photographs that measure")],
    fakes: Annotated[Path, typer.Option(metavar="DIR", help="held-out fakes, a folder a family")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder for table.csv and table.json")],
    per_family: Annotated[int | None, typer.Option(metavar="N", help="fakes of each family (default: all)")] = None,
    attacks: Annotated[str | None, typer.Option(metavar="A,B", help="which (default: one form of each)")] = None,
    white_box: Annotated[
        str | None, typer.Option(metavar="NAME", help="whose gradient FGSM, MIFGSM and PGD see (default: xception)")
    ] = None,
    seed: int = 0,
    _json: JsonFlag = False,
) -> Answer:
    """Measure every attack against every detector: evaluate trace-removal --preset attack-table."""
    from backend.evaluate import attack_table as table
    from backend.evaluate import store
    from backend.evaluate.protocols.base import configure_protocol
    from backend.evaluate.protocols.trace_removal import ATTACK_TABLE, TraceRemovalProtocol

    if per_family is not None and per_family < 1:
        raise UserError("--per-family must be at least 1.", "Leave it out to measure all fakes.")
    changes: dict[str, Any] = {"seed": seed, "per_family": per_family or 0}
    changes |= {"attacks": attacks.split(",")} if attacks else {}
    changes |= {"white_box": white_box} if white_box else {}
    protocol = configure_protocol(TraceRemovalProtocol, ATTACK_TABLE, changes)
    store.make_run_folder(out)
    faces = table.collect_faces(data, fakes, out / "data", per_family=per_family, seed=seed)
    words = ["python", "-m", "backend", "attack-table", "--data", data.name, "--fakes", fakes.name, "--out", out.name]
    given = {"--per-family": per_family, "--attacks": attacks, "--white-box": white_box, "--seed": seed}
    words += [word for name, value in given.items() if value for word in (name, str(value))]
    return finish(table.build_attack_table(protocol, faces, out, shlex.join(words)), show_changed_steps())


def rates(
    *,
    data: Annotated[Path, typer.Option(metavar="DIR", help="faces that no detector learned from")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="where the counts go")],
    install: Annotated[bool, typer.Option("--install", help="put them into weights/, for the page")] = False,
    _json: JsonFlag = False,
) -> Answer:
    """Measure how often the detectors are wrong on faces of new makers and sources."""
    from backend.detectors import rates as stored
    from backend.evaluate.unseen import measure_unseen

    measured = finish(measure_unseen(data), show_step)
    for file in [out, settings.SETTINGS.weights_dir / stored.FILE] if install else [out]:
        file.parent.mkdir(parents=True, exist_ok=True)
        stored.write_rates(measured, file)
    lines = [f"{name} misses: {answer.in_short}" for name, answer in measured.answers.items()]
    return {"overall": measured.overall, "files": {"rates": str(out)}, "summary": "\n".join(lines)}
