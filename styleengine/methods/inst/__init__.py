"""InST: learning a painting's style as a token embedding (`learner`), and stylization with it (`method`)."""

from styleengine.methods.inst.learner import Learner, LearningState, learn, learned
from styleengine.methods.inst.method import INST, stylize
from styleengine.methods.inst.paintings import opened_paintings
from styleengine.methods.inst.settings import InSTLearningSettings, InSTSettings

__all__ = [
    "INST",
    "InSTLearningSettings",
    "InSTSettings",
    "Learner",
    "LearningState",
    "learn",
    "learned",
    "opened_paintings",
    "stylize",
]
