"""Z-STAR+ for clips: single frames (`frames`) and the whole clip (`method`)."""

from styleengine.methods.zstar_video.frames import FrameAttention, FramePainter, FrameRecord
from styleengine.methods.zstar_video.method import ZSTAR_VIDEO, stylize_clip
from styleengine.methods.zstar_video.settings import ZStarVideoSettings

__all__ = ["ZSTAR_VIDEO", "FrameAttention", "FramePainter", "FrameRecord", "ZStarVideoSettings", "stylize_clip"]
