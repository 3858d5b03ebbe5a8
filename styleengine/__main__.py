"""python -m styleengine"""

import sys


def main() -> int:
    """The command line, where Ctrl-C is no fault even before it is loaded."""
    try:
        from styleengine.cli import main as run

        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
