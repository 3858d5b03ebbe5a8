"""A method, declared once. The engine, the command line, the app, its API and `rerun` derive what they need from it."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from styleengine.backbones import Backbone
from styleengine.cache import ByteCache
from styleengine.errors import StyleEngineError
from styleengine.images import ImageSource, content_hash, open_image, open_mask
from styleengine.learned_style import SUFFIX, LearnedStyle
from styleengine.perceptual import Clip
from styleengine.settings import Settings
from styleengine.style_library import StyleLibrary
from styleengine.styles import Style, style_records, with_shared_mask
from styleengine.stylization import InputRecord, OnStep, Stylization, file_name, mask_record
from styleengine.video import VideoClip, open_clip

LEARNT_STYLE = "learnt style"  # the role of such an input in a record


class Kind(Enum):
    """What an input is, and with it how it is opened, shown, recorded and found again."""

    IMAGE = "image"
    STYLES = "style images"
    MASK = "mask"
    STYLE_MASK = "mask of the styles"
    CLIP = "clip"
    LEARNT_STYLES = "learnt styles"


@dataclass(frozen=True)
class Role:
    """One input of a method.

    `name` is the keyword in Python and in the API. `help` is a sentence for people. `most` is how many
    styles the app and the API take; Python and the command line set no limit.
    """

    name: str
    kind: Kind
    help: str
    required: bool = True
    most: int = 1

    @property
    def title(self) -> str:
        return self.name.replace("_", " ").capitalize()

    @property
    def recorded(self) -> str:
        """The input's role in a record."""
        names = {Kind.STYLES: "style", Kind.STYLE_MASK: "mask", Kind.LEARNT_STYLES: LEARNT_STYLE}
        return names.get(self.kind, self.name)

    @property
    def pattern(self) -> str:
        """What a record's roles, each followed by a comma, are for this input."""
        if self.kind is Kind.STYLE_MASK:  # each follows its style
            return ""
        one = f"({self.recorded},)"
        if self.kind is Kind.STYLES:
            return f"({one}(mask,)?)+"
        if self.kind is Kind.LEARNT_STYLES:
            return f"{one}{{1,{self.most}}}"
        return one if self.required else f"{one}?"

    def open(self, given: Any) -> Any:
        """What was given, checked and decoded: an image, a list of styles, a clip; None for an optional one not given.

        Raises StyleEngineError for what cannot be opened.
        """
        if self.kind is Kind.STYLES:
            return [style if isinstance(style, Style) else Style.open(style) for style in several(given)]
        if self.kind is Kind.LEARNT_STYLES:
            return [opened_learned(style) for style in several(given)]
        if given is None and not self.required:
            return None
        if self.kind is Kind.CLIP:
            return given if isinstance(given, VideoClip) else open_clip(given)
        source: Any = given
        return open_image(source, f"{self.title.lower()} image") if self.kind is Kind.IMAGE else open_mask(source)

    def records(self, opened: Any, name: str) -> list[InputRecord]:
        """What a record keeps of the opened input."""
        if self.kind is Kind.STYLES:
            return style_records(opened)
        if self.kind is Kind.LEARNT_STYLES:
            return [InputRecord(LEARNT_STYLE, style.sha256, Path(style.source).name) for style in opened]
        if opened is None or self.kind is Kind.STYLE_MASK:  # kept with its style
            return []
        if self.kind is Kind.CLIP:
            return [InputRecord(self.recorded, opened.sha256, opened.name)]
        if self.kind is Kind.MASK:
            return [mask_record(opened, name)]
        return [InputRecord(self.recorded, content_hash(opened), name)]


class Inputs:
    """The inputs of one run, opened, by the names of their roles. The styles have their mask already."""

    def __init__(self, roles: Sequence[Role], opened: Mapping[str, Any], names: Mapping[str, str]) -> None:
        self.roles, self._opened, self._names = roles, opened, names

    @classmethod
    def open(cls, roles: Sequence[Role], given: Mapping[str, Any]) -> "Inputs":
        """Opens what was given for each role; StyleEngineError for what is missing, unknown or cannot be opened."""
        known = [role.name for role in roles]
        for name in given:
            if name not in known:
                raise StyleEngineError(f"There is no input “{name}”. The inputs are: {', '.join(known)}.")
        opened = {role.name: role.open(given.get(role.name)) for role in roles}
        names = {role.name: file_name(given.get(role.name)) for role in roles}
        for mask in (role for role in roles if role.kind is Kind.STYLE_MASK):
            for styles in (role for role in roles if role.kind is Kind.STYLES):
                opened[styles.name] = with_shared_mask(opened[styles.name], opened[mask.name], names[mask.name])
        return cls(roles, opened, names)

    def __getitem__(self, name: str) -> Any:
        return self._opened[name]

    def name(self, role: str) -> str:
        """The name of an input's file; empty where it has none."""
        return self._names[role]

    def of(self, kind: Kind) -> list[Any]:
        """The inputs of a kind, without those that were not given."""
        opened = (self._opened[role.name] for role in self.roles if role.kind is kind)
        return [value for value in opened if value is not None]

    @property
    def poster(self) -> Image.Image | None:
        """A picture that stands for the inputs: the first image, or the clip's first frame."""
        pictures = [*self.of(Kind.IMAGE), *(clip.poster for clip in self.of(Kind.CLIP))]
        return pictures[0] if pictures else None

    @property
    def records(self) -> list[InputRecord]:
        """What a record keeps of them, in the order of the roles."""
        return [entry for role in self.roles for entry in role.records(self[role.name], self.name(role.name))]


