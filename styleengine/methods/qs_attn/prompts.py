"""Styles in words: several with weights, and what cannot be used as one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from styleengine.errors import StyleEngineError
from styleengine.methods.qs_attn.settings import QSAttnSettings
from styleengine.perceptual import Clip


@dataclass(frozen=True)
class Prompt:
    """One style in words, and how much it counts among several."""

    text: str
    weight: float = 1.0


def parse_prompts(text: str) -> list[Prompt]:
    """“golden | wooden::2” → the styles between the bars, each with what stands behind its “::” as weight."""
    prompts = []
    for piece in text.split("|"):
        words, mark, number = piece.partition("::")
        try:
            weight = float(number) if mark else 1.0
        except ValueError as error:
            raise StyleEngineError(f"“{number.strip()}” is no weight: write a number behind “::”.") from error
        if not (0 < weight < math.inf):
            raise StyleEngineError(f"The weight of “{words.strip()}” is {weight:g}: it must be above 0.")
        if words.strip():
            prompts.append(Prompt(words.strip(), weight))
    if not prompts:
        raise StyleEngineError("No style was given. Say one in words, such as “a watercolor painting”.")
    return prompts


def check(prompts: Sequence[Prompt], settings: QSAttnSettings, clip: Clip) -> None:
    if settings.window % 2 == 0:
        raise StyleEngineError(f"The window of local attention is {settings.window}: it must be odd.")
    source = clip.text_embeddings([settings.source_text])
    for prompt in prompts:
        if not clip.reads(prompt.text):
            raise StyleEngineError(f"This model's CLIP knows nothing of what “{prompt.text}” says: use other words.")
        if torch.equal(clip.text_embeddings([prompt.text]), source):
            raise StyleEngineError(
                f"“{prompt.text}” says the same as the text for the content, so there is no direction to go: "
                "change one of the two."
            )
    if settings.order == "in_sequence" and len({prompt.weight for prompt in prompts}) > 1:
        raise StyleEngineError("In sequence each style has a picture of its own: leave the weights away.")
