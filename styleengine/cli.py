"""The command line: one command per method, its flags derived from the method's settings.

python -m styleengine zstar photo.jpg painting.jpg -o out.png --strength 1.4
python -m styleengine h-space photo.jpg painting.jpg -o out.png --gamma 0.5
python -m styleengine zstar-video clip.mp4 painting.jpg -o out.mp4
python -m styleengine qs-attn photo.jpg "a watercolor painting" -o out.png
python -m styleengine inst learn painting.jpg -o style.safetensors
python -m styleengine inst apply photo.jpg style.safetensors -o out.png
python -m styleengine rerun out.png --inputs photos
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from styleengine import (
    HSpaceSettings,
    InSTLearningSettings,
    InSTSettings,
    LearnedStyle,
    LearningEvent,
    QSAttnSettings,
    StyleEngine,
    StyleEngineError,
    ZStarSettings,
    ZStarVideoSettings,
)
from styleengine.backbones import with_text_encoder
from styleengine.console import lenient_console, silence_libraries
from styleengine.images import check_output, open_image
from styleengine.learned_style import SUFFIX
from styleengine.rerun import Rerun
from styleengine.settings import Settings, shortened
from styleengine.styles import Style
from styleengine.stylization import OnStep, Record, StepEvent, Stylization, VideoStylization
from styleengine.version import __version__
from styleengine.video import open_clip

LONGEST_ERROR = 500  # characters of what argparse says, which repeats whatever it was given
SERIES = {"result": "of the result", "alone": "each redrawn on its own", "clip": "of the clip itself"}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in a line, however long they are."""

    def error(self, message: str) -> NoReturn:
        super().error(message if len(message) <= LONGEST_ERROR else f"{message[:LONGEST_ERROR]}…")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. 0: done; 2: something to put right, said in a sentence on stderr; 130: stopped by Ctrl-C."""
    with lenient_console():
        try:
            chosen = _parser().parse_args(arguments)
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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="styleengine", description="Style transfer by diffusion.")
    parser.add_argument("--version", action="version", version=f"styleengine {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    zstar = _command(commands, "zstar", _zstar, "redraw a picture in the style of one or more others (Z-STAR+)")
    zstar.add_argument("content", metavar="CONTENT", help="the picture to redraw")
    _add_styles(zstar)
    _add_output(zstar, "where to write the PNG")
    _add_settings(zstar, ZStarSettings)

    h_space = _command(
        commands, "h-space", _h_space, "draw a picture's content as another is drawn (h-space injection)"
    )
    h_space.add_argument("content", metavar="CONTENT", help="the picture that says what is shown")
    h_space.add_argument(
        "style", metavar="STYLE", help="the picture that says how it looks; it is cut to CONTENT's shape"
    )
    h_space.add_argument("--mask", help="where on CONTENT it comes in (white); STYLE stays elsewhere")
    _add_output(h_space, "where to write the PNG")
    _add_settings(h_space, HSpaceSettings)

    video = _command(commands, "zstar-video", _zstar_video, "redraw a clip in the style of pictures, without flicker")
    video.add_argument("clip", metavar="CLIP", help="the video to redraw")
    _add_styles(video)
    _add_output(video, "where to write the MP4", kind="MP4")
    video.add_argument(
        "--work",
        metavar="FOLDER",
        help="where finished frames are kept, so that the same command goes on after an interruption "
        "(default: OUT.mp4.work, deleted at the end)",
    )
    _add_settings(video, ZStarVideoSettings)

    qs_attn = _command(commands, "qs-attn", _qs_attn, "redraw a picture in a style said in words (QS-Attn)")
    qs_attn.add_argument("content", metavar="CONTENT", help="the picture to redraw")
    qs_attn.add_argument("prompt", metavar="STYLE", help=QSAttnSettings.model_fields["prompt"].description)
    _add_output(qs_attn, "where to write the PNG")
    _add_settings(qs_attn, QSAttnSettings, without="prompt")

    _add_inst(commands)

    rerun = _command(commands, "rerun", _rerun, "make a saved result again from the record inside it")
    rerun.add_argument("result", metavar="RESULT", help="a PNG or MP4 that styleengine has saved")
    rerun.add_argument(
        "--inputs",
        metavar="FOLDER",
        action="append",
        default=[],
        help="where to look for the inputs, beside RESULT's folder and the current one; they may have other names now",
    )
    for flag, what in {"content": "the content image or clip", "style": "a style", "mask": "a mask"}.items():
        rerun.add_argument(
            f"--{flag}", metavar="FILE", action="append", default=[], help=f"{what}, if it is not found without"
        )
    _add_output(rerun, "where to write the new one (default: RESULT-again beside it)", required=False, kind="FILE")
    return parser


def _add_inst(commands: Any) -> None:
    about = "learn a painting as a new word, and draw with it (InST)"
    parts = commands.add_parser("inst", help=about, description=f"{about[0].upper()}{about[1:]}.")
    commands = parts.add_subparsers(required=True, metavar="learn|apply")

    learn = _command(commands, "learn", _inst_learn, "learn a painting as a word")
    learn.add_argument("painting", metavar="PAINTING", help="the painting whose style is learnt")
    learn.add_argument("--name", default="", help="what to call the style (default: the painting's file name)")
    _add_output(learn, "where to write the style", kind=f"STYLE{SUFFIX}")
    _add_settings(learn, InSTLearningSettings)

    apply = _command(commands, "apply", _inst_apply, "redraw a picture, or draw a prompt, in a learnt style")
    apply.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help=f"the picture to redraw, if any, and one learnt style (STYLE{SUFFIX}) or two to mix",
    )
    _add_output(apply, "where to write the PNG")
    _add_settings(apply, InSTSettings)


def _command(commands: Any, name: str, run: Callable[..., None], text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(run=run)
    return command


def _add_styles(command: argparse.ArgumentParser) -> None:
    command.add_argument("styles", metavar="STYLE", nargs="+", help="the pictures whose style it takes")
    command.add_argument(
        "--mask",
        action="append",
        default=[],
        help="where the style applies (white); with two styles white = second, black = first; or once per style",
    )
    command.add_argument("--weight", action="append", default=[], type=float, help="once per style; 1 is usual")


def _add_output(command: argparse.ArgumentParser, text: str, required: bool = True, kind: str = "PNG") -> None:
    command.add_argument("-o", "--output", metavar=kind, required=required, help=text)
    command.add_argument("--overwrite", action="store_true", help="also where OUTPUT is one of the inputs")
    command.add_argument("--model", help="mini, sd15, a local diffusers folder or a hub id (default: what fits)")
    command.add_argument("--device", help="cpu, cuda, cuda:1, … (default: cuda where there is one)")


def _add_settings(command: argparse.ArgumentParser, settings: type[Settings], without: str = "") -> None:
    """A flag for each setting but the one that the command takes by its place."""
    group = command.add_argument_group("settings")
    for knob in settings.knobs():
        if knob.name == without:
            continue
        flag = f"--{knob.name.replace('_', '-')}"
        bounds = f", {knob.low:g} to {knob.high:g}" if knob.low is not None and knob.high is not None else ""
        shown = f"{knob.default:.3g}" if isinstance(knob.default, float) else knob.default
        text = f"{knob.description} (default {shown}{bounds})".replace("%", "%%")
        options: dict[str, Any] = {"dest": knob.name, "default": None, "help": text}
        if knob.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif knob.choices:
            options["choices"] = knob.choices
        else:
            options |= {"type": knob.type, "metavar": knob.type.__name__.upper()}
        group.add_argument(flag, **options)


def _given(chosen: argparse.Namespace, settings: type[Settings]) -> dict[str, Any]:
    """The settings named on the command line; all others are left to the backbone and the defaults."""
    values = {name: getattr(chosen, name) for name in settings.model_fields}
    return {name: value for name, value in values.items() if value is not None}


def _output(chosen: argparse.Namespace, inputs: Sequence[str | os.PathLike[str]], suffix: str = ".png") -> Path:
    """Where the result goes, checked at once and not after minutes of work.

    Raises StyleEngineError where nothing can be written there, or what lies there is an input and not to be replaced.
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


