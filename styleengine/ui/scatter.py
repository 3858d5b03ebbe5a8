"""A scatter plot as SVG. Gradio's own plots show the data of the update before the last (Gradio 6)."""

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 150, 20, 44  # margins; the labels of points at the right need room
TICKS = 4
MARGIN = 1.1  # the axes end beyond the largest value
COLORS = ("#8a8178", "#b4472e", "#d98f2b", "#3f7d5a", "#3a6ea5", "#7a4e9b", "#4a4a4a", "#a5467c")

Point = tuple[str, float, float]  # label, x, y


def scatter(points: Sequence[Point], x_title: str, y_title: str) -> str:
    """The labelled points, both axes from 0, as an SVG element."""
    x_end = MARGIN * max((x for _, x, _ in points), default=1) or 1
    y_end = MARGIN * max((y for _, _, y in points), default=1) or 1

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (WIDTH - LEFT - RIGHT) * x / x_end, (HEIGHT - TOP - BOTTOM) * y / y_end
        return LEFT + across, HEIGHT - BOTTOM - up

    parts = []
    for tick in range(TICKS + 1):
        x, y = place(x_end * tick / TICKS, y_end * tick / TICKS)
        parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}M{LEFT} {y:.1f}H{WIDTH - RIGHT}" class="grid"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x_end * tick / TICKS:.2f}</text>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{y_end * tick / TICKS:.2f}</text>')
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text x="{middle_x}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_title)}</text>')
    turned = f'transform="rotate(-90 14 {middle_y})"'
    parts.append(f'<text x="14" y="{middle_y}" text-anchor="middle" {turned}>{escape(y_title)}</text>')
    lowest = 0.0
    for number, (label, x_value, y_value) in sorted(enumerate(points), key=lambda entry: -entry[1][2]):
        x, y = place(x_value, y_value)
        lowest = max(lowest + 14, y + 4)  # labels do not overlap
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{COLORS[number % len(COLORS)]}"/>')
        parts.append(f'<text x="{x + 9:.1f}" y="{lowest:.1f}">{escape(label)}</text>')
    described = "; ".join(f"{label}: {x_title} {x:.2f}, {y_title} {y:.2f}" for label, x, y in points)
    frame = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(described)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" class="scatter" {frame}>{"".join(parts)}</svg>'
