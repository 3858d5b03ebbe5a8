"""All methods on one content image and one style image, one after another, with measures of each result."""

import csv
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from styleengine.contact_sheet import contact_sheet
from styleengine.engine import StyleEngine
from styleengine.errors import Cancelled, StyleEngineError
from styleengine.images import ImageSource, open_image, save_png, working_size, write_whole
from styleengine.learned_style import LearnedStyle
from styleengine.measures import Measures, measures
from styleengine.method import Kind, Method, Role, opened_learned
from styleengine.methods import METHODS
from styleengine.methods.inst import InSTLearningSettings
from styleengine.phases import Phase, Stage
from styleengine.settings import Settings
from styleengine.stylization import OnStep, StepEvent, Stylization, model_name

LEARNING_STEPS = 60  # of a style that is learned for the comparison; ours
CELL = 320  # shorter side of an image on the contact sheet
COLUMNS = 4
UNTOUCHED = "Content"  # title of the row of the untouched content
SHEET, TABLE = "comparison.png", "comparison.csv"


@dataclass(frozen=True)
class Contender:
    """A method in a comparison, or a preset of one. `name` identifies it: “zstar”, “StyleID”."""

    name: str
    title: str
    method: Method
    values: Mapping[str, Any]

    def needs(self, kind: Kind) -> bool:
        return any(role.kind is kind for role in self.method.roles)

    @property
    def needs_prompt(self) -> bool:
        return "prompt" in self.method.typed


def contenders() -> dict[str, Contender]:
    """The methods that need a content, a style image, a learned style or a prompt, and their presets, by name."""
    known = [method for method in METHODS.values() if method.suffix == ".png" and all(map(_is_given, method.roles))]
    plain = [Contender(method.name, method.title, method, {}) for method in known]
    presets = [Contender(name, name, method, values) for method in known for name, values in method.presets.items()]
    order = list(METHODS)
    ordered = sorted([*plain, *presets], key=lambda one: order.index(one.method.name))
    return {contender.name: contender for contender in ordered}


def _is_given(role: Role) -> bool:
    names = {Kind.IMAGE: ("content", "style"), Kind.STYLES: ("style",), Kind.LEARNED_STYLES: ("style",)}
    return not role.required or role.name in names.get(role.kind, ())


@dataclass(frozen=True)
class Given:
    """The inputs of a comparison. Without a `learned` style, one is learned where a method needs it.

    `size` is the results' shorter side in pixels; with 0 each method has the size recommended for it.
    """

    content: Image.Image
    style: Image.Image
    prompt: str = ""
    learned: LearnedStyle | None = None
    size: int = 0

    def inputs(self, contender: Contender) -> dict[str, Any]:
        images = {"content": self.content, "style": self.style}
        return {
            role.name: self.learned if role.kind is Kind.LEARNED_STYLES else images[role.name]
            for role in contender.method.roles
            if _is_given(role) and role.name in images
        }

    def settings(self, contender: Contender) -> Settings:
        typed = {"prompt": self.prompt} if contender.needs_prompt else {}
        size = {"size": self.size} if self.size else {}
        return contender.method.settings(**{**contender.values, **typed, **size})


@dataclass(frozen=True)
class Entry:
    """A method's result and its measures, or the `problem` for which there is none.

    `learning_seconds` is the time in which its style was learned, which `result.seconds` does not contain.
    """

    contender: Contender
    result: Stylization | None = None
    measures: Measures | None = None
    learning_seconds: float = 0.0
    problem: str = ""


