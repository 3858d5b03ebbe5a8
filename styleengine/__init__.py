"""StyleEngine: diffusion-based artistic style transfer.

from styleengine import StyleEngine
StyleEngine(model="mini").zstar("photo.jpg", ["painting.jpg"]).save("out.png")
"""

from styleengine.errors import Cancelled, StyleEngineError

__version__ = "0.1.0"

from styleengine.engine import StyleEngine
from styleengine.learned_style import LearnedStyle
from styleengine.methods.h_space import HSpaceSettings
from styleengine.methods.inst import InSTSettings
from styleengine.methods.inst_training import InSTLearningSettings
from styleengine.methods.qs_attn import QSAttnSettings
from styleengine.methods.zstar import Style, ZStarSettings
from styleengine.methods.zstar_video import ZStarVideoSettings
from styleengine.stylization import LearningEvent, StepEvent, Stylization, VideoStylization

__all__ = [
    "Cancelled",
    "HSpaceSettings",
    "InSTLearningSettings",
    "InSTSettings",
    "LearnedStyle",
    "LearningEvent",
    "QSAttnSettings",
    "StepEvent",
    "Style",
    "StyleEngine",
    "StyleEngineError",
    "Stylization",
    "VideoStylization",
    "ZStarSettings",
    "ZStarVideoSettings",
    "__version__",
]
