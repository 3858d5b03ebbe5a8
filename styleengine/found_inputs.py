"""Finds the inputs of a saved result by their hashes."""

import base64
import hashlib
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image, ImageOps

from styleengine.errors import StyleEngineError
from styleengine.images import content_hash, open_image, open_mask
from styleengine.learned_style import SUFFIX, LearnedStyle
from styleengine.method import LEARNED_STYLE, Kind
from styleengine.settings import shortened
from styleengine.style_library import SHIPPED
from styleengine.stylization import InputRecord, file_name
from styleengine.video import VideoClip, open_clip

FLAGS = {"clip": "content", LEARNED_STYLE: "style"}  # the flag for a role, if it is not the role's name
MOST_FILES = 500  # opened per folder in the search for an input
CLIP_SUFFIXES = {".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".flv", ".wmv"}
PICTURE_SUFFIXES = {*Image.registered_extensions(), ".heic", ".heif", ""} - {".pdf", ".ps", ".eps", ".mpg", ".mpeg"}
SUFFIXES = {Kind.IMAGE: PICTURE_SUFFIXES, Kind.MASK: PICTURE_SUFFIXES}
SUFFIXES |= {Kind.CLIP: CLIP_SUFFIXES, Kind.LEARNED_STYLES: {SUFFIX}}

Opened = Image.Image | LearnedStyle | VideoClip
Known = dict[str, tuple[Opened, bool]]  # by hash: a file's content, and whether it is the negative of a mask


@dataclass(frozen=True)
class Found:
    """An input of a result: its record, its opened content, and its file.

    `path` is None for a mask stored in the record. `negative` means that the run used the negative of the mask
    in the file; `opened` is the content as the run used it.
    """

    entry: InputRecord
    opened: Opened
    path: Path | None
    negative: bool = False

    @property
    def name(self) -> str:
        return file_name(self.path)


def find_inputs(
    entries: Sequence[InputRecord],
    kinds: Mapping[str, Kind],
    files: Mapping[str, Sequence[str | os.PathLike[str]]],
    folders: Sequence[Path],
    result: str,
) -> list[Found]:
    """The inputs in the record's order. Equal ones are searched for once. `kinds` are the kinds by role.

    Raises StyleEngineError for `files` that are not inputs of the result, and for inputs that are not found.
    """
    missing = {(entry.role, entry.sha256): entry for entry in entries}
    found: dict[tuple[str, str], tuple[Opened, bool, Path | None]] = {}

    def take(path: Path | None, role: str, known: Known) -> bool:
        """Marks the missing inputs of that role in `known` as found; returns whether there were any."""
        taken = [key for key in missing if key[0] == role and key[1] in known]
        for key in taken:
            found[key] = (*known[key[1]], path)
            del missing[key]
        return bool(taken)

    for flag, given in files.items():
        roles = {entry.role for entry in entries if FLAGS.get(entry.role, entry.role) == flag}
        if given and not roles:
            raise StyleEngineError(f"{result} has no input --{flag}: leave it out.")
        for path, role in ((Path(source), role) for source in given for role in roles):
            known = _open(path, kinds[role], _what(role))
            if not take(path, role, known) and not any((role, sha256) in found for sha256 in known):
                raise StyleEngineError(
                    f"{file_name(path)} is not the {_what(role)} of this result: its content differs. "
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
            if path.suffix.lower() not in SUFFIXES[kinds[role]] and file_name(path) not in names:
                continue
            wanted = {sha256 for other, sha256 in missing if other == role}
            known = _open_one_of(path, kinds[role], wanted)
            if not take(path, role, known) and file_name(path) in names:
                taken_names.add(file_name(path))
    if missing:
        raise StyleEngineError(_missing_sentence(list(missing.values()), taken_names, result))
    return [_as_used(entry, *found[entry.role, entry.sha256]) for entry in entries]


def _as_used(entry: InputRecord, opened: Opened, negative: bool, path: Path | None) -> Found:
    if entry.inverted and isinstance(opened, Image.Image):
        return Found(entry, ImageOps.invert(opened), path, not negative)
    return Found(entry, opened, path, negative)


def _candidates(entries: Sequence[InputRecord], folders: Sequence[Path]) -> Iterator[Path]:
    """Files that may be inputs: those with recorded names first, in all folders, then the others."""
    yield from (file for file in folders if os.path.isfile(file))
    listed = [folder for folder in folders if os.path.isdir(folder)]
    listed += [SHIPPED] if any(entry.role == LEARNED_STYLE for entry in entries) else []
    names = dict.fromkeys(entry.name for entry in entries if entry.name)
    seen = set[str]()
    for named in (True, False):
        for folder in listed:
            for path in (folder / name for name in names) if named else _files(folder):
                if os.path.isfile(path) and (real := os.path.realpath(path)) not in seen:
                    seen.add(real)
                    yield path


def _files(folder: Path) -> Iterator[Path]:
    """At most `MOST_FILES` images, clips and styles in a folder."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    known = frozenset().union(*SUFFIXES.values())
    yield from islice((folder / name for name in names if Path(name).suffix.lower() in known), MOST_FILES)


def _open(path: Path, kind: Kind, what: str = "image") -> Known:
    """A file's content, by its hash. For a mask also its negative, whose hash older records have.

    Raises StyleEngineError for a file that cannot be opened.
    """
    if kind is Kind.LEARNED_STYLES:
        style = LearnedStyle.open(path)
        return {style.sha256: (style, False)}
    if kind is Kind.CLIP:
        clip = open_clip(path)
        return {clip.sha256: (clip, False)}
    if kind is not Kind.MASK:
        image = open_image(path, what)
        return {content_hash(image): (image, False)}
    return _with_negative(open_mask(path))


def _open_one_of(path: Path, kind: Kind, wanted: Container[str]) -> Known:
    """As `_open`, for a file that may be unrelated: empty if it cannot be opened or has another hash."""
    try:
        if kind is Kind.CLIP:
            with open(path, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return _open(path, kind) if sha256 in wanted else {}
        return _open(path, kind)
    except (StyleEngineError, OSError):
        return {}


def _with_negative(mask: Image.Image) -> Known:
    negative = ImageOps.invert(mask)
    return {content_hash(negative): (negative, True), content_hash(mask): (mask, False)}


def _open_data(entry: InputRecord, result: str) -> Known:
    """The mask stored in the record."""
    try:
        known = _with_negative(open_mask(base64.b64decode(entry.data, validate=True)))
    except ValueError:  # StyleEngineError is one
        known = {}
    if entry.sha256 not in known:
        raise StyleEngineError(
            f"The mask in the record that {result} carries is damaged: name its file with --{entry.role}."
        )
    return known


def _missing_sentence(entries: Sequence[InputRecord], taken_names: Container[str], result: str) -> str:
    clauses = []
    for entry in entries:
        name = f"“{shortened(entry.name)}”" if entry.name else "given without a file"
        other = ", and the file of that name has different content" if entry.name in taken_names else ""
        clauses.append(f"the {_what(entry.role)} {name} (--{FLAGS.get(entry.role, entry.role)} FILE){other}")
    return (
        f"Not found beside {result} or in the current folder: {'; '.join(clauses)}. Name each file with its flag, "
        "or a folder that contains it, under any name, with --inputs FOLDER."
    )


def _what(role: str) -> str:
    """What messages call an input of that role."""
    if role == LEARNED_STYLE:
        return "learned style"
    return role if role in FLAGS else f"{role} image"