def _zstar(chosen: argparse.Namespace) -> None:
    settings = ZStarSettings(**_given(chosen, ZStarSettings))
    styles, shared_mask = _styles(chosen)
    open_image(chosen.content, "content image")
    output = _output(chosen, [chosen.content, *chosen.styles, *chosen.mask])
    engine = StyleEngine(chosen.model, chosen.device)
    with _progress_bar() as on_step:
        result = engine.zstar(chosen.content, styles, settings, mask=shared_mask, on_step=on_step)
    _save(result, output)


def _zstar_video(chosen: argparse.Namespace) -> None:
    settings = ZStarVideoSettings(**_given(chosen, ZStarVideoSettings))
    styles, shared_mask = _styles(chosen)
    open_clip(chosen.clip)
    output = _output(chosen, [chosen.clip, *chosen.styles, *chosen.mask], ".mp4")
    work = Path(chosen.work or f"{output}.work")
    engine = StyleEngine(chosen.model, chosen.device)
    try:
        with _progress_bar() as on_step:
            result = engine.zstar_video(
                chosen.clip, styles, settings, output=output, mask=shared_mask, work=work, on_step=on_step
            )
    except KeyboardInterrupt:
        print(f"\nThe same command goes on from what is finished, in {work}.", file=sys.stderr)
        raise
    if not chosen.work:
        shutil.rmtree(work, ignore_errors=True)
    _tell(result)


