"""Markdown tables."""

from collections.abc import Mapping, Sequence

Cell = float | str


def table(rows: Mapping[str, Mapping[str, Cell]], digits: str = ".3f") -> str:
    """A Markdown table of named rows. `digits` is the format of numbers; a cell that a row lacks is empty."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(_shown(row.get(column, ""), digits) for column in columns) + " |")
    return "\n".join(lines)


def _shown(cell: Cell, digits: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|") if isinstance(cell, str) else f"{cell:{digits}}"


def mean_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each column."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
