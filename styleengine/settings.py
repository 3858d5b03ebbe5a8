"""The base of every method's settings, and the one place where bad values become sentences.

A method declares its settings once, as a pydantic model: each field has a type, a default from the
paper, bounds and a one-line description. Controls, command-line flags, API docs and the metadata
in result files are all derived from that declaration.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from styleengine.errors import StyleEngineError


@dataclass(frozen=True)
class Knob:
    """One field of a settings class as a control or a command-line flag needs to know it."""

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
    """A settings field. `rare` ones are folded away in the app; `bounds` are pydantic's ge, le …

    `suggestions` are some of the values that a text may have.
    """
    extra: dict[str, Any] = {"rare": rare, "suggestions": suggestions}
    return Field(default, title=title or None, description=description, json_schema_extra=extra, **bounds)


class Settings(BaseModel):
    """Immutable, checked settings; subclasses add fields with `knob`.

    Raises StyleEngineError when a value is of the wrong type, out of range or not a field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise StyleEngineError(_sentence(type(self), error)) from error

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


def _sentence(settings: type[Settings], error: ValidationError) -> str:
    """What pydantic found, in words: one clause for each wrong value."""
    clauses = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"]) or settings.__name__
        if problem["type"] == "extra_forbidden":
            known = ", ".join(settings.model_fields)
            clauses.append(f"there is no setting “{name}” (there are: {known})")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            message = message[0].lower() + message[1:]
            clauses.append(f"“{name}” is {problem['input']!r}: {message}")
    return f"These settings do not work: {'; '.join(clauses)}."