@dataclass(frozen=True)
class Comparison:
    """The entries so far, of `total` in the end, and the untouched content's measures for reference."""

    given: Given
    entries: tuple[Entry, ...]
    total: int
    untouched: Measures

    @property
    def finished(self) -> bool:
        return len(self.entries) == self.total

    def rows(self) -> list[dict[str, Any]]:
        """One row for the untouched content, then one for each entry: title, seconds, measures, problem."""
        rows: list[dict[str, Any]] = [{"method": "content", "title": UNTOUCHED, **asdict(self.untouched)}]
        for entry in self.entries:
            row: dict[str, Any] = {"method": entry.contender.name, "title": entry.contender.title}
            if entry.result and entry.measures:
                row |= {"model": model_name(entry.result.backbone), "seconds": round(entry.result.seconds, 3)}
                row |= {"learning_seconds": round(entry.learning_seconds, 3), **asdict(entry.measures)}
            rows.append({**row, "problem": entry.problem})
        return rows

    def csv(self) -> str:
        """`rows` as comma-separated values with a header. Measures have four decimals."""
        columns = ["method", "title", "model", "seconds", "learning_seconds", *Measures.__dataclass_fields__, "problem"]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for row in self.rows():
            shown = {key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()}
            writer.writerow(shown)
        return text.getvalue()

    def sheet(self) -> Image.Image:
        """Content, style image and results on one page, with seconds and measures below each."""
        given = self.given
        cells: list[tuple[Image.Image | None, str]] = [(given.content, "Content"), (given.style, "Style image")]
        cells += [(entry.result.image if entry.result else None, caption(entry)) for entry in self.entries]
        rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
        images, texts = ([[cell[i] for cell in row] for row in rows] for i in (0, 1))
        return contact_sheet(images, working_size(given.content, CELL, 1), texts)  # type: ignore[arg-type]

    def save(self, folder: Path) -> list[Path]:
        """Writes each result with its record, the contact sheet and the table into the folder; returns the paths."""
        paths = [entry.result.save(folder / f"{entry.contender.name}.png") for entry in self.entries if entry.result]
        save_png(self.sheet(), folder / SHEET, {})
        write_whole(folder / TABLE, self.csv().encode())
        return [*paths, folder / SHEET, folder / TABLE]


def caption(entry: Entry) -> str:
    """Title, time and measures in up to three lines."""
    if entry.result is None or entry.measures is None:
        return f"{entry.contender.title}\n{entry.problem}"
    learning = f" + {entry.learning_seconds:.0f} s learning" if entry.learning_seconds else ""
    known = entry.measures
    return (
        f"{entry.contender.title}, {entry.result.seconds:.1f} s{learning}\n"
        f"style loss {known.style_loss:.2f}, content loss {known.content_loss:.2f}\n"
        f"colour distance {known.color_distance:.2f}, SSIM {known.ssim:.2f}"
    )


@dataclass(frozen=True)
class Part:
    """One run of a comparison: what to run, for which of `total` contenders."""

    method: str
    inputs: Mapping[str, Any]
    settings: Settings
    contender: Contender
    number: int
    total: int

    def phase(self, phase: Phase) -> Phase:
        """The run's phase as one of the comparison: “Z-STAR+ (1 of 4), inverting content 1”."""
        if not phase.counted:
            return phase
        words = phase.title[:1].lower() + phase.title[1:]
        return Phase(Stage.STYLIZING, f"{self.contender.title} ({self.number} of {self.total}), {words}")


RunPart = Callable[[Part], Iterator[Any]]


def chosen_contenders(names: Sequence[str] | None, given: Given) -> list[Contender]:
    """The contenders of these names; for None all whose inputs are given.

    Raises StyleEngineError for an unknown name, none at all, or a method that needs a prompt without one.
    """
    known = contenders()
    if names is None:
        return [contender for contender in known.values() if given.prompt.strip() or not contender.needs_prompt]
    for name in names:
        if name not in known:
            raise StyleEngineError(f"There is no method “{name}” to compare. Choose from: {', '.join(known)}.")
        if known[name].needs_prompt and not given.prompt.strip():
            raise StyleEngineError(f"{known[name].title} needs a text prompt: describe the style, or leave it out.")
    if not names:
        raise StyleEngineError("No method was chosen. Choose at least one.")
    return [contender for name, contender in known.items() if name in names]


