"""Style attention against the explicit formula, and taps on the layers, which must be removed without a trace."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from styleengine import Cancelled, StyleEngine, attention
from styleengine.attention import (
    Recorder,
    StyleTokens,
    attend,
    attend_with_styles,
    log_mask,
    self_attention_layers,
    tapped,
    use_fused_attention,
)
from styleengine.backbones import Backbone

BATCH, HEADS, TOKENS, STYLE_TOKENS, DIM = 2, 3, 30, 21, 40


def random_qkv(tokens: int = TOKENS, seed: int = 0, batch: int = BATCH) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(2 * torch.randn(batch, HEADS, tokens, DIM, generator=generator) for _ in range(3))


def random_style(
    seed: int, tokens: int = STYLE_TOKENS, bias: torch.Tensor | float | None = None, batch: int = 1
) -> StyleTokens:
    _, keys, values = random_qkv(tokens, seed, batch)
    return StyleTokens(keys, values, bias)


def ramp_with_zeros_and_ones(seed: int) -> torch.Tensor:
    mask = torch.rand(TOKENS, generator=torch.Generator().manual_seed(seed))
    mask[:8], mask[-8:] = 0, 1
    return mask


def explicit(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    styles: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]],
    strength: float,
    content: bool = True,
) -> torch.Tensor:
    """The formula as in the paper: one large matrix of logits, styles' columns times λ, plus log of the mask."""
    q, k, v = q.double(), k.double(), v.double()
    logits, values = [], []
    for style_k, style_v, mask in styles:
        columns = strength * q @ style_k.double().transpose(-1, -2) / math.sqrt(DIM)
        if mask is not None:
            columns = columns + mask.double().log()[:, None]  # log 0 = −∞
        logits.append(columns)
        values.append(style_v.double().expand(len(q), -1, -1, -1))
    if content:
        logits.append(q @ k.transpose(-1, -2) / math.sqrt(DIM))
        values.append(v)
    return (torch.cat(logits, -1).softmax(-1) @ torch.cat(values, 2)).float()


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 1.2, 2.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_reweighting_equals_the_explicit_softmax(strength: float, count: int) -> None:
    q, k, v = random_qkv()
    styles = [random_style(seed, STYLE_TOKENS + seed) for seed in range(1, count + 1)]
    expected = explicit(q, k, v, [(style.keys, style.values, None) for style in styles], strength)
    assert_same(attend_with_styles(q, k, v, styles, strength), expected)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_masks_and_weights_equal_the_explicit_masked_softmax(count: int) -> None:
    """Per-query masks with exact zeros and ones, weights, and styles without either, in one call."""
    q, k, v = random_qkv()
    styles, reference = [], []
    for i in range(count):
        mask, weight = (None, 1.0) if i == 2 else (ramp_with_zeros_and_ones(i), 0.3 + i)
        plain = random_style(i + 1, STYLE_TOKENS + i)
        bias = None if mask is None else log_mask(mask) + math.log(weight)
        styles.append(StyleTokens(plain.keys, plain.values, bias))
        reference.append((plain.keys, plain.values, None if mask is None else weight * mask))
    assert_same(attend_with_styles(q, k, v, styles, 1.2), explicit(q, k, v, reference, 1.2))


def test_a_number_as_bias_weighs_the_whole_style() -> None:
    q, k, v = random_qkv()
    style = random_style(1, bias=math.log(0.25))
    expected = explicit(q, k, v, [(style.keys, style.values, torch.full((TOKENS,), 0.25))], 1.1)
    assert_same(attend_with_styles(q, k, v, [style], 1.1), expected)


def test_without_content_attention_is_over_the_styles_only() -> None:
    q, k, v = random_qkv()
    style = random_style(1)
    expected = explicit(q, k, v, [(style.keys, style.values, None)], 1.0, content=False)
    assert_same(attend_with_styles(q, k, v, [style], 1.0, content=False), expected)
    assert_same(attend(q, style.keys.expand(BATCH, -1, -1, -1), style.values.expand(BATCH, -1, -1, -1)), expected)


def test_a_style_of_the_contents_own_batch_size_is_taken_row_by_row() -> None:
    q, k, v = random_qkv()
    style = random_style(1, batch=BATCH)
    assert_same(attend_with_styles(q, k, v, [style], 1.2), explicit(q, k, v, [(style.keys, style.values, None)], 1.2))


