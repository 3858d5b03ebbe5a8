"""Z-STAR+: the time, and with a price the cost, of a large `batch` on several GPUs, from a few measured images.

    python -m benchmarks.batch_cost                                    # the app's model on this machine
    python -m benchmarks.batch_cost --contents 100 --styles 100 --machines 1 8 64 --price 2.5
    python -m benchmarks.gpu --to gpu --price 2.5                      # the same from that GPU's own measurements

Counted and timed: the U-Net rows of an image with nothing, the style and both images known (the cases of speed.py), and
what they leave in the cache. Computed from these: which inversions each process of the batch makes, with the package's
own order of results and its own cache. A row is one latent image through the U-Net. Loading the model, and reading and
writing files, is not included.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from PIL import Image

from benchmarks.machine import machine
from benchmarks.pairs import content_image, style_image
from benchmarks.speed import CASES, rows_of, timed
from benchmarks.tables import Cell, table
from styleengine import StyleEngine, ZStarSettings
from styleengine.batch import Task, in_blocks, in_tiles, tasks
from styleengine.cache import ByteCache
from styleengine.methods import METHODS

CONTENTS = STYLES = 100
MACHINES = (1, 8, 64)
MIB = 2**20
ALL_KEPT = "all inversions kept"


@dataclass(frozen=True)
class Case:
    """One measured image: its U-Net rows, its seconds, and the bytes in the cache afterwards."""

    rows: int
    seconds: float
    cached: int


@dataclass(frozen=True)
class Entry:
    """Stands for an inversion in the cache."""

    nbytes: int


@dataclass(frozen=True)
class Costs:
    """U-Net rows of a content's inversion, a style's, and a sampling; seconds of a row; bytes in the cache."""

    content_rows: int
    style_rows: int
    sampling_rows: int
    inversion_seconds: float  # of a row
    sampling_seconds: float
    content_bytes: int
    style_bytes: int
    capacity: int

    @classmethod
    def of(cls, nothing_known: Case, style_known: Case, both_known: Case, capacity: int) -> "Costs":
        """From the three cases, of which the second has another content than the first, and the third the same."""
        inverted = nothing_known.rows - both_known.rows
        content_bytes = style_known.cached - nothing_known.cached
        return cls(
            content_rows=style_known.rows - both_known.rows,
            style_rows=nothing_known.rows - style_known.rows,
            sampling_rows=both_known.rows,
            inversion_seconds=(nothing_known.seconds - both_known.seconds) / inverted,
            sampling_seconds=both_known.seconds / both_known.rows,
            content_bytes=content_bytes,
            style_bytes=nothing_known.cached - content_bytes,
            capacity=capacity,
        )


@dataclass(frozen=True)
class Work:
    """What one process does: the number of inverted contents, of inverted styles, and of samplings."""

    contents: int
    styles: int
    samplings: int

    def rows(self, costs: Costs) -> int:
        return self.inverted_rows(costs) + self.samplings * costs.sampling_rows

    def inverted_rows(self, costs: Costs) -> int:
        return self.contents * costs.content_rows + self.styles * costs.style_rows

    def seconds(self, costs: Costs) -> float:
        sampled = self.samplings * costs.sampling_rows
        return self.inverted_rows(costs) * costs.inversion_seconds + sampled * costs.sampling_seconds


def work_of(part: Sequence[Task], costs: Costs) -> Work:
    """The work of one process, whose cache is empty at first and forgets inversions that do not fit."""
    cache = ByteCache(costs.capacity)
    made = {"content": 0, "style": 0}

    def invert(role: str, nbytes: int) -> Entry:
        made[role] += 1
        return Entry(nbytes)

    for task in in_blocks(part, cache):
        cache.get_or_make(("content", task.content), lambda: invert("content", costs.content_bytes))
        cache.get_or_make(("style", task.style), lambda: invert("style", costs.style_bytes))
    return Work(made["content"], made["style"], len(part))


def parts(todo: Sequence[Task], processes: int) -> list[Sequence[Task]]:
    """The tasks of each process, as `accelerate launch` divides them: neighbours, the first parts one longer."""
    length, longer = divmod(len(todo), processes)
    starts = [length * i + min(i, longer) for i in range(processes + 1)]
    return [todo[start:end] for start, end in pairwise(starts)]


def works(contents: int, styles: int, processes: int, costs: Costs) -> list[Work]:
    """The work of each process of a batch."""
    named = [[f"{role}-{i}" for i in range(count)] for role, count in (("content", contents), ("style", styles))]
    todo = in_tiles(tasks(METHODS["zstar"], *named), processes)
    return [work_of(part, costs) for part in parts(todo, processes)]


def cost_rows(
    costs: Costs, contents: int, styles: int, machines: Sequence[int], price: float | None, what: str
) -> dict[str, dict[str, Cell]]:
    """For each number of machines a table row with the cache as it is, and one with a cache that holds everything.

    All machines are paid, `price` for an hour, until the last has finished.
    """
    rows: dict[str, dict[str, Cell]] = {}
    for count in machines:
        name = f"{count} {what}{'s' if count > 1 else ''}"
        for title, known in ((name, costs), (f"{name}, {ALL_KEPT}", replace(costs, capacity=sys.maxsize))):
            of_each = works(contents, styles, count, known)
            hours = max(work.seconds(known) for work in of_each) / 3600
            row: dict[str, Cell] = {
                "content inversions": str(sum(work.contents for work in of_each)),
                "style inversions": str(sum(work.styles for work in of_each)),
                "samplings": str(sum(work.samplings for work in of_each)),
                "U-Net rows": str(sum(work.rows(known) for work in of_each)),
                "hours": hours,
                f"{what} hours": hours * count,
            }
            if price is not None:
                row["dollars"] = hours * count * price
            rows[title] = row
    return rows


def report(
    costs: Costs,
    on_gpu: bool,
    price: float | None,
    contents: int = CONTENTS,
    styles: int = STYLES,
    machines: Sequence[int] = MACHINES,
) -> str:
    """What was measured, and what follows for the batch, as Markdown."""
    inversion, sampling = costs.inversion_seconds, costs.sampling_seconds
    measured: dict[str, dict[str, Cell]] = {
        "a content's inversion": _measured_row(costs.content_rows, inversion, costs.content_bytes),
        "a style's inversion": _measured_row(costs.style_rows, inversion, costs.style_bytes),
        "a sampling": _measured_row(costs.sampling_rows, sampling, 0),
    }
    what = "GPU" if on_gpu else "machine"
    kind = "a GPU" if on_gpu else "a CPU, not a GPU"
    paid = "" if price is None else f", {price:g} dollars an hour for each {what}"
    rows = cost_rows(costs, contents, styles, machines, price, what)
    return (
        f"Measured on {kind}; the cache holds {costs.capacity / MIB:.0f} MiB:\n\n{table(measured, '.4g')}\n\n"
        f"Computed: {contents} contents in {styles} styles, {contents * styles} pictures{paid}:\n\n{table(rows, '.4g')}"
    )


def _measured_row(rows: int, seconds: float, nbytes: int) -> dict[str, Cell]:
    return {"U-Net rows": str(rows), "seconds per row": seconds, "seconds": rows * seconds, "cached MiB": nbytes / MIB}


def of_table(rows: Mapping[str, Mapping[str, Any]]) -> Costs | None:
    """From gpu.py's rows; None without those of the three cases."""
    known = [rows.get(f"Z-STAR+, {case}") for case in CASES]
    if not all(known):
        return None
    cases = [
        Case(int(row["U-Net rows"]), float(row["seconds"]), round(row["cached MiB"] * MIB)) for row in known if row
    ]
    return Costs.of(*cases, capacity=round(rows[f"Z-STAR+, {CASES[0]}"]["cache MiB"] * MIB))


