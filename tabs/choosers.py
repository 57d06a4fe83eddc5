"""What the choosers of detectors and generators offer, which grows when a model is fetched."""

from typing import Any

import gradio as gr

from backend.detectors import registry
from backend.generators import choice

Choices = list[tuple[str, str]]


def detectors() -> Choices:
    """Return title and name of every detector that is here."""
    return [(registry.card(name).title, name) for name in registry.loadable()]


def detector(**options: Any) -> gr.Dropdown:
    """Return a chooser of a detector."""
    named = detectors()
    return gr.Dropdown(
        named, value=named[0][1] if named else None, label="Which detector?", filterable=False, **options
    )


def generators() -> Choices:
    """Return title and name of every generator that is here."""
    return [(title, name) for name, title in choice.available().items()]


def generator() -> gr.Dropdown:
    """Return a chooser of a generator, which is in sight only where there is a choice."""
    named = generators()
    return gr.Dropdown(
        named,
        value=choice.usual(),
        label="Which generator draws the face?",
        info="A large one draws better and takes longer: without a graphics card, minutes.",
        filterable=False,
        visible=len(named) > 1,
    )


class Choosers:
    """All choosers of a page, to be brought up to date together.

    Args:
        detectors: Choosers of a detector.
        generators: Choosers of a generator.
    """

    def __init__(self, detectors: list[gr.Dropdown], generators: list[gr.Dropdown]) -> None:
        self.detectors, self.generators = detectors, generators

    def outputs(self) -> list[gr.Dropdown]:
        """Return what `updates` may update."""
        return [*self.detectors, *self.generators]

    def updates(self, **begin: Any) -> dict[Any, Any]:
        """Return the updates that offer what is here now, for this page; programs, which have none, get it too.

        Args:
            begin: `value`, which generator a page begins with.
        """
        found, drawing = detectors(), generators()
        for choosers, choices in ((self.detectors, found), (self.generators, drawing)):
            for chooser in choosers:
                chooser.choices = list(choices)
        return {
            **{chooser: gr.Dropdown(choices=found) for chooser in self.detectors},
            **{chooser: gr.Dropdown(choices=drawing, visible=len(drawing) > 1, **begin) for chooser in self.generators},
        }
