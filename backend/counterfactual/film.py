"""The search over the frames of a short video: one face is followed, and each frame begins where the last one ended."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from backend import alignment, faces, images, made_with, provenance, tracks, verdicts, video
from backend.alignment import AlignedFace
from backend.counterfactual.film_result import NO_FACE, NOT_REACHED, CalledFake, Film, FilmFrame
from backend.counterfactual.retest import retest
from backend.counterfactual.search import Search, SearchSettings, search
from backend.detectors import registry
from backend.errors import UserError
from backend.generators import inversion
from backend.generators.inversion import Inverter
from backend.progress import Job, Step, counted, finish
from backend.runtime import MODEL_LOCK, device, frozen
from backend.video import Clip
from backend.views import Source, View

STEPS = 40  # of a batch at most: most of them begin near their end
BATCH = 5  # frames that are searched together: one second


@dataclass(frozen=True, eq=False)
class _Found:
    """What was found for one frame."""

    p_original: float
    p_counterfactual: float
    steps: int
    flipped: bool


Scores = dict[str, tuple[float, float]]  # p_fake before and after of one frame, by detector


class FilmSearch:
    """A search over a video that can be asked at any time what it has found so far.

    The first frame with the face is searched alone, the others in batches. Every batch begins at the change of the
    codes that was found for the frame before it, so most frames need few steps, and the change hardly flickers.

    Args:
        clip: The video.
        detector: Name of the detector.
        settings: Settings of the search of a batch.
        inverter: Generator and encoder; None takes the embedded ones.
        marked: Whether the saved video carries the visible mark.

    Raises:
        UserError: There is no such detector, or a setting is out of its range.
    """

    def __init__(
        self,
        clip: Clip,
        detector: str,
        settings: SearchSettings | None = None,
        *,
        inverter: Inverter | None = None,
        marked: bool = True,
    ) -> None:
        self.clip = clip
        self.settings = settings or SearchSettings(steps=STEPS)
        self.settings.check()
        self.marked = marked
        self._detector = registry.load(detector)
        self._inverter = inverter or inversion.load()
        self._pictures: list[np.ndarray] = list(clip.frames)
        self._skipped: dict[int, str] = {}
        self._aligned: dict[int, AlignedFace] = {}
        self._found: dict[int, _Found] = {}
        self._others: dict[int, Scores] = {}
        self._offset: Tensor | None = None
        self._epsilon = 0.0
        self._lengths: tuple[float, ...] = ()
        self._started = time.perf_counter()

    def run(self) -> Job[Film]:
        """Follow the largest face, search its frames, and put the video together.

        Yields:
            One step for every frame that is looked at, and the steps of every search.

        Raises:
            UserError: No frame has a face that can be used.
        """
        count = len(self.clip.frames)
        length = self.settings.total + 1  # of a batch, with the other detectors
        most = count + len(list(self._batched(list(range(count))))) * length + 1
        found = []
        for number, frame in enumerate(self.clip.frames):
            yield Step(number, most, f"The face is looked for in frame {number + 1} of {count}.")
            found.append(faces.find(frame))
        usable = self._follow(found)
        batches = list(self._batched(usable))
        total = count + len(batches) * length + 1
        start = count
        for batch in batches:
            yield from self._search(batch, total, start)
            start += length
        yield Step(total - 1, total, "The video is put together, and its frames are judged again.")
        made = self.so_far()
        assert made is not None
        yield Step(total, total, "The video is done.")
        return made

    def frames(self) -> tuple[FilmFrame, ...]:
        """Return what is known of every frame now."""
        return tuple(self._frame(number) for number in range(len(self.clip.frames)))

    def so_far(self) -> Film | None:
        """Put together what has been found so far; None where no frame has been searched yet."""
        if not self._found:
            return None
        clip = self.clip
        film = Film(
            frames=self.frames(),
            pictures=tuple(self._pictures),
            mp4=b"",
            rate=clip.rate,
            source={
                "seconds": round(clip.seconds, 3),
                "rate": round(clip.source_rate, 3),
                "width": clip.source_size[0],
                "height": clip.source_size[1],
            },
            retested=self._retested(),
            detector=self._detector.card.name,
            generator=self._inverter.name,
            epsilon=self._epsilon,
            lengths=self._lengths,
            settings=self.settings,
            batch=BATCH,
            stopped=any(frame.skipped == NOT_REACHED for frame in self.frames()),
            hashes=made_with.hashes([*self._inverter.entries, self._detector.card.name, *self._asked()]),
            versions=made_with.versions(),
            seconds=time.perf_counter() - self._started,
        )
        if not film.changed:
            return film
        save = provenance.marked_mp4 if self.marked else provenance.mp4
        content = save(film.pictures, film.rate, film.record())
        saved = self._judge_saved(content)
        frames = tuple(replace(frame, p_saved=saved.get(frame.number - 1)) for frame in film.frames)
        return replace(film, frames=frames, mp4=content, seconds=time.perf_counter() - self._started)

    def _batched(self, numbers: list[int]) -> Iterator[list[int]]:
        """Yield the first number alone and the others in batches; each alone where the detector wants its own crop."""
        card, inverter = self._detector.card, self._inverter
        size = BATCH if (card.template, card.input_size) == (inverter.template, inverter.size) else 1
        yield numbers[:1]
        for start in range(1, len(numbers), size):
            yield numbers[start : start + size]

    def _view(self, frame: np.ndarray, aligned: AlignedFace) -> View | None:
        return Source(frame, aligned).view(self._detector.card.template, self._detector.card.input_size)

    def _follow(self, found: list[list[faces.Face]]) -> list[int]:
        """Choose the face, note which frames are skipped, and return the others."""
        track = tracks.largest(found)
        if not any(track):
            raise UserError(
                "No face was found in this video.",
                "Use one in which a face is upright, well lit and seen from the front.",
            )
        for number, face in enumerate(track):
            frame = self.clip.frames[number]
            problem = NO_FACE if face is None else faces.problem(face, frame.shape)
            if face is None or problem:
                self._skipped[number] = problem or NO_FACE
            else:
                self._aligned[number] = alignment.align(frame, face, self._inverter.template, self._inverter.size)
        if not self._aligned:
            seen = next(reason for reason in self._skipped.values() if reason != NO_FACE)
            raise UserError(seen, "Use a video in which a face is large enough and seen from the front.")
        return list(self._aligned)

    def _search(self, batch: list[int], total: int, start: int) -> Job[None]:
        crops = torch.cat([images.to_tensor(self._aligned[number].crop) for number in batch])
        which = f"frame {batch[0] + 1}" if len(batch) == 1 else f"frames {batch[0] + 1} to {batch[-1] + 1}"
        view = self._view(self.clip.frames[batch[0]], self._aligned[batch[0]]) if len(batch) == 1 else None
        job = search(self._inverter, self._detector, crops, self.settings, view, offset=self._offset)
        told = f"Of {len(self.clip.frames)} frames, {which}. "
        outcome = yield from counted(job, total, start, told)
        self._epsilon, self._lengths = outcome.epsilon, outcome.row_lengths
        for place, number in enumerate(batch):
            if not outcome.already_real[place]:
                changed = images.to_array(outcome.counterfactual[place])
                self._pictures[number] = alignment.paste_back(self.clip.frames[number], changed, self._aligned[number])
                self._offset = outcome.codes[place] - outcome.codes_start[place]
            self._found[number] = _Found(
                float(outcome.p_original[place]),
                float(outcome.p_counterfactual[place]),
                int(outcome.steps[place]),
                bool(outcome.flipped[place]),
            )
        self._ask_others(batch, outcome)
        yield Step(start + self.settings.total, total, f"{told}The other detectors were asked.")

    def _ask_others(self, batch: list[int], outcome: Search) -> None:
        """Ask the detectors that were not searched against about frames before and after."""
        same = outcome.already_real[:, None, None, None]
        after = torch.where(same, outcome.original, outcome.counterfactual)
        sources = [Source(self.clip.frames[number], self._aligned[number]) for number in batch]
        scores = retest(outcome.original, after, self._detector.card.name, sources=sources)
        for place, number in enumerate(batch):
            self._others[number] = {name: (float(a[place]), float(b[place])) for name, (a, b) in scores.items()}

    def _asked(self) -> list[str]:
        """Return the other detectors that were asked."""
        return list(dict.fromkeys(name for scores in self._others.values() for name in scores))

    def _retested(self) -> tuple[CalledFake, ...]:
        """Return what the other detectors said of the frames that they were asked about."""
        asked = {name: [scores[name] for scores in self._others.values() if name in scores] for name in self._asked()}
        return tuple(CalledFake.of(name, scores) for name, scores in asked.items())

    def _frame(self, number: int) -> FilmFrame:
        at, found = self.clip.times[number], self._found.get(number)
        if found is None:
            return FilmFrame(number + 1, at, self._skipped.get(number, NOT_REACHED))
        return FilmFrame(number + 1, at, "", **vars(found))

    def _judge_saved(self, content: bytes) -> dict[int, float]:
        """Return p_fake of the faces as they are in the saved video, by frame."""
        saved = finish(video.reading(content)).frames
        scores = {}
        with MODEL_LOCK, frozen(self._detector), torch.no_grad():
            for number in self._found:
                face = self._aligned[number].face
                aligned = alignment.align(saved[number], face, self._inverter.template, self._inverter.size)
                crop = images.to_tensor(aligned.crop).to(device())
                seen = verdicts.seen_by(self._detector.card, crop, Source(saved[number], aligned))
                scores[number] = float(self._detector.p_fake(seen)[0])
        return scores
