"""python -m styleengine"""

import sys


def main() -> int:
    """Runs the command line. Returns 130 on Ctrl-C, also during import."""
    try:
        from styleengine.cli import main as run

        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
