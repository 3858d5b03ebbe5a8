"""The declaration of a method, from which engine, command line, app, API and `rerun` are derived."""

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

LEARNED_STYLE = "learnt style"  # the role in a record: saved results contain this spelling, and `rerun` matches it


class Kind(Enum):
    """The type of an input. It determines how the input is opened, displayed, recorded and found again."""

    IMAGE = "image"
    STYLES = "style images"
    MASK = "mask"
    STYLE_MASK = "mask of the styles"
    CLIP = "clip"
    LEARNED_STYLES = "learned styles"


@dataclass(frozen=True)
class Role:
    """One input of a method.

    `name` is the keyword in Python and in the API. `help` describes it in a sentence. `most` is how many
    styles the app and the API accept; Python and the command line set no limit.
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
        names = {Kind.STYLES: "style", Kind.STYLE_MASK: "mask", Kind.LEARNED_STYLES: LEARNED_STYLE}
        return names.get(self.kind, self.name)

    @property
    def pattern(self) -> str:
        """A regular expression for this input's roles in a record, each followed by a comma."""
        if self.kind is Kind.STYLE_MASK:  # each follows its style
            return ""
        one = f"({self.recorded},)"
        if self.kind is Kind.STYLES:
            return f"({one}(mask,)?)+"
        if self.kind is Kind.LEARNED_STYLES:
            return f"{one}{{1,{self.most}}}"
        return one if self.required else f"{one}?"

    def open(self, given: Any) -> Any:
        """Checks and decodes the input: an image, a list of styles or a clip; None for an omitted optional input.

        Raises StyleEngineError if it cannot be opened.
        """
        if self.kind is Kind.STYLES:
            return [style if isinstance(style, Style) else Style.open(style) for style in several(given)]
        if self.kind is Kind.LEARNED_STYLES:
            return [opened_learned(style) for style in several(given)]
        if given is None and not self.required:
            return None
        if self.kind is Kind.CLIP:
            return given if isinstance(given, VideoClip) else open_clip(given)
        source: Any = given
        return open_image(source, f"{self.title.lower()} image") if self.kind is Kind.IMAGE else open_mask(source)

    def records(self, opened: Any, name: str) -> list[InputRecord]:
        """The record entries of the opened input."""
        if self.kind is Kind.STYLES:
            return style_records(opened)
        if self.kind is Kind.LEARNED_STYLES:
            return [InputRecord(LEARNED_STYLE, style.sha256, Path(style.source).name) for style in opened]
        if opened is None or self.kind is Kind.STYLE_MASK:  # recorded with its style
            return []
        if self.kind is Kind.CLIP:
            return [InputRecord(self.recorded, opened.sha256, opened.name)]
        if self.kind is Kind.MASK:
            return [mask_record(opened, name)]
        return [InputRecord(self.recorded, content_hash(opened), name)]


def styles_and_mask(most: int) -> tuple[Role, Role]:
    """The roles of style images, up to `most` of them in the app, and of the mask that says where they apply."""
    mask = "With one style: white where it applies. With two: white for the second, black for the first."
    return (
        Role("style", Kind.STYLES, "The image whose style is taken.", most=most),
        Role("mask", Kind.STYLE_MASK, mask, required=False),
    )


class Inputs:
    """The opened inputs of one run, by the names of their roles. Styles already have their masks."""

    def __init__(self, roles: Sequence[Role], opened: Mapping[str, Any], names: Mapping[str, str]) -> None:
        self.roles, self._opened, self._names = roles, opened, names

    @classmethod
    def open(cls, roles: Sequence[Role], given: Mapping[str, Any]) -> "Inputs":
        """Opens the input of each role; StyleEngineError for missing, unknown or unreadable inputs."""
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
        """The file name of an input; empty if it has none."""
        return self._names[role]

    def of(self, kind: Kind) -> list[Any]:
        """The inputs of a kind, without omitted ones."""
        opened = (self._opened[role.name] for role in self.roles if role.kind is kind)
        return [value for value in opened if value is not None]

    @property
    def poster(self) -> Image.Image | None:
        """A preview of the inputs: the first image, or the clip's first frame."""
        pictures = [*self.of(Kind.IMAGE), *(clip.poster for clip in self.of(Kind.CLIP))]
        return pictures[0] if pictures else None

    @property
    def records(self) -> list[InputRecord]:
        """The record entries of the inputs, in the order of the roles."""
        return [entry for role in self.roles for entry in role.records(self[role.name], self.name(role.name))]


