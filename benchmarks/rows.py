"""The rows of the table of speeds: for each, our side and its peer, which do the same work.

A row is prepared once in a process of its own for each side; then the sides take turns (`__main__`). A turn is a
function that does the work once and returns its result as an array, so that both results can be compared.
"""

import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

Turn = Callable[[], np.ndarray]
Size = Literal["quick", "full"]  # of the work in a turn
PYTORCH = {"ENGINE": "torch"}
DETECTOR = "xception"
ASKED_ON_RAY = ("xception", "efficientnet_b4", "recce")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        work: What is done, for people.
        peer: What it is compared with.
        at_least: Smallest ratio that is good enough; None where there is no such figure.
        goal: Ratio that would be good.
        ours: Prepares our side; its argument is the size of the work.
        theirs: Prepares the peer, likewise.
        environment: Of our process.
        peer_environment: Of the peer's process.
        tolerance: Largest difference of the results, of the largest value; None where they are not compared.
        at_most: For works that should cost at most so many times the peer; replaces `at_least`.
        timed: Whether a turn returns its own seconds as its result.
        in_others: Whether other processes do the work, so that the memory of ours says nothing.
        takes_minutes: Whether it is left out where little time is to be spent.
        limit: What keeps the ratio from growing, one sentence, where it was looked into.
    """

    work: str
    peer: str
    at_least: float | None
    goal: float | None
    ours: Callable[[Size], Turn]
    theirs: Callable[[Size], Turn]
    environment: Mapping[str, str] = field(default_factory=dict)
    peer_environment: Mapping[str, str] = field(default_factory=lambda: PYTORCH)
    tolerance: float | None = None
    at_most: float | None = None
    timed: bool = False
    in_others: bool = False
    takes_minutes: bool = False
    limit: str = ""


def example() -> tuple[Any, Any]:
    """Return the first example's face (1, 3, S, S) in [0, 1] and the detector, which calls it fake."""
    from backend import examples, images
    from backend.detectors import predict, registry

    located = next(item for item in examples.load_examples() if item.file == "generated_1.png").located()[0]
    return images.to_tensor(predict.embedded_crop(located).aligned.crop), registry.load(DETECTOR)


def question(samples: int, reference: Callable[[Any, Any], Any], labels: Any) -> Any:
    from backend.explain.base import MaskedFace, Question

    face, detector = example()
    return Question(MaskedFace(face, reference(face, labels), detector, bfloat16=False), labels, samples)


def lime_ours(size: Size) -> Turn:
    from backend.explain.base import segment_means
    from backend.explain.lime import lime
    from backend.explain.segments import slic_segments
    from backend.progress import finish

    face, _ = example()
    labels = slic_segments(face[0])
    return lambda: finish(lime(question(200 if size == "quick" else 2000, segment_means, labels))).saliency.numpy()


def lime_package(size: Size) -> Turn:
    """The package as its tutorial calls it, with batches of 10 and the same samples."""
    import torch
    from lime.lime_image import LimeImageExplainer
    from torchvision.transforms.functional import to_tensor

    from backend.explain.segments import slic_segments

    face, detector = example()
    labels = slic_segments(face[0]).numpy()
    picture = face[0].permute(1, 2, 0).double().numpy()

    @torch.no_grad()
    def classify(pictures: np.ndarray) -> np.ndarray:
        p_fake = detector.p_fake(torch.stack([to_tensor(array).float() for array in pictures])).numpy()
        return np.stack([1 - p_fake, p_fake], axis=1)

    def turn() -> np.ndarray:
        with silence():
            result = LimeImageExplainer(random_state=0).explain_instance(
                picture,
                classify,
                labels=(1,),
                top_labels=None,
                num_samples=200 if size == "quick" else 2000,
                batch_size=10,
                segmentation_fn=lambda _: labels,
                random_seed=0,
            )
        weights = dict(result.local_exp[1])
        return np.array([weights[segment] for segment in range(len(weights))])[labels]

    return turn


def shap_ours(size: Size) -> Turn:
    import torch

    from backend.explain.base import blurred_face
    from backend.explain.shap import shap
    from backend.progress import finish

    labels = torch.zeros(128, 128)
    return lambda: finish(
        shap(question(200 if size == "quick" else 2000, lambda face, _: blurred_face(face), labels))
    ).saliency.numpy()


