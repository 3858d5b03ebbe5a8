"""The command `batch`, also under `accelerate launch`: each process makes a part of the results."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from styleengine.arguments import add_command, add_model, add_settings, recommended_for, settings_of
from styleengine.batch import SHEET, TABLE, Task, batch_methods, in_tiles, made, style_kind, summarize, tasks
from styleengine.console import output_folder, progress_bar
from styleengine.engine import StyleEngine
from styleengine.errors import StyleEngineError
from styleengine.method import Method
from styleengine.methods import METHODS

STYLES = {
    "image": "style images",
    "learned": "learned styles: files, or names in the library",
    "prompt": "the styles in words, each in quotes",
}


def method_of_batch(arguments: Sequence[str]) -> Method:
    """The method that `--method` names; it determines the settings' flags. An unknown one is reported by the parser."""
    finder = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    finder.add_argument("--method")
    try:
        name = finder.parse_known_args(list(arguments))[0].method
    except (argparse.ArgumentError, SystemExit):
        name = None
    return batch_methods().get(name or "", METHODS["zstar"])


def add_batch(commands: Any, model: str, method: Method) -> None:
    text = "Redraws every content in every style, with a contact sheet and a table; resumes where it was interrupted"
    batch = add_command(commands, "batch", _batch, text)
    batch.add_argument("content", metavar="CONTENT", nargs="+", help="images to redraw")
    styles = f"{STYLES[style_kind(method)]}; of another kind with another method"
    batch.add_argument("--style", metavar="STYLE", nargs="+", required=True, help=styles)
    text = "the method, which determines the settings below (default: zstar)"
    batch.add_argument("--method", choices=list(batch_methods()), default="zstar", help=text)
    batch.add_argument("-o", "--output", metavar="FOLDER", required=True, help="where to write the results")
    add_model(batch)
    if method.presets:
        batch.add_argument("--preset", choices=list(method.presets), help="settings of another published method")
    add_settings(batch, method.settings, method.recommended(recommended_for(model)), method.typed)


def _batch(chosen: argparse.Namespace) -> None:
    method = METHODS[chosen.method]
    for name in method.typed:  # given as styles
        setattr(chosen, name, None)
    settings = settings_of(chosen, method.settings, method.presets)
    todo = tasks(method, chosen.content, chosen.style)
    folder = output_folder(chosen.output)
    process = _process(chosen.device)
    engine = StyleEngine(chosen.model, str(process.device) if process else chosen.device)
    problems: dict[str, str] = {}
    mine = _share(process, todo)
    with progress_bar() as on_step:
        for number, (task, problem) in enumerate(made(engine, method, settings, mine, folder, on_step), 1):
            problems |= {task.name: problem} if problem else {}
            print(f"{number} of {len(mine)}: {folder / task.name}{f': {problem}' if problem else ''}")
    problems = _gathered(process, problems)
    if process and not process.is_main_process:
        return
    summarize(method, todo, problems, folder)
    print(f"{folder / SHEET}, {folder / TABLE}")
    if problems:
        raise StyleEngineError(f"{len(problems)} of {len(todo)} results could not be made: see {folder / TABLE}.")


def _process(device: str | None) -> Any:
    """This process among those of `accelerate launch`; None if it is the only one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import PartialState

    return PartialState(cpu=device == "cpu")


def _share(process: Any, todo: Sequence[Task]) -> list[Task]:
    """This process's part of the tasks."""
    if process is None:
        return list(todo)
    with process.split_between_processes(in_tiles(todo, process.num_processes)) as part:
        return list(part)


def _gathered(process: Any, problems: dict[str, str]) -> dict[str, str]:
    """The problems of all processes, after all have finished."""
    if process is None:
        return problems
    from accelerate.utils import gather_object

    return dict(gather_object(list(problems.items())))
