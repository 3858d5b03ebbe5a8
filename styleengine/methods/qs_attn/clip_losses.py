"""CLIP's losses: distances of embeddings, and the patches that are compared (ZeCon, Yang et al. 2023)."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from PIL import Image

from styleengine.images import to_tensor
from styleengine.methods.qs_attn.prompts import Prompt
from styleengine.methods.qs_attn.settings import QSAttnSettings
from styleengine.perceptual import Clip

PATCH_SETS = 4  # used in turn, so that the source's patches are embedded once per run
PATCH_AREA = (0.01, 0.3)  # share of the image, uniform in the area
SKEW = 0.25  # largest inward shift of a patch's corners, as a share of its sides


def spherical_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """2·arcsin(|a − b|/2)² of unit vectors along the last axis: half the squared angle between them."""
    return (a - b).norm(dim=-1).div(2).clamp(max=1 - 1e-6).arcsin().square().mul(2)


def direction_distance(change: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """1 − cos along the last axis."""
    return 1 - F.cosine_similarity(change, wanted, dim=-1)


def patch_sets(settings: QSAttnSettings, size: tuple[int, int]) -> list[torch.Tensor]:
    """The corners of the patches of each set: (P, 4, 2) in [−1, 1], (x, y), clockwise from top left.

    `size` is the image's (width, height). A patch covers 1 to 30 % of its largest square, each corner is
    moved inwards at random, and half of the patches are mirrored. Without this augmentation the
    gradient leads to adversarial images.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    draw = partial(torch.rand, generator=generator, dtype=torch.float32)
    square = min(size) / torch.tensor(size, dtype=torch.float32)  # of the width and of the height
    sets = []
    for _ in range(PATCH_SETS):
        area = torch.empty(settings.patches, 1, 1, dtype=torch.float32).uniform_(*PATCH_AREA, generator=generator)
        half = area.sqrt() * square
        middle = (2 * draw(settings.patches, 1, 2) - 1) * (1 - half)
        skew = 1 - 2 * SKEW * draw(settings.patches, 4, 2)
        corners = torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float32) * skew
        mirrored = draw(settings.patches, 1, 1) < 0.5
        corners = torch.where(mirrored, corners[:, [1, 0, 3, 2]], corners)
        sets.append(middle + half * corners)
    return sets


def cut(picture: torch.Tensor, corners: torch.Tensor, side: int) -> torch.Tensor:
    """The patches (P, 3, side, side) of an image (1, 3, height, width); `corners` as in `patch_sets`."""
    corners = corners.to(picture)
    across = (torch.arange(side, dtype=picture.dtype, device=picture.device) + 0.5) / side
    v, u = across.view(-1, 1, 1), across.view(1, -1, 1)
    top_left, top_right, bottom_right, bottom_left = corners[:, :, None, None].unbind(1)
    top, bottom = top_left + u * (top_right - top_left), bottom_left + u * (bottom_right - bottom_left)
    grid = top + v * (bottom - top)
    expanded = picture.expand(len(corners), -1, -1, -1)
    return F.grid_sample(expanded, grid, mode="bilinear", padding_mode="border", align_corners=False)


def similarity(clip: Clip, picture: Image.Image, prompts: Sequence[Prompt]) -> float:
    """The cosine between the image's and the prompts' embeddings, weighted by prompt."""
    with torch.no_grad():
        of_picture = clip.image_embeddings(to_tensor(picture))
    cosines = (clip.text_embeddings([prompt.text for prompt in prompts]) @ of_picture.T)[:, 0].tolist()
    total = sum(prompt.weight for prompt in prompts)
    return sum(prompt.weight * cosine for prompt, cosine in zip(prompts, cosines, strict=True)) / total
