"""What Z-STAR+ for clips can be told."""

from typing import Literal

from styleengine.settings import knob
from styleengine.style_attention import (
    StyleAttentionSettings,
)

MOST_FRAMES = 3000


class ZStarVideoSettings(StyleAttentionSettings):
    """Settings of Z-STAR+ for clips: those for pictures, which part of the clip, and what steadies it."""

    frames: int = knob(48, "Most frames to redraw; the rest of the clip is left out.", ge=1, le=MOST_FRAMES)
    rate: float = knob(
        12.0, "Frames per second of the result; 0 keeps the clip's own.", title="Frame rate", ge=0, le=60
    )
    begin: float = knob(0.0, "Second of the clip at which to begin.", title="Begin at second", ge=0, le=3600)
    energy: float = knob(
        0.3,
        "Share of the difference to the previous frame that is taken away over the run; much of it costs style.",
        title="Steadiness",
        ge=0,
        le=0.95,
    )
    attention: Literal["all", "styled", "none"] = knob(
        "all",
        "In which layers frames see the first and the previous frame: all, those that see the styles, or none.",
        title="Inter-frame attention",
        rare=True,
    )
    spare_motion: bool = knob(
        True,
        "Steadiness gives way where the clip itself moves; without this, what moves is steadier and blurs.",
        rare=True,
    )
    balance: float = knob(
        1.0,
        "How many times the styles count beside the keys of two frames; at 2 as much as beside one frame's own.",
        rare=True,
        ge=1,
        le=8,
    )
    gradient: Literal["closed_form", "backprop"] = knob(
        "closed_form", "The energy's gradient: with the noise held fixed, or through the U-Net (slower).", rare=True
    )
    compare: bool = knob(
        False, "Also redraw each frame on its own and report how much more that flickers (takes longer).", rare=True
    )

    def joined_layers(self) -> range:
        """The self-attention layers with inter-frame attention."""
        return {"all": range(16), "styled": self.styled_layers(), "none": range(0)}[self.attention]

    def pull(self) -> float:
        """w: the share of x̂0's difference taken away per step, `energy` being that of all steps together."""
        return 1 - (1 - self.energy) ** (1 / self.steps)
