"""The crops as memory-mapped arrays, decoded once, and their annotations."""

import io
import json
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from PIL import Image

from training.crops import SIDE


def _members(work: Path, name: str, suffix: str) -> Iterator[bytes]:
    for shard in sorted((work / "crops").glob(f"{name}-*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.name.endswith(suffix) else None
                if file:
                    yield file.read()


def _decoded(task: tuple[bytes, int]) -> np.ndarray:
    jpeg, side = task
    with Image.open(io.BytesIO(jpeg)) as image:
        image = image.convert("RGB")
        return np.asarray(image if side == SIDE else image.resize((side, side), Image.Resampling.BOX))


def load_words(work: Path, name: str) -> list[dict]:
    """The annotations of each crop, in the order of `load_crops`: caption, kind, whole, style ("" for none)."""
    return [json.loads(line) for line in _members(work, name, "json")]


def load_crops(work: Path, name: str, side: int = SIDE) -> np.ndarray:
    """All crops of the set `name` ("train" or "held-out"): uint8 (count, side, side, 3), read-only."""
    cache = work / f"{name}-{side}.npy"
    if not cache.exists():
        jpegs = list(_members(work, name, "jpg"))
        partial = cache.with_suffix(f".{os.getpid()}.partial.npy")  # several processes may write at once
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(len(jpegs), side, side, 3))
        with ProcessPoolExecutor() as pool:
            tasks = ((jpeg, side) for jpeg in jpegs)
            for index, pixels in enumerate(pool.map(_decoded, tasks, chunksize=64)):
                array[index] = pixels
        array.flush()
        partial.replace(cache)
    return np.load(cache, mmap_mode="r")


def chosen_crops(work: Path, name: str, indices: np.ndarray) -> np.ndarray:
    """Some crops of a set, decoded from its shards: uint8 (len(indices), SIDE, SIDE, 3), in the order of `indices`."""
    wanted = {int(index): place for place, index in enumerate(indices)}
    array = np.empty((len(indices), SIDE, SIDE, 3), np.uint8)
    for index, jpeg in enumerate(_members(work, name, "jpg")):
        if index in wanted:
            array[wanted[index]] = _decoded((jpeg, SIDE))
    return array


def precision() -> str:
    """Accelerate's mixed precision: bfloat16 if the device supports it natively, else float32."""
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # else torchrun's processes form no group
    on_gpu = state.device.type == "cuda"
    native = torch.cuda.is_bf16_supported(False) if on_gpu else torch.cpu._is_avx512_bf16_supported()
    return "bf16" if native else "no"


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (batch, height, width, 3) → float32 (batch, 3, height, width) in [−1, 1]."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def training_views(crops: np.ndarray, indices: np.ndarray, side: int, seed: int) -> torch.Tensor:
    """One random `side`-pixel view of each crop, about a third of them at half scale."""
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
