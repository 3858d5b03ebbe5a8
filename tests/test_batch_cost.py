"""The cost of a batch, computed from few counted images, against the U-Net rows of real batches."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import PartialState
from accelerate.utils import DistributedType
from PIL import Image

from benchmarks import batch_cost
from benchmarks.batch_cost import Case, Costs, Work, cost_rows, measured_costs, parts, report, works
from benchmarks.speed import noted_calls, rows_of
from styleengine import StyleEngine, ZStarSettings
from styleengine.batch import in_tiles, made, tasks
from styleengine.methods import METHODS

ZSTAR = METHODS["zstar"]
SETTINGS = ZStarSettings(size=64, steps=3, inversion_iterations=2, query_preservation=0.5)
CONTENTS, STYLES = 3, 2
COSTS = Costs(60, 50, 30, 0.5, 0.25, content_bytes=10, style_bytes=100, capacity=10**6)


def pictures(source: Image.Image, count: int, folder: Path, name: str) -> list[str]:
    """Files of square images, which all differ."""
    files = [folder / f"{name}-{i}.png" for i in range(count)]
    for i, file in enumerate(files):
        source.crop((10 * i, 0, 10 * i + 100, 100)).save(file)
    return [str(file) for file in files]


@pytest.fixture
def counted(
    engine: StyleEngine, astronaut: Image.Image, coffee: Image.Image, tmp_path: Path
) -> Callable[..., tuple[Costs, int]]:
    """The costs measured on other images, and the U-Net rows of a real batch of 3 × 2, each process with its cache."""

    def count(processes: int = 1, small_cache: bool = False) -> tuple[Costs, int]:
        plain, paint = astronaut.convert("RGB").resize((200, 200)), coffee.convert("RGB").resize((200, 200))
        engine.cache.clear()
        others = [plain.crop((i, 50, i + 100, 150)) for i in (3, 7)]
        costs = measured_costs(engine, SETTINGS, others, paint.crop((3, 50, 103, 150)))
        if small_cache:  # for two contents of three, and room for two styles
            costs = replace(costs, capacity=3 * costs.style_bytes + costs.content_bytes)
        files = pictures(plain, CONTENTS, tmp_path, "content"), pictures(paint, STYLES, tmp_path, "style")
        usual, engine.cache.capacity = engine.cache.capacity, costs.capacity
        rows = 0
        try:
            for part in parts(in_tiles(tasks(ZSTAR, *files), processes), processes):
                engine.cache.clear()
                with noted_calls(engine.backbone.unet) as shapes:
                    problems = [problem for _, problem in made(engine, ZSTAR, SETTINGS, part, tmp_path)]
                assert not any(problems)
                rows += rows_of(shapes)
        finally:
            engine.cache.capacity = usual
        return costs, rows

    return count


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_computed_rows_of_a_batch_are_those_of_a_real_one(
    counted: Callable[..., tuple[Costs, int]], processes: int
) -> None:
    costs, rows = counted(processes)
    assert sum(work.rows(costs) for work in works(CONTENTS, STYLES, processes, costs)) == rows


def test_with_a_small_cache_each_block_of_contents_inverts_the_styles_again(
    counted: Callable[..., tuple[Costs, int]],
) -> None:
    costs, rows = counted(small_cache=True)
    (work,) = works(CONTENTS, STYLES, 1, costs)
    assert work.rows(costs) == rows
    assert (work.contents, work.styles) == (CONTENTS, 2 * STYLES)
    assert works(CONTENTS, STYLES, 1, replace(costs, capacity=10**12)) == [Work(CONTENTS, STYLES, CONTENTS * STYLES)]


def test_costs_are_the_differences_of_the_three_cases() -> None:
    costs = Costs.of(Case(140, 70.0, 110), Case(90, 40.0, 120), Case(30, 15.0, 120), capacity=10**6)
    assert costs == replace(COSTS, inversion_seconds=0.5, sampling_seconds=0.5)


def test_the_whole_grid_needs_an_inversion_for_each_image_and_a_sampling_for_each_pair() -> None:
    (work,) = works(100, 100, 1, COSTS)
    assert work == Work(100, 100, 10_000)
    assert work.rows(COSTS) == 100 * 60 + 100 * 50 + 10_000 * 30
    assert work.seconds(COSTS) == 11_000 * 0.5 + 300_000 * 0.25


def test_each_machine_is_paid_until_the_last_has_finished() -> None:
    costs = replace(COSTS, inversion_seconds=0.0, sampling_seconds=120.0)  # an hour for a sampling
    row = cost_rows(costs, 3, 1, [2], 5.0, "GPU")["2 GPUs"]
    assert (row["hours"], row["GPU hours"], row["dollars"]) == (2.0, 4.0, 20.0)  # one has two pictures, one has one
    assert "dollars" not in cost_rows(costs, 3, 1, [2], None, "GPU")["2 GPUs"]


def test_the_table_compares_with_a_cache_that_holds_everything() -> None:
    rows = cost_rows(replace(COSTS, capacity=315), 4, 2, [1], None, "GPU")  # blocks of two contents
    numbers = {name: (row["content inversions"], row["style inversions"]) for name, row in rows.items()}
    assert numbers == {"1 GPU": ("4", "4"), "1 GPU, all inversions kept": ("4", "2")}


@pytest.mark.parametrize(("count", "processes"), [(10, 3), (6, 4), (3, 4), (10_000, 64)])
def test_parts_are_those_of_accelerate(count: int, processes: int) -> None:
    todo = tasks(ZSTAR, ["content"], [f"style-{i}" for i in range(count)]) if count < 100 else list(range(count))
    for index, part in enumerate(parts(todo, processes)):  # type: ignore[arg-type]
        kind = DistributedType.MULTI_CPU
        state = SimpleNamespace(num_processes=processes, process_index=index, distributed_type=kind)
        with PartialState.split_between_processes(state, todo) as expected:  # type: ignore[arg-type]
            assert list(part) == list(expected)


def test_what_is_measured_on_a_cpu_is_called_so() -> None:
    assert "Measured on a CPU, not a GPU" in report(COSTS, on_gpu=False, price=None)
    assert "8 machines" in report(COSTS, on_gpu=False, price=None)
    on_gpu = report(COSTS, on_gpu=True, price=2.5)
    assert "Measured on a GPU" in on_gpu
    assert "2.5 dollars an hour" in on_gpu


def test_the_command_measures_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    batch_cost.main(["--model", "mini", "--size", "64", "--steps", "2", "--repeats", "1", "--machines", "1", "4"])
    printed = capsys.readouterr().out
    assert "mini" in printed
    assert "100 contents in 100 styles, 10000 pictures" in printed
    assert "| 4 machines |" in printed
