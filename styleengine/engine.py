"""StyleEngine: one public method per technique."""

import functools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from styleengine.backbones import LatentBackbone, with_text_encoder
from styleengine.engine_core import EngineCore
from styleengine.errors import StyleEngineError
from styleengine.images import ImageSource, check_output, open_image, open_mask, working_size
from styleengine.learned_style import SUFFIX, LearnedStyle
from styleengine.method import Inputs, opened_styles, several
from styleengine.methods import METHODS, h_space, inst, qs_attn, zstar
from styleengine.methods.h_space import HSpaceSettings
from styleengine.methods.inst import InSTLearningSettings, InSTSettings, LearningState
from styleengine.methods.qs_attn import QSAttnSettings
from styleengine.methods.stytr2 import StyTr2Settings
from styleengine.methods.zstar import ZStarSettings
from styleengine.methods.zstar_video import ZStarVideoSettings
from styleengine.phases import LEARNING
from styleengine.run import part_of
from styleengine.styles import Style
from styleengine.stylization import LearningEvent, OnStep, Stylization, VideoStylization, file_name
from styleengine.video import ClipSource, VideoClip

STRIP = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
VARIATIONS = 4
PREVIEW_STEPS, PREVIEW_SIZE = 10, 256  # of the previews while a style is learned