def test_vanishing_style_logits_leave_plain_self_attention() -> None:
    q, k, v = random_qkv()
    plain = attend(q, k, v)
    hidden = attend_with_styles(q, k, v, [random_style(1, bias=log_mask(torch.zeros(TOKENS)))], 1.2)
    assert_same(hidden, plain)
    distances = [
        float((attend_with_styles(q, k, v, [random_style(1, bias=bias)], 1.2) - plain).abs().max())
        for bias in (0.0, -4.0, -8.0, -16.0, -32.0)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-5 < distances[0]


def test_where_the_mask_is_one_nothing_changes_and_where_it_is_zero_attention_is_over_the_content_only() -> None:
    q, k, v = random_qkv()
    mask = (torch.arange(TOKENS) % 2).float()
    masked = attend_with_styles(q, k, v, [random_style(1, bias=log_mask(mask))], 1.2)
    assert_same(masked[:, :, mask == 1], attend_with_styles(q, k, v, [random_style(1)], 1.2)[:, :, mask == 1])
    assert_same(masked[:, :, mask == 0], attend(q, k, v)[:, :, mask == 0])


def test_a_style_given_twice_is_that_style_with_weight_two() -> None:
    q, k, v = random_qkv()
    twice = attend_with_styles(q, k, v, [random_style(1), random_style(1)], 1.2)
    once = attend_with_styles(q, k, v, [random_style(1, bias=math.log(2))], 1.2)
    assert_same(twice, once)
    assert float((twice - attend_with_styles(q, k, v, [random_style(1)], 1.2)).abs().max()) > 1e-2


def test_swapping_two_styles_with_their_masks_changes_nothing() -> None:
    q, k, v = random_qkv()
    one = random_style(1, bias=log_mask(ramp_with_zeros_and_ones(1)))
    other = random_style(2, 33, bias=log_mask(ramp_with_zeros_and_ones(2)) + 0.7)
    assert_same(attend_with_styles(q, k, v, [one, other], 1.2), attend_with_styles(q, k, v, [other, one], 1.2))


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation within it returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def largest(work: Callable[[], object]) -> int:
    with torch.no_grad(), LargestTensor() as mode:
        work()
    return mode.elements


@pytest.mark.parametrize("bias", [None, 0.5, "mask"])
@pytest.mark.parametrize("dim", [16, 40, 80])
def test_no_matrix_of_all_pairs_of_tokens_is_built(bias: float | str | None, dim: int) -> None:
    tokens = 1024
    q = torch.randn(1, 1, tokens, dim)
    given = log_mask(torch.rand(tokens)) if bias == "mask" else bias
    style = StyleTokens(q, q, given)  # type: ignore[arg-type]
    assert largest(lambda: attend_with_styles(q, q, q, [style], 1.2)) <= 2 * tokens * (dim + 8)
    assert largest(lambda: explicit_32(q)) >= 2 * tokens * tokens  # the measurement can fail


def explicit_32(q: torch.Tensor) -> torch.Tensor:
    k = torch.cat([q, q], 2)
    return (q @ k.transpose(-1, -2)).softmax(-1) @ k


def test_log_mask_is_zero_at_one_and_minus_infinity_at_zero() -> None:
    values = log_mask(torch.tensor([1.0, 0.5, 0.0]))
    assert values[0] == 0
    assert values[1] == pytest.approx(math.log(0.5))
    assert values[2] == -math.inf


DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def opposed(dtype: torch.dtype, dim: int, logit: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys with which they have the logit, and keys with which they have the negative of it."""
    q = torch.randn(1, 2, 8, dim, generator=torch.Generator().manual_seed(0)).sign() * (logit / dim**0.5) ** 0.5
    q = q[:, :, :1].expand(-1, -1, 8, -1).to(dtype)
    return q, q.clone(), -q


def style_share(
    q: torch.Tensor, k: torch.Tensor, style_k: torch.Tensor, bias: torch.Tensor | float, strength: float
) -> torch.Tensor:
    """The share of each query's attention on the style: the output if its values are 1 and all others 0."""
    style = StyleTokens(style_k, torch.ones_like(style_k), bias)
    return attend_with_styles(q, k, torch.zeros_like(k), [style], strength).float()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [2, 40, 64, 80, 160, 320])
@pytest.mark.parametrize("strength", [0.0, 1.2, 2.0, 4.0])
@pytest.mark.parametrize("logit", [1.0, 100.0, 500.0])
def test_where_the_mask_is_zero_the_style_has_no_share_at_all(
    dtype: torch.dtype, dim: int, strength: float, logit: float
) -> None:
    """However much larger the style's logits are than the content's, and whatever the style's weight."""
    q, like, unlike = opposed(dtype, dim, logit)
    mask = (torch.arange(8) % 2).float()
    for weight in (1.0, 1e6):
        share = style_share(q, unlike, like, math.log(weight) + log_mask(mask), strength)
        assert (share[:, :, mask == 0] == 0).all()
        assert (share[:, :, mask == 1] > 0.4).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [40, 80, 160])