def _styles(chosen: argparse.Namespace) -> tuple[list[Style], str | None]:
    """The styles with their weights and masks, and the one mask given for all, if any."""
    shared_mask, masks = None, chosen.mask
    if len(masks) == 1:
        shared_mask, masks = masks[0], []
    for flag, values in (("--mask", masks), ("--weight", chosen.weight)):
        if values and len(values) != len(chosen.styles):
            raise StyleEngineError(f"{flag} was given {len(values)} times for {len(chosen.styles)} styles.")
    styles = [
        Style.open(style, chosen.weight[i] if chosen.weight else 1.0, masks[i] if masks else None)
        for i, style in enumerate(chosen.styles)
    ]
    return styles, shared_mask


def _h_space(chosen: argparse.Namespace) -> None:
    settings = HSpaceSettings(**_given(chosen, HSpaceSettings))
    for path, what in ((chosen.content, "content image"), (chosen.style, "style image")):
        open_image(path, what)
    output = _output(chosen, [chosen.content, chosen.style, chosen.mask or ""])
    engine = StyleEngine(chosen.model, chosen.device)
    with _progress_bar() as on_step:
        result = engine.h_space(chosen.content, chosen.style, settings, mask=chosen.mask, on_step=on_step)
    _save(result, output)


def _qs_attn(chosen: argparse.Namespace) -> None:
    settings = QSAttnSettings(**_given(chosen, QSAttnSettings))
    open_image(chosen.content, "content image")
    output = _output(chosen, [chosen.content])
    engine = StyleEngine(chosen.model, chosen.device)
    with _progress_bar() as on_step:
        result = engine.qs_attn(chosen.content, settings=settings, on_step=on_step)
    _save(result, output)


def _inst_learn(chosen: argparse.Namespace) -> None:
    settings = InSTLearningSettings(**_given(chosen, InSTLearningSettings))
    open_image(chosen.painting, "painting")
    output = _output(chosen, [chosen.painting], SUFFIX)
    partial = output.with_name(f"{output.stem}.partial{SUFFIX}")
    engine = StyleEngine(chosen.model, chosen.device)
    try:
        with _progress_bar() as on_step:
            style = engine.inst_learn(chosen.painting, settings, name=chosen.name, partial=partial, on_step=on_step)
    except KeyboardInterrupt:
        if partial.exists():
            print(f"What is learnt by now is kept in {partial}. The same command goes on.", file=sys.stderr)
        raise
    style.save(output)
    partial.unlink(missing_ok=True)
    record, (_, begun) = style.record, style.record.history[0]
    best = min(loss for _, loss in record.history)
    print(f"{output}: “{record.name}”, {record.step} steps on {record.backbone} (loss {begun:.4f} to {best:.4f})")


