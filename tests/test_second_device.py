"""Runs the tests of `on_second_device.py` in a process of their own.

PyTorch's autograd counts the devices when it is first used, so the second device must exist before any other test
takes a gradient.
"""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def test_every_method_gives_the_cpus_pixels_on_a_second_device() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n0",
        "-q",
        "-p",
        "no:cacheprovider",
        str(TESTS / "on_second_device.py"),
    ]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
