"""Charts as SVG. Gradio's own plots show the data of the update before the last (Gradio 6)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 24, 44  # margins; the labels at the right need room
TICKS = 4
BEYOND = 1.05  # an axis from 0 ends beyond the largest value
ROUND = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)  # distances between its ticks, times a power of ten
COLORS = ("#8a8178", "#b4472e", "#d98f2b", "#3f7d5a", "#3a6ea5", "#7a4e9b", "#4a4a4a", "#a5467c")
LABEL_HEIGHT = 14

Point = tuple[str, float, float]  # label, x, y
Range = tuple[float, float]


@dataclass(frozen=True)
class Axes:
    """Both axes: their ranges and titles."""

    x: Range
    y: Range
    x_title: str
    y_title: str

    def place(self, x: float, y: float) -> tuple[float, float]:
        """The pixels of a point."""
        across, up = (x - self.x[0]) / (self.x[1] - self.x[0]), (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + (WIDTH - LEFT - RIGHT) * across, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * up

    def drawn(self) -> list[str]:
        """Grid, numbers and titles."""
        parts = []
        for tick in range(TICKS + 1):
            x_value, y_value = (low + (high - low) * tick / TICKS for low, high in (self.x, self.y))
            x, y = self.place(x_value, y_value)
            parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}M{LEFT} {y:.1f}H{WIDTH - RIGHT}" class="grid"/>')
            parts.append(_text(x, HEIGHT - BOTTOM + 16, f"{x_value:.3g}", "middle"))
            parts.append(_text(LEFT - 6, y + 4, f"{y_value:.3g}", "end"))
        middle = (TOP + HEIGHT - BOTTOM) / 2
        parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, self.x_title, "middle"))
        parts.append(f'<g transform="rotate(-90 14 {middle:.1f})">{_text(14, middle, self.y_title, "middle")}</g>')
        return parts


def scatter(points: Sequence[Point], x_title: str, y_title: str) -> str:
    """The labelled points, both axes from 0, as an SVG element."""
    ends = (_round_end(max(values)) for values in zip(*(point[1:] for point in points), strict=True))
    x_end, y_end = ends if points else (1.0, 1.0)
    axes = Axes((0, x_end), (0, y_end), x_title, y_title)
    parts, labels = axes.drawn(), []
    for number, (label, x_value, y_value) in enumerate(points):
        x, y = axes.place(x_value, y_value)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{_color(number)}"/>')
        labels.append((x + 9, y + 4, label, "currentColor"))
    described = "; ".join(f"{label}: {x_title} {x:.2f}, {y_title} {y:.2f}" for label, x, y in points)
    return _svg([*parts, *_apart(labels)], described)


def lines(series: Mapping[str, Sequence[tuple[float, float]]], title: str, x_title: str, y_title: str) -> str:
    """One line for each series of (x, y), labelled at its end, as an SVG element."""
    known = [point for points in series.values() for point in points]
    axes = Axes(_range(x for x, _ in known), _range(y for _, y in known), x_title, y_title)
    parts, labels = axes.drawn(), []
    for number, (label, points) in enumerate(series.items(), 1):
        places = [axes.place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{_color(number)}" stroke-width="2"/>')
        if places and len(series) > 1:
            labels.append((places[-1][0] + 6, places[-1][1] + 4, label, _color(number)))
    parts.append(_text(LEFT, TOP - 8, title, "start"))
    described = "; ".join(f"{label}: {y_title} {points[-1][1]:.3g}" for label, points in series.items() if points)
    return _svg([*parts, *_apart(labels)], f"{title}. At the end: {described}")


def _apart(labels: Iterable[tuple[float, float, str, str]]) -> list[str]:
    """Labels at (x, y) in a colour, moved down where they would overlap."""
    parts, lowest = [], 0.0
    for x, y, label, color in sorted(labels, key=lambda entry: entry[1]):
        lowest = max(lowest + LABEL_HEIGHT, y)
        parts.append(f'<g fill="{color}">{_text(x, lowest, label, "start")}</g>')
    return parts


def _range(values: Iterable[float]) -> Range:
    """The smallest and the largest value, a little apart if they are equal."""
    known = list(values) or [0.0]
    low, high = min(known), max(known)
    return (low, high) if high > low else (low, low + (abs(low) or 1.0))


def _round_end(largest: float) -> float:
    """The end of an axis from 0 on which all ticks are round numbers."""
    if largest <= 0:
        return 1.0
    power = 10 ** floor(log10(BEYOND * largest / TICKS))
    return next(TICKS * power * step for step in ROUND if TICKS * power * step >= BEYOND * largest * (1 - 1e-9))


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], described: str) -> str:
    frame = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(described)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" {frame}>{"".join(parts)}</svg>'
