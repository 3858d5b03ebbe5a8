"""What runs of all methods share: the models, the caches, the device, and runs in turn."""

import contextlib
import copy
import functools
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from PIL import Image

from styleengine.backbones import (
    Backbone,
    default_model,
    find_model,
    is_embedded,
    load_backbone,
    short_title,
    stated_settings,
    working_device,
    working_dtype,
)
from styleengine.cache import ByteCache
from styleengine.disk_cache import disk_cache
from styleengine.errors import Cancelled, StyleEngineError
from styleengine.loads import Load, Loads
from styleengine.memory import at_most, batch_size, gpu_memory, kept_on_host, memory_in_words
from styleengine.method import Call, Inputs, Kind, Method
from styleengine.methods import METHODS
from styleengine.perceptual import Clip
from styleengine.run import waiting
from styleengine.settings import Settings
from styleengine.stylization import OnStep, StepEvent, Stylization
from styleengine.turns import Turns
from styleengine.video import check_clip_output

AnySettings = TypeVar("AnySettings", bound=Settings)

CACHE_BYTES = 2 << 30
BACKBONE_BYTES = 6 << 30  # of loaded weights
CACHE_SHARE, BACKBONE_SHARE = 1 / 8, 1 / 2  # of a GPU's memory, if that is less

log = logging.getLogger(__name__)


