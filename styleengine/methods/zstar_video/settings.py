"""The settings of Z-STAR+ for clips."""

from typing import Literal

from styleengine.settings import knob
from styleengine.style_attention import (
    StyleAttentionSettings,
)

MOST_FRAMES = 3000


class ZStarVideoSettings(StyleAttentionSettings):
    """Settings of Z-STAR+ for clips: those for images, the part of the clip, and temporal consistency."""

    frames: int = knob(48, "Maximum number of frames; the rest of the clip is left out.", ge=1, le=MOST_FRAMES)
    rate: float = knob(
        12.0, "Frames per second of the result; 0 keeps the clip's own.", title="Frame rate", ge=0, le=60
    )
    begin: float = knob(0.0, "Start in the clip, in seconds.", title="Begin at second", ge=0, le=3600)
    energy: float = knob(
        0.3,
        "Share of the difference to the previous frame that is removed; high values weaken the style.",
        title="Steadiness",
        ge=0,
        le=0.95,
    )
    attention: Literal["all", "styled", "none"] = knob(
        "all",
        "Layers that attend to the first and previous frames: all, those with style attention, or none.",
        title="Inter-frame attention",
        rare=True,
    )
    spare_motion: bool = knob(
        True,
        "Less steadiness where the clip moves; without it, moving parts are steadier but blur.",
        rare=True,
    )
    balance: float = knob(
        1.0,
        "Factor on the style weights against the keys of two frames; 2 is the ratio of a single image.",
        rare=True,
        ge=1,
        le=8,
    )
    gradient: Literal["closed_form", "backprop"] = knob(
        "closed_form", "The energy's gradient: with the noise held fixed, or through the U-Net (slower).", rare=True
    )
    compare: bool = knob(
        False, "Also redraw each frame independently and report how much more that flickers (slower).", rare=True
    )

    def joined_layers(self) -> range:
        """The self-attention layers with inter-frame attention."""
        return {"all": range(16), "styled": self.styled_layers(), "none": range(0)}[self.attention]

    def pull(self) -> float:
        """w: the share of x̂0's difference removed per step; all steps together remove `energy`."""
        return 1 - (1 - self.energy) ** (1 / self.steps)