@pytest.mark.parametrize("count", [1, 5])
def test_masks_between_and_weights_are_exact_in_every_precision(dtype: torch.dtype, dim: int, count: int) -> None:
    """With equal logits the shares are those of the masks, up to the kernel's rounding."""
    mask = torch.tensor([1 / 255, 0.011, 0.1, 0.37, 0.5, 0.9, 0.99, 1.0])
    q = torch.zeros(1, 2, 8, dim, dtype=dtype)
    style = StyleTokens(q, torch.ones_like(q), math.log(0.3) + log_mask(mask))
    others = [StyleTokens(q, torch.zeros_like(q), math.log(0.7) + log_mask(1 - mask)) for _ in range(count - 1)]
    got = attend_with_styles(q, q, torch.zeros_like(q), [style, *others], 1.2).float()
    expected = 0.3 * mask / (0.3 * mask + (count - 1) * 0.7 * (1 - mask) + 1)
    rounding = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 6e-3}[dtype]
    torch.testing.assert_close(got, expected[:, None].expand_as(got), rtol=rounding, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_where_one_style_is_masked_out_another_may_apply(dtype: torch.dtype) -> None:
    q, like, unlike = opposed(dtype, 40, 500.0)
    left = (torch.arange(8) < 4).float()
    styles = [StyleTokens(like, torch.full_like(like, value), log_mask(m)) for value, m in ((1, left), (2, 1 - left))]
    seen = attend_with_styles(q, unlike, torch.zeros_like(q), styles, 4.0).float()
    assert (seen[:, :, :4] == 1).all()
    assert (seen[:, :, 4:] == 2).all()
    alone = attend_with_styles(q, unlike, torch.zeros_like(q), styles, 1.0, content=False)
    assert torch.equal(alone.float(), seen)


# The kernels


def test_without_cuda_xformers_is_not_imported_and_prints_nothing() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code = "import sys, styleengine.engine, styleengine.metrics; print('xformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), "xformers" in done.stderr.lower()) == ("False", False)
    assert not attention.xformers_works(torch.device("cpu"), torch.float32, 40)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> tuple[torch.device, torch.dtype, int]:
    """Arguments for a probe on a GPU, with nothing cached."""
    monkeypatch.setattr(attention, "_probed", {})
    return torch.device("cuda"), torch.float16, 40


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (ImportError("no xformers"), False),
        (NotImplementedError("no operator found"), False),
        (RuntimeError("CUDA error: no kernel image is available"), False),
    ],
)
def test_the_result_of_the_xformers_probe_is_cached_unless_memory_ran_out(
    cuda: tuple, monkeypatch: pytest.MonkeyPatch, error: Exception, again: bool
) -> None:
    probes = []

    def probe(*arguments: object) -> bool:
        probes.append(arguments)
        if len(probes) == 1:
            raise error
        return True

    monkeypatch.setattr(attention, "_xformers_runs", probe)
    assert [attention.xformers_works(*cuda) for _ in range(3)] == [False, again, again]
    assert len(probes) == 2 if again else len(probes) == 1