class StyleEngine(EngineCore):
    """Style transfer by diffusion, on one backbone.

    `model` is "mini" (embedded), "sd15", a local diffusers folder or a hub id; the default is
    $STYLEENGINE_MODEL, else "sd15" with CUDA, else "mini". `device` and `dtype` default to the best available.
    `cache_bytes` limits the cache between runs, by default to 2 GiB, or an eighth of a larger GPU's memory if that is
    less. With `lazy`, a model that is not embedded is loaded at its first use, or by `preload` or `with_model(None)`.
    If $STYLEENGINE_DISK_CACHE names a folder, inversions are cached there, too, until a day after their last use.

    Runs from several threads are queued in order. While a run waits, its `on_step`
    is called with the phase “waiting” every few tenths of a second, so that it can be cancelled.

    The same inputs, seed and machine give the same pixels, except for gradient-based runs on a GPU: QS-Attn and
    InST learning are not deterministic there, because some CUDA backward kernels sum in no fixed order.

    Raises StyleEngineError if the model cannot be loaded, or the device or dtype cannot be used.
    """

    def zstar(
        self,
        content: ImageSource,
        styles: ImageSource | Style | Iterable[ImageSource | Style],
        settings: ZStarSettings | None = None,
        *,
        mask: ImageSource | None = None,
        on_step: OnStep | None = None,
    ) -> Stylization:
        """Z-STAR+: redraws the content in the styles, without training.

        Images may be paths, bytes, PIL images or arrays. A `Style` has its own weight and mask; a single
        style needs no list. `mask` is a shorthand: with one style, white is where it applies; with two,
        white = the second and black = the first. Values set in `settings` override the backbone's
        recommended values.

        Raises StyleEngineError for bad input, Cancelled if `on_step` raised it.
        """
        inputs = {"content": content, "style": styles, "mask": mask}
        return self.run("zstar", inputs, settings, on_step=on_step)

    def zstar_all(
        self,
        contents: ImageSource | Iterable[ImageSource],
        styles: ImageSource | Style | Iterable[ImageSource | Style],
        settings: ZStarSettings | None = None,
        *,
        mask: ImageSource | None = None,
        on_step: OnStep | None = None,
    ) -> list[Stylization]:
        """Several contents in the same styles: M + N inversions, and contents of equal shape in batches."""
        contents = several(contents)
        if not contents:
            raise StyleEngineError("No content image was given. Choose at least one.")
        settings = self.settings_for(ZStarSettings, "zstar", settings)
        opened = [open_image(source, "content image") for source in contents]
        names, ready = [file_name(source) for source in contents], opened_styles(styles, mask)
        with self._turn(on_step, settings, opened[0]):
            room, options = self._batch_size, {"on_step": on_step, "cache": self.cache, "names": names}
            return zstar.stylize_in_batches(self.backbone, opened, ready, settings, room, **options)

    def h_space(
        self,
        content: ImageSource,
        style: ImageSource,
        settings: HSpaceSettings | None = None,
        *,
        mask: ImageSource | None = None,
        on_step: OnStep | None = None,
    ) -> Stylization:
        """h-space injection: the content in the look of the style image, without training.

        The result has the content's aspect ratio; the style image is cropped to it. `mask` is laid over
        the content: white is where it is injected. Works with latent and pixel-space models.

        Raises StyleEngineError for bad input, Cancelled if `on_step` raised it.
        """
        inputs = {"content": content, "style": style, "mask": mask}
        return self.run("h_space", inputs, settings, on_step=on_step)

    def h_space_strip(
        self,
        content: ImageSource,
        style: ImageSource,
        gammas: Sequence[float] = STRIP,
        settings: HSpaceSettings | None = None,
        *,
        mask: ImageSource | None = None,
        on_step: OnStep | None = None,
    ) -> list[Stylization]:
        """As `h_space`, with one result per γ. The inversions are shared; sampling is batched."""
        settings = self.settings_for(HSpaceSettings, "h_space", settings)
        pictures = open_image(content, "content image"), open_image(style, "style image")
        region = open_mask(mask) if mask is not None else None
        names = [file_name(content), file_name(style), file_name(mask) if mask is not None else ""]
        width, height = working_size(pictures[0], settings.size, self.backbone.multiple)
        results: list[Stylization] = []
        with self._turn(on_step, settings, pictures[0]):
            room = self._batch_size(width * height)
            batches = [gammas[start : start + room] for start in range(0, len(gammas), room)] or [gammas]
            for number, batch in enumerate(batches):
                results += h_space.inject(
                    self.backbone,
                    *pictures,
                    batch,
                    settings,
                    mask=region,
                    on_step=part_of(on_step, number, len(batches)),
                    cache=self.cache,
                    names=names,
                )
        return results

    def stytr2(
        self,
        content: ImageSource,
        styles: ImageSource | Style | Iterable[ImageSource | Style],
        settings: StyTr2Settings | None = None,
        *,
        mask: ImageSource | None = None,
        on_step: OnStep | None = None,
    ) -> Stylization:
        """StyTr²: the content in the styles in one forward pass of a transformer, independent of the engine's model.

        `styles` and `mask` are as in `zstar`. Several styles are mixed in latent space; outside all masks the pixels
        are the content's.

        Raises StyleEngineError for bad input, Cancelled if `on_step` raised it.
        """
        inputs = {"content": content, "style": styles, "mask": mask}
        return self.run("stytr2", inputs, settings, on_step=on_step)

    def zstar_video(
        self,
        clip: ClipSource | VideoClip,
        styles: Sequence[ImageSource | Style],
        settings: ZStarVideoSettings | None = None,
        *,
        output: str | os.PathLike[str],
        mask: ImageSource | None = None,
        work: str | os.PathLike[str] | None = None,
        keep_partial: bool = False,
        seconds: float | None = None,
        on_step: OnStep | None = None,
    ) -> VideoStylization:
        """Z-STAR+ for a clip, without flicker. Writes the MP4 `output`, with the clip's sound.

        The clip is a path, bytes or an open file. Styles and `mask` are as in `zstar`. `work` is a folder
        for finished frames: the same call resumes an interrupted run. With `keep_partial`, a run that
        `on_step` cancels returns the frames finished so far. With `seconds`, which needs `work`, the run stops after
        about that time, at least one frame later; between two such calls, waiting runs get their turn.

        Raises StyleEngineError for bad input, Cancelled if `on_step` raised it, TimeUp if frames are still missing.
        """
        options: Any = {"output": output, "work": work, "keep_partial": keep_partial, "seconds": seconds}
        inputs = {"clip": clip, "style": styles, "mask": mask}
        result: Any = self.run("zstar_video", inputs, settings, **options, on_step=on_step)
        return result

    def qs_attn(
        self,
        content: ImageSource,
        prompt: str | None = None,
        settings: QSAttnSettings | None = None,
        *,
        on_step: OnStep | None = None,
    ) -> Stylization:
        """QS-Attn: the content in a style given by a text prompt, without training.

        `prompt` is a shorthand for the setting of that name: “golden”, or several styles as in
        “golden::2 | wooden”. Works with latent and pixel-space models. CLIP is the model's own or comes
        from the hub. On CUDA identical runs differ slightly (see `StyleEngine`).

        Raises StyleEngineError for bad input or if there is no CLIP, Cancelled if `on_step` raised it.
        """
        if prompt is not None:
            settings = settings.replace(prompt=prompt) if settings else QSAttnSettings(prompt=prompt)
        return self.run("qs_attn", {"content": content}, settings, on_step=on_step)

    def qs_attn_variations(
        self,
        content: ImageSource,
        prompt: str | None = None,
        settings: QSAttnSettings | None = None,
        *,
        count: int = VARIATIONS,
        on_step: OnStep | None = None,
    ) -> list[Stylization]:
        """As `qs_attn`, with `count` seeds from that of the settings on. Inversion and anchors are computed once."""
        if count < 1:
            raise StyleEngineError(f"{count} variations were asked for. Ask for at least one.")
        chosen = (settings or QSAttnSettings()).replace(**{} if prompt is None else {"prompt": prompt})
        opened, results = Inputs.open(METHODS["qs_attn"].roles, {"content": content}), []
        for number in range(count):
            seeded = chosen.replace(seed=(chosen.seed + number) % 2**32)
            results.append(self.run("qs_attn", opened, seeded, on_step=part_of(on_step, number, count)))
        return results

    def qs_attn_anchors(
        self, content: ImageSource, settings: QSAttnSettings | None = None, *, on_step: OnStep | None = None
    ) -> Image.Image:
        """Entropy maps and anchors of `qs_attn` over the content, one image per layer, the finest first.

        Blue is low entropy. Needs neither CLIP nor a prompt. `on_step` only reports waiting.
        """
        settings = self.settings_for(QSAttnSettings, "qs_attn", settings)
        image = open_image(content, "content image")
        with self._turn(on_step, settings, image):
            return qs_attn.anchors_picture(self.backbone, image, settings, self.cache)

    def inst_learn(
        self,
        painting: ImageSource | Iterable[ImageSource],
        settings: InSTLearningSettings | None = None,
        *,
        name: str = "",
        partial: str | os.PathLike[str] | None = None,
        seconds: float | None = None,
        preview_on: ImageSource | None = None,
        on_step: OnStep | None = None,
    ) -> LearnedStyle:
        """InST: learns the painting's style as a token embedding. Save it with `.save("style.safetensors")`.

        `painting` may be up to 16 paintings of one artist, which are learned as one style.
        `partial` is a style file for unfinished learning, written periodically and when `on_step` raises;
        the same call resumes from it. After about `seconds`, if given, the current style is returned, with
        a record that is not `complete`. `name` defaults to the (first) painting's file name. `on_step` gets
        `LearningEvent`s, which preview on `preview_on`, or without it from pure noise. Between two calls
        with `seconds`, waiting runs get their turn. On CUDA identical runs differ slightly (see
        `StyleEngine`), and so do resumed runs.

        Raises StyleEngineError for bad input, a model without a text encoder or CLIP, or a `partial` of
        another run; Cancelled if `on_step` raised it.
        """
        settings = self.settings_for(InSTLearningSettings, "inst_learn", settings)
        backbone, sources = with_text_encoder(self.backbone), several(painting)
        paintings = inst.opened_paintings(sources)
        content = open_image(preview_on, "preview's content image") if preview_on is not None else None
        path = check_output(partial, SUFFIX) if partial else None
        known = LearnedStyle.open(path, with_state=True) if path and path.exists() else None
        name = name or (known.record.name if known else Path(file_name(sources[0])).stem)
        with self._turn(on_step, settings, paintings[0]):
            report = on_step and (lambda state: on_step(self._learning_event(backbone, state, content)))
            # No variable of this function references the learner, so that after an error its memory is released.
            options: Any = {"name": name, "known": known, "cache": self.cache}
            clip = functools.partial(self.clip, on_step)
            return inst.learned(inst.learn(backbone, paintings, clip, settings, **options), path, seconds, report)

    def inst_apply(
        self,
        content: ImageSource | None,
        styles: LearnedStyle | str | os.PathLike[str] | Iterable[LearnedStyle | str | os.PathLike[str]],
        settings: InSTSettings | None = None,
        *,
        on_step: OnStep | None = None,
    ) -> Stylization:
        """InST: redraws the content in a learned style, or a mix of two. Without a content, generates from the prompt.

        Styles are `LearnedStyle`s, paths of their files, or names in the library; a single one needs no list.

        Raises StyleEngineError for bad input or a style that does not fit the model, Cancelled if
        `on_step` raised it.
        """
        return self.run("inst", {"content": content, "style": styles}, settings, on_step=on_step)

    def _learning_event(
        self, backbone: LatentBackbone, state: LearningState, content: Image.Image | None
    ) -> LearningEvent:
        def preview() -> Image.Image:
            settings = self.settings_for(InSTSettings, "inst", InSTSettings(steps=PREVIEW_STEPS))
            settings = settings.replace(size=min(settings.size, PREVIEW_SIZE))
            return inst.stylize(backbone, content, [state.style()], settings).image

        return LearningEvent(
            LEARNING, state.step, state.total, preview, state.loss, state.validations, state.steps_per_second
        )
