"""The settings of QS-Attn style transfer."""

from typing import Literal

from styleengine.settings import SaveMemory, Settings, knob, save_memory_knob, size_knob

SUGGESTIONS = ("a sketch with crayon", "golden", "a watercolor painting", "wooden", "red bricks")
Selection = Literal["global", "local", "local_global", "random"]
Features = Literal["raw", "instance_norm"]


class QSAttnSettings(Settings):
    """Settings of QS-Attn style transfer.

    The defaults of `size`, `steps`, `depth`, `anchors`, `window`, `eta`, `patches` and the weights are those of the
    paper and of its base, ZeCon, whose code they follow. `balance`, `step_limit`, `unguided` and `features` are
    ours; with their defaults the last step is not guided, as it has no effect in ZeCon either.
    """

    prompt: str = knob(
        "",
        "The style as text. Several are separated by a bar: “golden | wooden”; “golden::2” has weight 2.",
        title="Style",
        suggestions=SUGGESTIONS,
    )
    source_text: str = knob("Photo", "Text that describes the content image.", title="Content is a")
    balance: float = knob(
        0.5,
        "0 is content only, 1 is style only, 0.5 uses the weights as given.",
        title="Content or style",
        ge=0,
        le=1,
    )
    size: int = size_knob(256, most=1024)
    steps: int = knob(25, "Denoising steps; each needs gradients through all networks.", ge=2, le=100)
    depth: float = knob(0.5, "How far the image is inverted before denoising: higher changes more.", ge=0.2, le=1)
    order: Literal["at_once", "in_sequence"] = knob(
        "at_once", "Several styles combined in one image, or applied one after the other.", rare=True
    )
    seed: int = knob(0, "Random seed of the noise, the patches and the random anchors.", ge=0, le=2**32 - 1)
    selection: Selection = knob(
        "global",
        "How anchors are selected: by global attention, local attention, both, or at random (ZeCon).",
        title="Anchors",
        rare=True,
    )
    features: Features = knob(
        "raw",
        "The U-Net's features in the contrast, as they are or with each channel normalised over the positions.",
        rare=True,
    )
    anchors: int = knob(256, "Anchors per layer; small layers have fewer positions.", rare=True, ge=1, le=1024)
    window: int = knob(7, "Side of the window of local attention, in positions; odd.", rare=True, ge=3, le=15)
    eta: float = knob(
        1.0,
        "Noise added while denoising (η): 1 is DDPM; 0 is none, which keeps more of the content.",
        rare=True,
        ge=0,
        le=1,
    )
    step_limit: float = knob(1.0, "Maximum guidance step, relative to the step's noise σ.", rare=True, ge=0, le=10)
    unguided: float = knob(
        0.0,
        "Share of the steps, at the end, without guidance, in which the model removes artefacts. The last step never "
        "has any.",
        rare=True,
        ge=0,
        le=0.5,
    )
    patches: int = knob(32, "Patches that CLIP embeds in each step.", rare=True, ge=1, le=256)
    global_whole: float = knob(0.0, "Weight of CLIP's global loss on the whole image.", rare=True, ge=0, le=100_000)
    direction_whole: float = knob(
        0.0, "Weight of CLIP's directional loss on the whole image.", rare=True, ge=0, le=100_000
    )
    global_patches: float = knob(10_000.0, "Weight of CLIP's global loss on patches.", rare=True, ge=0, le=100_000)
    direction_patches: float = knob(
        20_000.0, "Weight of CLIP's directional loss on patches.", rare=True, ge=0, le=100_000
    )
    contrast: float = knob(
        500.0, "Weight of the query-selected contrastive loss, summed over the layers.", rare=True, ge=0, le=100_000
    )
    mse: float = knob(5000.0, "Weight of the pixels' mean squared error.", title="MSE", rare=True, ge=0, le=100_000)
    perceptual: float = knob(100.0, "Weight of the difference of CLIP's patch tokens.", rare=True, ge=0, le=100_000)
    range_loss: float = knob(50.0, "Weight of the penalty for out-of-range colours.", rare=True, ge=0, le=100_000)
    save_memory: SaveMemory = save_memory_knob()

    @property
    def unguided_steps(self) -> int:
        """The number of last steps without guidance."""
        return max(1, round(self.unguided * self.steps))

    @property
    def style_share(self) -> float:
        """The factor on all style weights: from 0 to 2, and 1 at balance 0.5."""
        return 2 * self.balance

    @property
    def content_share(self) -> float:
        """The factor on all content weights. The range loss has none."""
        return 2 * (1 - self.balance)
