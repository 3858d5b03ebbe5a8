"""StyTr²: a feed-forward transformer that redraws an image in the style of another in one pass."""

from styleengine.methods.stytr2.method import STYTR2, StyTr2Settings, stylize

__all__ = ["STYTR2", "StyTr2Settings", "stylize"]
