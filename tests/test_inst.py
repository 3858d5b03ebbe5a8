"""InST: attention, learning and stylization against direct computations; resuming; networks are restored."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import counted_evaluations
from models import write_random_model
from PIL import Image, ImageOps

from styleengine import Cancelled, LearningEvent, StyleEngine, StyleEngineError
from styleengine.backbones import Backbone, LatentBackbone, load_backbone
from styleengine.cache import ByteCache
from styleengine.ddim import Schedule
from styleengine.images import content_hash, fit, to_images, to_tensor
from styleengine.learned_style import LearnedStyle
from styleengine.methods import inst
from styleengine.methods.inst import InSTLearningSettings, InSTSettings
from styleengine.methods.inst.draws import generator_of
from styleengine.methods.inst.inversion import AttentionInversion, CrossAttention
from styleengine.methods.inst.learner import Learner, LearningState, checkpointing, learn
from styleengine.methods.inst.method import GuidedNoise, adain, start, steps_of
from styleengine.methods.inst.views import cut, prepare
from styleengine.metrics import ssim
from styleengine.perceptual import Clip
from styleengine.run import Run

FAST = InSTLearningSettings(
    steps=6, size=32, batch=2, views=3, learning_rate=0.01, check_every=2, patience=0, layers=2, heads=2, dropout=0.2
)


@pytest.fixture(scope="module")
def clip(backbone: LatentBackbone) -> Clip:
    return Clip(backbone)


@pytest.fixture(scope="module")
def learner(backbone: LatentBackbone, clip: Clip, cat: Image.Image) -> Learner:
    return Learner(backbone, prepare(backbone, cat, lambda: clip, FAST), FAST)


@pytest.fixture(scope="module")
def style(backbone: LatentBackbone, clip: Clip, cat: Image.Image) -> LearnedStyle:
    return finished(learn(backbone, cat, lambda: clip, FAST, name="cat"))


def finished(states: Iterator[LearningState]) -> LearnedStyle:
    last = None
    for state in states:
        last = state
    assert last is not None
    assert last.finished
    return last.style(True)


def at_step(states: Iterator[LearningState], step: int) -> LearnedStyle:
    return next(state.style(True) for state in states if state.step == step)


def unet_output(backbone: LatentBackbone) -> torch.Tensor:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return backbone.predict_noise(x, 300, backbone.condition(["ink"]))


# The placeholder in the prompt


def embedding_of(backbone: LatentBackbone, token: str) -> torch.Tensor:
    encoder: Any = backbone.text_encoder
    return encoder.get_input_embeddings().weight[backbone.tokenizer.convert_tokens_to_ids(token)]


@pytest.mark.parametrize(
    ("prompt", "said"), [("*", "c"), ("a *", "a c"), ("a * b", "a c b"), ("* b *", "c b c"), ("ab*", "ab c")]
)
def test_a_placeholder_with_a_known_tokens_embedding_equals_that_token(
    backbone: LatentBackbone, prompt: str, said: str
) -> None:
    word = embedding_of(backbone, "c</w>")[None]
    assert torch.equal(backbone.condition_with_word(prompt, word), backbone.condition([said]))


def test_each_row_has_its_own_embedding(backbone: LatentBackbone) -> None:
    words = torch.stack([embedding_of(backbone, "c</w>"), embedding_of(backbone, "d</w>")])
    together = backbone.condition_with_word("a *", words)
    torch.testing.assert_close(together, backbone.condition(["a c", "a d"]))


def test_a_prompt_is_truncated_after_the_placeholder_as_any_prompt(backbone: LatentBackbone) -> None:
    word = embedding_of(backbone, "c</w>")[None]
    long = "a b " * 20
    assert torch.equal(backbone.condition_with_word(f"* {long}", word), backbone.condition([f"c {long}"]))


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [("a lighthouse", "has no \\*"), ("", "has no \\*"), ("a " * 20 + "*", "too long")],
)
def test_a_prompt_in_which_the_placeholder_is_missing_or_truncated_is_refused(
    backbone: LatentBackbone, style: LearnedStyle, cat: Image.Image, prompt: str, sentence: str
) -> None:
    with pytest.raises(StyleEngineError, match=sentence):
        inst.stylize(backbone, cat, [style], InSTSettings(prompt=prompt, size=64, steps=2))


def test_the_text_encoder_is_restored_even_after_an_error(
    backbone: LatentBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = backbone.condition(["a b"])
    encoder: Any = backbone.text_encoder

    def fail(*given: Any, **named: Any) -> None:
        raise RuntimeError("half way")

    with monkeypatch.context() as patch:
        patch.setattr(encoder.final_layer_norm, "forward", fail)
        with pytest.raises(RuntimeError, match="half way"):
            backbone.condition_with_word("*", torch.ones(1, backbone.word_width))
    assert torch.equal(backbone.condition(["a b"]), before)
    assert not encoder.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("* " + "a b " * 20, "* " + "a b " * 6 + "a"),  # 16 tokens: start, placeholder, 13 letters, end
        ("a b * " + "c " * 30, "a b * " + "c " * 10 + "c"),
        ("a *" + " c *" * 20, "a * c * c * c * c * c * c *"),
    ],
)
def test_a_truncated_prompt_is_noted(
    backbone: LatentBackbone, style: LearnedStyle, cat: Image.Image, prompt: str, read: str
) -> None:
    assert backbone._tokens_around_word(prompt)[2] == read
    (note,) = inst.stylize(backbone, cat, [style], DRAW.replace(prompt=prompt)).notes
    assert f"up to “…{read[-40:]}” were read" in note
    assert "takes 16 tokens" in note


@pytest.mark.parametrize("prompt", ["*", "a lone *", "a b c d e f g h i j k l *", "* a b c d e f g h i j k l m "])
def test_a_prompt_within_the_limit_gets_no_note(
    backbone: LatentBackbone, style: LearnedStyle, cat: Image.Image, prompt: str
) -> None:
    assert not inst.stylize(backbone, cat, [style], DRAW.replace(prompt=prompt)).notes


# The attention module


def test_a_layer_is_the_attention_of_a_direct_computation() -> None:
    layer = CrossAttention(6, 5, heads=2)
    v, tokens = torch.randn(2, 6), torch.randn(2, 7, 5)
    q, k, values, out = (w.weight.detach().double().numpy() for w in (layer.to_q, layer.to_k, layer.to_v, layer.to_out))
    for row in range(2):
        heads = []
        for head in (slice(0, 3), slice(3, 6)):
            query, keys = q[head] @ v[row].numpy(), tokens[row].numpy() @ k[head].T
            weights = np.exp(keys @ query / np.sqrt(3))
            heads.append(weights / weights.sum() @ (tokens[row].numpy() @ values[head].T))
        expected = out @ np.concatenate(heads)
        np.testing.assert_allclose(layer(v, tokens)[row].detach(), expected, atol=1e-5)


def test_the_embedding_depends_on_the_patch_tokens_and_on_the_pooled_one(learner: Learner) -> None:
    views, module = learner.views, learner.module
    word = module(views.pooled[:1], views.tokens[:1])
    assert not torch.allclose(module(views.pooled[:1], views.tokens[1:2]), word, atol=1e-4)
    assert not torch.allclose(module(views.pooled[1:2], views.tokens[:1]), word, atol=1e-5)


def test_the_initial_embedding_has_about_the_rms_of_the_token_embeddings(
    learner: Learner, backbone: LatentBackbone
) -> None:
    size = learner.word().square().mean().sqrt()
    assert 0.5 * backbone.word_size < size < 2 * backbone.word_size


def test_dropout_zeroes_its_share_after_each_layer_and_keeps_the_mean() -> None:
    settings = FAST.replace(layers=2, dropout=0.25)
    module = AttentionInversion(64, 8, 16, 1.0, settings)
    pooled, tokens = torch.randn(200, 64), torch.randn(200, 4, 8)
    seen: list[torch.Tensor] = []
    for layer in module.layers:
        layer.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
        layer.register_forward_hook(lambda layer, given, output: seen.append(output))
    module.to_word.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    dropped = module(pooled, tokens, torch.Generator().manual_seed(0))
    _, first, into_second, second, into_word = seen
    out = into_second == 0
    assert out.float().mean() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(into_second, torch.where(out, 0, first / 0.75))
    assert not torch.allclose(into_word, torch.nn.functional.layer_norm(second, (64,)), atol=0.1)
    assert not torch.equal(dropped, module(pooled, tokens, torch.Generator().manual_seed(1)))
    assert torch.equal(module(pooled, tokens), module(pooled, tokens))
    none = AttentionInversion(64, 8, 16, 1.0, settings.replace(dropout=0.0))
    assert torch.equal(none(pooled, tokens, torch.Generator()), none(pooled, tokens))


# The loss


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_a_direct_computation(tmp_path: Path, cat: Image.Image, prediction_type: str) -> None:
    backbone: Any = load_backbone(str(write_random_model(tmp_path / "model", prediction_type)), device="cpu")
    learner = Learner(backbone, prepare(backbone, cat, lambda: Clip(backbone), FAST), FAST)
    x_0, places = learner.views.latents[:2], torch.tensor([0.1, 0.7])
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1))
    condition = backbone.condition_with_word("*", learner.word().expand(2, -1))
    errors = []
    for row, t in enumerate((100, 700)):
        alpha = backbone.alphas_cumprod[t]
        z_t = alpha.sqrt() * x_0[row] + (1 - alpha).sqrt() * noise[row]
        output = backbone.unet(z_t[None], t, encoder_hidden_states=condition[:1]).sample[0]
        velocity = alpha.sqrt() * noise[row] - (1 - alpha).sqrt() * x_0[row]
        errors.append((output - (noise[row] if prediction_type == "epsilon" else velocity)).square().mean())
    loss = learner.loss(condition, x_0, places, noise)
    assert float(loss) == pytest.approx(float(sum(errors)) / 2, rel=1e-3)


def test_the_gradient_by_the_embedding_equals_finite_differences(learner: Learner) -> None:
    backbone, views = learner.backbone, learner.views
    noise = torch.randn(views.latents[:2].shape, generator=torch.Generator().manual_seed(1))

    def loss(word: torch.Tensor) -> torch.Tensor:
        condition = backbone.condition_with_word("*", word.expand(2, -1))
        return learner.loss(condition, views.latents[:2], torch.tensor([0.1, 0.7]), noise)

    word = learner.word().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(word), word)
    along = gradient / gradient.norm()
    with torch.no_grad():
        difference = (loss(word + 0.01 * along) - loss(word - 0.01 * along)) / 0.02
    assert float(difference) == pytest.approx(float((gradient * along).sum()), rel=0.05)


def test_the_gradient_in_half_precision_is_that_in_full(model_folder: Path, learner: Learner) -> None:
    gradients = []
    for dtype in (torch.float32, torch.float16):
        backbone: Any = load_backbone(str(model_folder), "cpu", dtype)
        one = Learner(backbone, learner.views, FAST.replace(check_every=1000))
        one.advance()
        gradients.append(torch.cat([weight.grad.flatten() for weight in one.module.parameters()]))  # type: ignore[union-attr]
    full, half = gradients
    assert (half - full).norm() < 0.02 * full.norm()


def test_a_gradient_that_overflows_counts_as_none(learner: Learner) -> None:
    one = Learner(learner.backbone, learner.views, FAST)
    words = one.module(learner.views.pooled[:1], learner.views.tokens[:1])
    one._backward(words.sum() * torch.inf, 1)
    assert all(not weight.grad.any() for weight in one.module.parameters() if weight.grad is not None)


def test_a_loss_that_is_no_number_ends_learning_with_a_sentence(
    backbone: LatentBackbone, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Learner(backbone, learner.views, FAST)
    with torch.no_grad():
        for weight in one.module.parameters():
            weight.fill_(torch.nan)
    with pytest.raises(StyleEngineError, match=r"The loss is not finite after 0 steps \(in float32\)"):
        one.validate()


def test_only_the_module_is_trained_with_one_forward_pass_per_step(
    backbone: LatentBackbone, learner: Learner, clip: Clip
) -> None:
    fresh = Learner(backbone, learner.views, FAST.replace(check_every=1000))
    before = {name: weight.clone() for name, weight in fresh.module.named_parameters()}
    with counted_evaluations(backbone) as batches:
        fresh.advance()
    assert batches == [FAST.batch]
    for name, weight in fresh.module.named_parameters():
        assert not torch.equal(weight, before[name]), name
    for network in (*backbone.networks, clip.model):
        assert all(weight.grad is None and not weight.requires_grad for weight in network.parameters())


def test_saving_memory_gives_the_same_gradient(backbone: LatentBackbone, learner: Learner) -> None:
    gradients = []
    for save_memory in (False, True):
        one = Learner(backbone, learner.views, FAST.replace(save_memory=save_memory))
        one.advance()
        gradients.append([weight.grad for weight in one.module.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_checkpointing_is_undone_after_an_error(backbone: LatentBackbone) -> None:
    def fail() -> None:
        with checkpointing(backbone.unet, True):
            assert backbone.unet.is_gradient_checkpointing
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert not backbone.unet.is_gradient_checkpointing


# Learning


def test_learning_brings_the_loss_below_that_of_the_untrained_embedding_and_of_the_empty_prompt(
    backbone: LatentBackbone, learner: Learner, clip: Clip, cat: Image.Image
) -> None:
    settings = FAST.replace(steps=24, learning_rate=0.01)
    style = finished(learn(backbone, cat, lambda: clip, settings))
    untrained = learner.validation_loss(backbone.condition_with_word("*", learner.word()))
    null = learner.validation_loss(backbone.condition([""]))
    learned = learner.validation_loss(backbone.condition_with_word("*", style.word[None]))
    assert style.record.history[0] == (0, pytest.approx(untrained))
    assert learned == pytest.approx(min(loss for _, loss in style.record.history))
    assert learned < 0.99 * min(untrained, null)


@pytest.fixture(scope="module")
def uninterrupted(backbone: LatentBackbone, clip: Clip, cat: Image.Image) -> dict[str, LearnedStyle]:
    return {
        mode: finished(learn(backbone, cat, lambda: clip, FAST.replace(mode=mode)))
        for mode in ("attention", "embedding")
    }


@pytest.mark.parametrize("mode", ["attention", "embedding"])
@pytest.mark.parametrize("step", [3, 4])
def test_an_interrupted_and_resumed_run_gives_the_same_module(
    backbone: LatentBackbone,
    clip: Clip,
    cat: Image.Image,
    tmp_path: Path,
    uninterrupted: dict[str, LearnedStyle],
    mode: str,
    step: int,
) -> None:
    settings, whole = FAST.replace(mode=mode), uninterrupted[mode]
    torch.manual_seed(step)  # random numbers drawn elsewhere must not matter
    part = at_step(learn(backbone, cat, lambda: clip, settings), step).save(tmp_path / "part.safetensors")
    torch.manual_seed(99)
    known = LearnedStyle.open(part, with_state=True)
    assert not known.record.complete
    again = finished(learn(backbone, cat, lambda: clip, settings, known=known))
    assert again.state.keys() == whole.state.keys()
    for name, x in whole.state.items():
        torch.testing.assert_close(again.state[name], x, atol=1e-6, rtol=0)
    torch.testing.assert_close(again.word, whole.word, atol=1e-6, rtol=0)
    assert [s for s, _ in again.record.history] == [s for s, _ in whole.record.history]
    moved = max(float((whole.state[n] - known.state[n]).abs().max()) for n in whole.state if n.startswith("module."))
    assert moved > 1e-4  # otherwise the test would prove nothing


def test_another_seed_gives_other_crops_noise_and_embeddings_but_the_same_initial_one(
    backbone: LatentBackbone, clip: Clip, cat: Image.Image
) -> None:
    runs = [list(learn(backbone, cat, lambda: clip, FAST.replace(seed=seed))) for seed in (0, 1)]
    losses = [[state.loss for state in run] for run in runs]
    assert all(one != other for one, other in zip(*(each[1:] for each in losses), strict=True))
    assert runs[0][0].validations != runs[1][0].validations
    styles = [finished(iter(run)) for run in runs]
    assert float((styles[0].word - styles[1].word).abs().max()) > 1e-4
    lessons = [prepare(backbone, cat, lambda: clip, FAST.replace(seed=seed)) for seed in (0, 1)]
    assert not torch.equal(lessons[0].latents[1], lessons[1].latents[1])
    fresh = [Learner(backbone, views, FAST.replace(seed=seed)).word() for seed, views in enumerate(lessons)]
    assert torch.equal(*fresh)


def test_the_numbers_of_each_draw_depend_on_the_whole_seed() -> None:
    draws = [(seed, draw) for seed in (0, 1, 2, 1000, 2**31 - 1) for draw in (1, 2, 3, 1 << 20, (1 << 20) + 10_000)]
    numbers = {tuple(torch.rand(4, generator=generator_of(*draw)).tolist()) for draw in draws}
    assert len(numbers) == len(draws)
    assert torch.equal(torch.rand(4, generator=generator_of(0, 5)), torch.rand(4, generator=generator_of(0, 5)))


def test_the_learning_rate_falls_as_one_over_the_step_and_not_at_all_by_default(
    backbone: LatentBackbone, learner: Learner
) -> None:
    rate = FAST.learning_rate * FAST.batch
    assert [learner.rate(step) for step in (1, 100, 10_000)] == [rate] * 3
    falling = Learner(backbone, learner.views, FAST.replace(full_rate_steps=2))
    for step in range(1, 6):
        falling.advance()
        expected = rate * min(1, 2 / step)
        assert falling.optimizer.param_groups[0]["lr"] == pytest.approx(expected) == falling.rate(step)


def test_learning_with_a_falling_rate_is_resumed_as_if_uninterrupted(
    backbone: LatentBackbone, clip: Clip, cat: Image.Image
) -> None:
    settings = FAST.replace(full_rate_steps=2)
    whole = finished(learn(backbone, cat, lambda: clip, settings))
    part = at_step(learn(backbone, cat, lambda: clip, settings), 3)
    again = finished(learn(backbone, cat, lambda: clip, settings, known=part))
    for name, x in whole.state.items():
        torch.testing.assert_close(again.state[name], x, atol=1e-6, rtol=0)
    assert torch.equal(again.word, whole.word)


def test_progress_saved_before_a_setting_existed_is_resumed_with_its_default_only(
    backbone: LatentBackbone, clip: Clip, cat: Image.Image, uninterrupted: dict[str, LearnedStyle]
) -> None:
    part = at_step(learn(backbone, cat, lambda: clip, FAST), 3)
    stated = {name: value for name, value in part.record.settings.items() if name != "full_rate_steps"}
    old = replace(part, record=part.record.replace(settings=stated))
    again = finished(learn(backbone, cat, lambda: clip, FAST, known=old))
    torch.testing.assert_close(again.word, uninterrupted["attention"].word, atol=1e-6, rtol=0)
    with pytest.raises(StyleEngineError, match="what differs: full rate steps"):
        next(learn(backbone, cat, lambda: clip, FAST.replace(full_rate_steps=2), known=old))


def test_learning_does_not_touch_the_global_random_numbers(backbone: LatentBackbone, learner: Learner) -> None:
    fresh, before = Learner(backbone, learner.views, FAST), torch.get_rng_state()
    fresh.advance()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_longer_run_begins_as_a_shorter_one(
    backbone: LatentBackbone, clip: Clip, cat: Image.Image, uninterrupted: dict[str, LearnedStyle]
) -> None:
    short = finished(learn(backbone, cat, lambda: clip, FAST.replace(steps=2)))
    longer = finished(learn(backbone, cat, lambda: clip, FAST, known=short))
    for name, x in uninterrupted["attention"].state.items():
        torch.testing.assert_close(longer.state[name], x, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("changed", "difference"), [({"learning_rate": 0.1}, "learning rate"), ({"seed": 1, "batch": 3}, "batch, seed")]
)
def test_learning_with_other_settings_is_not_resumed(
    backbone: LatentBackbone, clip: Clip, cat: Image.Image, style: LearnedStyle, changed: dict, difference: str
) -> None:
    with pytest.raises(StyleEngineError, match=f"what differs: {difference}"):
        next(learn(backbone, cat, lambda: clip, FAST.replace(**changed), known=style))


def test_another_painting_or_a_style_without_state_is_not_resumed(
    backbone: LatentBackbone, clip: Clip, cat: Image.Image, coffee: Image.Image, style: LearnedStyle
) -> None:
    with pytest.raises(StyleEngineError, match="what differs: painting"):
        next(learn(backbone, coffee, lambda: clip, FAST, known=style))
    with pytest.raises(StyleEngineError, match="start again"):
        next(learn(backbone, cat, lambda: clip, FAST, known=style.without_state()))


def test_learning_stops_early_when_the_validation_loss_no_longer_falls(
    backbone: LatentBackbone, clip: Clip, cat: Image.Image
) -> None:
    settings = FAST.replace(steps=50, learning_rate=1e-9, patience=3)
    style = finished(learn(backbone, cat, lambda: clip, settings))
    assert style.record.step == 6  # three validations, two steps apart
    assert style.record.complete
    falling = finished(learn(backbone, cat, lambda: clip, FAST.replace(patience=3, learning_rate=0.005)))
    assert falling.record.step == FAST.steps


def test_the_embedding_with_the_lowest_validation_loss_is_kept(
    backbone: LatentBackbone, clip: Clip, cat: Image.Image, learner: Learner
) -> None:
    settings = FAST.replace(steps=20, learning_rate=0.1)  # far too high a learning rate: the loss rises and falls
    style = finished(learn(backbone, cat, lambda: clip, settings))
    best = min(style.record.history, key=lambda entry: entry[1])
    assert style.record.best_step == best[0] != style.record.step
    assert learner.validation_loss(backbone.condition_with_word("*", style.word[None])) == pytest.approx(best[1])
    part = at_step(learn(backbone, cat, lambda: clip, settings), best[0] + 1)
    again = finished(learn(backbone, cat, lambda: clip, settings, known=part))
    torch.testing.assert_close(again.word, style.word, atol=1e-6, rtol=0)


def test_learning_stopped_between_two_validations_is_validated_then_and_resumes_as_if_uninterrupted(
    backbone: LatentBackbone, clip: Clip, cat: Image.Image, learner: Learner
) -> None:
    settings = FAST.replace(steps=6, check_every=4, learning_rate=0.005)
    whole = finished(learn(backbone, cat, lambda: clip, settings))
    stopped = next(s for s in learn(backbone, cat, lambda: clip, settings) if s.step == 3).style(True, look=True)
    assert [step for step, _ in stopped.record.history] == [0, 3]
    assert stopped.record.best_step == 3
    assert learner.validation_loss(backbone.condition_with_word("*", stopped.word[None])) == pytest.approx(
        stopped.record.history[-1][1]
    )
    again = finished(learn(backbone, cat, lambda: clip, settings, known=stopped))
    assert [step for step, _ in again.record.history] == [step for step, _ in whole.record.history] == [0, 4, 6]
    for name, x in whole.state.items():
        torch.testing.assert_close(again.state[name], x, atol=1e-6, rtol=0)


def test_each_step_is_reported_with_its_loss_and_the_speed(
    backbone: LatentBackbone, clip: Clip, cat: Image.Image
) -> None:
    states = list(learn(backbone, cat, lambda: clip, FAST))
    assert [state.step for state in states] == list(range(7))
    assert states[0].loss is None
    assert all((state.loss or 0) > 0 and state.steps_per_second > 0 for state in states[1:])
    assert [step for step, _ in states[-1].validations] == [0, 2, 4, 6]
    assert [state.finished for state in states] == [False] * 6 + [True]


def test_the_painting_is_encoded_once(backbone: LatentBackbone, clip: Clip, cat: Image.Image) -> None:
    cache, loads = ByteCache(1 << 20), []

    def loaded() -> Clip:
        loads.append(1)
        return clip

    for _ in range(2):
        finished(learn(backbone, cat, loaded, FAST.replace(steps=1), cache=cache))
    assert len(loads) == 1
    views = prepare(backbone, cat, loaded, FAST, cache)
    assert len(loads) == 1
    whole = to_tensor(fit(cat, (32, 32)))
    torch.testing.assert_close(views.latents[:1], backbone.encode(whole))
    torch.testing.assert_close(views.tokens[:1], clip.patch_tokens(whole))
    assert views.latents.shape[0] == views.tokens.shape[0] == views.pooled.shape[0] == FAST.views


def test_crops_lie_within_the_painting_and_every_other_one_is_mirrored() -> None:
    ramp = Image.merge("RGB", [Image.linear_gradient("L").rotate(90).resize((180, 90))] * 3)
    middle, *others = cut(ramp, FAST.replace(views=7), 8)
    assert middle.tobytes() == fit(ramp, (32, 32)).tobytes()
    assert len({view.tobytes() for view in others}) == 6
    rising = [np.asarray(view)[16, -1, 0] > np.asarray(view)[16, 0, 0] for view in others]
    upright = np.asarray(ramp)[0, -1, 0] > np.asarray(ramp)[0, 0, 0]
    assert rising == [not upright, upright] * 3
    assert np.asarray(ImageOps.mirror(others[0]))[16, -1, 0] > 0


def test_a_run_that_fails_half_way_leaves_the_unet_as_it_was(
    backbone: LatentBackbone, clip: Clip, cat: Image.Image
) -> None:
    before = unet_output(backbone)

    def fail(*given: Any) -> None:
        raise RuntimeError("half way")

    states = learn(backbone, cat, lambda: clip, FAST.replace(save_memory=True))
    next(states)
    handle = backbone.unet.up_blocks[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="half way"):
        list(states)
    handle.remove()
    assert torch.equal(unet_output(backbone), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.unet.modules())
    assert not backbone.unet.is_gradient_checkpointing
    assert not any(weight.requires_grad for network in backbone.networks for weight in network.parameters())


# Stylization


DRAW = InSTSettings(size=32 * 2, steps=8)


def test_strength_0_gives_the_autoencoders_reconstruction_of_the_content(
    backbone: LatentBackbone, style: LearnedStyle, coffee: Image.Image
) -> None:
    result = inst.stylize(backbone, coffee, [style], DRAW.replace(strength=0.0))
    expected = to_images(backbone.decode(backbone.encode(to_tensor(fit(coffee, (96, 64))))))[0]
    assert result.image.tobytes() == expected.tobytes()


def test_stochastic_inversion_replaces_the_random_noise_by_the_predicted_noise(
    backbone: LatentBackbone, style: LearnedStyle, cat: Image.Image
) -> None:
    schedule = Schedule.spaced(backbone.alphas_cumprod, 8).lowest(5)
    z_0, alpha, t = backbone.encode(to_tensor(fit(cat, (64, 64)))), schedule.levels[5], schedule.timesteps[5]
    guided = GuidedNoise(Run(backbone, schedule), style, DRAW)
    chance = torch.randn(z_0.shape, generator=torch.Generator().manual_seed(7))
    condition = backbone.condition_with_word("*", style.word[None])
    predicted = backbone.predict_noise(alpha.sqrt() * z_0 + (1 - alpha).sqrt() * chance, t, condition)
    for noise, expected in (("random", chance), ("stochastic_inversion", predicted)):
        generator = torch.Generator().manual_seed(7)
        z_t = start(z_0, schedule, guided, DRAW.replace(noise=noise), generator)
        torch.testing.assert_close(z_t, alpha.sqrt() * z_0 + (1 - alpha).sqrt() * expected)


@pytest.mark.parametrize(("strength", "steps"), [(0.0, 0), (0.01, 1), (0.5, 4), (0.51, 5), (0.7, 6), (1.0, 8)])
def test_strength_is_the_share_of_the_steps_that_is_run(
    backbone: LatentBackbone, style: LearnedStyle, cat: Image.Image, strength: float, steps: int
) -> None:
    settings = DRAW.replace(strength=strength)
    assert steps_of(settings) == steps
    with counted_evaluations(backbone) as batches:
        inst.stylize(backbone, cat, [style], settings)
    assert batches == ([1] + [2] * steps if steps else [])  # ε̂ without guidance, then both at once


def test_guidance_moves_away_from_the_empty_prompt(backbone: LatentBackbone, style: LearnedStyle) -> None:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    condition = backbone.condition_with_word("a *", style.word[None])
    schedule = Schedule.spaced(backbone.alphas_cumprod, 10)
    conditions = (condition, backbone.condition([""]))
    conditional, null = (backbone.predict_noise(x, schedule.timesteps[4], c) for c in conditions)
    for guidance in (0.0, 1.0, 10.0):
        settings = DRAW.replace(prompt="a *", guidance=guidance)
        predicted = GuidedNoise(Run(backbone, schedule), style, settings)(x, 4)
        torch.testing.assert_close(predicted, null + guidance * (conditional - null), atol=1e-5, rtol=1e-4)


def test_adain_gives_the_latents_the_paintings_statistics(
    backbone: LatentBackbone, style: LearnedStyle, cat: Image.Image, rocket: Image.Image
) -> None:
    painting = backbone.encode(to_tensor(fit(cat, (32, 32))))[0].flatten(1)
    torch.testing.assert_close(style.latent_mean, painting.mean(1))
    torch.testing.assert_close(style.latent_std, painting.std(1))
    unbounded = DRAW.replace(adain_gain=10, adain_shift=10)
    z = adain(backbone.encode(to_tensor(rocket)), style, unbounded)[0].flatten(1)
    torch.testing.assert_close(z.mean(1), style.latent_mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(z.std(1), style.latent_std, atol=1e-4, rtol=1e-4)
    with_it, without = (
        inst.stylize(backbone, rocket, [style], DRAW.replace(adain=wanted, strength=0.0)) for wanted in (True, False)
    )
    assert with_it.image.tobytes() != without.image.tobytes()


def test_adain_amplifies_and_shifts_no_channel_beyond_its_bounds(
    backbone: LatentBackbone, style: LearnedStyle, rocket: Image.Image
) -> None:
    z_0 = backbone.encode(to_tensor(rocket))
    before = z_0[0].flatten(1)
    offset, scale = torch.tensor([0.2, -0.3, 4.0, -5.0]), torch.tensor([0.5, 0.9, 2.0, 40.0])
    painting = replace(style, latent_mean=before.mean(1) + offset, latent_std=before.std(1) * scale)
    for gain, shift in ((1.0, 0.25), (3.0, 10.0), (10.0, 0.0)):
        z = adain(z_0, painting, DRAW.replace(adain_gain=gain, adain_shift=shift))[0].flatten(1)
        expected_mean = before.mean(1) + torch.tensor([max(-shift, min(shift, float(x))) for x in offset])
        expected_std = before.std(1) * torch.tensor([min(gain, float(x)) for x in scale])
        torch.testing.assert_close(z.mean(1), expected_mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(z.std(1), expected_std, atol=1e-4, rtol=1e-4)
    amplified = adain(z_0, painting, DRAW)[0].flatten(1).std(1) / before.std(1)
    assert float(amplified.max()) < 1.001  # by default


def test_two_styles_are_mixed_and_the_ends_are_each_alone(
    backbone: LatentBackbone, clip: Clip, style: LearnedStyle, coffee: Image.Image, cat: Image.Image
) -> None:
    other = finished(learn(backbone, coffee, lambda: clip, FAST, name="coffee"))

    def drawn(styles: list[LearnedStyle], mix: float) -> bytes:
        return inst.stylize(backbone, cat, styles, DRAW.replace(mix=mix)).image.tobytes()

    both = [style, other]
    assert drawn(both, 0.0) == drawn([style], 0.5)
    assert drawn(both, 1.0) == drawn([other], 0.5)
    assert len({drawn(both, mix) for mix in (0.0, 0.5, 1.0)}) == 3


def test_without_a_content_the_prompt_is_sampled_from_the_seed(backbone: LatentBackbone, style: LearnedStyle) -> None:
    def drawn(**changed: Any) -> Image.Image:
        return inst.stylize(backbone, None, [style], DRAW.replace(prompt="a * b", **changed)).image

    assert drawn().size == (64, 64)
    assert drawn().tobytes() == drawn(strength=0.1).tobytes()
    assert drawn().tobytes() != drawn(seed=1).tobytes()
    assert drawn().tobytes() != drawn(guidance=1.0).tobytes()


def test_the_result_records_how_it_was_made(backbone: LatentBackbone, style: LearnedStyle, cat: Image.Image) -> None:
    result = inst.stylize(backbone, cat, [style, style], DRAW.replace(mix=0.25), name="cat.png")
    record = result.record()
    assert record["method"] == "inst"
    assert record["settings"] == DRAW.replace(mix=0.25).model_dump()
    assert [(e["role"], e["sha256"], e["weight"]) for e in record["inputs"]] == [
        ("content", content_hash(cat), 1.0),
        ("learnt style", style.sha256, 0.75),
        ("learnt style", style.sha256, 0.25),
    ]


def test_no_style_and_three_styles_are_refused(backbone: LatentBackbone, style: LearnedStyle, cat: Image.Image) -> None:
    for styles, words in (([], "No styles were given"), ([style] * 3, "3 styles were given")):
        with pytest.raises(StyleEngineError, match=words):
            inst.stylize(backbone, cat, styles, DRAW)


def test_a_style_of_another_model_is_refused(backbone: Backbone, style: LearnedStyle, cat: Image.Image) -> None:
    foreign = replace(style, word=torch.ones(768))
    with pytest.raises(StyleEngineError, match="cannot use it"):
        inst.stylize(backbone, cat, [foreign], DRAW)  # type: ignore[arg-type]


def test_a_cancelled_run_leaves_the_networks_unchanged(
    backbone: LatentBackbone, style: LearnedStyle, cat: Image.Image
) -> None:
    before, text = unet_output(backbone), backbone.condition(["ink"])
    seen: list[tuple[int, int]] = []

    def stop(event: Any) -> None:
        seen.append((event.step, event.total))
        assert event.preview().size == (64, 64)
        if event.step == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        inst.stylize(backbone, fit(cat, (64, 64)), [style], DRAW, on_step=stop)
    assert seen == [(1, 6), (2, 6), (3, 6)]
    assert torch.equal(unet_output(backbone), before)
    assert torch.equal(backbone.condition(["ink"]), text)


# The engine


def test_the_engine_learns_and_applies_a_style(
    engine: StyleEngine, cat: Image.Image, coffee: Image.Image, tmp_path: Path
) -> None:
    cat.save(tmp_path / "a cat.png")
    style = engine.inst_learn(tmp_path / "a cat.png", FAST)
    assert style.record.name == "a cat"
    assert style.record.complete
    assert not style.state
    result = engine.inst_apply(coffee, [style.save(tmp_path / "cat.safetensors")], DRAW)
    assert result.image.size == (96, 64)
    assert result.inputs[1].name == "cat.safetensors"
    assert engine.inst_apply(coffee, [style], DRAW).image.tobytes() == result.image.tobytes()


def test_a_single_learned_style_need_not_be_in_a_list(
    engine: StyleEngine, cat: Image.Image, style: LearnedStyle, tmp_path: Path
) -> None:
    expected = engine.inst_apply(cat, [style], DRAW).image.tobytes()
    path = style.without_state().save(tmp_path / "cat.safetensors")
    for given in (style, path, str(path), (path,), iter([str(path)])):
        assert engine.inst_apply(cat, given, DRAW).image.tobytes() == expected
    with pytest.raises(StyleEngineError, match=r"The style gone\.safetensors does not exist"):
        engine.inst_apply(cat, "gone.safetensors", DRAW)
    with pytest.raises(StyleEngineError, match="not a int"):
        engine.inst_apply(cat, [3], DRAW)  # type: ignore[list-item]
    with pytest.raises(StyleEngineError, match="No styles were given"):
        engine.inst_apply(cat, None, DRAW)  # type: ignore[arg-type]


def test_recommended_values_of_the_backbone_apply_where_none_are_given(
    engine: StyleEngine, cat: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    recommended = {"inst_learn": {**FAST.model_dump(), "steps": 3}, "inst": {"size": 64, "steps": 2}}
    monkeypatch.setattr(engine.backbone, "recommended", recommended)
    style = engine.inst_learn(cat, InSTLearningSettings(steps=2))
    assert (style.record.step, style.record.settings["layers"]) == (2, FAST.layers)
    assert engine.inst_apply(None, [style]).settings["steps"] == 2


def test_cancelled_learning_is_saved_and_resumed(engine: StyleEngine, cat: Image.Image, tmp_path: Path) -> None:
    partial, steps = tmp_path / "cat.safetensors", list[int]()
    whole = engine.inst_learn(cat, FAST)

    def stop(event: Any) -> None:
        assert isinstance(event, LearningEvent)
        if event.step == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        engine.inst_learn(cat, FAST, name="mine", partial=partial, on_step=stop)
    assert LearnedStyle.open(partial, with_state=True).record.step == 3
    again = engine.inst_learn(cat, FAST, partial=partial, on_step=lambda event: steps.append(event.step))
    assert steps == [3, 4, 5, 6]
    assert again.record.name == "mine"
    torch.testing.assert_close(again.word, whole.word, atol=1e-6, rtol=0)


def test_learning_in_slices_gives_the_same_style(engine: StyleEngine, cat: Image.Image, tmp_path: Path) -> None:
    partial, slices = tmp_path / "cat.safetensors", 0
    whole = style = engine.inst_learn(cat, FAST)
    while slices == 0 or not style.record.complete:
        style = engine.inst_learn(cat, FAST, partial=partial, seconds=0.05)
        slices += 1
        assert slices < 20
    assert slices > 1
    torch.testing.assert_close(style.word, whole.word, atol=1e-6, rtol=0)


def test_a_preview_uses_the_given_content(
    engine: StyleEngine, cat: Image.Image, coffee: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.backbone, "recommended", {"inst": {"size": 64}})
    shown: list[Image.Image] = []
    for content in (coffee, None):
        engine.inst_learn(
            cat, FAST.replace(steps=1), preview_on=content, on_step=lambda event: shown.append(event.preview())
        )
    assert [image.size for image in shown] == [(96, 64)] * 2 + [(64, 64)] * 2
    assert shown[0].tobytes() != shown[1].tobytes()


def test_a_model_without_a_text_encoder_is_refused(
    pixel_engine: StyleEngine, cat: Image.Image, style: LearnedStyle
) -> None:
    for work in (lambda: pixel_engine.inst_learn(cat), lambda: pixel_engine.inst_apply(cat, [style])):
        with pytest.raises(StyleEngineError, match="has no text encoder"):
            work()


# The embedded model


@pytest.fixture(scope="module")
def mini() -> StyleEngine:
    return StyleEngine("mini", device="cpu")


@pytest.fixture(scope="module")
def learned_on_mini(mini: StyleEngine) -> LearnedStyle:
    painting = Path(__file__).parent.parent / "examples" / "style" / "great-wave.jpg"
    return mini.inst_learn(painting, InSTLearningSettings(steps=8, size=64, batch=2, views=2, check_every=4))


def test_more_strength_moves_further_from_the_content(
    mini: StyleEngine, learned_on_mini: LearnedStyle, astronaut: Image.Image
) -> None:
    distances = []
    for strength in (0.0, 0.3, 0.6, 0.9):
        settings = InSTSettings(size=64, steps=10, strength=strength, guidance=2.0, adain=False)
        results = [mini.inst_apply(astronaut, [learned_on_mini], settings.replace(seed=seed)) for seed in range(3)]
        content = to_tensor(fit(astronaut, (64, 64)))
        distances.append(float(np.mean([(to_tensor(r.image) - content).square().mean() for r in results])))
    assert distances == sorted(distances)
    assert distances[-1] > 1.5 * distances[1]


def test_stochastic_inversion_keeps_more_of_the_content_than_random_noise(
    mini: StyleEngine, learned_on_mini: LearnedStyle, astronaut: Image.Image
) -> None:
    kept = {}
    content = to_tensor(fit(astronaut, (64, 64)))
    for noise in ("stochastic_inversion", "random"):
        settings = InSTSettings(size=64, steps=10, strength=0.6, guidance=2.0, adain=False, noise=noise)
        results = [mini.inst_apply(astronaut, [learned_on_mini], settings.replace(seed=seed)) for seed in range(3)]
        kept[noise] = float(np.mean([ssim(to_tensor(r.image), content) for r in results]))
    assert kept["stochastic_inversion"] > kept["random"]