class EngineCore:
    """A backbone with its caches, on which any declared method runs. See `StyleEngine`."""

    def __init__(
        self,
        model: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        cache_bytes: int | None = None,
        *,
        lazy: bool = False,
    ) -> None:
        lazy = lazy and not is_embedded(model or default_model())
        self._backbone: Backbone | None = None if lazy else load_backbone(model, device, dtype)
        if self._backbone:
            self.model, self.device, self.dtype = self._backbone.name, self._backbone.device, self._backbone.dtype
        else:
            self.model, self.device = model or default_model(), working_device(device)
            self.dtype = working_dtype(dtype, self.device)
        self._stated = stated_settings(self.model) if lazy else {}
        memory = gpu_memory(self.device)
        cached = CACHE_BYTES if kept_on_host(self.device) else at_most(CACHE_BYTES, CACHE_SHARE, memory)
        self.cache = ByteCache(cached if cache_bytes is None else cache_bytes, disk_cache(self.device))
        self._backbones = ByteCache(at_most(BACKBONE_BYTES, BACKBONE_SHARE, memory))
        if self._backbone:
            self._backbones.get_or_make(self.model, lambda: self.backbone)
        self._loads = Loads()
        self._turns = Turns()  # a tap changes the U-Net for all threads, so runs are serialized

    @property
    def backbone(self) -> Backbone:
        """The model, which a lazy engine loads now. Raises StyleEngineError if it cannot be loaded."""
        known = self._backbone or self._loaded(self.model, None)
        self._backbone = known
        return known

    @backbone.setter
    def backbone(self, backbone: Backbone) -> None:
        self._backbone, self.model = backbone, backbone.name

    @property
    def loaded(self) -> Backbone | None:
        """The model if it is loaded."""
        return self._backbone

    @property
    def loading(self) -> tuple[StepEvent | None, str]:
        """How far the loading of the model is, if it is going on; why it failed the last time, or an empty string."""
        return self._loads.state(self.model)

    def preload(self) -> None:
        """Loads the model in the background. `loading` tells how far it is, and a failure; the next run tries again."""

        def load() -> None:
            try:
                self.with_model(None)
            except Cancelled:  # the program ends
                return
            except StyleEngineError as error:
                log.warning("%s", error)
            except Exception:
                log.exception("The model could not be loaded")

        self._loads.close_at_exit()
        threading.Thread(target=load, name="styleengine-preload", daemon=True).start()

    def with_model(self, model: str | None, *, on_step: OnStep | None = None) -> Self:
        """An engine on another model, named as in the constructor; None returns this engine, with its model loaded.

        Device, precision, caches and the queue of runs are shared. Loaded models are kept while they fit. Runs go on
        during a download; the weights are read in a turn of their own. `on_step` gets the phase “loading” with the
        bytes of the model's files that are here and those of all, or “waiting”, and can cancel it.

        Raises StyleEngineError if the model cannot be loaded, Cancelled if `on_step` raised it.
        """
        if model is None or model == self.model:
            self._backbone = self._backbone or self._loaded(self.model, on_step)
            return self
        known = self._loaded(model, on_step)
        other = copy.copy(self)
        other.backbone = known
        return other

    def _loaded(self, model: str, on_step: OnStep | None) -> Any:
        """The model from the cache, or loaded."""

        def make(load: Load) -> Backbone:
            files = find_model(model, self.device, self.dtype, load.on_bytes)
            # Libraries change torch's default dtype while loading, which must not happen during a run.
            with load.turn(self._turns):
                return self._backbones.get_or_make(model, files.load)

        return self._backbones.get(model) or self._loads.result(model, short_title(model), make, on_step)

    def settings_for(self, settings_class: type[AnySettings], method: str, given: AnySettings | None) -> AnySettings:
        """The method's defaults, overridden by the backbone's recommended values and then by `given`."""
        explicit: dict[str, Any] = given.model_dump(exclude_unset=True) if given else {}
        known, values = METHODS.get(method), self._backbone.recommended if self._backbone else self._stated
        recommended = known.recommended(values) if known else values.get(method, {})
        return settings_class(**{**recommended, **explicit})

    def run(
        self,
        method: Method | str,
        inputs: Mapping[str, Any] | Inputs,
        settings: Settings | None = None,
        *,
        output: str | os.PathLike[str] | None = None,
        work: str | os.PathLike[str] | None = None,
        keep_partial: bool = False,
        seconds: float | None = None,
        on_step: OnStep | None = None,
    ) -> Stylization:
        """Runs any method. `inputs` are keyed by role and take the same values as the method's own function.

        A video method writes its clip to `output`; `work`, `keep_partial` and `seconds` are as in `zstar_video`.

        Raises StyleEngineError for bad input, Cancelled if `on_step` raised it.
        """
        method = METHODS[method] if isinstance(method, str) else method
        self.with_model(None, on_step=on_step)
        settings = self.settings_for(method.settings, method.name, settings)
        method.requires(self.backbone)
        opened = inputs if isinstance(inputs, Inputs) else Inputs.open(method.roles, inputs)
        clips = opened.of(Kind.CLIP)
        path = check_clip_output(output, clips[0] if clips else None) if output is not None else None
        if path is None and method.suffix != ".png":
            raise StyleEngineError(f"The method “{method.name}” writes a file: name it as `output`.")
        with self._turn(on_step, settings, opened.poster):
            call = Call(
                backbone=self.backbone,
                inputs=opened,
                settings=settings,
                clip=functools.partial(self.clip, on_step),
                batch=self._batch_size,
                on_step=on_step,
                cache=self.cache,
                output=path,
                work=Path(work) if work is not None else None,
                keep_partial=keep_partial,
                seconds=seconds,
            )
            return method.run(call)

    @contextlib.contextmanager
    def _turn(self, on_step: OnStep | None, settings: Settings, shown: Image.Image | None) -> Iterator[None]:
        """The context of each run in its turn; `shown` is the preview before. Converts out-of-memory errors."""
        self.with_model(None, on_step=on_step)  # before the turn, since a lazy engine's model is read in another one
        size = getattr(settings, "size", None)
        sentence = f"There is not enough memory for images of size {size}. Choose a smaller size or fewer styles."
        with self._turns.one(waiting(on_step, shown)), memory_in_words(sentence), self.cache.trimming():
            yield

    def clip(self, on_step: OnStep | None = None) -> Clip:
        """CLIP of the backbone, loaded at the first call; `on_step` as in `with_model`.

        Raises StyleEngineError if it cannot be loaded, Cancelled if `on_step` raised it.
        """
        backbone = self.backbone
        key = "clip", backbone.name

        def make(load: Load) -> Clip:  # without a turn of its own, since a run has one
            return self._backbones.get_or_make(key, lambda: Clip(backbone, load.on_bytes))

        known: Any = self._backbones.get(key)
        return known or self._loads.result(key, f"CLIP of {short_title(backbone.name)}", make, on_step)

    def _batch_size(self, pixels: int, styles: int = 1) -> int:
        """The batch size for images of `pixels` pixels, each with the keys and values of `styles` styles."""
        return batch_size(pixels, styles, self.backbone.device, self.backbone.dtype.itemsize)
