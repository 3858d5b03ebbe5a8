"""Fused style attention against a dense N×2N implementation of the same formula.

Stable Diffusion 1.5's largest layer at 512×512: 8 heads of 40, 64×64 tokens, one masked style.
Each implementation runs in its own process, to measure its peak memory.

    python -m benchmarks.attention
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch

from benchmarks.machine import machine
from styleengine.attention import StyleTokens, attend_with_styles

HEADS, TOKENS, HEAD_DIM, STRENGTH = 8, 64 * 64, 40, 1.2


def dense(q, k, v, style: StyleTokens, strength: float) -> torch.Tensor:
    """Softmax over the whole N×2N matrix, as in the formula."""
    scale = q.shape[-1] ** -0.5
    style_logits = strength * q @ style.keys.transpose(-1, -2) * scale
    if isinstance(style.bias, torch.Tensor):
        style_logits = style_logits + style.bias[:, None]
    logits = torch.cat([style_logits, q @ k.transpose(-1, -2) * scale], -1)
    return logits.softmax(-1) @ torch.cat([style.values, v], 2)


def peak_megabytes() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(kind: str, repeats: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    q, k, v, ks, vs = (torch.randn(1, HEADS, TOKENS, HEAD_DIM, generator=generator).to(device) for _ in range(5))
    style = StyleTokens(ks, vs, torch.rand(TOKENS, generator=generator).log().to(device))
    before = peak_megabytes()
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        out = dense(q, k, v, style, STRENGTH) if kind == "dense" else attend_with_styles(q, k, v, [style], STRENGTH)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    print(statistics.median(times[1:]), peak_megabytes() - before, float(out.double().sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kind", choices=("dense", "fused"))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.kind:
        run(arguments.kind, arguments.repeats)
        return
    figures = {}
    for kind in ("dense", "fused"):
        command = [sys.executable, "-m", "benchmarks.attention", "--kind", kind, "--repeats", str(arguments.repeats)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        figures[kind] = [float(word) for word in printed.split()]
    print(f"{machine()}; {HEADS} heads × {TOKENS} tokens × {HEAD_DIM}, one masked style, float32\n")
    print("| | seconds | memory beyond the inputs, MB |\n| --- | --- | --- |")
    for kind, (seconds, megabytes, _) in figures.items():
        print(f"| {kind} | {seconds:.3f} | {megabytes:.0f} |")
    (dense_s, dense_mb, dense_sum), (fused_s, fused_mb, fused_sum) = figures["dense"], figures["fused"]
    print(f"\nfused / dense: time {fused_s / dense_s:.2f}, memory {fused_mb / dense_mb:.2f}")
    print(f"sums of the outputs: {dense_sum:.4f} and {fused_sum:.4f}")


if __name__ == "__main__":
    main()
