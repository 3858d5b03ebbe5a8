"""Everything that only a GPU can answer, in one command of under ten minutes: times, rows, memory, pictures.

    python -m benchmarks.gpu --to gpu                     # Stable Diffusion 1.5, downloaded once
    python -m benchmarks.gpu --to gpu --price 2.5         # also the cost of 10,000 pictures, at 2.5 dollars an hour
    python -m benchmarks.gpu --to gpu --random            # random weights of its shape, without a network
    python -m benchmarks.gpu --to gpu --random --small    # small networks, for a test of this script on a CPU

Writes gpu.md and the results as PNGs into the folder. Peak memory is what torch allocated, weights included.
Random weights of the full shape skip the experiments, since their pictures are noise.

A part that fails, or that the time limit cuts off, is named in the table, and the exit status is 1. The others still
run. The table is written anew after each part. The time limit does not include writing or loading the weights.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import batch_cost  # noqa: E402 - needs the path above
from benchmarks.gpu_experiments import EXPERIMENTS  # noqa: E402
from benchmarks.gpu_parts import PARTS, Bench, Row, Rows, loading  # noqa: E402
from benchmarks.machine import commit, machine  # noqa: E402
from benchmarks.sd15_shape import write_model, write_pixel_model  # noqa: E402
from benchmarks.tables import table  # noqa: E402

LONGEST = 8 * 60  # seconds from the loaded model on, after which no further row is measured
PROBLEM = "problem"  # the column
Part = Callable[[Bench], Rows]


def measured(bench: Bench, parts: Sequence[Part], longest: float = LONGEST) -> Iterator[dict[str, Row]]:
    """After each part, all rows so far. `longest` counts from the loaded model on."""
    rows: dict[str, Row] = {}
    deadline = math.inf
    for part in parts:
        if part is not loading and deadline == math.inf:
            deadline = time.monotonic() + longest
        began = time.monotonic()
        problem = _measure(part, bench, rows, deadline)
        if problem:
            rows[part.__name__] = {PROBLEM: problem}
        print(f"{part.__name__}: {time.monotonic() - began:.0f} s {problem}".strip(), flush=True)
        yield rows


def _measure(part: Part, bench: Bench, rows: dict[str, Row], deadline: float) -> str:
    """Adds the part's rows. Returns what went wrong, which is empty if nothing did."""
    measuring = part(bench)
    while time.monotonic() < deadline:
        try:
            name, row = next(measuring)
        except StopIteration:
            return ""
        except Exception as error:  # noqa: BLE001 - the other parts still run
            return f"{type(error).__name__}: {error}"
        rows[name] = row
    return "stopped at the time limit"


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--to", type=Path, required=True, help="the folder for the table and the pictures")
    parser.add_argument("--random", action="store_true", help="random weights of Stable Diffusion 1.5's shape")
    parser.add_argument("--small", action="store_true", help="64 pixels and few steps, and small networks if random")
    parser.add_argument("--price", type=float, help="dollars for an hour of this GPU: adds the cost of a large batch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def _batch(rows: dict[str, Row], given: argparse.Namespace) -> str:
    """The cost of a large batch of Z-STAR+; empty without a price, or before its images have been measured."""
    costs = batch_cost.of_table(rows) if given.price is not None else None
    on_gpu = given.device.startswith("cuda")
    return f"\n# Z-STAR+ for many pictures\n\n{batch_cost.report(costs, on_gpu, given.price)}\n" if costs else ""


def main(arguments: Sequence[str] | None = None) -> int:
    given = parsed(arguments)
    given.to.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with TemporaryDirectory() as made:
        latent, pixel, weights = "sd15", "ddpm-celebahq-256", "weights of sd15"
        if given.random:
            latent, pixel = f"{made}/latent", f"{made}/pixel"
            weights = f"random weights, {'small' if given.small else 'SD 1.5’s shape'}"
            write_model(Path(latent), given.small, clip=True, dtype=torch.float16)
            write_pixel_model(Path(pixel), given.small)
        bench = Bench(latent, pixel, given.device, given.to, given.small)
        precision = str(bench.dtype).removeprefix("torch.")
        about = f"{machine(given.device)}; {precision} where no dtype is named; {weights}; commit {commit()}"
        parts = [*PARTS, *([] if given.random and not given.small else EXPERIMENTS)]
        rows, text = dict[str, Row](), ""
        for rows in measured(bench, parts):
            minutes = (time.monotonic() - began) / 60
            text = f"# GPU figures\n\n{about}; {minutes:.1f} minutes\n\n{table(rows, '.4g')}\n{_batch(rows, given)}"
            (given.to / "gpu.md").write_text(text)
    print(text)
    return 1 if any(PROBLEM in row for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
