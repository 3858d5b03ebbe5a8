"""h-space injection: the content of one image in the look of another, by injection into the U-Net's bottleneck."""

from styleengine.methods.h_space.method import H_SPACE, inject
from styleengine.methods.h_space.settings import HSpaceSettings

__all__ = ["H_SPACE", "HSpaceSettings", "inject"]