@pytest.mark.parametrize("late", [False, True])
def test_an_error_that_cuda_reports_asynchronously_is_found_by_the_probe(
    cuda: tuple, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    ops = type(sys)("xformers.ops")
    ops.memory_efficient_attention = lambda q, k, v, scale: q  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", type(sys)("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    zeros, asked = torch.zeros, []
    monkeypatch.setattr(torch, "zeros", lambda *shape, device, dtype: zeros(*shape, dtype=dtype))

    def synchronize(device: torch.device) -> None:
        asked.append(device)
        if late:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert attention.xformers_works(*cuda) is not late
    assert asked == [cuda[0]]


@pytest.fixture
def fake_xformers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """An xformers that works; gives the shapes of the keys in the order of its calls."""
    shapes: list[tuple[int, ...]] = []

    def memory_efficient_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        assert q.shape[0] == k.shape[0] == v.shape[0]
        shapes.append(tuple(k.shape))  # (batch, tokens, heads, head dimension)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return (q @ k.transpose(-1, -2) * scale).softmax(-1).matmul(v).transpose(1, 2)

    ops = type(sys)("xformers.ops")
    ops.memory_efficient_attention = memory_efficient_attention  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", type(sys)("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    monkeypatch.setattr(attention, "xformers_works", lambda *_: True)
    return shapes


@pytest.fixture
def fused(backbone: Backbone) -> Iterator[Backbone]:
    """The backbone with the processors that a GPU's U-Net has."""
    before = dict(backbone.unet.attn_processors)
    use_fused_attention(backbone.unet)
    yield backbone
    backbone.unet.set_attn_processor(before)


def test_all_attention_of_the_unet_goes_through_one_kernel_with_the_same_result(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = plain_prediction(backbone)
    before = dict(backbone.unet.attn_processors)
    use_fused_attention(backbone.unet)
    try:
        assert torch.equal(plain_prediction(backbone), expected)
    finally:
        backbone.unet.set_attn_processor(before)


def test_xformers_computes_self_attention_and_cross_attention_of_all_layers(
    fused: Backbone, fake_xformers: list[tuple[int, ...]]
) -> None:
    found = plain_prediction(fused)
    assert len(fake_xformers) == 2 * 16
    words = fused.condition([""]).shape[1]
    assert [shape[1] for shape in fake_xformers[1::2]] == [words] * 16
    assert [shape[1] for shape in fake_xformers[::2]] == [64] * 2 + [16] * 2 + [4] * 2 + [1] + [4] * 3 + [16] * 3 + [
        64
    ] * 3
    fake_xformers.clear()
    with tapped(fused.unet, Recorder(), range(10, 16)):
        torch.testing.assert_close(plain_prediction(fused), found, atol=1e-6, rtol=0)
    assert len(fake_xformers) == 2 * 16
    use_fused_attention(fused.unet)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "xformers_works", lambda *_: False)
        torch.testing.assert_close(plain_prediction(fused), found, atol=1e-5, rtol=0)


def test_xformers_computes_gradients_too(fused: Backbone, fake_xformers: list[tuple[int, ...]]) -> None:
    condition = fused.condition([""]).requires_grad_()
    x_t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def gradient() -> torch.Tensor:
        with torch.enable_grad():
            loss = fused.predict_noise_with_gradient(x_t, 500, condition).square().sum()
            return torch.autograd.grad(loss, condition)[0]

    found = gradient()
    assert len(fake_xformers) == 2 * 16
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "xformers_works", lambda *_: False)
        torch.testing.assert_close(gradient(), found, atol=1e-3, rtol=1e-3)


def test_a_unet_without_transformers_keeps_its_processors(pixel_engine: StyleEngine) -> None:
    unet: Any = pixel_engine.backbone.unet
    layers = [module for module in unet.modules() if hasattr(module, "processor")]
    before = [layer.processor for layer in layers]
    use_fused_attention(unet)
    assert before
    assert [layer.processor for layer in layers] == before


