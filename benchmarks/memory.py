"""Counts the bytes that Stable Diffusion 1.5's networks keep alive at most, on meta tensors: no GPU and no memory.

    python -m benchmarks.memory

Live tensors are counted at their exact sizes, with fused attention, whose matrix is never stored. Not counted: the
weights, the workspaces of a GPU's kernels, and fragmentation. `styleengine.memory` estimates from these figures.
"""

import styleengine.networks  # noqa: F401 - before diffusers is imported, which would import xformers

# isort: split

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock
from weakref import WeakKeyDictionary, finalize

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers import CLIPVisionConfig, CLIPVisionModel

from benchmarks.tables import table

GIB = 1 << 30
PATCHES = 33  # CLIP embeds 32 patches and the whole image


class Live(TorchDispatchMode):
    """Within the context, `peak` is the largest sum of the bytes of all living storages that were made in it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: WeakKeyDictionary[torch.UntypedStorage, None] = WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):  # views of weights are not counted
            if isinstance(tensor, torch.Tensor):
                self._known.setdefault(tensor.untyped_storage(), None)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = None
        self.now += size
        self.peak = max(self.peak, self.now)
        finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size


class FusedAttention(torch.autograd.Function):
    """Has the result and the saved tensors of a fused kernel, without values."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


@contextmanager
def fused() -> Iterator[None]:
    """Within the context, attention is fused also on meta tensors."""
    with mock.patch.object(F, "scaled_dot_product_attention", lambda q, k, v, *_, **__: FusedAttention.apply(q, k, v)):
        yield


def counted(function: Callable[[], Any], gradients: bool = False) -> int:
    """The peak of a call's living bytes. What it returns is released at the end."""
    with fused(), torch.set_grad_enabled(gradients), Live() as live:
        function()
    return live.peak


class Shape:
    """Stable Diffusion 1.5's U-Net and autoencoder in float16, CLIP ViT-L/14's image encoder in float32, on meta."""

    def __init__(self) -> None:
        with torch.device("meta"):
            self.unet: Any = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).half()
            self.vae: Any = AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),  # pyright: ignore[reportArgumentType]
                down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
                up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
                layers_per_block=2,
                latent_channels=4,
            ).half()
            vision: Any = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
            vision |= {"num_attention_heads": 16, "patch_size": 14}
            self.clip: Any = CLIPVisionModel(CLIPVisionConfig(**vision))
        for network in (self.unet, self.vae, self.clip):
            network.requires_grad_(False)

    @staticmethod
    def _made(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    def _noise(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        timesteps = torch.empty(len(x), device="meta", dtype=torch.long)
        return self.unet(x, timesteps, encoder_hidden_states=condition).sample

    def evaluation(self, size: int, batch: int = 1) -> int:
        """One evaluation of the U-Net."""
        return counted(lambda: self._noise(self._made(batch, 4, size // 8, size // 8), self._made(batch, 77, 768)))

    def decoding(self, size: int, batch: int = 1) -> int:
        return counted(lambda: self.vae.decode(self._made(batch, 4, size // 8, size // 8)))

    def encoding(self, size: int, batch: int = 1) -> int:
        return counted(lambda: self.vae.encode(self._made(batch, 3, size, size)))

    def learning(self, size: int, batch: int, checkpointed: bool) -> int:
        """A step of InST's learning: the gradient through the U-Net by the condition."""

        def step() -> None:
            condition = self._made(batch, 77, 768).requires_grad_()
            x = self._made(batch, 4, size // 8, size // 8)
            torch.autograd.grad(self._noise(x, condition).float().square().mean(), condition)

        (self.unet.enable_gradient_checkpointing if checkpointed else self.unet.disable_gradient_checkpointing)()
        try:
            return counted(step, gradients=True)
        finally:
            self.unet.disable_gradient_checkpointing()

    def embedding(self, images: int, checkpointed: bool) -> int:
        """The gradient through CLIP."""

        def step() -> None:
            pixels = self._made(images, 3, 224, 224, dtype=torch.float32).requires_grad_()
            torch.autograd.grad(self._embedded(pixels, checkpointed).square().sum(), pixels)

        return counted(step, gradients=True)

    def _embedded(self, pixels: torch.Tensor, checkpointed: bool) -> torch.Tensor:
        if checkpointed:
            self.clip.gradient_checkpointing_enable({"use_reentrant": False})
            self.clip.train()  # transformers checkpoints in training mode only
        try:
            return self.clip(pixels).pooler_output
        finally:
            self.clip.gradient_checkpointing_disable()
            self.clip.eval()

    def guidance(self, size: int, checkpointed: bool, images: int = PATCHES) -> int:
        """A step of QS-Attn: the gradient through the U-Net, the decoder, CLIP, and the U-Net again."""

        def through(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
            return checkpoint(function, x, use_reentrant=False) if checkpointed else function(x)  # type: ignore[return-value]

        def step() -> None:
            x_t = self._made(1, 4, size // 8, size // 8, dtype=torch.float32).requires_grad_()
            condition = self._made(1, 77, 768)
            noise = through(lambda x: self._noise(x.half(), condition).float(), x_t)
            x_in = x_t - noise
            picture = through(lambda x: self.vae.decode(x.half()).sample.float(), x_in)
            cuts = F.interpolate(picture, (224, 224), mode="bilinear").expand(images, -1, -1, -1).contiguous()
            embedded = self._embedded(cuts, checkpointed)
            features = through(lambda x: self._noise(x.half(), condition).float(), x_in)
            torch.autograd.grad(embedded.square().sum() + features.square().sum(), x_t)

        return counted(step, gradients=True)


def rows(sizes: Sequence[int] = (256, 512, 768)) -> dict[str, dict[str, float]]:
    shape, found = Shape(), dict[str, dict[str, float]]()
    for size in sizes:
        counts: dict[str, Callable[[], int]] = {
            "U-Net": lambda size=size: shape.evaluation(size),
            "encoding": lambda size=size: shape.encoding(size),
            "decoding": lambda size=size: shape.decoding(size),
            "InST, one crop": lambda size=size: shape.learning(size, 1, False),
            "InST, one crop, checkpointed": lambda size=size: shape.learning(size, 1, True),
            "QS-Attn": lambda size=size: shape.guidance(size, False),
            "QS-Attn, checkpointed": lambda size=size: shape.guidance(size, True),
        }
        for name, count in counts.items():
            bytes_ = count()
            found[f"{name}, {size} px"] = {"GiB": bytes_ / GIB, "bytes per pixel": bytes_ / size**2}
    return found


if __name__ == "__main__":
    print(table(rows(), ".4g"))
