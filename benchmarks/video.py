"""Z-STAR+ for clips: temporal consistency and style distance of each variant, and the cost of longer clips.

Without --clip it uses the clips in examples/video. Costs are measured in separate processes.

    python -m benchmarks.video --size 256 --frames 24 --sheets outputs
    python -m benchmarks.video --costs 24 96
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.judge import OutsideJudge, measure
from benchmarks.machine import machine
from benchmarks.pairs import EXAMPLES, STYLES, style_image
from benchmarks.tables import mean_of, table
from styleengine import StyleEngine, ZStarSettings, ZStarVideoSettings
from styleengine.images import fit
from styleengine.video import Selection, open_clip

PAPER = {"balance": 1.0, "spare_motion": False}  # Eq. 18 and 19 unmodified
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"attention": "none", "energy": 0.0},
    "attention": {"energy": 0.0},
    "attention + energy": {},
    "attention + energy, motion too": {"spare_motion": False},
    "attention, as the paper's": {"energy": 0.0, **PAPER},
    "attention + energy, as the paper's": PAPER,
    "attention + energy by backpropagation": {"gradient": "backprop"},
}
SHOWN = 8  # frames on a contact sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--clip", action="append", type=Path, default=[])
    parser.add_argument("--style", default=STYLES[0], choices=STYLES)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--rate", type=float, default=0)
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="may be repeated (default: all)")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--sheets", type=Path, help="a folder for contact sheets")
    parser.add_argument("--costs", type=int, nargs="+", help="numbers of frames for which to measure time and memory")
    parser.add_argument("--one-cost", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    clips = arguments.clip or sorted((EXAMPLES / "video").glob("*.mp4"))
    settings = ZStarVideoSettings(
        size=arguments.size, steps=arguments.steps, frames=arguments.frames, rate=arguments.rate
    )
    print(f"{machine()}; {arguments.model}; {arguments.size} px, {arguments.steps} steps", flush=True)
    if arguments.one_cost:
        print(json.dumps(cost(StyleEngine(arguments.model), clips[0], arguments.style, settings, arguments.one_cost)))
    elif arguments.costs:
        compare_costs(arguments.costs)
    else:
        compare_variants(arguments, clips, settings)


def compare_variants(arguments: argparse.Namespace, clips: list[Path], settings: ZStarVideoSettings) -> None:
    engine, judge, style = StyleEngine(arguments.model), OutsideJudge(), style_image(arguments.style)
    for clip in clips:
        rows, strips = {}, list[list[Image.Image]]()
        for name in arguments.variant or VARIANTS:
            values = VARIANTS[name]
            with tempfile.TemporaryDirectory() as folder:
                output, work = Path(folder) / "out.mp4", Path(folder) / "work"
                result = engine.zstar_video(clip, [style], settings.replace(**values), output=output, work=work)
                frames = [Image.open(path).convert("RGB") for path in sorted((work / "frames").glob("*.png"))]
            part = open_clip(clip).select(settings.rate, settings.begin, settings.frames)
            contents = [fit(frame, result.image.size) for frame in part.frames()]
            pairs = zip(frames, contents, strict=True)
            measured = mean_of([measure(engine.backbone, judge, *pair, style) for pair in pairs])
            rows[name] = {
                "Diff mean ×1000": 1000 * result.details["result_diff_mean"],
                "Diff variance ×10⁶": 1e6 * result.details["result_diff_variance"],
                **{key: measured[key] for key in ("style loss", "external style", "content loss")},
                "s per frame": result.seconds / result.frames,
            }
            strips = strips or [spread(contents)]
            strips.append(spread(frames))
        own = 1000 * result.details["clip_diff_mean"]
        print(f"\n{clip.stem}, {result.frames} frames; the clip's own Diff ×1000: {own:.2f}\n")
        print(table(rows), flush=True)
        if arguments.sheets:
            arguments.sheets.mkdir(parents=True, exist_ok=True)
            sheet(strips).save(arguments.sheets / f"{clip.stem}.png")


def compare_costs(counts: list[int]) -> None:
    """Peak memory and time per frame for each number of frames, against per-frame stylization."""
    for count in counts:
        given = list(sys.argv[1 : sys.argv.index("--costs")])
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.video", *given, "--one-cost", str(count)],
            capture_output=True,
            text=True,
            check=True,
        )
        measured = json.loads(done.stdout.splitlines()[-1])
        print(f"{count} frames: " + ", ".join(f"{name} {value:.2f}" for name, value in measured.items()), flush=True)


def cost(engine: StyleEngine, clip: Path, style: str, settings: ZStarVideoSettings, count: int) -> dict[str, float]:
    """The cost of a clip of `count` frames, in CPU time, which other processes hardly affect.

    All clips cover the same time span, at different frame rates.
    """
    opened = open_clip(clip)
    settings = settings.replace(frames=count, rate=min(60.0, count / opened.seconds))
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        result = engine.zstar_video(clip, [style_image(style)], settings, output=Path(folder) / "out.mp4")
        video = (time.process_time() - began) / result.frames
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB, of this process
    alone = seconds_alone(engine, opened.select(settings.rate, 0, 4), style, settings)
    return {"frames made": result.frames, "peak GiB": peak, "CPU s per frame": video, "times alone": video / alone}


def seconds_alone(engine: StyleEngine, part: Selection, style: str, settings: ZStarVideoSettings) -> float:
    """CPU seconds per frame of the image method, with a cached style."""
    same, frames = ZStarSettings(size=settings.size, steps=settings.steps), list(part.frames())
    began = time.process_time()
    for frame in frames:
        engine.zstar(frame, [style_image(style)], same)
    return (time.process_time() - began) / len(frames)


def spread(frames: list[Image.Image]) -> list[Image.Image]:
    """Up to `SHOWN` frames, evenly spaced."""
    count = min(SHOWN, len(frames))
    return [frames[i * (len(frames) - 1) // max(1, count - 1)] for i in range(count)]


def sheet(strips: list[list[Image.Image]]) -> Image.Image:
    """A row of frames for the clip and for each variant."""
    width, height = strips[0][0].size
    page = Image.new("RGB", (width * len(strips[0]), height * len(strips)))
    for row, strip in enumerate(strips):
        for column, frame in enumerate(strip):
            page.paste(frame, (column * width, row * height))
    return page


if __name__ == "__main__":
    main()
