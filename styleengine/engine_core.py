"""What runs of all methods share: the models, the caches, the device, and runs in turn."""

import contextlib
import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from PIL import Image

from styleengine.backbones import Backbone, load_backbone
from styleengine.cache import ByteCache
from styleengine.disk_cache import disk_cache
from styleengine.errors import StyleEngineError
from styleengine.memory import at_most, batch_size, gpu_memory, kept_on_host, memory_in_words
from styleengine.method import Call, Inputs, Kind, Method
from styleengine.methods import METHODS
from styleengine.perceptual import Clip
from styleengine.run import waiting
from styleengine.settings import Settings
from styleengine.stylization import OnStep, Stylization
from styleengine.turns import Turns
from styleengine.video import check_clip_output

AnySettings = TypeVar("AnySettings", bound=Settings)

CACHE_BYTES = 2 << 30
BACKBONE_BYTES = 6 << 30  # of loaded weights
CACHE_SHARE, BACKBONE_SHARE = 1 / 8, 1 / 2  # of a GPU's memory, if that is less


class EngineCore:
    """A backbone with its caches, on which any declared method runs. See `StyleEngine`."""

    def __init__(
        self,
        model: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        self.backbone: Backbone = load_backbone(model, device, dtype)
        memory = gpu_memory(self.backbone.device)
        cached = CACHE_BYTES if kept_on_host(self.backbone.device) else at_most(CACHE_BYTES, CACHE_SHARE, memory)
        self.cache = ByteCache(cached if cache_bytes is None else cache_bytes, disk_cache(self.backbone.device))
        self._backbones = ByteCache(at_most(BACKBONE_BYTES, BACKBONE_SHARE, memory))
        self._backbones.get_or_make(self.backbone.name, lambda: self.backbone)
        self._turns = Turns()  # a tap changes the U-Net for all threads, so runs are serialized

    def with_model(self, model: str | None, *, on_step: OnStep | None = None) -> Self:
        """An engine on another model, named as in the constructor; None returns this engine.

        Device, precision, caches and the queue of runs are shared. Loaded models are kept while they fit.
        Loading is queued like a run, and `on_step` can cancel it.

        Raises StyleEngineError if the model cannot be loaded, Cancelled if `on_step` raised it.
        """
        if model is None or model == self.backbone.name:
            return self
        device, dtype = self.backbone.device, self.backbone.dtype
        known: Any = self._backbones.get(model)
        if known is None:
            # Libraries change torch's default dtype while loading, which must not happen during a run.
            with self._turns.one(waiting(on_step)):
                known = self._backbones.get_or_make(model, lambda: load_backbone(model, device, dtype))
        other = copy.copy(self)
        other.backbone = known
        return other

    def settings_for(self, settings_class: type[AnySettings], method: str, given: AnySettings | None) -> AnySettings:
        """The method's defaults, overridden by the backbone's recommended values and then by `given`."""
        explicit: dict[str, Any] = given.model_dump(exclude_unset=True) if given else {}
        known, values = METHODS.get(method), self.backbone.recommended
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
                clip=self.clip,
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
        size = getattr(settings, "size", None)
        sentence = f"There is not enough memory for images of size {size}. Choose a smaller size or fewer styles."
        with self._turns.one(waiting(on_step, shown)), memory_in_words(sentence), self.cache.trimming():
            yield

    def clip(self) -> Clip:
        """CLIP of the backbone, loaded at the first call. StyleEngineError if it cannot be loaded."""
        return self._backbones.get_or_make(("clip", self.backbone.name), lambda: Clip(self.backbone))

    def _batch_size(self, pixels: int, styles: int = 1) -> int:
        """The batch size for images of `pixels` pixels, each with the keys and values of `styles` styles."""
        return batch_size(pixels, styles, self.backbone.device, self.backbone.dtype.itemsize)
