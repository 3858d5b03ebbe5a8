"""One count of steps for a run of several phases."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image

from styleengine import ddim
from styleengine.backbones import Backbone
from styleengine.errors import StyleEngineError
from styleengine.images import to_images
from styleengine.stylization import OnStep, StepEvent


class Progress:
    """Turns the steps of several phases, each of `steps`, into one count for `on_step`.

    `first_preview` stands in for a preview until there is something to decode.
    """

    def __init__(
        self,
        backbone: Backbone,
        phases: Sequence[str],
        steps: int,
        on_step: OnStep | None,
        first_preview: Image.Image,
    ) -> None:
        self.backbone, self.phases, self.steps, self.on_step = backbone, list(phases), steps, on_step
        self.first_preview = first_preview
        self.total = steps * len(self.phases)

    def skip_to(self, phase: str) -> None:
        """Reports that all before `phase` is done, so a phase that a cache hit spares counts too."""
        if self.on_step:
            done = self.steps * self.phases.index(phase)
            self.on_step(StepEvent(phase, done, self.total, lambda: self.first_preview))

    def after(self, phase: str) -> ddim.AfterStep | None:
        """What to call after each step of `phase`: it reports, and previews the first of a batch."""
        if not self.on_step:
            return None
        offset, on_step = self.steps * self.phases.index(phase), self.on_step

        def after_step(step: int, x_t: torch.Tensor, clean: torch.Tensor) -> None:
            def preview() -> Image.Image:
                try:
                    return to_images(self.backbone.decode(clean[:1]))[0]
                except StyleEngineError:  # a guess on the way need not be a picture; what it leads to must
                    return self.first_preview

            on_step(StepEvent(phase, offset + step, self.total, preview))

        return after_step


def part_of(on_step: OnStep | None, number: int, count: int) -> OnStep | None:
    """Makes the steps of one of several equal runs count towards them all."""
    if on_step is None or count == 1:
        return on_step

    def on_part(event: StepEvent) -> None:
        on_step(replace(event, step=number * event.total + event.step, total=count * event.total))

    return on_part
