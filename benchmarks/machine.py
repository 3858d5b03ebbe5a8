"""The name of the machine, and the checked-out commit, for reports."""

import os
import platform
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def machine(device: str | None = None) -> str:
    """The name of a device, by default that of the GPU if there is one."""
    version = f"torch {torch.__version__}"
    if torch.cuda.is_available() and torch.device(device or "cuda").type == "cuda":
        properties = torch.cuda.get_device_properties(torch.device(device or "cuda"))
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {version}"
    cpuinfo = Path("/proc/cpuinfo")
    names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    name = names[0].split(":")[1].strip() if names else platform.processor()
    return f"{name}, {os.cpu_count()} cores, {version}"


def commit() -> str:
    """The checked-out commit, and whether the working tree differs from it; “unknown” outside a checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
