"""Z-STAR+: the time of an image, its U-Net rows, and the time of those rows without anything else.

    python -m benchmarks.speed
    python -m benchmarks.speed --earlier ../another-checkout   # in turns with another version, in one run

Three cases: nothing known, the style known from an earlier image, and both images known. A row is one latent image
through the U-Net. “× bare” is the time of the run as a multiple of the same U-Net calls alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.machine import machine
from benchmarks.pairs import content_image, style_image
from benchmarks.tables import table
from styleengine import StyleEngine, ZStarSettings

Result = TypeVar("Result")

CASES = ("nothing known", "style known", "both known")


@contextmanager
def noted_calls(unet: torch.nn.Module) -> Iterator[list[tuple[int, ...]]]:
    """Within the context, the shape of the latents of each U-Net call is appended to the list."""
    shapes: list[tuple[int, ...]] = []
    hook = unet.register_forward_pre_hook(lambda module, given: shapes.append(tuple(given[0].shape)))
    try:
        yield shapes
    finally:
        hook.remove()


def finished(device: torch.device) -> float:
    """The time in seconds after all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.no_grad()
def bare_seconds(backbone: Any, shapes: list[tuple[int, ...]]) -> float:
    """The time of U-Net calls of these shapes alone."""
    null = backbone.condition([""])
    latents = {shape: torch.randn(shape).to(backbone.device, backbone.dtype) for shape in set(shapes)}
    began = finished(backbone.device)
    for shape in shapes:
        backbone.unet(latents[shape], 500, encoder_hidden_states=null.expand(shape[0], -1, -1))
    return finished(backbone.device) - began


def bare_gradient(backbone: Any, x_t: torch.Tensor) -> None:
    """The U-Net's forward and backward pass alone: the gradient of a loss with respect to the condition."""
    timesteps = torch.full((len(x_t),), 500, device=x_t.device)
    condition = backbone.condition([""]).expand(len(x_t), -1, -1).clone().requires_grad_()
    loss = F.mse_loss(backbone.predict_noise_with_gradient(x_t, timesteps, condition), torch.zeros_like(x_t))
    torch.autograd.grad(loss, condition)


def timed(backbone: Any, function: Callable[[], Result]) -> tuple[Result, float, list[tuple[int, ...]]]:
    """A call's result, its seconds, and the shape of the latents of each of its U-Net calls."""
    with noted_calls(backbone.unet) as shapes:
        began = finished(backbone.device)
        result = function()
        seconds = finished(backbone.device) - began
    return result, seconds, shapes


def rows_of(shapes: list[tuple[int, ...]]) -> int:
    return sum(shape[0] for shape in shapes)


def measured(engine: StyleEngine, content: Image.Image, settings: ZStarSettings) -> dict[str, float]:
    """Seconds, rows and the multiple of the bare rows of one image in the style “Great Wave”."""
    style = [style_image("great-wave")]
    _, seconds, shapes = timed(engine.backbone, lambda: engine.zstar(content, style, settings))
    return {"seconds": seconds, "rows": rows_of(shapes), "× bare": seconds / bare_seconds(engine.backbone, shapes)}


def all_cases(model: str, values: dict[str, Any]) -> dict[str, dict[str, float]]:
    engine, settings = StyleEngine(model), ZStarSettings(**values)
    engine.zstar(content_image("cat"), [style_image("auvers")], settings.replace(steps=2))  # warm up
    engine.cache.clear()
    first, second = content_image("astronaut"), content_image("rocket").crop((0, 0, 427, 427))
    return dict(zip(CASES, [measured(engine, content, settings) for content in (first, second, second)], strict=True))


def in_its_own_process(checkout: Path, arguments: list[str]) -> dict[str, dict[str, float]]:
    """`all_cases` with the code of a checkout."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *arguments, "--json"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def medians(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {case: {key: statistics.median(run[case][key] for run in runs) for key in runs[0][case]} for case in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", type=int, default=0, help="shorter side; 0 = recommended size of the model")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--iterations", type=int, default=0, help="of the inversion; 0 = recommended for the model")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--earlier", type=Path, help="a checkout of another version, with the same weights")
    parser.add_argument("--json", action="store_true", help="one measurement of this version, as JSON")
    arguments = parser.parse_args()
    chosen = {"size": arguments.size, "steps": arguments.steps, "inversion_iterations": arguments.iterations}
    values = {name: value for name, value in chosen.items() if value}
    if arguments.json:
        print(json.dumps(all_cases(arguments.model, values)))
        return
    here = Path(__file__).parents[1]
    checkouts = {"now": here, **({"earlier": arguments.earlier.resolve()} if arguments.earlier else {})}
    runs: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in checkouts}
    for _ in range(arguments.repeats):
        for name, checkout in checkouts.items():
            runs[name].append(in_its_own_process(checkout, sys.argv[1:]))
    results = {name: medians(of) for name, of in runs.items()}
    print(f"{machine()}; {arguments.model}; {values}; medians of {arguments.repeats}\n")
    rows = {f"{name}, {case}": results[name][case] for case in CASES for name in checkouts}
    print(table(rows))
    if arguments.earlier:
        print()
        for case in CASES:
            ratio = results["now"][case]["seconds"] / results["earlier"][case]["seconds"]
            print(f"- {case}: now takes {ratio:.2f} times as long as earlier")


if __name__ == "__main__":
    main()
