"""A saved result made again, from the record that its PNG or MP4 carries."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageOps

from styleengine.engine import StyleEngine
from styleengine.errors import StyleEngineError
from styleengine.images import content_hash, open_image, open_mask
from styleengine.learned_style import LearnedStyle
from styleengine.methods.h_space import HSpaceSettings
from styleengine.methods.inst import STYLE_ROLE, InSTSettings
from styleengine.methods.qs_attn import QSAttnSettings
from styleengine.methods.zstar import Style, ZStarSettings
from styleengine.methods.zstar_video import CLIP_ROLE, ZStarVideoSettings
from styleengine.stylization import METADATA_KEY, OnStep, Stylization, checked_record, file_name, read_record
from styleengine.video import VideoClip, open_clip, read_comment

MASK_ROLE = "mask"
FLAGS = {
    CLIP_ROLE: "content",
    STYLE_ROLE: "style",
}  # under which name an input is said to have moved, if not its role's


@dataclass
class Input:
    """What a result was made from, found again: its role, its weight, where it is, and what was opened there."""

    role: str
    weight: float
    source: str
    opened: Image.Image | LearnedStyle | VideoClip


@dataclass(frozen=True)
class Rerun:
    """A saved result whose inputs have been found."""

    path: Path
    record: Mapping[str, Any]
    inputs: Sequence[Input]

    @classmethod
    def opened(cls, path: str | os.PathLike[str], moved: Mapping[str, Sequence[str]] | None = None) -> "Rerun":
        """Reads the record and finds the inputs: where they were, or where `moved` ("content", "style" and
        "mask", each with paths in their order) says that they are now.

        Raises StyleEngineError for a file without a record, a method that this version does not know,
        and inputs that are gone or have changed.
        """
        path = Path(path)
        record = _clip_record(path) if path.suffix.lower() == ".mp4" else read_record(path)
        if record["method"] not in REPEATERS:
            raise StyleEngineError(f"This version cannot repeat the method “{record['method']}”.")
        return cls(path, record, _found(record["inputs"], moved or {}))

    @property
    def suffix(self) -> str:
        return self.path.suffix.lower()

    @property
    def beside(self) -> Path:
        """Where a second one goes if nobody says otherwise."""
        return self.path.with_name(f"{self.path.stem}-again{self.suffix}")

    def run(self, engine: StyleEngine, output: Path, on_step: OnStep | None = None) -> Stylization:
        """Makes the result again. A clip is written to `output`; a picture is left to be saved."""
        return REPEATERS[self.record["method"]](engine, self.inputs, self.record["settings"], output, on_step)

    def same_as(self, other: Path) -> bool:
        """Whether another result has the same pixels, in every frame."""
        return all(
            one is not None
            and two is not None
            and one.size == two.size
            and ImageChops.difference(one, two).getbbox() is None
            for one, two in zip_longest(_pictures(self.path), _pictures(other))
        )


def _pictures(path: Path) -> Iterator[Image.Image]:
    if path.suffix.lower() != ".mp4":
        return iter([open_image(path)])
    return open_clip(path).select(0, 0, sys.maxsize).frames()


def _clip_record(path: Path) -> dict[str, Any]:
    try:
        stated = json.loads(read_comment(path) or "{}")
    except ValueError:
        stated = None
    return checked_record(stated.get(METADATA_KEY) if isinstance(stated, dict) else None, path)


def _found(entries: Sequence[Mapping[str, Any]], moved: Mapping[str, Sequence[str]]) -> list[Input]:
    """The inputs in the record's order."""
    waiting = {name: list(paths) for name, paths in moved.items()}
    inputs = []
    for entry in entries:
        role: str = entry["role"]
        flag = FLAGS.get(role, role)
        source = waiting[flag].pop(0) if waiting.get(flag) else entry["name"]
        what = role if role in FLAGS else f"{role} image"
        if not source or not Path(source).is_file():
            raise StyleEngineError(
                f"The {what} {source or '(given without a file)'} is not there any more. Say where it is with --{flag}."
            )
        opened, sha256 = _open(role, source, entry["sha256"])
        if sha256 != entry["sha256"]:
            raise StyleEngineError(
                f"{source} is not the {what} of this result: it has changed. Name the right one with --{flag}."
            )
        inputs.append(Input(role, entry["weight"], source, opened))
    return inputs


def _open(role: str, source: str, expected: str) -> tuple[Image.Image | LearnedStyle | VideoClip, str]:
    """The input and its hash."""
    if role == STYLE_ROLE:
        style = LearnedStyle.open(source)
        return style, style.sha256
    if role == CLIP_ROLE:
        clip = open_clip(source)
        return clip, clip.sha256
    if role != MASK_ROLE:
        image = open_image(source, f"{role} image")
        return image, content_hash(image)
    mask = open_mask(source)
    if content_hash(inverted := ImageOps.invert(mask)) == expected:
        mask = inverted  # of two styles that share a mask, the first has it inverted
    return mask, content_hash(mask)


def _styles(inputs: Sequence[Input]) -> list[Style]:
    """The styles with their weights, and each with the mask that follows it."""
    styles: list[Style] = []
    for entry in inputs:
        if entry.role == "style":
            assert isinstance(entry.opened, Image.Image)
            styles.append(Style(entry.opened, entry.weight, name=file_name(entry.source)))
        elif entry.role == MASK_ROLE:
            assert isinstance(entry.opened, Image.Image)
            styles[-1] = replace(styles[-1], mask=entry.opened, mask_name=file_name(entry.source))
    return styles


def _source(inputs: Sequence[Input], role: str) -> str | None:
    return next((entry.source for entry in inputs if entry.role == role), None)


Values = dict[str, Any]


def _zstar(
    engine: StyleEngine, inputs: Sequence[Input], values: Values, output: Path, on_step: OnStep | None
) -> Stylization:
    content = _source(inputs, "content") or ""
    return engine.zstar(content, _styles(inputs), ZStarSettings(**values), on_step=on_step)


def _zstar_video(
    engine: StyleEngine, inputs: Sequence[Input], values: Values, output: Path, on_step: OnStep | None
) -> Stylization:
    clip, settings = _source(inputs, CLIP_ROLE) or "", ZStarVideoSettings(**values)
    return engine.zstar_video(clip, _styles(inputs), settings, output=output, on_step=on_step)


def _h_space(
    engine: StyleEngine, inputs: Sequence[Input], values: Values, output: Path, on_step: OnStep | None
) -> Stylization:
    content, style = (_source(inputs, role) or "" for role in ("content", "style"))
    mask = _source(inputs, MASK_ROLE)
    return engine.h_space(content, style, HSpaceSettings(**values), mask=mask, on_step=on_step)


def _qs_attn(
    engine: StyleEngine, inputs: Sequence[Input], values: Values, output: Path, on_step: OnStep | None
) -> Stylization:
    return engine.qs_attn(_source(inputs, "content") or "", settings=QSAttnSettings(**values), on_step=on_step)


def _inst(
    engine: StyleEngine, inputs: Sequence[Input], values: Values, output: Path, on_step: OnStep | None
) -> Stylization:
    styles = [entry.opened for entry in inputs if isinstance(entry.opened, LearnedStyle)]
    return engine.inst_apply(_source(inputs, "content"), styles, InSTSettings(**values), on_step=on_step)


Repeater = Callable[[StyleEngine, Sequence[Input], Values, Path, OnStep | None], Stylization]
REPEATERS: dict[str, Repeater] = {
    "zstar": _zstar,
    "zstar_video": _zstar_video,
    "h_space": _h_space,
    "qs_attn": _qs_attn,
    "inst": _inst,
}