def _inst_apply(chosen: argparse.Namespace) -> None:
    settings = InSTSettings(**_given(chosen, InSTSettings))
    paths = [path for path in chosen.inputs if path.endswith(SUFFIX)]
    contents = [path for path in chosen.inputs if not path.endswith(SUFFIX)]
    if len(contents) > 1:
        raise StyleEngineError(
            f"{contents[1]} is a second picture: name one at most; learnt styles are files that end in {SUFFIX}."
        )
    styles = [LearnedStyle.open(path) for path in paths]
    for path in contents:
        open_image(path, "content image")
    output = _output(chosen, chosen.inputs)
    engine = StyleEngine(chosen.model, chosen.device)
    with _progress_bar() as on_step:
        result = engine.inst_apply(contents[0] if contents else None, styles, settings, on_step=on_step)
    _save(result, output)
    for style in styles:
        if note := style.note_for(with_text_encoder(engine.backbone)):
            print(f"  {note}")


def _rerun(chosen: argparse.Namespace) -> None:
    files = {"content": chosen.content, "style": chosen.style, "mask": chosen.mask}
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
        with _progress_bar() as on_step:
            result = again.run(engine, output, on_step)
        if isinstance(result, VideoStylization):
            _tell(result)
        else:
            _save(result, output)
        same = again.same_as(output)
    different = "; ".join(again.differences(result))
    if same:
        print("Identical to the saved result.")
    elif different:
        print(f"The pixels differ from the saved ones. What else differs: {different}.")
    else:
        print(
            "The pixels differ from the saved ones, though model, device, precision and versions are those of the "
            "record: another processor may round differently."
        )


def _as_recorded(record: Record, device: str | None) -> tuple[str | None, torch.dtype | None]:
    """The device, unless one is given, and the precision of a record, as far as this machine has them."""
    kind = record.device if record.device == "cpu" or (record.device == "cuda" and torch.cuda.is_available()) else None
    device = device or kind
    if device is None or device.partition(":")[0] != record.device:
        return device, None
    return device, {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}.get(record.dtype)


def _save(result: Stylization, path: Path) -> None:
    result.save(path)
    details = ", ".join(
        f"{name.replace('_', ' ')} {f'{value:.1f} dB' if name.endswith('psnr') else f'{value:.3f}'}"
        for name, value in result.details.items()
    )
    shown = f"{result.image.width}×{result.image.height}, {result.seconds:.1f} s on {result.backbone}"
    print(f"{path}: {shown} ({details})" if details else f"{path}: {shown}")
    for note in result.notes:
        print(f"  {note}")


def _tell(result: VideoStylization) -> None:
    width, height = result.image.size
    shown = f"{width}×{height}, {result.frames} frames at {float(result.rate):.4g} per second"
    print(f"{result.path}: {shown}, {result.seconds:.1f} s on {result.backbone}")
    for note in result.notes:
        print(f"  {note}")
    for name, words in SERIES.items():
        if f"{name}_diff_mean" in result.details:
            mean, variance = result.details[f"{name}_diff_mean"], result.details[f"{name}_diff_variance"]
            print(f"  difference between neighbouring frames, {words}: mean {mean:.4f}, variance {variance:.2e}")


@contextmanager
def _progress_bar() -> Iterator[OnStep]:
    with tqdm(unit="step", bar_format="{desc:<24} {bar} {n_fmt}/{total_fmt} [{elapsed}<{remaining}]") as bar:

        def on_step(event: StepEvent) -> None:
            bar.total = event.total
            shown = (
                f"{event.phase}, loss {event.judged[-1][1]:.4f}" if isinstance(event, LearningEvent) else event.phase
            )
            bar.set_description_str(shown, refresh=False)
            bar.update(event.step - bar.n)

        yield on_step