def measured_costs(
    engine: StyleEngine, settings: ZStarSettings, contents: Sequence[Image.Image], style: Image.Image, repeats: int = 1
) -> Costs:
    """Counts and times the three cases with two contents of one size. Of several repeats the fastest counts."""
    first, second = contents
    cases: list[list[Case]] = []
    for _ in range(repeats):
        engine.cache.clear()
        cases.append([_case(engine, content, style, settings) for content in (first, second, second)])
    fastest = [replace(of[0], seconds=min(case.seconds for case in of)) for of in zip(*cases, strict=True)]
    return Costs.of(*fastest, capacity=engine.cache.capacity)


def _case(engine: StyleEngine, content: Image.Image, style: Image.Image, settings: ZStarSettings) -> Case:
    _, seconds, shapes = timed(engine.backbone, lambda: engine.zstar(content, style, settings))
    return Case(rows_of(shapes), seconds, engine.cache.nbytes)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--contents", type=int, default=CONTENTS)
    parser.add_argument("--styles", type=int, default=STYLES)
    parser.add_argument("--machines", type=int, nargs="+", default=MACHINES, help="GPUs, or CPU machines like this one")
    parser.add_argument("--price", type=float, help="dollars for an hour of one of them")
    parser.add_argument("--model", help="default: the app's")
    parser.add_argument("--size", type=int, help="shorter side; default: recommended size of the model")
    parser.add_argument("--steps", type=int, help="default: recommended for the model")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args(arguments)
    engine = StyleEngine(given.model)
    chosen = {name: value for name in ("size", "steps") if (value := getattr(given, name)) is not None}
    settings = engine.settings_for(ZStarSettings, "zstar", ZStarSettings(**chosen))
    contents = [content_image("astronaut"), content_image("cat").crop((0, 0, 300, 300))]
    engine.zstar(contents[0], style_image("auvers"), settings.replace(steps=2))  # warm up
    costs = measured_costs(engine, settings, contents, style_image("great-wave"), given.repeats)
    backbone = engine.backbone
    on_gpu = backbone.device.type == "cuda"
    threads = "" if on_gpu else f", {torch.get_num_threads()} thread(s)"
    about = f"{settings.size} pixels, {settings.steps} steps, fastest of {given.repeats}"
    print(f"{machine(backbone.device.type)}{threads}; {backbone.identity}; {about}.\n")
    print(report(costs, on_gpu, given.price, given.contents, given.styles, given.machines))


if __name__ == "__main__":
    main()
