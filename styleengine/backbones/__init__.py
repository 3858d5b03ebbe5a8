"""Diffusion models: names, loading and evaluation. Only this package depends on how weights are stored.

A backbone encodes images to latents, decodes them, and predicts noise. Methods use the class
`Backbone`; its two subclasses are latent and pixel-space models.
"""

from styleengine.backbones.base import Backbone, reconstruct
from styleengine.backbones.clip import load_clip
from styleengine.backbones.devices import devices, working_device, working_dtype
from styleengine.backbones.hub import OnBytes
from styleengine.backbones.latent import PLACEHOLDER, LatentBackbone, cut_note, with_text_encoder
from styleengine.backbones.loading import (
    embedded_autoencoder,
    embedded_network,
    find_model,
    folder_revision,
    load_backbone,
    stated_settings,
)
from styleengine.backbones.origins import (
    BACKBONES,
    MODELS,
    default_model,
    is_embedded,
    named_backbones,
    recommended_settings,
    short_title,
)
from styleengine.backbones.pixel import PixelBackbone

__all__ = [
    "BACKBONES",
    "MODELS",
    "PLACEHOLDER",
    "Backbone",
    "LatentBackbone",
    "OnBytes",
    "PixelBackbone",
    "cut_note",
    "default_model",
    "devices",
    "embedded_autoencoder",
    "embedded_network",
    "find_model",
    "folder_revision",
    "is_embedded",
    "load_backbone",
    "load_clip",
    "named_backbones",
    "recommended_settings",
    "reconstruct",
    "short_title",
    "stated_settings",
    "with_text_encoder",
    "working_device",
    "working_dtype",
]
