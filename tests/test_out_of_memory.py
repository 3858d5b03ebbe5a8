"""Out of memory while a model is loaded or a run computes: a sentence, and nothing is left behind."""

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from method_runs import LATENT_RUNS, LEARNING, Images, Pictures, pictures
from torch import nn

from styleengine import InSTLearningSettings, StyleEngine, StyleEngineError
from styleengine.backbones import LatentBackbone, load_clip
from styleengine.memory import memory_in_words

GRADIENTS = ("qs_attn", "qs_attn, in sequence", "inst", "inst, plain embedding", "zstar_video, backprop")


def ran_out() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")


# While loading


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref]:
    """References to all networks that are made from now on."""
    found: list[weakref.ref] = []
    sound = nn.Module.__init__

    def note(self: nn.Module, *arguments: Any, **options: Any) -> None:
        found.append(weakref.ref(self))
        sound(self, *arguments, **options)

    monkeypatch.setattr(nn.Module, "__init__", note)
    return found


@pytest.fixture
def alive_at_release(made: list[weakref.ref], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many networks are alive whenever CUDA's cache is emptied."""
    alive: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(sum(ref() is not None for ref in made)))
    return alive


@contextmanager
def failing_at(monkeypatch: pytest.MonkeyPatch, call: int) -> Iterator[None]:
    """Within the context, moving the networks to their device runs out of memory at that call."""
    calls: list[int] = []
    sound = nn.Module.to

    def to(self: nn.Module, *arguments: Any, **options: Any) -> nn.Module:
        calls.append(1)
        if len(calls) == call:
            large = nn.Linear(2, 2)  # a network in a reference cycle
            large.itself = [large]  # type: ignore[assignment]
            raise ran_out()
        return sound(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "to", to)
        yield


@pytest.mark.parametrize("call", [1, 3])
@pytest.mark.parametrize("collecting", [True, False])
def test_a_model_that_does_not_fit_leaves_no_network_behind(
    model_folder: Path,
    made: list[weakref.ref],
    alive_at_release: list[int],
    monkeypatch: pytest.MonkeyPatch,
    call: int,
    collecting: bool,
) -> None:
    """Also while the error is still referenced, and without a garbage collection of Python's own."""
    (gc.enable if collecting else gc.disable)()
    try:
        with failing_at(monkeypatch, call), pytest.raises(StyleEngineError, match="not enough memory to load") as error:
            StyleEngine(str(model_folder), device="cpu")
    finally:
        gc.enable()
    assert len(made) > 100
    assert alive_at_release == [0]
    assert not [ref for ref in made if ref() is not None]
    assert error.value.__notes__ == ["OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB"]
    assert StyleEngine(str(model_folder), device="cpu").backbone.nbytes > 0


