"""Markdown tables."""


def table(rows: dict[str, dict[str, float]]) -> str:
    """A Markdown table of named rows."""
    names = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    lines += [
        f"| {row} | " + " | ".join(f"{values[name]:.3f}" for name in names) + " |" for row, values in rows.items()
    ]
    return "\n".join(lines)
