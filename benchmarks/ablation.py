"""The paper's ablation (its Table IV) on the embedded model: does each ordering hold?

Uses the paper's variants and settings, not the model's recommended ones.

    python -m benchmarks.ablation --pairs 12
"""

import argparse
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from benchmarks.judge import OutsideJudge, measure
from benchmarks.machine import machine
from benchmarks.pairs import content_image, pairs, style_image
from benchmarks.tables import mean_of, table
from styleengine import StyleEngine, ZStarSettings
from styleengine.methods import zstar
from styleengine.styles import Style

VARIANTS: dict[str, dict[str, Any]] = {
    "full (λ 1.2, layers 10–15, steps 5–30)": {},
    "λ 1.0": {"strength": 1.0},
    "λ 1.1": {"strength": 1.1},
    "λ 1.3": {"strength": 1.3},
    "λ 1.4": {"strength": 1.4},
    "steps 0–10": {"start": 0.0, "end": 1 / 3},
    "steps 10–20": {"start": 1 / 3, "end": 2 / 3},
    "steps 20–30": {"start": 2 / 3, "end": 1.0},
    "steps 15–30": {"start": 0.5, "end": 1.0},
    "steps 5–20": {"start": 1 / 6, "end": 2 / 3},
    "layers 0–5": {"first_layer": 0, "last_layer": 5},
    "layers 5–10": {"first_layer": 5, "last_layer": 10},
    "layers 0–15": {"first_layer": 0, "last_layer": 15},
    "simple addition": {"mode": "simple_addition"},
    "style only": {"mode": "style_only"},
    "without SAIN": {"color": "none"},
    "mean instead of SAIN": {"color": "mean"},
}
FULL = next(iter(VARIANTS))
STRENGTHS = ["λ 1.0", "λ 1.1", FULL, "λ 1.3", "λ 1.4"]

Rows = dict[str, dict[str, float]]


def rises(rows: Rows, names: list[str], measure_name: str) -> bool:
    values = [rows[name][measure_name] for name in names]
    return all(a < b for a, b in pairwise(values))


def more(measure_name: str, one: str, than: str) -> Callable[[Rows], bool]:
    return lambda rows: rows[one][measure_name] > rows[than][measure_name]


ORDERINGS: dict[str, Callable[[Rows], bool]] = {
    "style loss falls over λ 1.0 … 1.4": lambda rows: rises(rows, STRENGTHS[::-1], "style loss"),
    "content loss rises over λ 1.0 … 1.4": lambda rows: rises(rows, STRENGTHS, "content loss"),
    "steps 0–10 damage content more than full": more("content loss", "steps 0–10", FULL),
    "layers 0–15 damage content more than full": more("content loss", "layers 0–15", FULL),
    "layers 5–10 transfer least style": lambda rows: (
        rows["layers 5–10"]["style loss"] == max(row["style loss"] for row in rows.values())
    ),
    "style only: less style loss than full": more("style loss", FULL, "style only"),
    "style only: more content loss than full": more("content loss", "style only", FULL),
    "mean: more content loss than SAIN": more("content loss", "mean instead of SAIN", FULL),
    "without SAIN: more style loss than with": more("style loss", "without SAIN", FULL),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--model", default="mini")
    arguments = parser.parse_args()
    engine, judge = StyleEngine(arguments.model), OutsideJudge()
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for content_name, style_name in pairs(arguments.pairs):
        content, style = content_image(content_name), style_image(style_name)
        for name, changed in VARIANTS.items():
            settings = ZStarSettings(size=arguments.size, **changed)  # the paper's defaults, not the model's
            result = zstar.stylize(engine.backbone, content, [Style(style)], settings, cache=engine.cache)
            measured[name].append(measure(engine.backbone, judge, result.image, content, style))
        print(f"{content_name} + {style_name}", flush=True)
    rows = {name: mean_of(values) for name, values in measured.items()}
    print(f"\n{machine()}; {engine.backbone.identity}; {arguments.pairs} pairs at {arguments.size} px\n")
    print(table(rows))
    print()
    for claim, holds in ORDERINGS.items():
        print(f"- {'holds' if holds(rows) else 'DOES NOT HOLD'}: {claim}")


if __name__ == "__main__":
    main()
