"""The command for GPU figures, on small random networks on the CPU."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = (
    "Z-STAR+, nothing known",
    "Z-STAR+, style known",
    "Z-STAR+, both known",
    "Z-STAR+, 3 contents, 2 styles",
    "Z-STAR+ in float16",
    "Z-STAR+ in bfloat16",
    "InST, one learning step",
    "InST, applying a style",
    "QS-Attn",
    "h-space on a DDPM",
    "Z-STAR+ for video, one frame",
    "attention, 64 tokens of 40",
)
PICTURES = ("zstar", "zstar-float16", "inst", "qs_attn", "h_space")


def test_the_command_measures_every_part_and_writes_table_and_pictures(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "benchmarks/gpu.py", "--random", "--small", "--device", "cpu"]
    done = subprocess.run([*command, "--to", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written = (tmp_path / "gpu.md").read_text()
    assert "random weights, small" in written
    assert "problem" not in written
    for row in ROWS:
        line = next(line for line in written.splitlines() if line.startswith(f"| {row} |"))
        seconds = float(line.split("|")[2])
        assert 0 < seconds < 100
    rows = dict(re.findall(r"^\| (Z-STAR\+, [a-z ]+) \| [^|]+ \| (\d+) ", written, re.MULTILINE))
    assert rows == {"Z-STAR+, nothing known": "9", "Z-STAR+, style known": "6", "Z-STAR+, both known": "3"}
    for name in PICTURES:
        assert (tmp_path / f"{name}.png").is_file()
