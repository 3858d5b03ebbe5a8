"""The base class of all settings, and the error messages for invalid values.

A method declares its settings once, as a pydantic model: each field has a type, a default, bounds and
a description. A model's recommended values override the defaults. Controls, command-line flags, API docs
and the metadata in result files are all derived from that declaration.
"""

import difflib
import reprlib
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from styleengine.errors import StyleEngineError

MOST_NAMED = 5  # settings listed in the message about an unknown one
LONGEST_SHOWN = 60  # characters of an invalid value in a message


@dataclass(frozen=True)
class Knob:
    """One field of a settings class, as needed for a control or a command-line flag."""

    name: str
    title: str
    description: str
    type: type
    default: Any
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    suggestions: tuple[str, ...]
    rare: bool


def knob(
    default: Any,
    description: str,
    *,
    title: str = "",
    rare: bool = False,
    suggestions: tuple[str, ...] = (),
    **bounds: Any,
) -> Any:
    """A settings field. `rare` ones are collapsed in the app; `bounds` are pydantic's ge, le …

    `suggestions` are example values of a text.
    """
    extra: dict[str, Any] = {"rare": rare, "suggestions": suggestions}
    return Field(default, title=title or None, description=description, json_schema_extra=extra, **bounds)


def size_knob(default: int, most: int) -> Any:
    """The setting `size` of methods that make images."""
    return knob(default, "Length of the result's shorter side in pixels.", ge=64, le=most)


def steps_knob(default: int) -> Any:
    """The setting `steps` of methods that denoise along the whole schedule."""
    return knob(default, "Denoising steps; more are slower and follow the noise schedule more finely.", ge=2, le=200)


def inversion_iterations_knob() -> Any:
    """The setting `inversion_iterations` of methods that invert images."""
    text = "Iterations per inversion step: 1 is plain DDIM; more are slower and reconstruct the image more exactly."
    return knob(1, text, rare=True, ge=1, le=8)


SaveMemory = Literal["auto", "on", "off"]


def save_memory_knob() -> Any:
    """The setting `save_memory` of methods with gradients. Results record “on” or “off”, as it was used."""
    text = "Gradient checkpointing: less memory, slower. “auto” uses it if a GPU's free memory requires it."
    return knob("auto", text, rare=True)


class Settings(BaseModel):
    """Immutable, checked settings; subclasses add fields with `knob`.

    Raises StyleEngineError when a value is of the wrong type, out of range or not a field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise StyleEngineError(_sentence(type(self), error)) from error

    @field_validator("*", mode="before")
    @classmethod
    def _stricter_than_pydantic(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation == SaveMemory:
            return "on" if value else "off"  # of records of earlier versions
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation in (int, float):
            raise PydanticCustomError("number_type", "must be a number, not true or false")
        if isinstance(value, str) and not value.isascii() and value != value.encode(errors="replace").decode():
            raise PydanticCustomError("string_unicode", "must be text that UTF-8 can hold")
        return value

    def replace(self, **values: Any) -> Self:
        """A checked copy with some values changed."""
        return type(self)(**{**self.model_dump(exclude_unset=True), **values})

    @classmethod
    def knobs(cls) -> list[Knob]:
        """The fields in the order of their declaration."""
        return [cls._knob(name) for name in cls.model_fields]

    @classmethod
    def _knob(cls, name: str) -> Knob:
        field = cls.model_fields[name]
        low = high = None
        for bound in field.metadata:
            low = getattr(bound, "ge", getattr(bound, "gt", low))
            high = getattr(bound, "le", getattr(bound, "lt", high))
        extra: dict[str, Any] = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        return Knob(
            name=name,
            title=field.title or name.replace("_", " ").capitalize(),
            description=field.description or "",
            type=str if choices else field.annotation or str,
            default=field.default,
            low=low,
            high=high,
            choices=choices,
            suggestions=tuple(extra.get("suggestions", ())),
            rare=bool(extra.get("rare")),
        )


# Messages by pydantic's error type; {} are values of the error's context.
WRONG = {
    "greater_than_equal": "must be at least {ge:.12g}",
    "greater_than": "must be above {gt:.12g}",
    "less_than_equal": "must be at most {le:.12g}",
    "less_than": "must be below {lt:.12g}",
    "finite_number": "must be a finite number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "is far too large",
    "int_type": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_unicode": "must be text that UTF-8 can hold",
    "literal_error": "must be one of these: {expected}",
}
MOST_CLAUSES = 5


def _sentence(settings: type[Settings], error: ValidationError) -> str:
    """The error message: one clause for each invalid value."""
    problems = error.errors(include_url=False)
    clauses = [_clause(settings, problem) for problem in problems[:MOST_CLAUSES]]
    if len(problems) > MOST_CLAUSES:
        clauses.append(f"and {len(problems) - MOST_CLAUSES} more")
    return f"Invalid settings: {'; '.join(clauses)}."


def _clause(settings: type[Settings], problem: Any) -> str:
    name = ".".join(shortened(part) if isinstance(part, str) else str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        alike = difflib.get_close_matches(name, settings.model_fields, 1)
        known = list(dict.fromkeys([*alike, *settings.model_fields]))
        more = ", …" if len(known) > MOST_NAMED else ""
        return f"there is no setting “{name}” (there are: {', '.join(known[:MOST_NAMED])}{more})"
    if problem["type"] == "missing":
        return f"{name} is missing"
    message: str = problem["msg"].removeprefix("Value error, ")
    known = WRONG.get(problem["type"])
    text = known.format(**problem.get("ctx", {})) if known else message[:1].lower() + message[1:]
    return f"{name} = {described(problem['input'])} {text}"


def described(value: Any) -> str:
    """A value as it is written in Python, shortened to fit into a sentence."""
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = LONGEST_SHOWN
    try:
        return shortened(shortener.repr(value))
    except ValueError:  # an integer of thousands of digits
        return "a number of thousands of digits"


def shortened(text: str) -> str:
    """A text on one line, shortened to fit into a sentence."""
    return on_one_line(text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…")


def on_one_line(text: str) -> str:
    """The text with unprintable characters replaced, such as terminal escape codes."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
