"""Many results at once: pairs, names, resuming, the table and the sheet, and two processes."""

import csv
import io
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from conftest import counted_evaluations
from PIL import Image

from styleengine import QSAttnSettings, StyleEngine, StyleEngineError, ZStarSettings
from styleengine.batch import SHEET, TABLE, Task, batch_methods, in_blocks, in_tiles, made, summarize, tasks
from styleengine.cache import ByteCache
from styleengine.cli import main
from styleengine.contact_sheet import GAP, LINE
from styleengine.images import open_image
from styleengine.methods import METHODS
from styleengine.stylization import read_record

ZSTAR = METHODS["zstar"]
QUICK = ZStarSettings(size=64, steps=3, inversion_iterations=1)
FLAGS = ["--size", "64", "--steps", "3", "--inversion-iterations", "1"]


@pytest.fixture
def contents(tmp_path: Path, astronaut: Image.Image, cat: Image.Image, rocket: Image.Image) -> list[str]:
    return saved(tmp_path / "contents", {"astronaut": astronaut, "cat": cat, "rocket": rocket})


@pytest.fixture
def styles(tmp_path: Path, coffee: Image.Image, cat: Image.Image) -> list[str]:
    return saved(tmp_path / "styles", {"coffee": coffee, "dark": cat.point(lambda value: value // 3)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def saved(folder: Path, images: dict[str, Image.Image]) -> list[str]:
    folder.mkdir()
    for name, image in images.items():
        image.save(folder / f"{name}.png")
    return [str(folder / f"{name}.png") for name in images]


def pixels(folder: Path) -> dict[str, bytes]:
    return {path.name: open_image(path).tobytes() for path in folder.glob("*--*.png")}


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / TABLE).read_text())))


def test_every_content_with_every_style_one_style_after_another() -> None:
    pairs = [(task.content, task.style, task.name) for task in tasks(ZSTAR, ["a/x.png", "b/x.jpg"], ["s.png", "t.png"])]
    assert pairs == [
        ("a/x.png", "s.png", "x--s.png"),
        ("b/x.jpg", "s.png", "x-2--s.png"),
        ("a/x.png", "t.png", "x--t.png"),
        ("b/x.jpg", "t.png", "x-2--t.png"),
    ]


def test_names_are_valid_whatever_the_style_is() -> None:
    named = tasks(METHODS["qs_attn"], ["my photo.png"], ["a/b: “ink”", "../..", "a" * 300])
    assert [task.name for task in named] == [
        "my-photo--a-b-ink.png",
        "my-photo--image.png",
        f"my-photo--{'a' * 40}.png",
    ]


def test_the_methods_of_a_batch() -> None:
    assert list(batch_methods()) == ["zstar", "qs_attn", "h_space", "inst", "stytr2"]


def test_each_image_is_inverted_once_and_results_are_those_of_single_runs(
    engine: StyleEngine, contents: list[str], styles: list[str], folder: Path
) -> None:
    todo = tasks(ZSTAR, contents, styles)
    with counted_evaluations(engine.backbone) as batches:
        assert not [problem for _, problem in made(engine, ZSTAR, QUICK, todo, folder) if problem]
    assert sum(batches) == (3 + 2 + 3 * 2) * 3  # inversions of contents and styles, and results, of 3 steps
    engine.cache.clear()
    alone = engine.zstar(contents[1], styles[1], QUICK)
    assert pixels(folder)["cat--dark.png"] == alone.image.tobytes()


@dataclass(frozen=True)
class Entry:
    nbytes: int


def run_in_blocks(todo: list[Task], cache: ByteCache, made: int = 0) -> tuple[list[Task], list[str]]:
    """The order of the tasks, of which the first `made` invert nothing, and what was inverted for the others."""
    order, inverted = list[Task](), list[str]()

    def invert(name: str, nbytes: int) -> Entry:
        inverted.append(name)
        return Entry(nbytes)

    for task in in_blocks(todo, cache):
        order.append(task)
        if task not in todo[:made]:
            cache.get_or_make(task.content, partial(invert, task.content, 10))
            cache.get_or_make(task.style, partial(invert, task.style, 30))
    return order, inverted


