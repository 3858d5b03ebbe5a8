"""The app: `python app.py` here, and the entry point of a Hugging Face Space."""

import contextlib
import sys

with contextlib.suppress(ImportError):  # on ZeroGPU, which needs it before torch is imported
    import spaces  # noqa: F401 # pyright: ignore[reportMissingImports]

from styleengine import StyleEngine, StyleEngineError, ui
from styleengine.console import silence_libraries
from styleengine.memory import share_heaps

silence_libraries()
share_heaps()
try:
    demo = ui.build(StyleEngine(lazy=not ui.gpu.ZERO))
except StyleEngineError as error:  # no such model: shown on the page
    print(error, file=sys.stderr)
    demo = ui.build_error_page(str(error))

if __name__ == "__main__":
    demo.launch(**ui.launch_options())
