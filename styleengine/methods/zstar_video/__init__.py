"""Z-STAR+ for clips: single frames (`frames`) and the whole clip (`method`)."""

from styleengine.methods.zstar_video.frames import FrameAttention, FrameRecord, FrameStylizer
from styleengine.methods.zstar_video.method import ZSTAR_VIDEO, stylize_clip
from styleengine.methods.zstar_video.settings import ZStarVideoSettings

__all__ = ["ZSTAR_VIDEO", "FrameAttention", "FrameRecord", "FrameStylizer", "ZStarVideoSettings", "stylize_clip"]
