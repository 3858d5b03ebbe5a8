"""Many results: every content with every style, resumable, and split over processes by `accelerate launch`."""

import csv
import io
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from styleengine.cache import ByteCache
from styleengine.contact_sheet import contact_sheet
from styleengine.engine import StyleEngine
from styleengine.errors import StyleEngineError
from styleengine.images import open_image, save_png, write_whole
from styleengine.learned_style import SUFFIX
from styleengine.measures import Measures, measures
from styleengine.method import Inputs, Kind, Method
from styleengine.methods import METHODS
from styleengine.settings import Settings
from styleengine.stylization import OnStep, file_name, read_record

CELL = (160, 120)
MOST_SHOWN = 20  # contents, and styles, on the contact sheet
LONGEST_LABEL = 40  # characters of a file name, for each of content and style
SHEET, TABLE = "batch.png", "batch.csv"
STYLE_KINDS = {Kind.STYLES: "image", Kind.IMAGE: "image", Kind.LEARNED_STYLES: "learned"}


@dataclass(frozen=True)
class Task:
    """One result: its content, its style (an image, a learned style or a prompt), and its file's name."""

    content: str
    style: str
    name: str


def batch_methods() -> dict[str, Method]:
    """The methods that take a content and a style, by name."""
    return {name: method for name, method in METHODS.items() if style_kind(method)}


def style_kind(method: Method) -> str:
    """What the method takes the style from: “image”, “learned” or “prompt”; empty if it suits no batch."""
    kinds = {role.name: role.kind for role in method.roles}
    if method.suffix != ".png" or kinds.get("content") is not Kind.IMAGE:
        return ""
    if "style" not in kinds:
        return "prompt" if "prompt" in method.typed else ""
    return STYLE_KINDS.get(kinds["style"], "")


def tasks(method: Method, contents: Sequence[str], styles: Sequence[str]) -> list[Task]:
    """All pairs, one style after another.

    A file's name consists of those of content and style, and numbers where two would be equal.
    """
    kind = style_kind(method)
    of_contents = _labels([Path(content).stem for content in contents])
    of_styles = _labels(list(styles) if kind == "prompt" else [Path(style).stem for style in styles])
    pairs = product(zip(styles, of_styles, strict=True), zip(contents, of_contents, strict=True))
    return [Task(content, style, f"{one}--{other}.png") for (style, other), (content, one) in pairs]


def _labels(names: Sequence[str]) -> list[str]:
    """Names that are unique and valid in a file's name."""
    labels: list[str] = []
    for name in names:
        plain = re.sub(r"[^\w.-]+", "-", name)[:LONGEST_LABEL].strip("-.") or "image"
        label, number = plain, 2
        while label in labels:
            label, number = f"{plain}-{number}", number + 1
        labels.append(label)
    return labels


def made(
    engine: StyleEngine,
    method: Method,
    settings: Settings,
    todo: Sequence[Task],
    folder: Path,
    on_step: OnStep | None = None,
) -> Iterator[tuple[Task, str]]:
    """Makes the results, and yields each task with its problem, which is empty if there is none.

    A result that is already in the folder, of the same inputs, settings and model, is not made again.
    """
    for task in in_blocks(todo, engine.cache):
        problem = ""
        try:
            given, chosen = _inputs(method, settings, task)
            opened = Inputs.open(method.roles, given)
            if not _is_there(folder / task.name, engine, method, chosen, opened):
                engine.run(method, opened, chosen, on_step=on_step).save(folder / task.name)
        except StyleEngineError as error:
            problem = str(error)
        yield task, problem


