"""The settings of InST."""

from typing import Literal

from styleengine.backbones import PLACEHOLDER
from styleengine.settings import SaveMemory, Settings, knob, save_memory_knob, size_knob

MOST_STEPS = 10_000


class InSTSettings(Settings):
    """Settings of stylization with a learned style.

    The defaults of prompt, strength, guidance and steps are those of the authors' notebook, in which AdaIN is on
    and without bounds. The others are this project's.
    """

    prompt: str = knob(
        PLACEHOLDER,
        f"The prompt, with {PLACEHOLDER} for the learned style: “a lighthouse in the style of {PLACEHOLDER}”.",
    )
    strength: float = knob(
        0.7, "How far the content is noised before denoising: higher changes more of it; 0 keeps it.", ge=0, le=1
    )
    guidance: float = knob(10.0, "Guidance scale of the prompt; 1 is without guidance.", ge=0, le=30)
    mix: float = knob(0.5, "With two styles: 0 is the first, 1 the second.", ge=0, le=1)
    adain: bool = knob(
        False,
        "Before noise is added, set the channel means and standard deviations of the content's latents to the "
        "painting's. This changes colour and contrast.",
        title="AdaIN",
    )
    adain_gain: float = knob(
        1.0,
        "AdaIN raises a channel's standard deviation by at most this factor; 1 does not amplify the content's detail.",
        title="AdaIN gain",
        rare=True,
        ge=1,
        le=10,
    )
    adain_shift: float = knob(
        1.5, "AdaIN shifts a channel's mean by at most this much.", title="AdaIN shift", rare=True, ge=0, le=10
    )
    size: int = size_knob(512, most=2048)
    steps: int = knob(50, "Denoising steps of the whole schedule; strength is the share that is run.", ge=2, le=500)
    seed: int = knob(0, "Random seed of the noise.", ge=0, le=2**32 - 1)
    noise: Literal["stochastic_inversion", "random"] = knob(
        "stochastic_inversion", "The noise added to the content: the model's prediction, or random noise.", rare=True
    )


class InSTLearningSettings(Settings):
    """Settings of learning a painting.

    From the authors' code: `size`, `learning_rate` and its factor `batch`, `dropout` (also in the paper), and the
    number of `heads`. This project's: `batch` (authors: 1), `steps` (authors: 6100), early stopping by
    `check_every` and `patience` (authors: none), `full_rate_steps` (authors: a constant rate, the default), `views`
    (authors: the whole painting, mirrored half of the time), `layers` (authors' code: 1; the paper states no
    number), and the width of a head, which is CLIP's width divided by `heads` (authors: 64). `docs/inst.md` lists
    further differences.
    """

    steps: int = knob(
        1000,
        "Maximum number of training steps. Training stops earlier if the validation loss stops falling (patience).",
        ge=1,
        le=MOST_STEPS,
    )
    size: int = knob(512, "Side of the square crops of the painting, in pixels.", rare=True, ge=32, le=1024)
    learning_rate: float = knob(1e-4, "AdamW's learning rate, multiplied by the batch size.", rare=True, gt=0, le=0.1)
    full_rate_steps: int = knob(
        0,
        "Steps at the full learning rate. After them the rate falls in inverse proportion to the step; 0: never.",
        rare=True,
        ge=0,
        le=MOST_STEPS,
    )
    batch: int = knob(4, "Batch size: noised crops of the painting per step.", rare=True, ge=1, le=32)
    views: int = knob(8, "Crops of the painting, some mirrored; 1 is the centre only.", rare=True, ge=1, le=64)
    seed: int = knob(
        0, "Random seed of the crops and the noise. The initial weights are always the same.", ge=0, le=2**31 - 1
    )
    mode: Literal["attention", "embedding"] = knob(
        "attention", "Train attention over the painting, or the embedding alone (textual inversion).", rare=True
    )
    layers: int = knob(3, "Number of cross-attention layers.", rare=True, ge=1, le=8)
    heads: int = knob(8, "Attention heads per layer.", rare=True, ge=1, le=16)
    dropout: float = knob(0.05, "Dropout rate after each layer during training.", rare=True, ge=0, le=0.9)
    check_every: int = knob(25, "Validate every so many steps.", rare=True, ge=1, le=1000)
    patience: int = knob(8, "Stop after this many validations without improvement; 0: never.", rare=True, ge=0, le=1000)
    save_memory: SaveMemory = save_memory_knob()
