"""Style prompts: several with weights, and their validation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from styleengine.errors import StyleEngineError
from styleengine.methods.qs_attn.settings import QSAttnSettings
from styleengine.perceptual import Clip


@dataclass(frozen=True)
class Prompt:
    """One style as text, and its weight among several."""

    text: str
    weight: float = 1.0


def parse_prompts(text: str) -> list[Prompt]:
    """“golden | wooden::2” → the styles between the bars, each with the number after its “::” as weight."""
    prompts = []
    for piece in text.split("|"):
        words, mark, number = piece.partition("::")
        try:
            weight = float(number) if mark else 1.0
        except ValueError as error:
            raise StyleEngineError(f"“{number.strip()}” is not a weight: write a number after “::”.") from error
        if not (0 < weight < math.inf):
            raise StyleEngineError(f"The weight of “{words.strip()}” is {weight:g}: it must be above 0.")
        if words.strip():
            prompts.append(Prompt(words.strip(), weight))
    if not prompts:
        raise StyleEngineError("No style was given. Describe one, such as “a watercolor painting”.")
    return prompts


def check(prompts: Sequence[Prompt], settings: QSAttnSettings, clip: Clip) -> None:
    if settings.window % 2 == 0:
        raise StyleEngineError(f"The window of local attention is {settings.window}: it must be odd.")
    source = clip.text_embeddings([settings.source_text])
    for prompt in prompts:
        if not clip.reads(prompt.text):
            raise StyleEngineError(f"CLIP's tokenizer does not know any word of “{prompt.text}”: use other words.")
        if torch.equal(clip.text_embeddings([prompt.text]), source):
            raise StyleEngineError(
                f"“{prompt.text}” has the same embedding as the text for the content, so there is no direction: "
                "change one of the two."
            )
    if settings.order == "in_sequence" and len({prompt.weight for prompt in prompts}) > 1:
        raise StyleEngineError("Weights have no effect when styles are applied in sequence: remove them.")