def shap_package(size: Size) -> Turn:
    """The package with its image masker, after its helpers were compiled."""
    import torch
    from shap import Explainer
    from shap.maskers import Image

    from backend.explain.base import blurred_face
    from backend.explain.shap import BATCH

    face, detector = example()
    hidden, picture = (image[0].permute(1, 2, 0).numpy() for image in (blurred_face(face), face))

    @torch.no_grad()
    def model(pictures: np.ndarray) -> np.ndarray:
        return detector.p_fake(torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().float()).numpy()

    def turn(samples: int = 200 if size == "quick" else 2000) -> np.ndarray:
        np.random.seed(0)  # noqa: NPY002 - the package breaks ties with it
        values = Explainer(model, Image(hidden))(picture[None], max_evals=samples, batch_size=BATCH, silent=True).values
        return values[0].sum(2)

    turn(10)
    return turn


def rise_ours(size: Size) -> Turn:
    import torch

    from backend.explain.base import neutral_colour
    from backend.explain.rise import rise
    from backend.progress import finish

    _, detector = example()
    labels = torch.zeros(128, 128)
    return lambda: finish(
        rise(question(60 if size == "quick" else 4000, lambda face, _: neutral_colour(face, detector), labels))
    ).saliency.numpy()


def rise_loop(size: Size) -> Turn:
    """The same masks, one picture a call."""
    import torch

    from backend.explain.base import neutral_colour
    from backend.explain.rise import centred_map, draw_masks, enlarge_masks

    face, detector = example()
    reference = neutral_colour(face, detector)
    cells, offsets = draw_masks(60 if size == "quick" else 4000, (128, 128), 0)

    @torch.no_grad()
    def turn() -> np.ndarray:
        weighted, shown = torch.zeros(2, 128, 128, dtype=torch.float64)
        answers = []
        for cell, offset in zip(cells, offsets, strict=True):
            mask = enlarge_masks(cell[None], offset[None], (128, 128))[0]
            answers.append(detector.p_fake(mask * face + (1 - mask) * reference)[0])
            weighted = weighted + answers[-1] * mask
            shown = shown + mask
        return centred_map(weighted, shown, torch.stack(answers)).numpy()

    return turn


def sobol_ours(size: Size) -> Turn:
    import torch

    from backend.explain.base import blurred_face
    from backend.explain.sobol import sobol
    from backend.progress import finish

    labels = torch.zeros(128, 128)
    points = 4 if size == "quick" else 32
    return lambda: finish(sobol(question(points, lambda face, _: blurred_face(face), labels))).saliency.numpy()


def sobol_loop(size: Size) -> Turn:
    """The same design, one picture a call."""
    import torch
    from torch.nn import functional as F

    from backend.explain.base import blurred_face
    from backend.explain.sobol import GRID, sobol_design, total_effects

    face, detector = example()
    reference, points = blurred_face(face), 4 if size == "quick" else 32

    @torch.no_grad()
    def turn() -> np.ndarray:
        design = sobol_design(points)
        cells = np.concatenate([design[:points], design[2 * points :]]).astype(np.float32)
        answers = []
        for row in torch.from_numpy(cells).reshape(-1, 1, 1, GRID, GRID):
            mask = F.interpolate(row, size=(128, 128), mode="nearest")
            answers.append(detector.p_fake(mask * face + (1 - mask) * reference)[0])
        together = torch.stack(answers)
        indices = total_effects(together[:points], together[points:].reshape(GRID * GRID, points))
        grid = indices.reshape(1, 1, GRID, GRID).float()
        return F.interpolate(grid, size=(128, 128), mode="bicubic", align_corners=False)[0, 0].clamp(min=0).numpy()

    return turn


def nes_settings(size: Size) -> Any:
    from backend.attacks.nes import AS_RELEASED

    return replace(AS_RELEASED, iterations=1 if size == "quick" else 20, early_stop=False)


def nes_ours(size: Size) -> Turn:
    from backend.attacks import nes
    from backend.progress import finish

    face, detector = example()
    return lambda: finish(nes.attack(face, detector, nes_settings(size))).images.numpy()


