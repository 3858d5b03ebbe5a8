"""StyleEngine: diffusion-based artistic style transfer.

from styleengine import StyleEngine
StyleEngine(model="mini").zstar("photo.jpg", ["painting.jpg"]).save("out.png")
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

from styleengine.errors import Cancelled, StyleEngineError, TimeUp
from styleengine.version import __version__

if TYPE_CHECKING:
    from styleengine.comparison import compare
    from styleengine.engine import StyleEngine
    from styleengine.learned_style import LearnedStyle
    from styleengine.methods.h_space import HSpaceSettings
    from styleengine.methods.inst import InSTLearningSettings, InSTSettings
    from styleengine.methods.qs_attn import QSAttnSettings
    from styleengine.methods.stytr2 import StyTr2Settings
    from styleengine.methods.zstar import ZStarSettings
    from styleengine.methods.zstar_video import ZStarVideoSettings
    from styleengine.styles import Style
    from styleengine.stylization import LearningEvent, StepEvent, Stylization, VideoStylization

# Modules that declare the public names, imported on first use: torch and diffusers take seconds to import.
MODULES = {
    "HSpaceSettings": "methods.h_space",
    "InSTLearningSettings": "methods.inst",
    "InSTSettings": "methods.inst",
    "LearnedStyle": "learned_style",
    "LearningEvent": "stylization",
    "QSAttnSettings": "methods.qs_attn",
    "StepEvent": "stylization",
    "StyTr2Settings": "methods.stytr2",
    "Style": "styles",
    "StyleEngine": "engine",
    "Stylization": "stylization",
    "VideoStylization": "stylization",
    "ZStarSettings": "methods.zstar",
    "ZStarVideoSettings": "methods.zstar_video",
    "compare": "comparison",
}

__all__ = [
    "Cancelled",
    "HSpaceSettings",
    "InSTLearningSettings",
    "InSTSettings",
    "LearnedStyle",
    "LearningEvent",
    "QSAttnSettings",
    "StepEvent",
    "StyTr2Settings",
    "Style",
    "StyleEngine",
    "StyleEngineError",
    "Stylization",
    "TimeUp",
    "VideoStylization",
    "ZStarSettings",
    "ZStarVideoSettings",
    "__version__",
    "compare",
]


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{MODULES[name]}"), name)


# Kernels are tested before they are used, so the advice to reinstall xformers where they do not load does not apply.
logging.getLogger("xformers").setLevel(logging.ERROR)
