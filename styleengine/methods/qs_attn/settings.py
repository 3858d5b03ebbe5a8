"""The settings of QS-Attn style transfer."""

from typing import Literal

from styleengine.settings import Settings, knob

SUGGESTIONS = ("a sketch with crayon", "golden", "a watercolor painting", "wooden", "red bricks")
Selection = Literal["global", "local", "local_global", "random"]


class QSAttnSettings(Settings):
    """Settings of QS-Attn style transfer; the defaults are the paper's and its base's."""

    prompt: str = knob(
        "",
        "The style in words. Several at a time with a bar between: “golden | wooden”; “golden::2” counts twice.",
        title="Style",
        suggestions=SUGGESTIONS,
    )
    source_text: str = knob("Photo", "What the content image is now, in words.", title="Content is a")
    balance: float = knob(
        0.5,
        "0 keeps the content, 1 asks for nothing but the style; in the middle all weights are as they stand.",
        title="Content or style",
        ge=0,
        le=1,
    )
    size: int = knob(256, "Length of the result's shorter side in pixels.", ge=64, le=1024)
    steps: int = knob(25, "Denoising steps; each needs gradients through all networks.", ge=2, le=100)
    depth: float = knob(0.5, "How far the picture is noised before it is drawn again: more changes more.", ge=0.2, le=1)
    order: Literal["at_once", "in_sequence"] = knob(
        "at_once", "Several styles mixed in one picture, or each drawn over the result of the one before.", rare=True
    )
    seed: int = knob(0, "Picks the noise, the patches and the random anchors.", ge=0, le=2**32 - 1)
    selection: Selection = knob(
        "global",
        "How anchors are found: by attention to all places, to a window, both, or at random (ZeCon).",
        title="Anchors",
        rare=True,
    )
    anchors: int = knob(256, "Anchors in each layer; small layers have fewer places.", rare=True, ge=1, le=1024)
    window: int = knob(7, "Side of the window of local attention, in places; odd.", rare=True, ge=3, le=15)
    eta: float = knob(
        1.0,
        "Fresh noise on the way back (η): 1 is DDPM, 0 none, which keeps more of the content.",
        rare=True,
        ge=0,
        le=1,
    )
    step_limit: float = knob(
        1.0, "The farthest that the losses may push in one step, in units of its noise σ.", rare=True, ge=0, le=10
    )
    patches: int = knob(32, "Patches that CLIP looks at in each step.", rare=True, ge=1, le=256)
    global_whole: float = knob(0.0, "Weight: the whole picture resembles the words.", rare=True, ge=0, le=100_000)
    direction_whole: float = knob(
        0.0, "Weight: the whole picture changed as the words did.", rare=True, ge=0, le=100_000
    )
    global_patches: float = knob(10_000.0, "Weight: its patches resemble the words.", rare=True, ge=0, le=100_000)
    direction_patches: float = knob(
        20_000.0, "Weight: its patches changed as the words did.", rare=True, ge=0, le=100_000
    )
    contrast: float = knob(500.0, "Weight of the query-selected contrast.", rare=True, ge=0, le=100_000)
    mse: float = knob(5000.0, "Weight of the pixels' squared difference.", title="MSE", rare=True, ge=0, le=100_000)
    perceptual: float = knob(
        100.0, "Weight of the difference that CLIP's patch tokens see.", rare=True, ge=0, le=100_000
    )
    range_loss: float = knob(50.0, "Weight against colours that cannot be shown.", rare=True, ge=0, le=100_000)
    save_memory: bool = knob(
        False, "Compute what gradients need a second time instead of keeping it: slower, less memory.", rare=True
    )

    @property
    def style_share(self) -> float:
        """What the balance makes of all style weights: 0 … 2, and 1 in the middle."""
        return 2 * self.balance

    @property
    def content_share(self) -> float:
        """The same for the content weights. The range loss is on neither side."""
        return 2 * (1 - self.balance)
