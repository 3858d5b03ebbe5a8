"""Methods as commands: their inputs and settings as arguments, and what was typed as inputs and settings."""

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any

from styleengine.backbones import recommended_settings
from styleengine.errors import StyleEngineError
from styleengine.learned_style import SUFFIX, LearnedStyle
from styleengine.method import Kind, Method, Role
from styleengine.settings import Settings
from styleengine.style_library import StyleLibrary
from styleengine.styles import Style

WORK_HELP = (
    "where finished frames are kept, so that the same command goes on after an interruption "
    "(default: OUT.mp4.work, deleted at the end)"
)


def add_method(command: argparse.ArgumentParser, method: Method, model: str) -> None:
    """The inputs, the output and the settings of a method."""
    learnt = any(role.kind is Kind.LEARNT_STYLES for role in method.roles)
    if learnt:  # which of the files is which, their names say
        text = f"the image to redraw, if any, and learnt styles (STYLE{SUFFIX}), one or two to mix"
        command.add_argument("inputs", metavar="INPUT", nargs="*", help=text)
    for role in method.roles:
        if not (learnt and role.kind is Kind.IMAGE):
            _add_role(command, role)
    for name in method.typed:
        command.add_argument(name, metavar=name.upper(), help=method.settings.model_fields[name].description)
    kind = method.suffix[1:].upper()
    add_output(command, f"where to write the {kind}", kind=kind)
    if method.suffix == ".mp4":
        command.add_argument("--work", metavar="FOLDER", help=WORK_HELP)
    add_settings(command, method.settings, method.recommended(recommended_for(model)), method.typed)


def _add_role(command: argparse.ArgumentParser, role: Role) -> None:
    """Images, styles and clips by their place, masks and the library's styles by a flag."""
    if role.kind is Kind.LEARNT_STYLES:
        text = "a learnt style of the library, by its name"
        command.add_argument(f"--{role.name}", metavar="NAME", action="append", default=[], help=text)
    elif role.kind is Kind.STYLE_MASK:
        text = f"{role.help} Or once per style."
        command.add_argument(f"--{role.name}", metavar="FILE", action="append", default=[], help=text)
    elif role.kind is Kind.MASK:
        command.add_argument(f"--{role.name}", metavar="FILE", help=role.help)
    elif role.kind is Kind.STYLES:
        command.add_argument(role.name, metavar=role.name.upper(), nargs="+", help=f"{role.help} Or several.")
        command.add_argument("--weight", action="append", default=[], type=float, help="once per style; 1 is usual")
    else:
        options: dict[str, Any] = {} if role.required else {"nargs": "?"}
        command.add_argument(role.name, metavar=role.name.upper(), help=role.help, **options)


def add_output(command: argparse.ArgumentParser, text: str, required: bool = True, kind: str = "PNG") -> None:
    command.add_argument("-o", "--output", metavar=kind, required=required, help=text)
    command.add_argument("--overwrite", action="store_true", help="also where OUTPUT is one of the inputs")
    command.add_argument("--model", help="mini, sd15, a local diffusers folder or a hub id (default: what fits)")
    command.add_argument("--device", help="cpu, cuda, cuda:1, … (default: cuda where there is one)")


def recommended_for(model: str) -> Mapping[str, Mapping[str, Any]]:
    """What a model recommends by method; nothing for one that is not known yet, which loading it will say."""
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
    """A flag for each setting but those that are typed by their place. Help shows the recommended values."""
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


def settings_of(chosen: argparse.Namespace, settings: type[Settings]) -> Settings:
    """The settings named on the command line; all others are left to the model and the defaults."""
    values = {name: getattr(chosen, name) for name in settings.model_fields}
    return settings(**{name: value for name, value in values.items() if value is not None})


def inputs_of(chosen: argparse.Namespace, method: Method) -> dict[str, Any]:
    """The inputs named on the command line, as the engine takes them; styles are opened, with weights and masks."""
    given: dict[str, Any] = {role.name: getattr(chosen, role.name, None) for role in method.roles}
    for role in method.roles:
        if role.kind is Kind.STYLES:
            given[role.name] = _styles(chosen, given[role.name])
        elif role.kind is Kind.STYLE_MASK:  # several have gone to the styles
            given[role.name] = chosen.mask[0] if len(chosen.mask) == 1 else None
        elif role.kind is Kind.LEARNT_STYLES:
            given |= _learnt(chosen, role)
    return given


def files_of(chosen: argparse.Namespace, method: Method) -> list[str]:
    """The files named as inputs on the command line."""
    named = [getattr(chosen, role.name, None) for role in method.roles if role.kind is not Kind.LEARNT_STYLES]
    named.append(getattr(chosen, "inputs", None))
    return [file for value in named if value for file in (value if isinstance(value, list) else [value])]


def _styles(chosen: argparse.Namespace, files: Sequence[str]) -> list[Style]:
    """The styles with their weights, and with their masks where there is one for each."""
    masks = [] if len(chosen.mask) == 1 else chosen.mask
    for flag, values in (("--mask", masks), ("--weight", chosen.weight)):
        if values and len(values) != len(files):
            raise StyleEngineError(f"{flag} was given {len(values)} times for {len(files)} styles.")
    return [
        Style.open(file, chosen.weight[i] if chosen.weight else 1.0, masks[i] if masks else None)
        for i, file in enumerate(files)
    ]


def _learnt(chosen: argparse.Namespace, role: Role) -> dict[str, Any]:
    """The image and the learnt styles among the files, which the suffix tells apart, and the library's styles."""
    styles = [LearnedStyle.open(path) for path in chosen.inputs if path.endswith(SUFFIX)]
    styles += [StyleLibrary().open(name) for name in getattr(chosen, role.name)]
    images = [path for path in chosen.inputs if not path.endswith(SUFFIX)]
    if len(images) > 1:
        raise StyleEngineError(
            f"{os.path.basename(images[1])} is a second picture: name one at most; learnt styles are files that end "
            f"in {SUFFIX}."
        )
    return {"content": images[0] if images else None, role.name: styles}