def test_a_second_model_that_does_not_fit_leaves_the_first_one(
    model_folder: Path,
    pixel_model_folder: Path,
    made: list[weakref.ref],
    alive_at_release: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = StyleEngine(str(model_folder), device="cpu")
    made.clear()
    alive_at_release.clear()
    with failing_at(monkeypatch, 1), pytest.raises(StyleEngineError, match="not enough memory to load"):
        engine.with_model(str(pixel_model_folder))
    assert made
    assert alive_at_release == [0]
    assert engine.with_model(str(pixel_model_folder)).backbone.nbytes > 0
    assert engine.with_model(None) is engine


def test_a_clip_that_does_not_fit_leaves_no_network_behind(
    engine: StyleEngine,
    made: list[weakref.ref],
    alive_at_release: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with failing_at(monkeypatch, 1), pytest.raises(StyleEngineError, match="not enough memory to load the model “CLIP"):
        load_clip(engine.backbone)
    assert made
    assert alive_at_release == [0]


def test_an_error_with_both_a_cause_and_a_context_releases_the_tensors_of_both() -> None:
    held: list[weakref.ref] = []

    def frame(error: Exception, cause: Exception | None = None) -> None:
        large = nn.Linear(2, 2)
        held.append(weakref.ref(large))
        raise error from cause

    def both() -> None:
        causes: list[Exception] = []
        try:
            frame(ValueError("the cause"))
        except ValueError as error:
            causes.append(error)
        try:
            frame(KeyError("the context"))
        except KeyError:
            frame(ran_out(), causes.pop())

    with pytest.raises(StyleEngineError, match="Too much"), memory_in_words("Too much."):
        both()
    assert len(held) == 3
    assert not [ref for ref in held if ref() is not None]


# In a run


@contextmanager
def running_out(unet: Any, call: int, backward: bool) -> Iterator[None]:
    """Within the context, that call of one of the U-Net's up blocks runs out of memory, or its gradient does."""
    calls: list[int] = []

    def fail(gradient: torch.Tensor) -> None:
        raise ran_out()

    def after(module: nn.Module, given: Any, output: torch.Tensor) -> None:
        if backward and not output.requires_grad:
            return
        calls.append(1)
        if len(calls) != call:
            return
        if not backward:
            raise ran_out()
        output.register_hook(fail)

    hook = unet.up_blocks[1].register_forward_hook(after)
    try:
        yield
    finally:
        hook.remove()


def hooks_of(engine: StyleEngine) -> int:
    modules = [module for network in engine.backbone.networks for module in network.modules()]
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


def tensors(engine: StyleEngine) -> int:
    """How many tensors there are outside the cache."""
    engine.cache.clear()
    gc.collect()
    return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())


def left_nothing(
    engine: StyleEngine, run: Callable[[StyleEngine, Pictures], Images], given: Pictures, **at: Any
) -> None:
    unet: Any = engine.backbone.unet
    processors, hooks, before = dict(unet.attn_processors), hooks_of(engine), tensors(engine)
    with running_out(unet, **at), pytest.raises(StyleEngineError, match="There is not enough memory") as error:
        run(engine, given)
    assert error.value is not None  # still referenced
    assert dict(unet.attn_processors) == processors
    assert hooks_of(engine) == hooks
    assert not unet.is_gradient_checkpointing
    weights = [weight for network in engine.backbone.networks for weight in network.parameters()]
    assert not any(weight.requires_grad or weight.grad is not None for weight in weights)
    assert engine.cache.nbytes <= engine.cache.capacity
    assert tensors(engine) == before
    assert not engine._turns._queue


@pytest.fixture
def warm(engine: StyleEngine) -> StyleEngine:
    """With its CLIP loaded, which the engine keeps."""
    engine.clip()
    return engine


@pytest.mark.parametrize("call", [1, 3])
@pytest.mark.parametrize("name", [name for name in LATENT_RUNS if name != "stytr2"])  # which uses no U-Net
def test_a_run_that_runs_out_of_memory_leaves_nothing_behind(
    warm: StyleEngine, tmp_path: Path, name: str, call: int
) -> None:
    left_nothing(warm, LATENT_RUNS[name], pictures(tmp_path / "given"), call=call, backward=False)


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_gradient_that_runs_out_of_memory_leaves_nothing_behind(warm: StyleEngine, tmp_path: Path, name: str) -> None:
    left_nothing(warm, LATENT_RUNS[name], pictures(tmp_path / "given"), call=1, backward=True)


def test_a_preview_that_runs_out_of_memory_ends_learning_and_leaves_nothing_behind(
    warm: StyleEngine, tmp_path: Path
) -> None:
    """Learning is suspended then, with its gradients and the optimizer's moments."""

    def learn(engine: StyleEngine, given: Pictures) -> Images:
        def preview(event: Any) -> None:
            if event.step == 1:
                raise ran_out()

        settings: InSTLearningSettings = LEARNING
        engine.inst_learn(given.style, settings, on_step=preview)
        raise AssertionError("the preview did not run out of memory")

    left_nothing(warm, learn, pictures(tmp_path / "given"), call=0, backward=False)


def test_an_autoencoder_that_cannot_be_converted_to_float32_is_float16_afterwards(
    engine: StyleEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conversion runs out of memory halfway."""
    backbone = copy.copy(engine.backbone)
    assert isinstance(backbone, LatentBackbone)
    backbone.vae = copy.deepcopy(backbone.vae).half()

    def halfway() -> None:
        backbone.vae.decoder.to(torch.float32)
        raise ran_out()

    monkeypatch.setattr(backbone.vae, "float", halfway)
    monkeypatch.setattr(
        LatentBackbone, "decode_with_gradient", lambda self, latents: torch.full((1, 3, 8, 8), torch.inf)
    )
    with pytest.raises(torch.OutOfMemoryError):
        backbone.decode(torch.zeros(1, 4, 2, 2))
    assert {weight.dtype for weight in backbone.vae.parameters()} == {torch.float16}
