"""Reproduces a saved result from the record in its PNG or MP4."""

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from styleengine.backbones import default_model, named_backbones
from styleengine.engine import StyleEngine
from styleengine.errors import StyleEngineError
from styleengine.found_inputs import Found, find_inputs
from styleengine.images import open_image
from styleengine.method import Kind, Role
from styleengine.methods import METHODS
from styleengine.settings import Settings, shortened
from styleengine.styles import Style
from styleengine.stylization import (
    METADATA_KEY,
    OnStep,
    Record,
    Stylization,
    checked_record,
    file_name,
    model_name,
    parsed_record,
    read_record,
)
from styleengine.video import open_clip, read_comment

COMMIT = re.compile(r"[0-9a-f]{40}")
EMBEDDED = "mini"  # the smallest model, where the method does not use the engine's
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Rerun:
    """A saved result whose record has been checked, and whose inputs have been found."""

    path: Path
    record: Record
    settings: Settings
    inputs: Sequence[Found]
    folders: Sequence[Path]

    @classmethod
    def opened(
        cls,
        path: str | os.PathLike[str],
        files: Mapping[str, Sequence[str | os.PathLike[str]]] | None = None,
        folders: Sequence[str | os.PathLike[str]] = (),
    ) -> "Rerun":
        """Reads the record and finds the inputs, by their hashes.

        They are searched for in `files` (by role: "content", "style", "mask" …, any number of each), in the
        record (a painted mask), among the bundled styles, in the result's folder, in the current folder, and in
        `folders`, which may also be files. Subfolders are not searched.

        Raises StyleEngineError for a missing or damaged record, a method that this version does not have,
        files that are not inputs of the result, and inputs that are not found.
        """
        path = Path(path)
        record = _clip_record(path) if _suffix(path) == ".mp4" else Record(**read_record(path))
        name = shortened(file_name(path))
        method = METHODS.get(record.method)
        if method is None:
            raise StyleEngineError(
                f"This version cannot repeat the method “{shortened(record.method)}” by which {name} was made."
            )
        if not re.fullmatch(method.pattern, "".join(f"{entry.role}," for entry in record.inputs)):
            raise StyleEngineError(f"The record that {name} carries does not name the inputs of its method.")
        try:
            settings = method.settings(**record.settings)
        except StyleEngineError as error:
            raise StyleEngineError(
                f"{name} was saved with settings that this version does not have. {error}"
            ) from error
        searched = [path.parent, Path(), *_checked_folders(folders)]
        inputs = find_inputs(record.inputs, method.kinds, files or {}, searched, name)
        return cls(path, record, settings, inputs, searched)

    @property
    def suffix(self) -> str:
        return _suffix(self.path)

    @property
    def beside(self) -> Path:
        """The default output path."""
        return self.path.with_name(f"{self.path.stem}-again{self.suffix}")

    @property
    def model(self) -> str:
        """The recorded model as StyleEngine takes it: a hub id with the recorded revision, or a local folder.

        Raises StyleEngineError if a local folder is not found.
        """
        if METHODS[self.record.method].own_weights:
            return EMBEDDED
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
        """Reproduces the result. A clip is written to `output`; an image is not saved."""
        method = METHODS[self.record.method]
        inputs = {role.name: _given(role, self.inputs) for role in method.roles}
        clip = output if method.suffix == ".mp4" else None
        return engine.run(method, inputs, self.settings, output=clip, on_step=on_step)

    def differences(self, result: Stylization) -> list[str]:
        """Differences between the two runs that may change pixels, such as “device: cuda then, cpu now”."""
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


def _given(role: Role, inputs: Sequence[Found]) -> Any:
    """The input of a role, as the engine takes it."""
    if role.kind is Kind.STYLE_MASK:  # each style has its own
        return None
    if role.kind is Kind.STYLES:
        return _styles(inputs)
    here = [given for given in inputs if given.entry.role == role.recorded]
    if role.kind is Kind.LEARNED_STYLES:
        return [given.opened for given in here]
    # The file, which has a name, or a mask without a file.
    return (here[0].path if here[0].path and not here[0].negative else here[0].opened) if here else None


def _styles(inputs: Sequence[Found]) -> list[Style]:
    """The styles with their weights and the masks that follow them."""
    styles: list[Style] = []
    for given in inputs:
        if not isinstance(given.opened, Image.Image) or given.entry.role not in ("style", "mask"):
            continue
        if given.entry.role == "mask":
            mask = {"mask": given.opened, "mask_name": given.name, "mask_inverted": given.negative}
            styles[-1] = replace(styles[-1], **mask)
        else:
            styles.append(Style(given.opened, given.entry.weight, name=given.name))
    return styles
