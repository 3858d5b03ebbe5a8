"""QS-Attn: text-guided style transfer with query-selected contrast."""

from styleengine.methods.qs_attn.method import QS_ATTN, stylize
from styleengine.methods.qs_attn.overlay import anchors_picture
from styleengine.methods.qs_attn.settings import SUGGESTIONS, QSAttnSettings

__all__ = ["QS_ATTN", "SUGGESTIONS", "QSAttnSettings", "anchors_picture", "stylize"]
