"""The time of Z-STAR+ on this machine: a first image, and a second content in the same style.

python -m benchmarks.speed
"""

import argparse
import statistics

from benchmarks.machine import machine
from benchmarks.pairs import content_image, style_image
from styleengine import StyleEngine, ZStarSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="mini")
    arguments = parser.parse_args()
    settings = ZStarSettings(size=arguments.size, steps=arguments.steps)
    engine = StyleEngine(arguments.model)
    engine.zstar(content_image("cat"), [style_image("auvers")], settings.replace(steps=2))  # warm up
    first, second = [], []
    for _ in range(arguments.repeats):
        engine.cache.clear()
        first.append(engine.zstar(content_image("astronaut"), [style_image("great-wave")], settings).seconds)
        square = content_image("rocket").crop((0, 0, 427, 427))
        second.append(engine.zstar(square, [style_image("great-wave")], settings).seconds)
    ratios = [b / a for a, b in zip(first, second, strict=True)]
    print(f"{machine()}; {engine.backbone.identity}; {arguments.size} px, {arguments.steps} steps")
    print(f"first image: {statistics.median(first):.1f} s (median of {arguments.repeats}, worst {max(first):.1f})")
    print(f"second content, same style: {statistics.median(second):.1f} s, ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
