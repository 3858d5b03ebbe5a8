"""The command line: one command per method, its flags derived from the method's settings.

python -m styleengine zstar photo.jpg painting.jpg -o out.png --strength 1.4
python -m styleengine h-space photo.jpg painting.jpg -o out.png --gamma 0.5
python -m styleengine zstar-video clip.mp4 painting.jpg -o out.mp4
python -m styleengine qs-attn photo.jpg "a watercolor painting" -o out.png
python -m styleengine inst learn painting.jpg another.jpg -o style.safetensors
python -m styleengine inst apply photo.jpg style.safetensors -o out.png
python -m styleengine compare photo.jpg painting.jpg --prompt "a watercolor painting" -o folder
python -m styleengine batch photos/*.jpg --style paintings/*.jpg -o folder
python -m styleengine rerun out.png --inputs photos
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from styleengine import (
    InSTLearningSettings,
    StyleEngine,
    StyleEngineError,
)
from styleengine.arguments import (
    add_command,
    add_method,
    add_model,
    add_output,
    add_settings,
    files_of,
    inputs_of,
    recommended_for,
    settings_of,
)
from styleengine.backbones import default_model
from styleengine.batch_command import add_batch, method_of_batch
from styleengine.comparison import LEARNING_STEPS, caption, comparing, contenders
from styleengine.console import lenient_console, output_folder, progress_bar, silence_libraries
from styleengine.found_inputs import FLAGS
from styleengine.images import check_output
from styleengine.learned_style import MOST_PAINTINGS, SUFFIX
from styleengine.method import Inputs, Method
from styleengine.methods import METHODS
from styleengine.methods.inst import opened_paintings
from styleengine.rerun import Rerun
from styleengine.settings import shortened
from styleengine.stylization import Record, Stylization, VideoStylization
from styleengine.version import __version__

LONGEST_ERROR = 500  # characters of an argparse error, which repeats its input
GROUPS = {"inst": "Learns a painting's style as a token embedding, and applies it (InST)"}
SERIES = {"result": "result", "alone": "each frame redrawn independently", "clip": "input clip"}


class _Parser(argparse.ArgumentParser):
    """Reports argument errors in one line of limited length."""

    def error(self, message: str) -> NoReturn:
        super().error(message if len(message) <= LONGEST_ERROR else f"{message[:LONGEST_ERROR]}…")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0, 2 for a user error (one sentence on stderr), or 130 for Ctrl-C."""
    with lenient_console():
        try:
            given = sys.argv[1:] if arguments is None else arguments
            chosen = _parser(_model(given), given).parse_args(given)
            silence_libraries()
            chosen.run(chosen)
        except StyleEngineError as error:
            print(f"styleengine: {error}", file=sys.stderr)
            return 2
        except OSError as error:
            name = f"{Path(os.fsdecode(error.filename)).name}: " if isinstance(error.filename, (str, bytes)) else ""
            print(f"styleengine: {shortened(name)}{error.strerror or error}.", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("styleengine: stopped.", file=sys.stderr)
            return 130
    return 0


def _model(arguments: Sequence[str]) -> str:
    """The model that will run; --help shows its recommended settings."""
    finder = _Parser(add_help=False, exit_on_error=False)
    finder.add_argument("--model")
    try:
        return finder.parse_known_args(list(arguments))[0].model or default_model()
    except (argparse.ArgumentError, SystemExit):  # the full parser reports these errors
        return default_model()


def _parser(model: str, arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(prog="styleengine", description="Style transfer by diffusion.")
    parser.add_argument("--version", action="version", version=f"styleengine {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    groups: dict[str, Any] = {}
    for method in METHODS.values():
        *group, name = method.command
        text = f"{method.summary.removesuffix('.')} ({method.title})"
        add_method(add_command(_below(commands, groups, *group), name, partial(_run, method), text), method, model)
    _add_inst_learn(_below(commands, groups, "inst"), model)
    _add_compare(commands)
    add_batch(commands, model, method_of_batch(arguments))

    rerun = add_command(commands, "rerun", _rerun, "Reproduces a saved result from the record in the file")
    rerun.add_argument("result", metavar="RESULT", help="a PNG or MP4 saved by styleengine")
    rerun.add_argument(
        "--inputs",
        metavar="FOLDER",
        action="append",
        default=[],
        help="folder to search for the inputs, besides RESULT's folder and the current one; they may be renamed",
    )
    for flag in _input_flags():
        rerun.add_argument(f"--{flag}", metavar="FILE", action="append", default=[], help="if not found automatically")
    add_output(rerun, "where to write the new one (default: RESULT-again in its folder)", required=False, kind="FILE")
    return parser


def _input_flags() -> list[str]:
    """The flags by which `rerun` accepts inputs it cannot find."""
    roles = (role.recorded for method in METHODS.values() for role in method.roles)
    return list(dict.fromkeys(FLAGS.get(role, role) for role in roles))


def _below(commands: Any, groups: dict[str, Any], name: str = "") -> Any:
    """The subcommands of `name`, created on first use."""
    if not name:
        return commands
    if name not in groups:
        parts = commands.add_parser(name, help=GROUPS[name], description=f"{GROUPS[name]}.")
        groups[name] = parts.add_subparsers(required=True, metavar="COMMAND")
    return groups[name]


def _add_inst_learn(commands: Any, model: str) -> None:
    learn = add_command(commands, "learn", _inst_learn, "Learns a painting's style as a token embedding (InST)")
    text = f"the painting whose style is learned, or up to {MOST_PAINTINGS} of one artist"
    learn.add_argument("painting", metavar="PAINTING", nargs="+", help=text)
    learn.add_argument("--name", default="", help="name of the style (default: the first painting's file name)")
    add_output(learn, "where to write the style", kind=f"STYLE{SUFFIX}")
    add_settings(learn, InSTLearningSettings, recommended_for(model).get("inst_learn", {}))


def _add_compare(commands: Any) -> None:
    text = "Redraws an image with several methods, with measures, a contact sheet and a table of all results"
    compare = add_command(commands, "compare", _compare, text)
    compare.add_argument("content", metavar="CONTENT", help="the image to redraw")
    compare.add_argument("style", metavar="STYLE", help="the image whose style is taken")
    known = ", ".join(contenders())
    text = f"methods and presets to compare: {known} (default: all whose inputs are given)"
    compare.add_argument("--methods", metavar="NAME", nargs="+", help=text)
    compare.add_argument("--prompt", default="", help="the style in words, for QS-Attn")
    text = f"a learned style for InST, a file or a name in the library (default: learned in {LEARNING_STEPS} steps)"
    compare.add_argument("--learned", metavar="STYLE", help=text)
    text = "shorter side of all results in pixels (default: that recommended for each method)"
    compare.add_argument("--size", type=int, default=0, metavar="INT", help=text)
    compare.add_argument("-o", "--output", metavar="FOLDER", required=True, help="where to write the results")
    add_model(compare)


def _output(chosen: argparse.Namespace, inputs: Sequence[str | os.PathLike[str]], suffix: str = ".png") -> Path:
    """The output path, checked before the run.

    Raises StyleEngineError if it cannot be written, or is an input file and --overwrite is not given.
    """
    output = check_output(chosen.output, suffix)
    if output.is_dir():
        raise StyleEngineError(f"{output} is a folder: name a file with -o.")
    if not chosen.overwrite and any(_same_file(output, source) for source in inputs):
        raise StyleEngineError(
            f"{output} is one of the inputs: name another file with -o, or give --overwrite to replace it."
        )
    try:
        tempfile.NamedTemporaryFile(dir=output.parent, prefix=f".{output.name}.").close()
    except OSError as error:
        raise StyleEngineError(f"{output} could not be written ({error.strerror}): save elsewhere.") from error
    return output


def _same_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


def _run(method: Method, chosen: argparse.Namespace) -> None:
    """Runs a method. The inputs are opened and the output path is checked before a model is loaded."""
    settings = settings_of(chosen, method.settings, method.presets)
    inputs = Inputs.open(method.roles, inputs_of(chosen, method))
    output = _output(chosen, files_of(chosen, method), method.suffix)
    clip = method.suffix == ".mp4"
    work = Path(chosen.work or f"{output}.work") if clip else None
    engine = StyleEngine(chosen.model, chosen.device)
    try:
        with progress_bar() as on_step:
            result = engine.run(method, inputs, settings, output=output if clip else None, work=work, on_step=on_step)
    except KeyboardInterrupt:
        if work:
            print(f"\nFinished frames are kept in {work}. Run the same command again to resume.", file=sys.stderr)
        raise
    if work and not chosen.work:
        shutil.rmtree(work, ignore_errors=True)
    _save(result, output)


def _inst_learn(chosen: argparse.Namespace) -> None:
    settings: Any = settings_of(chosen, InSTLearningSettings)
    opened_paintings(chosen.painting)
    output = _output(chosen, chosen.painting, SUFFIX)
    partial = output.with_name(f"{output.stem}.partial{SUFFIX}")
    engine = StyleEngine(chosen.model, chosen.device)
    try:
        with progress_bar() as on_step:
            style = engine.inst_learn(chosen.painting, settings, name=chosen.name, partial=partial, on_step=on_step)
    except KeyboardInterrupt:
        if partial.exists():
            print(f"Progress is kept in {partial}. Run the same command again to resume.", file=sys.stderr)
        raise
    style.save(output)
    partial.unlink(missing_ok=True)
    record, (_, begun) = style.record, style.record.history[0]
    best = min(loss for _, loss in record.history)
    print(f"{output}: “{record.name}”, {record.step} steps on {record.backbone} (loss {begun:.4f} to {best:.4f})")


def _compare(chosen: argparse.Namespace) -> None:
    """Compares methods. Each result is written when it is finished."""
    folder = output_folder(chosen.output)
    engine = StyleEngine(chosen.model, chosen.device)
    options = {"prompt": chosen.prompt, "learned": chosen.learned, "size": chosen.size}
    paths: list[Path] = []
    with progress_bar() as on_step:
        for result in comparing(engine, chosen.content, chosen.style, chosen.methods, **options, on_step=on_step):
            paths = result.save(folder)
            tqdm.write(caption(result.entries[-1]).replace("\n", "; "))
    print(f"{paths[-2]}, {paths[-1]}")


def _rerun(chosen: argparse.Namespace) -> None:
    files = {flag: getattr(chosen, flag) for flag in _input_flags()}
    again = Rerun.opened(chosen.result, files, chosen.inputs)
    chosen.output = chosen.output or again.beside
    output = _output(chosen, [again.path, *(given.path for given in again.inputs if given.path)], again.suffix)
    device, dtype = _as_recorded(again.record, chosen.device)
    engine = StyleEngine(chosen.model or again.model, device, dtype)
    if engine.backbone.revision != again.record.revision:
        then, now = shortened(again.record.revision), engine.backbone.revision
        print(f"Note: the model is not the recorded one (revision {then} then, {now} now): pixels will differ.")
    with tempfile.TemporaryDirectory(prefix="styleengine-") as folder:
        if _same_file(again.path, output):
            again = replace(again, path=Path(shutil.copy(again.path, folder)))
        with progress_bar() as on_step:
            result = again.run(engine, output, on_step)
        _save(result, output)
        same = again.same_as(output)
    different = "; ".join(again.differences(result))
    if same:
        print("Identical to the saved result.")
    elif different:
        print(f"The pixels differ from the saved result. Other differences: {different}.")
    else:
        print(
            "The pixels differ from the saved result, although model, device, precision and versions match the "
            "record: another processor may round differently."
        )


def _as_recorded(record: Record, device: str | None) -> tuple[str | None, torch.dtype | None]:
    """The given or recorded device, and the recorded precision, if this machine supports them."""
    kind = record.device if record.device == "cpu" or (record.device == "cuda" and torch.cuda.is_available()) else None
    device = device or kind
    if device is None or device.partition(":")[0] != record.device:
        return device, None
    return device, {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}.get(record.dtype)


def _save(result: Stylization, path: Path) -> None:
    """Saves an image (a clip is already written) and prints a summary."""
    if isinstance(result, VideoStylization):
        return _print_clip(result)
    result.save(path)
    details = ", ".join(
        f"{name.replace('_', ' ')} {f'{value:.1f} dB' if name.endswith('psnr') else f'{value:.3f}'}"
        for name, value in result.details.items()
    )
    shown = f"{result.image.width}×{result.image.height}, {result.seconds:.1f} s on {result.backbone}"
    print(f"{path}: {shown} ({details})" if details else f"{path}: {shown}")
    for note in result.notes:
        print(f"  {note}")


def _print_clip(result: VideoStylization) -> None:
    width, height = result.image.size
    shown = f"{width}×{height}, {result.frames} frames at {float(result.rate):.4g} per second"
    print(f"{result.path}: {shown}, {result.seconds:.1f} s on {result.backbone}")
    for note in result.notes:
        print(f"  {note}")
    for name, words in SERIES.items():
        if f"{name}_diff_mean" in result.details:
            mean, variance = result.details[f"{name}_diff_mean"], result.details[f"{name}_diff_variance"]
            print(f"  difference between neighbouring frames, {words}: mean {mean:.4f}, variance {variance:.2e}")
