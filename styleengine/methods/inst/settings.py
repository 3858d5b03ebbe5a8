"""The settings of InST."""

from typing import Literal

from styleengine.backbones import PLACEHOLDER
from styleengine.settings import Settings, knob, size_knob

MOST_STEPS = 10_000


class InSTSettings(Settings):
    """Settings of stylization with a learned style; the defaults are the paper's."""

    prompt: str = knob(
        PLACEHOLDER,
        f"The prompt, with {PLACEHOLDER} for the learned style: “a lighthouse in the style of {PLACEHOLDER}”.",
    )
    strength: float = knob(
        0.7, "How far the content is noised before denoising: higher is more style; 0 keeps it.", ge=0, le=1
    )
    guidance: float = knob(10.0, "Guidance scale of the prompt; 1 is without guidance.", ge=0, le=30)
    mix: float = knob(0.5, "With two styles: 0 is the first, 1 the second.", ge=0, le=1)
    adain: bool = knob(
        False, "Match the content's colours to the painting's first (AdaIN), if they differ much.", title="AdaIN"
    )
    size: int = size_knob(512, most=2048)
    steps: int = knob(50, "Denoising steps of the whole schedule; strength is the share that is run.", ge=2, le=500)
    seed: int = knob(0, "Random seed of the noise.", ge=0, le=2**32 - 1)
    noise: Literal["stochastic_inversion", "random"] = knob(
        "stochastic_inversion", "The noise added to the content: the model's prediction, or random noise.", rare=True
    )


class InSTLearningSettings(Settings):
    """Settings of learning a painting; the defaults are the authors', who trained for up to 6100 steps.

    The numbers of layers and heads are this project's: the paper states none.
    """

    steps: int = knob(1000, "Maximum training steps; most paintings need 500 to 1000.", ge=1, le=MOST_STEPS)
    size: int = knob(512, "Side of the square crops of the painting, in pixels.", ge=32, le=1024)
    learning_rate: float = knob(1e-4, "AdamW's learning rate, multiplied by the batch size.", gt=0, le=0.1)
    batch: int = knob(4, "Batch size: noised crops of the painting per step.", ge=1, le=32)
    views: int = knob(8, "Crops of the painting, some mirrored; 1 is the centre only.", ge=1, le=64)
    seed: int = knob(0, "Random seed of the crops, the noise and the initial weights.", ge=0, le=2**31 - 1)
    mode: Literal["attention", "embedding"] = knob(
        "attention", "Train attention over the painting, or the embedding alone (textual inversion).", rare=True
    )
    layers: int = knob(3, "Number of cross-attention layers.", rare=True, ge=1, le=8)
    heads: int = knob(8, "Attention heads per layer.", rare=True, ge=1, le=16)
    dropout: float = knob(0.05, "Dropout rate after each layer during training.", rare=True, ge=0, le=0.9)
    check_every: int = knob(25, "Validate every so many steps.", rare=True, ge=1, le=1000)
    patience: int = knob(8, "Stop after this many validations without improvement; 0: never.", rare=True, ge=0, le=1000)
    save_memory: bool = knob(False, "Gradient checkpointing: less memory, slower.", rare=True)
