"""Which engine does the work of a run."""

from backend.errors import UserError
from backend.evaluate.engines import Engine, InProcess, Processes, devices
from backend.evaluate.ray_engine import RayEngine

ENGINES = ("local", "ray")


def engine(name: str, workers: int | None = None, address: str | None = None) -> Engine:
    """Return an engine by its name.

    Args:
        name: `local` or `ray`.
        workers: How many workers; 0 does everything in this process; None takes one for each GPU, else for each core.
        address: Address of a Ray cluster; None starts one on this machine.

    Raises:
        UserError: There is no such engine, or it is not installed.
    """
    if workers is not None and workers < 0:
        raise UserError(f"There cannot be {workers} workers.", "Use 0 to work in this process, or a number from 1.")
    if name == "ray":
        return RayEngine(workers, address)
    if name != "local":
        raise UserError(f"There is no engine {name}.", f"Use one of: {', '.join(ENGINES)}.")
    if workers == 0:
        return InProcess()
    return Processes(workers or devices())
