"""The diffusers classes that the package uses.

diffusers imports xformers if it is installed. Without CUDA, xformers has no kernels and prints long warnings,
so it is disabled here.
"""

import torch
from diffusers.utils import import_utils

if not torch.cuda.is_available():
    import_utils._xformers_available = False

from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.models.attention_processor import Attention

__all__ = ["Attention", "AutoencoderKL", "AutoencoderTiny", "DDIMScheduler", "UNet2DConditionModel", "UNet2DModel"]