def nes_loop(size: Size) -> Turn:
    """The loop of the released program of Adv-XAI-Deepfakes (2502.03957), one picture a call, with our noise.

    That program draws its noise from a covariance matrix of the size of the picture, which is slower.
    """
    import torch

    from backend.attacks.nes import draw_probe_noise, probe_noise_source

    face, detector = example()
    settings = nes_settings(size)
    unit = detector.std[0]

    def p_real(image: Any) -> Any:
        return torch.sigmoid(-detector.logit_fake(image[None]))[0]

    @torch.inference_mode()
    def turn() -> np.ndarray:
        source = probe_noise_source(settings.seed, 0, face.device)
        picture = face[0].clone()
        for _ in range(settings.iterations):
            p_real(picture)  # the test
            gradient = torch.zeros_like(picture)
            for noise in draw_probe_noise(source, settings.probes, picture, "grey"):
                gradient += p_real(picture + settings.sigma * unit * noise) * noise
                gradient -= p_real(picture - settings.sigma * unit * noise) * noise
            gradient /= 2 * settings.probes * settings.sigma
            picture = picture + (settings.alpha * gradient.sign()).clamp(max=settings.delta) * unit
        return picture[None].numpy()

    return turn


def comparison(size: Size) -> Turn:
    """All maps of the Explain tab, each with its test."""
    from backend.explain.explanation import ExplainSettings, MapFinished
    from backend.explain.sufficiency import compare_with_tests
    from backend.progress import Running

    del size
    face, detector = example()
    settings = ExplainSettings(preset="quick", shortcut=True)

    def turn() -> np.ndarray:
        with Running(compare_with_tests(face, detector, settings)) as running:
            finished = [step.explanation for step in running if isinstance(step, MapFinished)]
        maps = [explanation.saliency.numpy() for explanation in finished if explanation is not None]
        return np.stack([saliency / max(1e-9, float(np.abs(saliency).max())) for saliency in maps])

    return turn


def verdicts_ours(size: Size) -> Turn:
    from backend.detectors import inference, predict, registry

    del size
    face, _ = example()
    for name in registry.loadable("embedded"):
        inference.compile_detector(registry.load(name))
    return lambda: np.array(list(predict.predict_p_fake(face, registry.loadable("embedded")).values()))


def verdicts_loop(size: Size) -> Turn:
    """One detector after the other."""
    import torch

    from backend.detectors import registry

    del size
    face, _ = example()
    detectors = [registry.load(name) for name in registry.loadable("embedded")]

    @torch.no_grad()
    def turn() -> np.ndarray:
        return np.array([detector.p_fake(face).tolist() for detector in detectors])

    return turn


def search_ours(size: Size) -> Turn:
    from backend.counterfactual.search import search
    from backend.progress import finish

    inverter, detector, faces, settings = _search_case(size)
    return lambda: finish(search(inverter, detector, faces, settings)).p_counterfactual.numpy()


def search_loop(size: Size) -> Turn:
    """The released program's loop: draw for the score, draw with gradients, draw again to test for success."""
    from benchmarks.counterfactual import loop

    inverter, detector, faces, settings = _search_case(size)
    return lambda: loop(inverter, detector, faces, settings)[0].numpy()


def _search_case(size: Size) -> tuple[Any, ...]:
    from backend.counterfactual.search import SearchSettings
    from backend.detectors import registry
    from backend.generators import inversion
    from benchmarks.counterfactual import drawn_faces

    inverter = inversion.load_embedded_inverter()
    settings = SearchSettings(steps=5 if size == "quick" else 60, early_stop=False, lengths="equal")
    return inverter, registry.load(DETECTOR), drawn_faces(inverter, 1), settings


def sample_set() -> tuple[Any, Path]:
    """Return the bundled sample set, and a folder for runs that goes with this process."""
    from backend import runtime, samples
    from backend.evaluate.dataset import open_data

    folder = runtime.private_folder()
    return open_data(samples.draw_sample_set(folder / "sample"), folder), folder


def evaluation(size: Size) -> Turn:
    """`evaluate detectors` with all detectors in one process; a turn returns the seconds of an item."""
    from backend.evaluate import runs
    from backend.evaluate.protocols.base import configure_protocol
    from backend.evaluate.protocols.detectors import DetectorsProtocol

    data, folder = sample_set()
    del size
    strengths = range(5)  # so many items that the warm-up compiles the networks
    corruptions = ["none", *(f"noise {1 + strength / 10:g}" for strength in strengths)]
    protocol = configure_protocol(DetectorsProtocol, "quick", {"corruptions": corruptions})
    number = iter(range(1_000_000))

    def turn() -> np.ndarray:
        job = runs.run_protocol(protocol, data, folder / f"run-{next(number)}")
        times = [time.perf_counter() for step in job if step.number > 0]
        return np.array([(times[-1] - times[0]) / (len(times) - 1)])

    return turn


