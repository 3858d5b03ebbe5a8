"""The diffusers classes that the package uses.

diffusers imports xformers if it is installed, which prints long warnings where its kernels do not load. diffusers does
not need it: `styleengine.attention` calls xformers itself, after a test. So it is disabled here.
"""

from diffusers.utils import import_utils

import_utils._xformers_available = False

from diffusers import (  # noqa: E402
    AutoencoderKL,
    AutoencoderTiny,
    ConfigMixin,
    DDIMScheduler,
    ModelMixin,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.configuration_utils import register_to_config  # noqa: E402
from diffusers.models.attention_processor import Attention  # noqa: E402
from diffusers.models.autoencoders.vae import DecoderTiny  # noqa: E402

__all__ = [
    "Attention",
    "AutoencoderKL",
    "AutoencoderTiny",
    "ConfigMixin",
    "DDIMScheduler",
    "DecoderTiny",
    "ModelMixin",
    "UNet2DConditionModel",
    "UNet2DModel",
    "register_to_config",
]
