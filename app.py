"""The app: `python app.py` here, and the entry point of a Hugging Face Space."""

import sys

from styleengine import StyleEngine, StyleEngineError, ui
from styleengine.console import silence_libraries
from styleengine.memory import share_heaps

silence_libraries()
share_heaps()
try:
    demo = ui.build(StyleEngine())
except StyleEngineError as error:  # no such model, no network: shown on the page
    print(error, file=sys.stderr)
    demo = ui.build_error_page(str(error))

if __name__ == "__main__":
    demo.launch(**ui.launch_options())