@dataclass(frozen=True)
class Call:
    """One call of a method, as the engine hands it over.

    `on_step` is called after each step and may raise `Cancelled`. `cache` keeps things between runs. `clip`
    loads CLIP at its first call. `batch(pixels, styles)` is how many pictures of so many pixels fit into
    memory at once. A method that writes a file gets its path as `output`.
    """

    backbone: Backbone
    inputs: Inputs
    settings: Any
    clip: Callable[[], Clip]
    batch: Callable[..., int]
    on_step: OnStep | None = None
    cache: ByteCache | None = None
    output: Path | None = None
    work: Path | None = None
    keep_partial: bool = False


def no_requirement(backbone: Backbone) -> None:
    """Any model serves."""


@dataclass(frozen=True)
class Method:
    """A method: what it is called, what it takes and what runs it.

    `title` is the paper's name, `summary` a sentence for people, `note` what the API adds to it. `inherits`
    names a method whose recommended settings count here, too. `suffix` is that of its results. `typed`
    are settings that have to be given. `models` says that the app offers a choice of models. `endpoint`,
    `command` and `tool` are its names in the API, on the command line and for MCP, by default its own.
    `requires` raises StyleEngineError for a model that does not serve.
    """

    name: str
    title: str
    summary: str
    settings: type[Settings]
    roles: Sequence[Role]
    run: Callable[[Call], Stylization]
    note: str = ""
    inherits: str = ""
    suffix: str = ".png"
    typed: Sequence[str] = ()
    models: bool = False
    endpoint: str = ""
    command: Sequence[str] = ()
    tool: str = ""
    requires: Callable[[Backbone], Any] = field(default=no_requirement)

    def __post_init__(self) -> None:
        object.__setattr__(self, "endpoint", self.endpoint or self.name)
        object.__setattr__(self, "command", self.command or (self.name.replace("_", "-"),))
        object.__setattr__(self, "tool", self.tool or self.name)

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kinds of the inputs by their role in a record; those of masks and styles are MASK and IMAGE."""
        single = {Kind.STYLES: Kind.IMAGE, Kind.STYLE_MASK: Kind.MASK}
        return {role.recorded: single.get(role.kind, role.kind) for role in self.roles}

    def recommended(self, by_method: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """This method's settings among those that a model recommends, with those of the method it inherits from."""
        inherited = by_method.get(self.inherits, {})
        shared = {name: value for name, value in inherited.items() if name in self.settings.model_fields}
        return {**shared, **by_method.get(self.name, {})}

    @property
    def pattern(self) -> str:
        """What the roles in a record, each followed by a comma, have to be."""
        return "".join(role.pattern for role in self.roles)


def several(given: Any) -> list[Any]:
    """A list of what was given: one thing alone, or several of a kind. Text is one path, never its letters."""
    alone = (str, os.PathLike, bytes, bytearray, Image.Image, np.ndarray, Style, LearnedStyle)
    if given is None:
        return []
    if isinstance(given, alone) or hasattr(given, "read") or not isinstance(given, Iterable):
        return [given]
    return list(given)


def opened_styles(styles: ImageSource | Style | Iterable[ImageSource | Style], mask: ImageSource | None) -> list[Style]:
    """Styles with their share of one mask for all."""
    return with_shared_mask(
        [style if isinstance(style, Style) else Style.open(style) for style in several(styles)],
        open_mask(mask) if mask is not None else None,
        file_name(mask) if mask is not None else "",
    )


def opened_learned(style: Any) -> LearnedStyle:
    """A learnt style from its file, or from the library by its name; StyleEngineError for what is neither."""
    if isinstance(style, LearnedStyle):
        return style
    if isinstance(style, str) and not style.endswith(SUFFIX) and not os.path.exists(style):
        return StyleLibrary().open(style)
    if not isinstance(style, (str, os.PathLike)):
        raise StyleEngineError(
            f"A learnt style is a LearnedStyle or the path of its file, not a {type(style).__name__}."
        )
    return LearnedStyle.open(style)
