"""What InST can be told."""

from typing import Literal

from styleengine.backbones import PLACEHOLDER
from styleengine.settings import Settings, knob

MOST_STEPS = 10_000


class InSTSettings(Settings):
    """Settings of drawing with a learnt style; the defaults are the paper's."""

    prompt: str = knob(
        PLACEHOLDER,
        f"What to draw, with a star where the style goes: “a lighthouse in the style of {PLACEHOLDER}”.",
    )
    strength: float = knob(
        0.7, "How far the content is noised before it is drawn again: more is more style; 0 keeps it.", ge=0, le=1
    )
    guidance: float = knob(10.0, "How much the prompt counts over none; 1 takes it as it is.", ge=0, le=30)
    mix: float = knob(0.5, "With two styles: 0 is the first, 1 the second.", ge=0, le=1)
    adain: bool = knob(
        False, "Give the content the painting's colours first (AdaIN), where the two are far apart.", title="AdaIN"
    )
    size: int = knob(512, "Length of the result's shorter side in pixels.", ge=64, le=2048)
    steps: int = knob(50, "Denoising steps of the whole way; strength says what part of them is gone.", ge=2, le=500)
    seed: int = knob(0, "Picks the noise.", ge=0, le=2**32 - 1)
    noise: Literal["stochastic_inversion", "random"] = knob(
        "stochastic_inversion", "What is laid over the content: the noise the model sees in it, or chance.", rare=True
    )


class InSTLearningSettings(Settings):
    """Settings of learning a painting; the defaults are the authors', who went on for up to 6100 steps.

    Number of layers and of heads are ours: the paper names none.
    """

    steps: int = knob(1000, "At most so many steps; most paintings are learnt by 500 to 1000.", ge=1, le=MOST_STEPS)
    size: int = knob(512, "Side of the squares that are cut from the painting, in pixels.", ge=32, le=1024)
    learning_rate: float = knob(1e-4, "AdamW's rate; it is taken times the batch.", gt=0, le=0.1)
    batch: int = knob(4, "Noised views of the painting in each step.", ge=1, le=32)
    views: int = knob(8, "Squares cut from the painting, some mirrored; 1 is the middle alone.", ge=1, le=64)
    seed: int = knob(0, "Picks squares, noise and the first weights.", ge=0, le=2**31 - 1)
    mode: Literal["attention", "embedding"] = knob(
        "attention", "Learn attention over the painting, or the bare word (textual inversion).", rare=True
    )
    layers: int = knob(3, "Layers of cross-attention.", rare=True, ge=1, le=8)
    heads: int = knob(8, "Heads of each layer.", rare=True, ge=1, le=16)
    dropout: float = knob(
        0.05, "Share of each layer's output that is left out while learning.", rare=True, ge=0, le=0.9
    )
    check_every: int = knob(25, "Steps between two looks at the loss on the fixed set.", rare=True, ge=1, le=1000)
    patience: int = knob(
        8, "Looks in a row without a fall of that loss after which learning ends; 0: never.", rare=True, ge=0, le=1000
    )
    save_memory: bool = knob(
        False, "Compute what gradients need a second time instead of keeping it: slower, less memory.", rare=True
    )