def test_a_batch_goes_by_blocks_of_contents_that_the_cache_holds() -> None:
    todo = tasks(ZSTAR, [f"content-{i}" for i in range(10)], [f"style-{i}" for i in range(5)])
    order, inverted = run_in_blocks(todo, ByteCache(1000))
    assert order == todo
    assert len(inverted) == 10 + 5
    order, inverted = run_in_blocks(todo, ByteCache(125))  # four contents, and room for two styles more
    assert sorted(order, key=todo.index) == todo
    assert [len({task.content for task in order[start : start + 20]}) for start in (0, 20, 40)] == [4, 4, 2]
    assert len(inverted) == 10 + 3 * 5


def test_blocks_are_as_small_where_the_first_results_were_made_before() -> None:
    todo = tasks(ZSTAR, [f"content-{i}" for i in range(10)], [f"style-{i}" for i in range(5)])
    order, inverted = run_in_blocks(todo, ByteCache(125), made=10)  # those of the first style
    assert sorted(order, key=todo.index) == todo
    assert [name for name in inverted if name.startswith("content")] == [f"content-{i}" for i in range(10)]
    assert len(inverted) == 10 + 3 * 4


def test_processes_get_tiles_of_contents_and_styles() -> None:
    todo = tasks(ZSTAR, [f"content-{i}" for i in range(12)], [f"style-{i}" for i in range(12)])
    tiled = in_tiles(todo, 9)
    assert sorted(tiled, key=todo.index) == todo
    for start in range(0, 144, 16):
        part = tiled[start : start + 16]
        assert len({task.content for task in part}) == len({task.style for task in part}) == 4
    assert in_tiles(todo, 1) == todo
    assert sorted(in_tiles(todo, 1000), key=todo.index) == todo


def test_without_anything_in_the_cache_the_order_is_by_styles() -> None:
    todo = tasks(ZSTAR, ["a", "b"], ["s", "t"])
    assert list(in_blocks(todo, ByteCache(0))) == todo


def test_finished_results_are_not_made_again_unless_something_differs(
    engine: StyleEngine, contents: list[str], styles: list[str], folder: Path
) -> None:
    todo = tasks(ZSTAR, contents, styles)
    half = made(engine, ZSTAR, QUICK, todo, folder)
    for _ in range(3):
        next(half)
    half.close()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == 3
    list(made(engine, ZSTAR, QUICK, todo, folder))
    assert len(pixels(folder)) == 6
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}.items()
    with counted_evaluations(engine.backbone) as batches:
        list(made(engine, ZSTAR, QUICK, todo, folder))
    assert not batches
    Image.new("RGB", (9, 9)).save(folder / todo[0].name)  # not a result
    Image.open(contents[1]).rotate(180).save(contents[1])  # another picture of the same name
    list(made(engine, ZSTAR, QUICK, todo, folder))
    changed = {path.name for path in folder.iterdir() if before.get(path.name, 0) < path.stat().st_mtime_ns}
    assert {"astronaut--coffee.png", "cat--coffee.png", "cat--dark.png"} <= changed
    assert "rocket--coffee.png" not in changed
    list(made(engine, ZSTAR, QUICK.replace(strength=0.5), todo, folder))
    assert read_record(folder / "rocket--coffee.png")["settings"]["strength"] == 0.5