def test_where_xformers_has_no_kernels_nothing_is_printed() -> None:
    """Neither by diffusers, nor by the probe of a GPU, which imports it."""
    code = (
        "import torch; from styleengine import attention, networks; "
        "print(attention.xformers_works(torch.device('cuda'), torch.float16, 40))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "xformers" not in done.stderr.lower()
    assert done.stdout.strip() in ("True", "False")


def test_layers_are_in_the_order_of_execution(backbone: Backbone) -> None:
    executed: list[torch.nn.Module] = []
    layers = self_attention_layers(backbone.unet)
    hooks = [layer.register_forward_pre_hook(lambda module, inputs: executed.append(module)) for layer in layers]
    try:
        plain_prediction(backbone)
    finally:
        for hook in hooks:
            hook.remove()
    assert [id(layer) for layer in executed] == [id(layer) for layer in layers]


def test_down_holds_layers_0_to_5_mid_6_and_up_7_to_15(backbone: Backbone) -> None:
    names = {id(module): name for name, module in backbone.unet.named_modules()}
    blocks = [names[id(layer)].split("_")[0] for layer in self_attention_layers(backbone.unet)]
    assert blocks == ["down"] * 6 + ["mid"] + ["up"] * 9
    assert all(names[id(layer)].endswith("attn1") for layer in self_attention_layers(backbone.unet))


def plain_prediction(backbone: Backbone) -> torch.Tensor:
    x_t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return backbone.predict_noise(x_t, 500, backbone.condition([""]))


def processors(backbone: Backbone) -> list[int]:
    return [id(processor) for processor in backbone.unet.attn_processors.values()]


def untouched(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return attend(q, k, v)


def test_a_tap_that_changes_nothing_changes_nothing(backbone: Backbone) -> None:
    before = plain_prediction(backbone)
    with tapped(backbone.unet, untouched, range(16)):
        during = plain_prediction(backbone)
    torch.testing.assert_close(during, before, atol=1e-6, rtol=0)


def test_a_tap_gets_the_queries_keys_and_values_of_the_chosen_layers_only(backbone: Backbone) -> None:
    seen: list[int] = []

    def note(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        module = self_attention_layers(backbone.unet)[layer]
        assert q.shape == k.shape == v.shape
        assert q.shape[1] == module.heads
        seen.append(layer)
        return attend(q, k, v)

    with tapped(backbone.unet, note, [3, 6, 15]):
        plain_prediction(backbone)
    assert seen == [3, 6, 15]


def test_the_recorder_keeps_what_the_projections_give(backbone: Backbone) -> None:
    module, projected = self_attention_layers(backbone.unet)[12], {}
    hooks = [
        module.to_k.register_forward_hook(lambda m, i, output: projected.update(k=output)),  # type: ignore[union-attr]
        module.to_v.register_forward_hook(lambda m, i, output: projected.update(v=output)),  # type: ignore[union-attr]
    ]
    recorder = Recorder()
    try:
        with tapped(backbone.unet, recorder, [12]):
            recorded = plain_prediction(backbone)
    finally:
        for hook in hooks:
            hook.remove()
    keys, values = recorder.keys_values[12]
    assert torch.equal(keys.transpose(1, 2).flatten(2), projected["k"])
    assert torch.equal(values.transpose(1, 2).flatten(2), projected["v"])
    torch.testing.assert_close(recorded, plain_prediction(backbone), atol=1e-6, rtol=0)


@pytest.mark.parametrize("error", [None, RuntimeError, Cancelled, KeyboardInterrupt, GeneratorExit])
def test_every_exit_restores_the_processors(backbone: Backbone, error: type[BaseException] | None) -> None:
    before, answer = processors(backbone), plain_prediction(backbone)

    def failing(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if layer == 9 and error:
            raise error
        return torch.zeros_like(q)

    def run() -> None:
        with tapped(backbone.unet, failing, range(16)):
            assert processors(backbone) != before
            plain_prediction(backbone)

    if error:
        with pytest.raises(error):
            run()
    else:
        run()
    assert processors(backbone) == before
    assert torch.equal(plain_prediction(backbone), answer)


def test_taps_within_taps_are_undone_in_order(backbone: Backbone) -> None:
    before = processors(backbone)
    with tapped(backbone.unet, untouched, [10, 11]):
        outer = processors(backbone)
        with tapped(backbone.unet, Recorder(), [11, 12]):
            pass
        assert processors(backbone) == outer
    assert processors(backbone) == before


def test_a_layer_that_does_not_exist_leaves_the_network_unchanged(backbone: Backbone) -> None:
    before = processors(backbone)
    with pytest.raises(IndexError), tapped(backbone.unet, untouched, [3, 16]):
        pass
    assert processors(backbone) == before


def test_attend_is_softmax_attention_at_any_scale() -> None:
    q, k, v = random_qkv()
    for scale in (None, 0.5):
        logits = q @ k.transpose(-1, -2) * (scale or DIM**-0.5)
        assert_same(attend(q, k, v, scale), F.softmax(logits, -1) @ v)
