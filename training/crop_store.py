"""The cut crops as one memory-mapped array, decoded once."""

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from crops import SIDE
from PIL import Image


def load_crops(work: Path, name: str) -> np.ndarray:
    """All crops of the set `name` ("train" or "held-out"): uint8 (count, 256, 256, 3), read-only."""
    cache = work / f"{name}.npy"
    if not cache.exists():
        jpegs = []
        for shard in sorted((work / "crops").glob(f"{name}-*.tar")):
            with tarfile.open(shard) as tar:
                members = (tar.extractfile(member) for member in tar if member.name.endswith("jpg"))
                jpegs += [member.read() for member in members if member]
        partial = cache.with_suffix(".partial.npy")
        shape = (len(jpegs), SIDE, SIDE, 3)
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        for index, jpeg in enumerate(jpegs):
            array[index] = np.asarray(Image.open(io.BytesIO(jpeg)))
        array.flush()
        partial.rename(cache)
    return np.load(cache, mmap_mode="r")


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (batch, height, width, 3) → float32 (batch, 3, height, width) in [−1, 1]."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def training_views(crops: np.ndarray, indices: np.ndarray, side: int, seed: int) -> torch.Tensor:
    """One random `side`-pixel view of each crop, a third of them taken at half scale."""
    rng = np.random.default_rng(seed)
    views = np.empty((len(indices), side, side, 3), np.uint8)
    for row, index in enumerate(indices):
        crop, half = crops[index], SIDE // 2
        if side <= half and rng.random() < 0.35:
            crop = crop.reshape(half, 2, half, 2, 3).mean((1, 3)).round().astype(np.uint8)
        top, left = rng.integers(0, len(crop) - side + 1, 2)
        crop = crop[top : top + side, left : left + side]
        views[row] = crop[:, ::-1] if rng.random() < 0.5 else crop
    return as_tensor(views)
