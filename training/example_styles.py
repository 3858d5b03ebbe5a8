"""After stage 8: trains the styles that are bundled with the embedded model, from the example paintings.

python -m training.example_styles
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from styleengine import StyleEngine
from styleengine.learned_style import SUFFIX
from styleengine.style_library import SHIPPED

PAINTINGS = Path(__file__).parent.parent / "examples" / "style"
STYLES = {"The Great Wave": "great-wave", "Auvers": "auvers", "Shrine in Snow": "shrine-in-snow"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=SHIPPED)
    parser.add_argument("--model", default="mini")
    arguments = parser.parse_args()
    arguments.to.mkdir(parents=True, exist_ok=True)
    engine = StyleEngine(arguments.model, device="cpu")
    for name, painting in STYLES.items():
        with tqdm(desc=name, unit="step") as bar:

            def on_step(event, bar=bar) -> None:
                bar.total = event.total
                bar.update(event.step - bar.n)

            style = engine.inst_learn(PAINTINGS / f"{painting}.jpg", name=name, on_step=on_step)
        file = style.save(arguments.to / f"{name}{SUFFIX}")
        losses = [loss for _, loss in style.record.history]
        print(f"{file}: {style.record.step} steps, validation loss {losses[0]:.4f} to {min(losses):.4f}")


if __name__ == "__main__":
    main()