def in_tiles(todo: Sequence[Task], processes: int) -> list[Task]:
    """The tasks in an order of which neighbours for one process have about as many contents as styles.

    So they have few of both, and a process inverts little that another one inverts, too.
    """
    side = max(1, round(math.sqrt(len(todo) / processes)))
    tile = {content: i // side for i, content in enumerate(dict.fromkeys(task.content for task in todo))}
    return sorted(todo, key=lambda task: tile[task.content])


def in_blocks(todo: Sequence[Task], cache: ByteCache) -> Iterator[Task]:
    """The tasks in blocks of as many contents as the cache holds, in each block one style after another.

    So in a block, each content and each style is inverted once. A block ends where there is room for two more of the
    largest entries only, since the next style comes before the last one leaves. Contents of results that are not made,
    and so invert nothing, do not count.
    """
    left = dict.fromkeys(todo)
    while left:
        block, inverted = list(dict.fromkeys(task.content for task in left)), set[str]()
        for style in dict.fromkeys(task.style for task in left):
            for task in [task for task in left if task.style == style and task.content in block]:
                nbytes = cache.nbytes
                yield task
                del left[task]
                if task.content in inverted or cache.nbytes <= nbytes:
                    continue
                inverted.add(task.content)
                if cache.capacity - cache.nbytes < 2 * cache.largest:
                    block = block[: block.index(task.content) + 1]
                    break
        if left:
            cache.clear()  # so that the next block has all of it


def _inputs(method: Method, settings: Settings, task: Task) -> tuple[dict[str, Any], Settings]:
    if style_kind(method) == "prompt":
        return {"content": task.content}, settings.replace(prompt=task.style)
    return {"content": task.content, "style": task.style}, settings


def _is_there(path: Path, engine: StyleEngine, method: Method, settings: Settings, inputs: Inputs) -> bool:
    """Whether the file is the result of this run."""
    if not path.is_file():
        return False
    try:
        record = read_record(path)
    except StyleEngineError:
        return False
    known = [(entry["role"], entry["sha256"], entry["weight"]) for entry in record["inputs"]]
    expected = engine.settings_for(method.settings, method.name, settings).model_dump()
    return (
        record["method"] == method.name
        and record["revision"] == engine.backbone.revision
        and record["settings"] == expected
        and known == [(entry.role, entry.sha256, entry.weight) for entry in inputs.records]
    )


def summarize(method: Method, todo: Sequence[Task], problems: dict[str, str], folder: Path) -> None:
    """Writes the table and the contact sheet of the results in the folder."""
    write_whole(folder / TABLE, _table(method, todo, problems, folder).encode())
    save_png(_sheet(method, todo, folder), folder / SHEET, {})


def _table(method: Method, todo: Sequence[Task], problems: dict[str, str], folder: Path) -> str:
    """One row for each task. Measures need a style image and are empty without one."""
    text = io.StringIO()
    columns = ["file", "content", "style", *Measures.__dataclass_fields__, "problem"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    of_image = style_kind(method) == "image"
    for task in todo:
        style = file_name(task.style) if style_kind(method) != "prompt" else task.style
        row: dict[str, Any] = {"file": task.name, "content": file_name(task.content), "style": style}
        row["problem"] = problems.get(task.name, "")
        if of_image and not row["problem"]:
            content, reference = open_image(task.content), open_image(task.style)
            known = asdict(measures(open_image(folder / task.name), content, reference))
            row |= {name: f"{value:.4f}" for name, value in known.items()}
        writer.writerow(row)
    return text.getvalue()


def _sheet(method: Method, todo: Sequence[Task], folder: Path) -> Image.Image:
    """Contents on the left, styles on top, results between; the first of each if there are many."""
    contents = list(dict.fromkeys(task.content for task in todo))[:MOST_SHOWN]
    styles = list(dict.fromkeys(task.style for task in todo))[:MOST_SHOWN]
    files = {(task.content, task.style): folder / task.name for task in todo}
    of_image = style_kind(method) == "image"
    heads = [_opened(style) if of_image else None for style in styles]
    rows = [[None, *heads], *([_opened(one), *(_opened(files[one, style]) for style in styles)] for one in contents)]
    names = [style if style_kind(method) == "prompt" else file_name(style).removesuffix(SUFFIX) for style in styles]
    captions = [["", *names], *([file_name(one), *[""] * len(styles)] for one in contents)]
    return contact_sheet(rows, CELL, captions)


def _opened(path: str | os.PathLike[str]) -> Image.Image | None:
    """The image; None if it cannot be opened."""
    try:
        return open_image(path)
    except StyleEngineError:
        return None
