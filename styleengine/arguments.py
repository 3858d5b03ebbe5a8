"""Converts methods to argparse arguments, and parsed arguments back to inputs and settings."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from styleengine.backbones import recommended_settings
from styleengine.errors import StyleEngineError
from styleengine.learned_style import SUFFIX, LearnedStyle
from styleengine.method import Kind, Method, Role
from styleengine.settings import Settings
from styleengine.style_library import StyleLibrary
from styleengine.styles import Style

WORK_HELP = (
    "folder for finished frames, so that the same command resumes after an interruption "
    "(default: OUT.mp4.work, deleted at the end)"
)


def add_command(commands: Any, name: str, run: Callable[..., None], text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(run=run)
    return command


def add_method(command: argparse.ArgumentParser, method: Method, model: str) -> None:
    """Adds arguments for a method's inputs, output and settings. `model` gives the recommended values."""
    learned = any(role.kind is Kind.LEARNED_STYLES for role in method.roles)
    if learned:  # files are distinguished by suffix
        text = f"the image to redraw (optional), and one or two learned styles (STYLE{SUFFIX})"
        command.add_argument("inputs", metavar="INPUT", nargs="*", help=text)
    for role in method.roles:
        if not (learned and role.kind is Kind.IMAGE):
            _add_role(command, role)
    for name in method.typed:
        command.add_argument(name, metavar=name.upper(), help=method.settings.model_fields[name].description)
    kind = method.suffix[1:].upper()
    add_output(command, f"where to write the {kind}", kind=kind)
    if method.presets:
        text = "settings of another published method; the flags below change them"
        command.add_argument("--preset", choices=list(method.presets), help=text)
    if method.suffix == ".mp4":
        command.add_argument("--work", metavar="FOLDER", help=WORK_HELP)
    add_settings(command, method.settings, method.recommended(recommended_for(model)), method.typed)


def _add_role(command: argparse.ArgumentParser, role: Role) -> None:
    """Adds images, styles and clips as positional arguments, masks and library styles as flags."""
    if role.kind is Kind.LEARNED_STYLES:
        text = "name of a learned style in the library"
        command.add_argument(f"--{role.name}", metavar="NAME", action="append", default=[], help=text)
    elif role.kind is Kind.STYLE_MASK:
        text = f"{role.help} Repeat for one mask per style."
        command.add_argument(f"--{role.name}", metavar="FILE", action="append", default=[], help=text)
    elif role.kind is Kind.MASK:
        command.add_argument(f"--{role.name}", metavar="FILE", help=role.help)
    elif role.kind is Kind.STYLES:
        command.add_argument(role.name, metavar=role.name.upper(), nargs="+", help=f"{role.help} Several are allowed.")
        command.add_argument("--weight", action="append", default=[], type=float, help="once per style (default 1)")
    else:
        options: dict[str, Any] = {} if role.required else {"nargs": "?"}
        command.add_argument(role.name, metavar=role.name.upper(), help=role.help, **options)


def add_output(command: argparse.ArgumentParser, text: str, required: bool = True, kind: str = "PNG") -> None:
    command.add_argument("-o", "--output", metavar=kind, required=required, help=text)
    command.add_argument("--overwrite", action="store_true", help="allow OUTPUT to replace an input file")
    add_model(command)


def add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", help="mini, figures, sd15, ddpm-…, a diffusers folder or a hub id (default: automatic)"
    )
    command.add_argument("--device", help="cpu, cuda, cuda:1, … (default: cuda if available)")


def recommended_for(model: str) -> Mapping[str, Mapping[str, Any]]:
    """Recommended settings by method; empty for an unknown model, which is reported when it is loaded."""
    try:
        return recommended_settings(model)
    except StyleEngineError:
        return {}


def add_settings(
    command: argparse.ArgumentParser,
    settings: type[Settings],
    recommended: Mapping[str, Any],
    typed: Sequence[str] = (),
) -> None:
    """Adds a flag for each setting except the positional ones in `typed`. Help shows the recommended values."""
    group = command.add_argument_group("settings")
    for knob in settings.knobs():
        if knob.name in typed:
            continue
        flag = f"--{knob.name.replace('_', '-')}"
        bounds = f", {knob.low:.12g} to {knob.high:.12g}" if knob.low is not None and knob.high is not None else ""
        value = recommended.get(knob.name, knob.default)
        shown = f"{value:.3g}" if isinstance(value, float) else value
        text = f"{knob.description} (default {shown}{bounds})".replace("%", "%%")
        options: dict[str, Any] = {"dest": knob.name, "default": None, "help": text}
        if knob.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif knob.choices:
            options["choices"] = knob.choices
        else:
            options |= {"type": knob.type, "metavar": knob.type.__name__.upper()}
        group.add_argument(flag, **options)


def settings_of(
    chosen: argparse.Namespace, settings: type[Settings], presets: Mapping[str, Mapping[str, Any]] | None = None
) -> Settings:
    """The settings given on the command line, also by a preset. The model and the defaults provide the others."""
    values = {name: getattr(chosen, name) for name in settings.model_fields}
    preset = presets[chosen.preset] if presets and chosen.preset else {}
    return settings(**{**preset, **{name: value for name, value in values.items() if value is not None}})


def inputs_of(chosen: argparse.Namespace, method: Method) -> dict[str, Any]:
    """The inputs given on the command line, as `StyleEngine.run` takes them. Styles are opened."""
    given: dict[str, Any] = {role.name: getattr(chosen, role.name, None) for role in method.roles}
    for role in method.roles:
        if role.kind is Kind.STYLES:
            given[role.name] = _styles(chosen, given[role.name])
        elif role.kind is Kind.STYLE_MASK:  # several masks are attached to the styles
            given[role.name] = chosen.mask[0] if len(chosen.mask) == 1 else None
        elif role.kind is Kind.LEARNED_STYLES:
            given |= _learned(chosen, role)
    return given


def files_of(chosen: argparse.Namespace, method: Method) -> list[str]:
    """The input files given on the command line."""
    named = [getattr(chosen, role.name, None) for role in method.roles if role.kind is not Kind.LEARNED_STYLES]
    named.append(getattr(chosen, "inputs", None))
    return [file for value in named if value for file in (value if isinstance(value, list) else [value])]


def _styles(chosen: argparse.Namespace, files: Sequence[str]) -> list[Style]:
    """The styles with their weights, and with their masks if there is one per style."""
    masks = [] if len(chosen.mask) == 1 else chosen.mask
    for flag, values in (("--mask", masks), ("--weight", chosen.weight)):
        if values and len(values) != len(files):
            raise StyleEngineError(f"{flag} was given {len(values)} times for {len(files)} styles.")
    return [
        Style.open(file, chosen.weight[i] if chosen.weight else 1.0, masks[i] if masks else None)
        for i, file in enumerate(files)
    ]


def _learned(chosen: argparse.Namespace, role: Role) -> dict[str, Any]:
    """The image and the learned styles, distinguished by suffix, and the named styles of the library."""
    styles = [LearnedStyle.open(path) for path in chosen.inputs if path.endswith(SUFFIX)]
    styles += [StyleLibrary().open(name) for name in getattr(chosen, role.name)]
    images = [path for path in chosen.inputs if not path.endswith(SUFFIX)]
    if len(images) > 1:
        raise StyleEngineError(
            f"{os.path.basename(images[1])} is a second image: give at most one. Learned styles are files that end "
            f"in {SUFFIX}."
        )
    return {"content": images[0] if images else None, role.name: styles}
