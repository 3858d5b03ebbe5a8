"""The command for GPU figures, on small random networks on the CPU."""

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, gpu_parts
from benchmarks.gpu_parts import Bench, Row, Rows, kernels
from styleengine import StyleEngineError

ROOT = Path(__file__).parents[1]
KNOWN = {
    "Z-STAR+, nothing known": "9",
    "Z-STAR+, style known": "6",
    "Z-STAR+, both known": "3",
}  # U-Net rows of 3 steps
ROWS = {
    "loading the model",
    *KNOWN,
    "Z-STAR+, 2 × 2 grid",
    *(f"Z-STAR+ in {dtype}" for dtype in ("float32", "float16", "bfloat16")),
    "InST, one learning step",
    "InST, applying a style",
    "QS-Attn",
    "h-space on a DDPM, 64 px",
    "Z-STAR+ for video, one frame",
    *(f"attention, 64 tokens of {dimension}" for dimension in (40, 80, 160)),
}
PICTURES = ("zstar", "zstar-grid-2", "zstar-float16", "inst", "qs_attn", "h_space", "video")
EXPERIMENTS = 41


def table_rows(text: str) -> dict[str, Row]:
    """The cells of a Markdown table that are not empty, by row and column."""
    lines = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    head, _, *rows = [[cell.strip() for cell in line] for line in lines]
    return {cells[0]: {name: cell for name, cell in zip(head[1:], cells[1:], strict=True) if cell} for cells in rows}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench("sd15", "ddpm-celebahq-256", "cpu", tmp_path, small=True)


def test_the_command_measures_every_part_and_writes_table_and_pictures(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "benchmarks/gpu.py", "--random", "--small", "--device", "cpu"]
    command += ["--price", "2.5"]
    done = subprocess.run([*command, "--to", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written, batch = (tmp_path / "gpu.md").read_text().split("# Z-STAR+ for many pictures")
    assert re.search(
        r"cores, torch [\d.]+.*; float32 where .*; random weights, small; commit ([0-9a-f]{12}|unknown)", written
    )
    rows = table_rows(written)
    experiments = rows.keys() - ROWS
    assert rows.keys() >= ROWS
    assert len(experiments) == EXPERIMENTS
    for row in rows.values():
        numbers = {name: float(cell) for name, cell in row.items() if cell != "-" and not name.startswith("xformers")}
        assert 0 < numbers["seconds"] < 100
        assert all(math.isfinite(number) for number in numbers.values())
    for name in ROWS:
        assert rows[name]["peak GiB"] == "-"
        assert name.startswith("attention") == ("xformers / PyTorch" in rows[name])
    assert {name: rows[name]["U-Net rows"] for name in KNOWN} == KNOWN
    assert all(float(rows[name]["× bare U-Net"]) > 0 for name in (*KNOWN, "InST, one learning step"))
    assert float(rows["Z-STAR+, 2 × 2 grid"]["images per minute"]) > 0
    assert float(rows["Z-STAR+ in float16"]["distance to float32"]) > 0
    assert all((tmp_path / f"{name}.png").is_file() for name in (*PICTURES, *experiments))
    assert "Measured on a CPU, not a GPU" in batch
    priced = table_rows(batch[batch.index("Computed") :])
    assert priced["1 machine"]["U-Net rows"] == str(200 * 3 + 10_000 * 3)
    assert float(priced["8 machines"]["dollars"]) == pytest.approx(
        2.5 * float(priced["8 machines"]["machine hours"]), rel=2e-3
    )


def test_without_a_network_the_parts_that_need_none_still_run(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise StyleEngineError("the hub cannot be reached\n(a | b)")

    monkeypatch.setattr(gpu_parts, "StyleEngine", refuse)
    assert gpu.main(["--small", "--device", "cpu", "--to", str(tmp_path)]) == 1
    rows = table_rows((tmp_path / "gpu.md").read_text().replace("\\|", "/"))
    failed = [part.__name__ for part in (*gpu_parts.PARTS, *gpu.EXPERIMENTS) if part is not kernels]
    assert [name for name, row in rows.items() if "problem" in row] == failed
    assert rows["zstar"] == {"problem": "StyleEngineError: the hub cannot be reached (a / b)"}
    assert rows.keys() - set(failed) == {f"attention, 64 tokens of {dimension}" for dimension in (40, 80, 160)}


def test_a_part_that_fails_keeps_the_rows_before_it(bench: Bench) -> None:
    def half(bench: Bench) -> Rows:
        yield "first", {"seconds": 1.0}
        raise AssertionError

    def whole(bench: Bench) -> Rows:
        yield "second", {"seconds": 2.0}

    *_, rows = gpu.measured(bench, [half, whole])
    assert rows == {"first": {"seconds": 1.0}, "half": {"problem": "AssertionError: "}, "second": {"seconds": 2.0}}


def test_the_time_limit_counts_from_the_loaded_model_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def slow(bench: Bench) -> Rows:
        for number in (1, 2, 3):
            clock[0] += 50
            yield f"row {number}", {"seconds": 50.0}

    def load(bench: Bench) -> Rows:
        clock[0] += 1000
        yield "loaded", {"seconds": 1000.0}

    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(gpu, "loading", load)
    parts: Any = [load, slow, slow]
    *_, rows = gpu.measured(bench, parts, longest=90)
    assert list(rows) == ["loaded", "row 1", "row 2", "slow"]
    assert rows["slow"] == {"problem": "stopped at the time limit"}
