"""SHAP: Owen values of parts of the face (Lundberg and Lee 2017, arXiv 1705.07874), by the package `shap`.

The package calls the model from a loop of its own; `loop_as_generator` runs that loop as a job with steps.
"""

import threading
from collections.abc import Callable, Generator
from functools import lru_cache
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from backend.explain.base import BLUR_SIDE, Fill, Question, RawMap, blurred_face, register_explainer, stretched
from backend.progress import Job, Step

BATCH = 50  # masks that the package decides on at once; its next masks depend on the answers

Query = TypeVar("Query")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


class _LoopStopped(BaseException):
    """Unwinds the package's loop; not an Exception, so that no package swallows it."""


def loop_as_generator(
    run: Callable[[Callable[[Query], Answer]], Result], seed: int
) -> Generator[Query, Answer, Result]:
    """Run a package's blocking loop in a thread that works only while this generator waits for it.

    Closing the generator ends the thread at its next query, before `close` returns. NumPy's global random numbers,
    which packages draw from, start at `seed` for the thread and stay as they were for the rest of the program.

    Args:
        run: The loop. It calls `ask(query)`: the query is yielded, and what is sent to the generator is the answer.
        seed: Seed of NumPy's global random numbers.

    Returns:
        What `run` returned.

    Raises:
        Exception: Whatever `run` raised.
    """
    from_thread: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    to_thread: SimpleQueue[tuple[str, Any]] = SimpleQueue()

    def ask(query: Query) -> Answer:
        from_thread.put(("query", query))
        kind, answer = to_thread.get()
        if kind == "stop":
            raise _LoopStopped
        return answer

    def work() -> None:
        try:
            from_thread.put(("done", run(ask)))
        except _LoopStopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again where the generator runs
            from_thread.put(("failed", error))

    thread = threading.Thread(target=work, daemon=True)
    randomness = np.random.RandomState(seed).get_state()
    started = False
    try:
        while True:
            outside = np.random.get_state()  # noqa: NPY002
            np.random.set_state(randomness)  # noqa: NPY002
            try:
                if not started:
                    thread.start()
                    started = True
                kind, value = from_thread.get()
                randomness = np.random.get_state()  # noqa: NPY002
            finally:
                np.random.set_state(outside)  # noqa: NPY002
            if kind == "done":
                return value
            if kind == "failed":
                raise value
            to_thread.put(("answer", (yield value)))
    finally:
        to_thread.put(("stop", None))
        thread.join()


class _Masker:
    """Passes masks on to the model unchanged, with the tree of halves that the package descends."""

    immutable_outputs = True  # otherwise the package copies every mask

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = (1, int(np.prod(shape)))
        self.clustering = halves(shape)

    def __call__(self, mask: np.ndarray, _: np.ndarray) -> tuple[np.ndarray]:
        return (mask[None],)


@register_explainer(
    "shap",
    title="SHAP",
    about="Halves the face again and again, and shares the answer out among the parts by what each adds.",
    signed=True,
    samples=(500, 2000),  # pictures
    fill=Fill(
        "the blurred face", lambda face, _, __, as_released: blurred_face(face, BLUR_SIDE if as_released else None)
    ),
    released_batch=50,
    released_signed=False,
    order=20,
)
def shap(question: Question) -> Job[RawMap]:
    """Explain with one value a pixel; their sum is the answer to the face minus the answer to the reference.

    `question.samples` is the largest number of pictures.
    """
    masked, total = question.masked, question.samples
    # Halving colours too, as the released code does, costs pictures and does not change the sum over the colours.
    shape = (*masked.size, 3 if question.as_released else 1)
    owen: Generator[np.ndarray, np.ndarray, np.ndarray] = loop_as_generator(
        lambda ask: _owen(ask, shape, total), question.seed
    )
    answers: list[Tensor] = []
    try:
        masks = next(owen)
        while True:
            answers.append(masked.ask(torch.from_numpy(masks).reshape(-1, *shape)))
            done = sum(map(len, answers))
            yield Step(done, total, f"SHAP: {done} of {total} pictures.")
            masks = owen.send(answers[-1].numpy())
    except StopIteration as end:
        values = torch.from_numpy(end.value)
    finally:
        owen.close()
    saliency = stretched(values).mean(2) if question.as_released else values.sum(2)
    return RawMap(saliency.float(), torch.cat(answers))


def _owen(ask: Callable[[np.ndarray], np.ndarray], shape: tuple[int, int, int], budget: int) -> np.ndarray:
    """Return Owen values (H, W, C), float64; masks (B, H * W * C) are True where the face is shown."""
    explainer = _import_explainer()(ask, _Masker(shape))
    owen = explainer(np.zeros((1, *shape), dtype=np.float32), max_evals=budget, batch_size=BATCH, silent=True)
    return owen.values[0]


def _import_explainer() -> Any:
    """Import the package's explainer without compiling its helpers.

    Compiling takes seconds in every process; for one face at a time, the helpers run for less than one second.
    """
    import numba

    config: Any = numba.config
    before = config.DISABLE_JIT
    config.DISABLE_JIT = True
    try:
        from shap.explainers import PartitionExplainer
    finally:
        config.DISABLE_JIT = before
    return PartitionExplainer


@lru_cache(maxsize=8)
def halves(shape: tuple[int, int, int]) -> np.ndarray:
    """Halve a face (H, W, C) repeatedly: the longer side first, rows before columns, colours last.

    Returns:
        A row for each part of more than one value, the whole face in the last row: first half, second half, 0, size.
        The values of the face are numbered from 0 and the rows after them, as in SciPy's hierarchies.
    """
    count = int(np.prod(shape))
    tree = np.zeros((count - 1, 4))
    free = count - 2
    open_parts = [(free, (0, shape[0]), (0, shape[1]), (0, shape[2]))]
    while open_parts:
        row, *part = open_parts.pop()
        sizes = [end - start for start, end in part]
        axis = 0 if sizes[0] >= sizes[1] and sizes[0] > 1 else 1 if sizes[1] > 1 else 2
        start, end = part[axis]
        middle = end - sizes[axis] // 2  # the package counts values from the last one, so the first half is the larger
        tree[row, 3] = sizes[0] * sizes[1] * sizes[2]
        for column, span in enumerate(((start, middle), (middle, end))):
            half = [*part[:axis], span, *part[axis + 1 :]]
            if all(stop - first == 1 for first, stop in half):
                (y, _), (x, _), (c, _) = half
                tree[row, column] = (y * shape[1] + x) * shape[2] + c
            else:
                free -= 1
                tree[row, column] = count + free
                open_parts.append((free, half[0], half[1], half[2]))
    tree.setflags(write=False)
    return tree
