"""Real or fake? A quiz on the visitor's own pictures or the sample set, beside what the detectors say of the same."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch

from backend import alignment, images, verdicts
from backend.detectors import registry
from backend.detectors.card import THRESHOLD
from backend.errors import UserError
from tabs.common import MODEL, QUICK, VERDICT, answered, session_folder
from tabs.words import table

Updates = dict[Any, Any]
QUESTIONS = 12
ABOUT = (
    "Say of each face whether it is real or fake. At the end, your score stands beside the detectors' on the same "
    "pictures. The pictures come from your zip file in the tab before, or from the bundled sample set."
)


Crops = dict[tuple[str, int], np.ndarray]  # of one face, by position and size


@dataclass(frozen=True)
class Round:
    """One quiz: the faces, the crops of them that detectors want, what they are, and what was answered so far."""

    faces: list[np.ndarray] = field(default_factory=list)
    crops: list[Crops] = field(default_factory=list)
    fake: list[bool] = field(default_factory=list)
    answers: list[bool] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether every face has an answer."""
        return len(self.answers) == len(self.faces)


class Quiz:
    """Layout and handlers of the quiz."""

    def __init__(self) -> None:
        self.round = gr.State(Round())
        gr.Markdown(ABOUT)
        self.start = gr.Button("Start the quiz", variant="primary")
        with gr.Column(visible=False) as self.asking:
            self.count = gr.Markdown()
            self.face = gr.Image(
                label="Real or fake?",
                format="png",
                interactive=False,
                buttons=["fullscreen"],
                elem_classes="face",
                alt_text="A face; say whether it is real or fake",
            )
            with gr.Row():
                self.real = gr.Button("Real")
                self.forged = gr.Button("Fake")
        self.score = gr.HTML()

    def wire(self, data: Any) -> None:
        """Wire the buttons; `data` holds the visitor's zip file."""
        private: dict[str, Any] = {"api_visibility": "private"}
        outputs = [self.round, self.asking, self.count, self.face, self.score]
        self.start.click(answered(self._begin), data, outputs, show_progress_on=[self.start], **MODEL, **private)
        for button, said in ((self.real, False), (self.forged, True)):
            handler = answered(self._said_fake if said else self._said_real)
            button.click(handler, self.round, outputs, **QUICK, **private).then(
                answered(self._judge), self.round, self.score, **VERDICT, **private
            )

    def _begin(self, path: str | None, request: gr.Request) -> Updates:
        from tabs.evaluate_files import folder_for, pictures

        source = Path(path) if path else None
        data = pictures(folder_for(session_folder(request), source), source)
        chosen = data.select(QUESTIONS // 2 + max(0, QUESTIONS // 2 - len(data.reals)), QUESTIONS // 2, 0)
        wanted = list(verdicts.by_crop())
        found = [(one, self._cut(data.path(one.name), wanted)) for one in chosen.samples]
        usable = [(*cut, one.label == "fake") for one, cut in found if cut is not None]
        if len(usable) < 2:
            raise UserError("There are too few faces for a quiz.", "Use a zip file with more pictures.")
        order = np.random.default_rng(len(usable)).permutation(len(usable))
        usable = [usable[place] for place in order]
        faces, crops, fake = map(list, zip(*usable, strict=True))
        begun = Round(faces, crops, fake)
        return {self.asking: gr.Column(visible=True), self.score: "", **self._ask(begun)}

    def _cut(self, path: Path, wanted: list[tuple[str, int]]) -> tuple[np.ndarray, Crops] | None:
        """Return the largest face of a picture as it is shown, and as detectors want it."""
        try:
            photo = images.read(path)
            judged = verdicts.judge(photo, [])
        except UserError:
            return None
        if not judged:
            return None
        aligned = judged[0].aligned
        return aligned.crop, {form: alignment.align(photo, aligned.face, *form).crop for form in wanted}

    def _said_real(self, current: Round) -> Updates:
        return self._answer(current, fake=False)

    def _said_fake(self, current: Round) -> Updates:
        return self._answer(current, fake=True)

    def _answer(self, current: Round, *, fake: bool) -> Updates:
        if current.over:
            return {self.round: current}
        return self._ask(replace(current, answers=[*current.answers, fake]))

    def _ask(self, current: Round) -> Updates:
        if current.over:
            return {self.round: current, self.asking: gr.Column(visible=False), self.score: "<p>Counting…</p>"}
        place = len(current.answers)
        return {
            self.round: current,
            self.count: f"Face {place + 1} of {len(current.faces)}",
            self.face: current.faces[place],
        }

    def _judge(self, current: Round) -> Any:
        """Set the visitor's score beside the detectors', once every face has an answer."""
        if not current.faces or not current.over:
            return gr.skip()
        answers = {"You": current.answers}
        for form, names in verdicts.by_crop().items():
            if form not in current.crops[0]:  # a detector that was fetched since the quiz began
                continue
            crops = torch.cat([images.to_tensor(own[form]) for own in current.crops])
            for name, values in verdicts.p_fake(crops, names).items():
                answers[registry.card(name).title] = [value >= THRESHOLD for value in values]
        rows = [(who, *_right(said, current.fake)) for who, said in answers.items()]
        rows[1:] = sorted(rows[1:], key=lambda row: -int(row[1].split(" ")[0]))
        head = ("Who", "Right", "Fakes found", "Real faces wrongly called fake")
        few = f"{len(current.faces)} faces are few: one face more or less decides little."
        return table(head, rows, f"You and the detectors on the same faces. {few}")


def _right(said: list[bool], fake: list[bool]) -> tuple[str, str, str]:
    right = sum(one == other for one, other in zip(said, fake, strict=True))
    found = sum(one and other for one, other in zip(said, fake, strict=True))
    false = sum(one and not other for one, other in zip(said, fake, strict=True))
    return f"{right} of {len(fake)}", f"{found} of {sum(fake)}", f"{false} of {len(fake) - sum(fake)}"
