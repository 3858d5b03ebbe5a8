"""Fused attention for all methods and for the U-Net, and a tap on a U-Net's self-attention layers.

Shapes are (batch, heads, tokens, head dimension). No N×2N matrix is built: styles, weights
and region masks go through one call of a fused kernel.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F

from styleengine.memory import is_out_of_memory
from styleengine.networks import Attention, UNet2DConditionModel

LOWEST = -60_000.0  # of a bias times √d; the float16 maximum is 65504

_probed: dict[tuple[torch.device, torch.dtype, int], bool] = {}


def xformers_works(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether xformers runs on this device, tested by calling it: importing also works without kernels.

    The result is cached, except after running out of memory. Without CUDA xformers is not imported.
    """
    if device.type != "cuda":
        return False
    key = (device, dtype, head_dim)
    if key not in _probed:
        try:
            _probed[key] = _xformers_runs(device, dtype, head_dim)
        except Exception as error:  # noqa: BLE001 - the other kernel is used after any failure
            if is_out_of_memory(error):
                return False
            _probed[key] = False
    return _probed[key]


def _xformers_runs(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Calls xformers once, with a gradient, and raises its errors, including asynchronous CUDA errors."""
    from xformers.ops import memory_efficient_attention  # pyright: ignore[reportMissingImports]

    with torch.enable_grad():
        q = torch.zeros(1, 8, 1, head_dim, device=device, dtype=dtype).requires_grad_()
        out = memory_efficient_attention(q, q, q, scale=1.0)
        (gradient,) = torch.autograd.grad(out.sum(), q)
    torch.cuda.synchronize(device)
    return not out.any() and bool(gradient.isfinite().all())  # attention over zeros is zero


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """softmax(scale·Q Kᵀ)·V by the best available fused kernel; `scale` is 1/√d unless given."""
    scale = scale if scale is not None else q.shape[-1] ** -0.5
    if xformers_works(q.device, q.dtype, q.shape[-1]):
        from xformers.ops import memory_efficient_attention  # pyright: ignore[reportMissingImports]

        out = memory_efficient_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=scale)
        return out.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


@dataclass(frozen=True)
class StyleTokens:
    """One style's keys and values at one layer, and a bias on its attention logits.

    `bias` is None, a number for all queries (the log of the style's weight), or a tensor with one number
    per content token (the log of a mask). −∞ excludes the style.
    """

    keys: torch.Tensor
    values: torch.Tensor
    bias: torch.Tensor | float | None = None


def attend_with_styles(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    styles: Sequence[StyleTokens],
    strength: float,
    content: bool = True,
) -> torch.Tensor:
    """softmax([λQK_s1ᵀ/√d + b_1, …, QKᵀ/√d])·[V_s1; …; V] (Z-STAR+ Eq. 10, 11, 24 and, by b, 22, 23).

    λ multiplies K_s. A per-query bias b_s(i) is an additional column of the head dimension: Q gets b_s(i),
    K gets 1 on that style's tokens and 0 elsewhere. Then q·k includes the bias, and any fused kernel applies.
    Half precision uses two columns, whose sum is exact where one would be rounded. −∞ becomes
    LOWEST·√(1/d), thousands below any logit. `content` = False omits the content keys (Eq. 7).
    """
    scale = q.shape[-1] ** -0.5
    keys = [(strength * style.keys).to(k.dtype) for style in styles]
    values = [style.values.to(v.dtype) for style in styles]
    if content:
        keys, values = [*keys, k], [*values, v]
    joined_k = torch.cat([x.expand(q.shape[0], -1, -1, -1) for x in keys], 2)
    joined_v = torch.cat([x.expand(q.shape[0], -1, -1, -1) for x in values], 2)
    if all(style.bias is None for style in styles):
        return attend(q, joined_k, joined_v, scale)

    parts = 1 if q.dtype == torch.float32 else 2
    columns = 8 * math.ceil(parts * len(styles) / 8)  # kernels need a head dimension divisible by 8
    more_q = q.new_zeros(*q.shape[:-1], columns)
    more_k = joined_k.new_zeros(*joined_k.shape[:-1], columns)
    start = 0
    for number, style in enumerate(styles):
        end = start + style.keys.shape[2]
        if style.bias is not None:
            rest = torch.as_tensor(style.bias, dtype=torch.float32, device=q.device).div(scale).clamp(min=LOWEST)
            for column in range(parts * number, parts * (number + 1)):
                more_q[..., column] = rest
                more_k[..., start:end, column] = 1
                rest = rest - rest.to(q.dtype)
        start = end
    padded_v = F.pad(joined_v, (0, columns))  # the fastest kernels need V as wide as Q and K
    out = attend(torch.cat([q, more_q], -1), torch.cat([joined_k, more_k], -1), padded_v, scale)
    return out[..., : v.shape[-1]]


def log_mask(mask: torch.Tensor) -> torch.Tensor:
    """Mask values in [0, 1] as additive logits: 1 → 0, 0 → −∞."""
    return mask.log()


KeysValues = dict[int, tuple[torch.Tensor, torch.Tensor]]  # by layer
Queries = dict[int, torch.Tensor]  # by layer


class Tap(Protocol):
    """Computes a self-attention layer's output from its queries, keys and values."""

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor: ...


def self_attention_layers(unet: UNet2DConditionModel) -> list[Attention]:
    """The U-Net's self-attention layers in the order of execution: down, mid, up.

    (`unet.attn_processors` lists the mid block last; the papers number it between down and up.)
    A U-Net without transformers, such as a DDPM's, has none.
    """
    return [block.attn1 for block in transformer_blocks(unet)]


def transformer_blocks(unet: Any) -> list[Any]:
    """The U-Net's transformer blocks in the order of execution."""
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    transformers = (t for block in blocks for t in getattr(block, "attentions", None) or ())
    return [block for t in transformers for block in getattr(t, "transformer_blocks", ())]


class _Processor:
    """A diffusers attention processor: projects to q, k and v, applies `attend`, and projects its output.

    For self-attention and cross-attention in transformer blocks, without masks.
    """

    def __init__(self, attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] = attend) -> None:
        self.attend = attend

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        def heads(projected: torch.Tensor) -> torch.Tensor:
            return projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        to_q, to_k, to_v = attn.to_q, cast(Any, attn.to_k), cast(Any, attn.to_v)  # diffusers' annotations allow None
        out = self.attend(heads(to_q(hidden_states)), heads(to_k(context)), heads(to_v(context)))
        output: Any = attn.to_out
        return output[1](output[0](out.transpose(1, 2).flatten(2).to(hidden_states.dtype)))


def use_fused_attention(unet: Any) -> None:
    """Sends all attention of the U-Net's transformer blocks through `attend`, self-attention and cross-attention.

    diffusers would use PyTorch's kernels only. A U-Net without transformers is left as it is.
    """
    for block in transformer_blocks(unet):
        for module in filter(None, (block.attn1, block.attn2)):
            module.set_processor(_Processor())


@contextmanager
def tapped(unet: UNet2DConditionModel, tap: Tap, layers: Sequence[int]) -> Iterator[None]:
    """Within the context, the self-attention `layers` use `tap`. The U-Net is restored on exit."""
    modules = self_attention_layers(unet)
    before = {layer: modules[layer].processor for layer in layers}
    try:
        for layer in layers:
            processor: Any = _Processor(functools.partial(tap, layer))
            modules[layer].set_processor(processor)
        yield
    finally:
        for layer, original in before.items():
            modules[layer].set_processor(original)


class Recorder:
    """A tap that stores each layer's queries, keys and values and leaves its output unchanged."""

    def __init__(self) -> None:
        self.queries: Queries = {}
        self.keys_values: KeysValues = {}

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        self.queries[layer], self.keys_values[layer] = q, (k, v)
        return attend(q, k, v)