def test_an_unreadable_image_stops_nothing_and_is_named_in_the_table(
    engine: StyleEngine, contents: list[str], styles: list[str], folder: Path
) -> None:
    Path(contents[1]).write_text("no image")
    todo = tasks(ZSTAR, contents, styles)
    problems = {task.name: problem for task, problem in made(engine, ZSTAR, QUICK, todo, folder) if problem}
    assert set(problems) == {"cat--coffee.png", "cat--dark.png"}
    summarize(ZSTAR, todo, problems, folder)
    by_file = {row["file"]: row for row in rows(folder)}
    assert by_file["cat--dark.png"]["problem"]
    assert not by_file["cat--dark.png"]["ssim"]
    assert float(by_file["rocket--dark.png"]["ssim"]) < 1
    assert open_image(folder / SHEET).size == (3 * 166 - GAP, 4 * (120 + LINE + GAP) - GAP)


def test_styles_of_a_text_guided_method_are_prompts(engine: StyleEngine, contents: list[str], folder: Path) -> None:
    method, settings = METHODS["qs_attn"], QSAttnSettings(size=64, steps=2, patches=2)
    todo = tasks(method, contents[:1], ["ink", "oil"])
    assert not [problem for _, problem in made(engine, method, settings, todo, folder) if problem]
    summarize(method, todo, {}, folder)
    assert read_record(folder / "astronaut--oil.png")["settings"]["prompt"] == "oil"
    assert [row["style"] for row in rows(folder)] == ["ink", "oil"]


def test_the_command_writes_everything_and_says_what_failed(
    model_folder: Path, contents: list[str], styles: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*FLAGS, "--model", str(model_folder), "-o", str(folder)]
    assert main(["batch", *contents, "--style", *styles, *options]) == 0
    assert len(pixels(folder)) == 6
    assert f"6 of 6: {folder / 'rocket--dark.png'}" in capsys.readouterr().out
    missing = str(folder / "missing.png")
    assert main(["batch", contents[0], missing, "--style", styles[0], *options]) == 2
    assert "1 of 2 results could not be made" in capsys.readouterr().err


def test_help_shows_the_settings_of_the_chosen_method(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["batch", "--method", "h_space", "--help"])
    printed = capsys.readouterr().out
    assert "--gamma" in printed
    assert "--strength" not in printed
    with pytest.raises(SystemExit):
        main(["batch", "a.png", "--style", "b.png", "--method", "nonsense", "-o", "x"])
    assert "invalid choice" in capsys.readouterr().err


def launched(*arguments: str) -> subprocess.Popen[str]:
    """The command in two processes on the CPU, by the launcher that `accelerate launch` uses for several GPUs."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "styleengine"]
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=Path(__file__).parents[1],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def test_two_processes_give_the_pixels_of_one_and_resume_after_a_kill(
    engine: StyleEngine, model_folder: Path, contents: list[str], styles: list[str], folder: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    list(made(engine, ZSTAR, QUICK, tasks(ZSTAR, contents, styles), alone))
    arguments = ["batch", *contents, "--style", *styles, *FLAGS, "--model", str(model_folder), "-o", str(folder)]
    first = launched(*arguments, "--device", "cpu")
    assert first.stdout
    for line in first.stdout:
        if "1 of 3" in line:
            os.killpg(first.pid, signal.SIGKILL)
            break
    first.wait()
    assert 1 <= len(pixels(folder)) < 6
    second = launched(*arguments, "--device", "cpu")
    printed, _ = second.communicate(timeout=300)
    assert second.returncode == 0, printed
    assert printed.count("3 of 3") == 2
    assert pixels(folder) == pixels(alone)
    assert len(rows(folder)) == 6


def test_a_folder_that_is_a_file_is_refused(contents: list[str], styles: list[str]) -> None:
    assert main(["batch", contents[0], "--style", styles[0], "-o", contents[1]]) == 2


def test_an_empty_prompt_is_a_problem_of_its_results(engine: StyleEngine, contents: list[str], folder: Path) -> None:
    method = METHODS["qs_attn"]
    ((_, problem),) = made(engine, method, QSAttnSettings(size=64), tasks(method, contents[:1], [" "]), folder)
    assert problem
    with pytest.raises(StyleEngineError):
        engine.qs_attn(contents[0], " ")
