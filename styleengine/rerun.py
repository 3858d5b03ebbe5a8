"""A saved result made again, from the record that its PNG or MP4 carries."""

import base64
import hashlib
import os
import re
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageOps

from styleengine.backbones import default_model, named_backbones
from styleengine.engine import StyleEngine
from styleengine.errors import StyleEngineError
from styleengine.images import content_hash, open_image, open_mask
from styleengine.learned_style import SUFFIX, LearnedStyle
from styleengine.methods.h_space import HSpaceSettings
from styleengine.methods.inst import STYLE_ROLE, InSTSettings
from styleengine.methods.qs_attn import QSAttnSettings
from styleengine.methods.zstar import ZStarSettings
from styleengine.methods.zstar_video import CLIP_ROLE, ZStarVideoSettings
from styleengine.settings import Settings, shortened
from styleengine.style_library import SHIPPED
from styleengine.styles import Style
from styleengine.stylization import (
    METADATA_KEY,
    InputRecord,
    OnStep,
    Record,
    Stylization,
    checked_record,
    file_name,
    model_name,
    parsed_record,
    read_record,
)
from styleengine.video import VideoClip, open_clip, read_comment

MASK_ROLE = "mask"
FLAGS = {CLIP_ROLE: "content", STYLE_ROLE: "style"}  # what names a file of that role, if not the role's name
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MOST_FILES = 500  # of a folder that are opened in search of an input
CLIP_SUFFIXES = {".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".flv", ".wmv"}
PICTURE_SUFFIXES = {*Image.registered_extensions(), ".heic", ".heif", ""} - {".pdf", ".ps", ".eps", ".mpg", ".mpeg"}
SUFFIXES = {"content": PICTURE_SUFFIXES, "style": PICTURE_SUFFIXES, MASK_ROLE: PICTURE_SUFFIXES}
SUFFIXES |= {CLIP_ROLE: CLIP_SUFFIXES, STYLE_ROLE: {SUFFIX}}

Opened = Image.Image | LearnedStyle | VideoClip
Known = dict[str, tuple[Opened, bool]]  # by its hash what a file holds, and whether that is the negative of a mask


@dataclass(frozen=True)
class Input:
    """What a result was made from, found again: its record, what it was opened as, and its file.

    `path` is None for a mask from the record itself. `negative` says that the run used the negative of the mask that
    the file holds; `opened` is as the run used it.
    """

    entry: InputRecord
    opened: Opened
    path: Path | None
    negative: bool = False

    @property
    def name(self) -> str:
        return file_name(self.path)


@dataclass(frozen=True)
class Rerun:
    """A saved result whose record has been checked, and whose inputs have been found."""

    path: Path
    record: Record
    settings: Settings
    inputs: Sequence[Input]
    folders: Sequence[Path]

    @classmethod
    def opened(
        cls,
        path: str | os.PathLike[str],
        files: Mapping[str, Sequence[str | os.PathLike[str]]] | None = None,
        folders: Sequence[str | os.PathLike[str]] = (),
    ) -> "Rerun":
        """Reads the record and finds the inputs, by their hashes.

        They are looked for among `files` ("content", "style" and "mask", each with any number of them), in the record
        itself (a painted mask), among the styles that come with the package, beside the result, in the current
        folder, and in `folders`, one of which may also be a file. A folder's own folders are not searched.

        Raises StyleEngineError for a file without a record or with a damaged one, a method that this version
        does not know, files that are no inputs of the result, and inputs that are not found.
        """
        path = Path(path)
        record = _clip_record(path) if _suffix(path) == ".mp4" else Record(**read_record(path))
        name = shortened(file_name(path))
        method = REPEATERS.get(record.method)
        if method is None:
            raise StyleEngineError(
                f"This version cannot repeat the method “{shortened(record.method)}” by which {name} was made."
            )
        if not re.fullmatch(method.roles, ",".join(entry.role for entry in record.inputs)):
            raise StyleEngineError(f"The record that {name} carries does not name the inputs of its method.")
        try:
            settings = method.settings(**record.settings)
        except StyleEngineError as error:
            raise StyleEngineError(
                f"{name} was saved with settings that this version does not have. {error}"
            ) from error
        searched = [path.parent, Path(), *_checked_folders(folders)]
        found = _found(record.inputs, files or {}, searched, name)
        return cls(path, record, settings, found, searched)

    @property
    def suffix(self) -> str:
        return _suffix(self.path)

    @property
    def beside(self) -> Path:
        """Where a second one goes if nobody says otherwise."""
        return self.path.with_name(f"{self.path.stem}-again{self.suffix}")

    @property
    def model(self) -> str:
        """The recorded model as StyleEngine takes it: of a hub model the recorded revision, a local one by its folder.

        Raises StyleEngineError for a local folder that is not found.
        """
        name, revision = self.record.backbone, self.record.revision
        known = named_backbones().get(name)
        location = known.location if known else name.partition("@")[0]
        if known and (Path(location).is_dir() or known.revision == revision):
            return name
        if os.path.isdir(name):  # an older record's path
            return name
        if HUB_ID.fullmatch(location):
            return f"{location}@{revision}" if COMMIT.fullmatch(revision) else name
        here = model_name(name)
        candidates = [Path(default_model()), *(folder / here for folder in self.folders), *self.folders]
        for folder in candidates:
            if model_name(str(folder)) == here and os.path.isfile(folder / "model_index.json"):
                return str(folder)
        raise StyleEngineError(
            f"The model “{shortened(here)}” of this result is a local folder that was not found: name it with --model."
        )

    def run(self, engine: StyleEngine, output: Path, on_step: OnStep | None = None) -> Stylization:
        """Makes the result again. A clip is written to `output`; a picture is left to be saved."""
        return REPEATERS[self.record.method].repeat(engine, self.inputs, self.settings, output, on_step)

    def differences(self, result: Stylization) -> list[str]:
        """What differs between the two runs that may change pixels, as “device: cuda then, cpu now”."""
        now = result.record()
        pairs = {"model": (self.record.backbone, now["backbone"]), "revision": (self.record.revision, now["revision"])}
        pairs |= {"device": (self.record.device, now["device"]), "precision": (self.record.dtype, now["dtype"])}
        pairs |= {name: (self.record.versions.get(name, ""), version) for name, version in now["versions"].items()}
        return [
            f"{what}: {shortened(then) or 'unknown'} then, {present} now"
            for what, (then, present) in pairs.items()
            if then.partition("@")[0] != present.partition("@")[0]
        ]

    def same_as(self, other: Path) -> bool:
        """Whether another result has the same pixels, in every frame."""
        return all(
            one is not None
            and two is not None
            and one.size == two.size
            and ImageChops.difference(one, two).getbbox() is None
            for one, two in zip_longest(_pictures(self.path), _pictures(other))
        )


def _suffix(path: Path) -> str:
    return ".mp4" if path.suffix.lower() == ".mp4" else ".png"


def _pictures(path: Path) -> Iterator[Image.Image]:
    if _suffix(path) != ".mp4":
        return iter([open_image(path)])
    return open_clip(path).select(0, 0, sys.maxsize).frames()


def _clip_record(path: Path) -> Record:
    stated = parsed_record(read_comment(path))
    return checked_record(stated.get(METADATA_KEY) if isinstance(stated, dict) else None, path)


def _checked_folders(folders: Sequence[str | os.PathLike[str]]) -> list[Path]:
    for folder in folders:
        if not os.path.exists(folder):
            raise StyleEngineError(f"There is no folder or file {shortened(os.fspath(folder))} to look for inputs in.")
    return [Path(folder) for folder in folders]


def _found(
    entries: Sequence[InputRecord],
    files: Mapping[str, Sequence[str | os.PathLike[str]]],
    folders: Sequence[Path],
    result: str,
) -> list[Input]:
    """The inputs in the record's order; equal ones are looked for once."""
    missing = {(entry.role, entry.sha256): entry for entry in entries}
    found: dict[tuple[str, str], tuple[Opened, bool, Path | None]] = {}

    def take(path: Path | None, role: str, known: Known) -> bool:
        """Whether what a file was opened as is one of the missing inputs of that role; it is missing no more."""
        taken = [key for key in missing if key[0] == role and key[1] in known]
        for key in taken:
            found[key] = (*known[key[1]], path)
            del missing[key]
        return bool(taken)

    for flag, given in files.items():
        roles = {entry.role for entry in entries if FLAGS.get(entry.role, entry.role) == flag}
        if given and not roles:
            raise StyleEngineError(f"{result} was made without what --{flag} names: leave it out.")
        for path, role in ((Path(source), role) for source in given for role in roles):
            known = _open(path, role)
            if not take(path, role, known) and not any((role, sha256) in found for sha256 in known):
                raise StyleEngineError(
                    f"{file_name(path)} is not the {_what(role)} of this result: its content is another. "
                    f"Name the right one with --{flag}."
                )
    for entry in entries:
        if entry.data and (entry.role, entry.sha256) in missing:
            take(None, entry.role, _open_data(entry, result))
    taken_names = set[str]()
    for path in _candidates(entries, folders):
        if not missing:
            break
        for role in {role for role, _ in missing}:
            names = {entry.name for key, entry in missing.items() if key[0] == role}
            if path.suffix.lower() not in SUFFIXES[role] and file_name(path) not in names:
                continue
            known = _open_one_of(path, role, missing)
            if not take(path, role, known) and file_name(path) in names:
                taken_names.add(file_name(path))
    if missing:
        raise StyleEngineError(_missing_sentence(list(missing.values()), taken_names, result))
    return [_as_used(entry, *found[entry.role, entry.sha256]) for entry in entries]


def _as_used(entry: InputRecord, opened: Opened, negative: bool, path: Path | None) -> Input:
    if entry.inverted and isinstance(opened, Image.Image):
        return Input(entry, ImageOps.invert(opened), path, not negative)
    return Input(entry, opened, path, negative)


def _candidates(entries: Sequence[InputRecord], folders: Sequence[Path]) -> Iterator[Path]:
    """Files that may be inputs: those of the recorded names first, in all the folders, then the others."""
    yield from (file for file in folders if os.path.isfile(file))
    listed = [folder for folder in folders if os.path.isdir(folder)]
    listed += [SHIPPED] if any(entry.role == STYLE_ROLE for entry in entries) else []
    names = dict.fromkeys(entry.name for entry in entries if entry.name)
    seen = set[str]()
    for named in (True, False):
        for folder in listed:
            for path in (folder / name for name in names) if named else _files(folder):
                if os.path.isfile(path) and (real := os.path.realpath(path)) not in seen:
                    seen.add(real)
                    yield path


def _files(folder: Path) -> Iterator[Path]:
    """The pictures, clips and styles that lie in a folder, not too many of them."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    known = frozenset().union(*SUFFIXES.values())
    yield from islice((folder / name for name in names if Path(name).suffix.lower() in known), MOST_FILES)


def _open(path: Path, role: str) -> Known:
    """What a file holds, by its hash. A mask comes with its negative, whose hash older records have.

    Raises StyleEngineError for a file that cannot be opened.
    """
    if role == STYLE_ROLE:
        style = LearnedStyle.open(path)
        return {style.sha256: (style, False)}
    if role == CLIP_ROLE:
        clip = open_clip(path)
        return {clip.sha256: (clip, False)}
    if role != MASK_ROLE:
        image = open_image(path, _what(role))
        return {content_hash(image): (image, False)}
    return _with_negative(open_mask(path))


def _open_one_of(path: Path, role: str, wanted: Container[tuple[str, str]]) -> Known:
    """As `_open`, of a file that was met by chance: nothing where it cannot be opened, or is clearly another."""
    try:
        if role == CLIP_ROLE:
            with open(path, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return _open(path, role) if (role, sha256) in wanted else {}
        return _open(path, role)
    except (StyleEngineError, OSError):
        return {}


def _with_negative(mask: Image.Image) -> Known:
    negative = ImageOps.invert(mask)
    return {content_hash(negative): (negative, True), content_hash(mask): (mask, False)}


def _open_data(entry: InputRecord, result: str) -> Known:
    """The mask that the record carries whole."""
    try:
        known = _with_negative(open_mask(base64.b64decode(entry.data, validate=True)))
    except ValueError:  # StyleEngineError is one
        known = {}
    if entry.sha256 not in known:
        raise StyleEngineError(
            f"The mask in the record that {result} carries is damaged: name its file with --{MASK_ROLE}."
        )
    return known


def _missing_sentence(entries: Sequence[InputRecord], taken_names: Container[str], result: str) -> str:
    clauses = []
    for entry in entries:
        name = f"“{shortened(entry.name)}”" if entry.name else "given without a file"
        other = ", where the file of that name has another content" if entry.name in taken_names else ""
        clauses.append(f"the {_what(entry.role)} {name} (--{FLAGS.get(entry.role, entry.role)} FILE){other}")
    return (
        f"Not found beside {result} or in the current folder: {'; '.join(clauses)}. Name each one by its flag, "
        "or a folder where it lies, under whatever name, with --inputs FOLDER."
    )


def _what(role: str) -> str:
    return role if role in FLAGS else f"{role} image"


def _styles(inputs: Sequence[Input]) -> list[Style]:
    """The styles with their weights, and each with the mask that follows it."""
    styles: list[Style] = []
    for given in inputs:
        if not isinstance(given.opened, Image.Image) or given.entry.role == "content":
            continue
        if given.entry.role == MASK_ROLE:
            mask = {"mask": given.opened, "mask_name": given.name, "mask_inverted": given.negative}
            styles[-1] = replace(styles[-1], **mask)
        else:
            styles.append(Style(given.opened, given.entry.weight, name=given.name))
    return styles


def _source(inputs: Sequence[Input], role: str) -> Any:
    """What the engine takes as the input of a role: its file, which has a name, or else the mask that has none."""
    given = next((given for given in inputs if given.entry.role == role), None)
    return given and (given.path if given.path and not given.negative else given.opened)


def _zstar(engine: StyleEngine, inputs: Sequence[Input], settings: Any, output: Path, on_step: Any) -> Stylization:
    return engine.zstar(_source(inputs, "content"), _styles(inputs), settings, on_step=on_step)


def _zstar_video(
    engine: StyleEngine, inputs: Sequence[Input], settings: Any, output: Path, on_step: Any
) -> Stylization:
    clip = _source(inputs, CLIP_ROLE)
    return engine.zstar_video(clip, _styles(inputs), settings, output=output, on_step=on_step)


def _h_space(engine: StyleEngine, inputs: Sequence[Input], settings: Any, output: Path, on_step: Any) -> Stylization:
    content, style, mask = (_source(inputs, role) for role in ("content", "style", MASK_ROLE))
    return engine.h_space(content, style, settings, mask=mask, on_step=on_step)


def _qs_attn(engine: StyleEngine, inputs: Sequence[Input], settings: Any, output: Path, on_step: Any) -> Stylization:
    return engine.qs_attn(_source(inputs, "content"), settings=settings, on_step=on_step)


def _inst(engine: StyleEngine, inputs: Sequence[Input], settings: Any, output: Path, on_step: Any) -> Stylization:
    styles = [given.opened for given in inputs if isinstance(given.opened, LearnedStyle)]
    return engine.inst_apply(_source(inputs, "content"), styles, settings, on_step=on_step)


@dataclass(frozen=True)
class Repeater:
    """How results of a method are made again: its settings, its inputs' roles as a pattern, and what runs it."""

    settings: type[Settings]
    roles: str
    repeat: Callable[[StyleEngine, Sequence[Input], Any, Path, OnStep | None], Stylization]


REPEATERS = {
    "zstar": Repeater(ZStarSettings, "content(,style(,mask)?)+", _zstar),
    "zstar_video": Repeater(ZStarVideoSettings, "clip(,style(,mask)?)+", _zstar_video),
    "h_space": Repeater(HSpaceSettings, "content,style(,mask)?", _h_space),
    "qs_attn": Repeater(QSAttnSettings, "content", _qs_attn),
    "inst": Repeater(InSTSettings, "(content,)?learnt style(,learnt style)?", _inst),
}