def ray_workers(workers: int) -> Callable[[Size], Turn]:
    """Evaluate on Ray actors of one thread each; a turn returns the seconds of an item once all is compiled."""

    def prepare(size: Size) -> Turn:
        del size
        from backend.detectors.inference import ASKED_OFTEN
        from backend.evaluate import engines, runs
        from backend.evaluate.protocols.detectors import DetectorsConfig, DetectorsProtocol

        data, folder = sample_set()
        count = -(-600 // len(data.samples))
        strengths = tuple(f"noise {1 + number / 100:g}" for number in range(count))
        config = DetectorsConfig(detectors=ASKED_ON_RAY, corruptions=("none", *strengths))
        number = iter(range(1_000_000))

        def turn() -> np.ndarray:
            engine = engines.choose_engine("ray", workers)
            job = runs.run_protocol(DetectorsProtocol(config), data, folder / f"run-{next(number)}", engine=engine)
            times = [time.perf_counter() for step in job if step.number > 0]
            settled = times[(ASKED_OFTEN + 4) * workers :]
            return np.array([(settled[-1] - settled[0]) / (len(settled) - 1)])

        return turn

    return prepare


def bare_processes(count: int) -> Callable[[Size], Turn]:
    """Processes of one thread each that do nothing but ask the same detectors: what the machine itself can reach."""

    def prepare(size: Size) -> Turn:
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        from backend.evaluate.engines import prepare_worker

        seconds = 2 if size == "quick" else 10
        pool = ProcessPoolExecutor(count, get_context("spawn"), prepare_worker, (0,))

        def turn() -> np.ndarray:
            begin = time.time() + 30  # by then all of them have compiled the networks
            answers = sum(pool.map(_count_answers, [begin] * count, [begin + seconds] * count))
            return np.array([seconds / answers])

        return turn

    return prepare


def _count_answers(begin: float, end: float) -> int:
    """Ask detectors about one picture again and again until a time, and return how often."""
    import torch

    from backend.detectors import inference, registry

    detectors = {name: registry.load(name) for name in ASKED_ON_RAY}
    for detector in detectors.values():
        inference.compile_detector(detector)
    face = torch.rand(1, 3, registry.EMBEDDED_SIZE, registry.EMBEDDED_SIZE)
    time.sleep(max(0.0, begin - time.time()))
    count = 0
    while time.time() < end:
        inference.ask_once({name: (detector, face) for name, detector in detectors.items()})
        count += 1
    return count


def page(size: Size) -> Turn:
    """Start the app, and wait until its page answers."""
    del size

    def turn() -> np.ndarray:
        port = "7939"
        environment = os.environ | {"GRADIO_SERVER_PORT": port}
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            started = time.perf_counter()
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
                        answer.read()
                        break
                except OSError:
                    time.sleep(0.02)
            return np.array([time.perf_counter() - started])
        finally:
            process.terminate()
            process.wait(60)

    return turn


def imports(size: Size) -> Turn:
    """Import gradio and torch in a new process."""
    del size

    def turn() -> np.ndarray:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import gradio, torch"], check=True)
        return np.array([time.perf_counter() - started])

    return turn


def upload(size: Size) -> Turn:
    """Decode, search and judge a photo as the page does with an upload, all models loaded."""
    from backend import examples, images, runtime
    from backend.alignment import locate_all
    from backend.detectors import inference, predict, registry

    del size
    path = next(item for item in examples.load_examples() if item.file == "hopper.png").photo_path
    for name in registry.loadable():
        inference.compile_detector(registry.load(name))

    def turn() -> np.ndarray:
        with runtime.priority(runtime.VERDICT):
            faces = predict.judge_faces(locate_all(images.read(path)))
        return np.array(list(faces[0].p_fake.values()))

    turn()
    return turn


def upload_beside_jobs(size: Size) -> Turn:
    """The same while a comparison of all maps and the search over a video run; a turn returns its seconds."""
    from backend import runtime
    from backend.detectors import registry
    from backend.progress import Running

    judge = upload(size)
    compare = comparison(size)
    inverter, _, faces, _ = _search_case(size)
    detector = registry.load(DETECTOR)

    def search_frames() -> None:
        from backend.counterfactual.search import SearchSettings, search
        from backend.counterfactual.video import FRAME_BATCH

        batch = faces.expand(FRAME_BATCH, -1, -1, -1)
        with Running(search(inverter, detector, batch, SearchSettings(steps=1000, early_stop=False))) as running:
            for _ in running:
                if ended.is_set():
                    return

    def compare_maps() -> None:
        while not ended.is_set():
            compare()

    ended = threading.Event()
    errors: list[Exception] = []

    def busy(job: Callable[[], Any]) -> None:
        try:
            with runtime.priority(runtime.LONG_JOB):
                job()
        except Exception as error:  # noqa: BLE001 - raised again by the turn, which would measure a quiet machine
            errors.append(error)

    def turn() -> np.ndarray:
        ended.clear()

        threads = [threading.Thread(target=busy, args=(job,)) for job in (compare_maps, search_frames)]
        for thread in threads:
            thread.start()
        time.sleep(2)
        started = time.perf_counter()
        judge()
        seconds = time.perf_counter() - started
        ended.set()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return np.array([seconds])

    return turn


@contextmanager
def silence() -> Iterator[None]:
    """Keep a package's progress bar off the screen."""
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        yield


ROWS: dict[str, Row] = {
    "lime": Row(
        "LIME, 2,000 samples",
        "the package lime with PyTorch",
        4.5,
        8,
        lime_ours,
        lime_package,
        tolerance=1e-3,
        limit=(
            "Of 2.5 ms a sample the detector takes 2.1, which is 0.2 GFLOP at the speed of the processor's multipliers."
        ),
    ),
    "shap": Row(
        "SHAP, 2,000 samples",
        "the package shap with PyTorch",
        3,
        5,
        shap_ours,
        shap_package,
        tolerance=1e-3,
        limit="The method splits one part after the other, so the detector is asked about few pictures at a time.",
    ),
    "rise": Row("RISE, 4,000 masks", "one mask a call, PyTorch", 8, 14, rise_ours, rise_loop, tolerance=1e-3),
    "sobol": Row("SOBOL, 2,080 masks", "one mask a call, PyTorch", 8, 14, sobol_ours, sobol_loop, tolerance=1e-3),
    "nes": Row(
        "NES, 20 iterations of 80",
        "the released loop, PyTorch",
        12,
        20,
        nes_ours,
        nes_loop,
        limit="The detector takes nearly all of our time, at the speed of the processor's multipliers.",
    ),
    "maps": Row(
        "All maps with their tests, quick preset",
        "the same with ENGINE=torch",
        2,
        3,
        comparison,
        comparison,
        takes_minutes=True,
        limit=(
            "Much of our time is spent on gradients (PGD tests, XRAI, Grad-CAM), which OpenVINO does not compute; "
            "the rest is the detector at the speed of the processor's multipliers."
        ),
    ),
    "verdicts": Row(
        "All detectors about one face, warm",
        "ENGINE=torch, one detector after the other",
        2,
        3,
        verdicts_ours,
        verdicts_loop,
        tolerance=1e-3,
    ),
    "search": Row(
        "Counterfactual, 60 steps, all levels",
        "a straightforward loop",
        4,
        6,
        search_ours,
        search_loop,
        limit=(
            "A step draws the face once, forwards and backwards; the peer draws three times, and once backwards. "
            "Both use PyTorch."
        ),
    ),
    "evaluate": Row(
        "evaluate detectors, an item",
        "the same with ENGINE=torch",
        2,
        3,
        evaluation,
        evaluation,
        timed=True,
        takes_minutes=True,
    ),
    "ray": Row(
        "evaluate detectors on 2 Ray workers",
        "1 worker",
        1.7,
        1.9,
        ray_workers(2),
        ray_workers(1),
        peer_environment={},
        in_others=True,
        timed=True,
        takes_minutes=True,
        limit="The machine's two cores share their multipliers: see the next row.",
    ),
    "processes": Row(
        "The same detectors in 2 bare processes",
        "1 process",
        None,
        None,
        bare_processes(2),
        bare_processes(1),
        peer_environment={},
        in_others=True,
        timed=True,
        takes_minutes=True,
    ),
    "page": Row(
        "The page answers after a start",
        "importing gradio and torch",
        None,
        None,
        page,
        imports,
        peer_environment={},
        at_most=1.3,
        in_others=True,
        timed=True,
        takes_minutes=True,
    ),
    "upload": Row(
        "First verdict on an upload, models loaded", "the same with ENGINE=torch", None, None, upload, upload
    ),
    "busy": Row(
        "A verdict beside all maps and a video",
        "the same on a quiet machine",
        None,
        None,
        upload_beside_jobs,
        upload,
        peer_environment={},
        at_most=3,
        timed=True,
    ),
}