def compared(given: Given, chosen: Sequence[Contender], run: RunPart) -> Iterator[Any]:
    """Runs the contenders one after another. Yields what `run` yields on the way, and the comparison after each.

    `run(part)` ends with its result: a Stylization, or a LearnedStyle for a part that learns one. A StyleEngineError
    becomes the entry's problem; the other contenders still run.
    """
    entries: list[Entry] = []
    untouched = measures(given.content, given.content, given.style)
    for number, contender in enumerate(chosen, 1):
        result, learning_seconds, problem = None, 0.0, ""
        place = contender, number, len(chosen)
        try:
            if contender.needs(Kind.LEARNED_STYLES) and given.learned is None:
                began = time.monotonic()
                learning = InSTLearningSettings(steps=LEARNING_STEPS)
                for outcome in run(Part("inst_learn", {"painting": given.style}, learning, *place)):
                    if isinstance(outcome, LearnedStyle):
                        given = replace(given, learned=outcome)
                    else:
                        yield outcome
                learning_seconds = time.monotonic() - began
            run_of_method = Part(contender.method.name, given.inputs(contender), given.settings(contender), *place)
            for outcome in run(run_of_method):
                if isinstance(outcome, Stylization):
                    result = outcome
                else:
                    yield outcome
        except StyleEngineError as error:
            problem = str(error)
        known = measures(result.image, given.content, given.style) if result else None
        entries.append(Entry(contender, result, known, learning_seconds, problem))
        yield Comparison(given, tuple(entries), len(chosen), untouched)


def comparing(
    engine: StyleEngine,
    content: ImageSource,
    style: ImageSource,
    methods: Sequence[str] | None = None,
    *,
    prompt: str = "",
    learned: LearnedStyle | str | None = None,
    size: int = 0,
    on_step: OnStep | None = None,
) -> Iterator[Comparison]:
    """As `compare`, and yields the comparison after each method."""
    known = opened_learned(learned) if learned is not None else None
    given = Given(open_image(content, "content image"), open_image(style, "style image"), prompt, known, size)
    chosen = chosen_contenders(methods, given)

    def run(part: Part) -> Iterator[Any]:
        options: Any = {"settings": part.settings, "on_step": _reporting(on_step, part)}
        if part.method == "inst_learn":
            yield engine.inst_learn(**part.inputs, **options)
        else:
            yield engine.run(part.method, part.inputs, **options)

    return compared(given, chosen, run)


def compare(
    engine: StyleEngine,
    content: ImageSource,
    style: ImageSource,
    methods: Sequence[str] | None = None,
    **options: Any,
) -> Comparison:
    """Redraws the content in the style of the style image with several methods, one after another.

    `methods` are names of `contenders`; None is all for which the inputs are given. Options are those of `comparing`:
    `prompt` describes the style for QS-Attn. `learned` is a learned style for InST, also its file or its name in the
    library; without it, one is learned in 60 steps. `size` is the shorter side of all results in pixels; 0 is each
    method's recommended size. `on_step` gets phases that name the method, and counts the steps of each anew.

    If `on_step` raises Cancelled, the comparison has the results so far. A method that fails has an entry with the
    reason.

    Raises StyleEngineError for bad input, Cancelled before the first result.
    """
    result: Comparison | None = None
    try:
        for state in comparing(engine, content, style, methods, **options):
            result = state
    except Cancelled:
        if result is None:
            raise
    assert result is not None  # there is at least one method
    return result


def _reporting(on_step: OnStep | None, part: Part) -> OnStep | None:
    """`on_step` for one part: its phase names the method, and its steps are those of this part."""
    if on_step is None:
        return None

    def on_part(event: StepEvent) -> None:
        on_step(replace(event, phase=part.phase(event.phase)))

    return on_part
