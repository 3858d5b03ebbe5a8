"""What the package takes from diffusers, imported so that nothing needless comes along.

diffusers imports xformers wherever it is installed. Without CUDA it has no kernels, and says so at length.
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