@dataclass(frozen=True)
class Call:
    """The arguments of one method call.

    `on_step` is called after each step and may raise `Cancelled`. `cache` persists between runs. `clip`
    loads CLIP on its first call. `batch(pixels, styles)` is the batch size that fits into memory for images
    of `pixels` pixels. `output` is the path for a method that writes a file. After about `seconds`, a method that can
    resume raises `TimeUp`.
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
    seconds: float | None = None


def no_requirement(backbone: Backbone) -> None:
    """Accepts every model."""


@dataclass(frozen=True)
class Method:
    """A method: its names, settings, inputs and function.

    `title` is the paper's name, `plain_title` what the method does in a few words, `summary` a one-sentence
    description, `note` an addition to it for the API, `paper` the paper's address.
    `inherits` names a method whose recommended settings also apply. `suffix` is the file suffix of results.
    `typed` are required settings. `presets` are settings with which it is another published method, by that
    method's name. `models`: the app offers a choice of models. `own_weights`: its networks are its own, whatever the
    engine's model is, of which it uses the device. `endpoint`, `command` and
    `tool` are its names in the API, on the command line and for MCP, by default `name`. `requires` raises
    StyleEngineError for an unsuitable model.
    """

    name: str
    title: str
    summary: str
    settings: type[Settings]
    roles: Sequence[Role]
    run: Callable[[Call], Stylization]
    plain_title: str = ""
    paper: str = ""
    note: str = ""
    inherits: str = ""
    suffix: str = ".png"
    typed: Sequence[str] = ()
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    models: bool = False
    own_weights: bool = False
    endpoint: str = ""
    command: Sequence[str] = ()
    tool: str = ""
    requires: Callable[[Backbone], Any] = field(default=no_requirement)

    def __post_init__(self) -> None:
        object.__setattr__(self, "endpoint", self.endpoint or self.name)
        object.__setattr__(self, "command", self.command or (self.name.replace("_", "-"),))
        object.__setattr__(self, "tool", self.tool or self.name)

    @property
    def label(self) -> str:
        """The label of the method's tab: “Video · Z-STAR+”, or the title alone."""
        return " · ".join(filter(None, (self.plain_title, self.title)))

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kinds of the inputs by their role in a record; for style masks and styles, MASK and IMAGE."""
        single = {Kind.STYLES: Kind.IMAGE, Kind.STYLE_MASK: Kind.MASK}
        return {role.recorded: single.get(role.kind, role.kind) for role in self.roles}

    def recommended(self, by_method: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """A model's recommended settings for this method, including those of the method it inherits from."""
        inherited = by_method.get(self.inherits, {})
        shared = {name: value for name, value in inherited.items() if name in self.settings.model_fields}
        return {**shared, **by_method.get(self.name, {})}

    @property
    def pattern(self) -> str:
        """A regular expression for the roles in a record, each followed by a comma."""
        return "".join(role.pattern for role in self.roles)


def several(given: Any) -> list[Any]:
    """The given value or values as a list. A string is a single path."""
    alone = (str, os.PathLike, bytes, bytearray, Image.Image, np.ndarray, Style, LearnedStyle)
    if given is None:
        return []
    if isinstance(given, alone) or hasattr(given, "read") or not isinstance(given, Iterable):
        return [given]
    return list(given)


def opened_styles(styles: ImageSource | Style | Iterable[ImageSource | Style], mask: ImageSource | None) -> list[Style]:
    """The opened styles, with the shared mask applied."""
    return with_shared_mask(
        [style if isinstance(style, Style) else Style.open(style) for style in several(styles)],
        open_mask(mask) if mask is not None else None,
        file_name(mask) if mask is not None else "",
    )


def opened_learned(style: Any) -> LearnedStyle:
    """A learned style from its file, or from the library by its name; StyleEngineError for anything else."""
    if isinstance(style, LearnedStyle):
        return style
    if isinstance(style, str) and not style.endswith(SUFFIX) and not os.path.exists(style):
        return StyleLibrary().open(style)
    if not isinstance(style, (str, os.PathLike)):
        raise StyleEngineError(
            f"A learned style is a LearnedStyle or the path of its file, not a {type(style).__name__}."
        )
    return LearnedStyle.open(style)
