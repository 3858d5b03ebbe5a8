"""The cache on disk: the same pixels as without it, bounded, private, and safe with several processes at once."""

import functools
import gc
import json
import multiprocessing
import os
import random
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import counted_evaluations
from PIL import Image
from safetensors.torch import load_file, save, save_file

from styleengine import HSpaceSettings, Style, StyleEngine, ZStarSettings, disk_cache
from styleengine.cache import ByteCache
from styleengine.disk_cache import DiskCache, storable
from styleengine.errors import Cancelled

CPU = torch.device("cpu")
CHILDREN = multiprocessing.get_context("fork")


@storable
@dataclass
class Numbers:
    values: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"values": self.values}

    @classmethod
    def of(cls, named: Mapping[str, torch.Tensor]) -> "Numbers":
        return cls(named["values"])


def numbers(seed: int, count: int = 1000) -> Numbers:
    return Numbers(torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float32))


@pytest.fixture
def disk(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache", 1 << 20, 3600.0, CPU)


@pytest.fixture
def kept(engine: StyleEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StyleEngine:
    """The engine with a cache on disk."""
    monkeypatch.setattr(engine.cache, "disk", disk_cache.disk_cache(CPU, tmp_path))
    return engine


def files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def started(work: Callable[[], Any]) -> tuple[Any, Any]:
    """A forked process for `work`, and the end of the pipe that returns its result."""
    receiver, sender = CHILDREN.Pipe(duplex=False)

    def run() -> None:
        torch.set_num_threads(1)  # the parent's threads do not exist here
        sender.send(work())

    process = CHILDREN.Process(target=run)
    gc.freeze()  # to free the parent's garbage may mean to wait for its threads: for those of a clip's decoder
    process.start()
    gc.unfreeze()
    return process, receiver


def returned(process: Any, receiver: Any) -> Any:
    """What the `work` of a started process returned."""
    found = receiver.recv() if receiver.poll(120) else None
    process.join(30)
    assert process.exitcode == 0
    return found


def in_new_process(work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked process."""
    return returned(*started(work))


# Results


def zstar(engine: StyleEngine, content: Image.Image, style: Image.Image, **settings: Any) -> tuple[bytes, int]:
    """The result's pixels, and how many rows the U-Net evaluated for it."""
    with counted_evaluations(engine.backbone) as rows:
        chosen = ZStarSettings(**{"size": 64, "steps": 4, **settings})
        return engine.zstar(content, [Style(style)], chosen).image.tobytes(), sum(rows)


def test_another_process_finds_the_style_and_computes_the_same_pixels(
    kept: StyleEngine, astronaut: Image.Image, coffee: Image.Image, cat: Image.Image
) -> None:
    _, both_new = zstar(kept, astronaut, coffee)
    kept.cache.clear()
    kept.cache.disk, disk = None, kept.cache.disk
    cold, all_rows = zstar(kept, cat, coffee)
    assert all_rows == both_new
    kept.cache.clear()
    kept.cache.disk = disk
    pixels, style_known = in_new_process(lambda: zstar(kept, cat, coffee))
    assert pixels == cold
    pixels, both_known = in_new_process(lambda: zstar(kept, cat, coffee))
    assert pixels == cold
    assert both_known == 4  # only sampling: one row for each step
    assert both_known < style_known < all_rows
    assert all_rows - style_known == style_known - both_known  # one inversion each; the style's keys come with it


@pytest.mark.parametrize("other", [{"steps": 5}, {"size": 72}, {"inversion_iterations": 3}])
def test_settings_that_change_an_inversion_have_their_own_entries(
    kept: StyleEngine, astronaut: Image.Image, coffee: Image.Image, other: dict[str, Any]
) -> None:
    zstar(kept, astronaut, coffee)
    kept.cache.clear()
    kept.cache.disk, disk = None, kept.cache.disk
    cold = zstar(kept, astronaut, coffee, **other)
    kept.cache.clear()
    kept.cache.disk = disk
    assert zstar(kept, astronaut, coffee, **other) == cold


def test_layers_and_queries_that_are_needed_later_are_added(
    kept: StyleEngine, astronaut: Image.Image, coffee: Image.Image
) -> None:
    other: dict[str, Any] = {"first_layer": 3, "query_preservation": 0.5}
    zstar(kept, astronaut, coffee)
    kept.cache.clear()
    first, rows = zstar(kept, astronaut, coffee, **other)
    kept.cache.clear()
    again, fewer = zstar(kept, astronaut, coffee, **other)
    assert again == first
    assert fewer == 4 < rows


def test_h_space_finds_inversions_and_bottlenecks(
    kept: StyleEngine, astronaut: Image.Image, coffee: Image.Image
) -> None:
    def run() -> tuple[bytes, int]:
        with counted_evaluations(kept.backbone) as rows:
            result = kept.h_space(astronaut, coffee, HSpaceSettings(size=64, steps=6))
            return result.image.tobytes(), sum(rows)

    cold, all_rows = run()
    kept.cache.clear()
    warm, rows = run()
    assert warm == cold
    assert rows == 6 < all_rows


def test_a_cancelled_run_keeps_its_finished_inversions(
    kept: StyleEngine, astronaut: Image.Image, coffee: Image.Image
) -> None:
    def cancel_while_stylizing(event: Any) -> None:
        if event.phase.previewed and event.step:
            raise Cancelled

    expected, rows = zstar(kept, astronaut, coffee)
    for file in files(kept.cache.disk.folder):  # type: ignore[union-attr]
        file.unlink()
    kept.cache.clear()
    settings = ZStarSettings(size=64, steps=4)
    with pytest.raises(Cancelled):
        kept.zstar(astronaut, [Style(coffee)], settings, on_step=cancel_while_stylizing)
    kept.cache.clear()
    pixels, fewer = zstar(kept, astronaut, coffee)
    assert pixels == expected
    assert fewer < rows


def test_full_disk_or_unusable_folder_change_no_result(
    kept: StyleEngine, astronaut: Image.Image, coffee: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    disk = kept.cache.disk
    assert disk
    monkeypatch.setattr(disk_cache, "write_whole", full)
    expected = zstar(kept, astronaut, coffee)
    assert not files(disk.folder)
    disk.folder.rmdir()
    disk.folder.write_text("in the way")
    monkeypatch.undo()
    kept.cache.clear()
    kept.cache.disk = disk
    assert zstar(kept, astronaut, coffee) == expected
    assert disk.folder.read_text() == "in the way"
    kept.cache.disk = None


# Entries and files


def test_an_entry_is_read_bit_for_bit_in_its_own_types(disk: DiskCache) -> None:
    half = torch.tensor([[0.1, float("nan")], [float("-inf"), -0.0]], dtype=torch.bfloat16)
    for name, x in {"half": half, "none": torch.empty(0, 3), "one": torch.tensor(7), "turned": half.T}.items():
        disk.save(name, Numbers(x))
        found = disk.load(name)
        assert (found.values.dtype, found.values.shape) == (x.dtype, x.shape)
        assert found.values.reshape(-1).view(torch.uint8).equal(x.reshape(-1).view(torch.uint8))


def test_rows_that_share_memory_are_kept_apart(disk: DiskCache) -> None:
    batch = torch.arange(12.0, dtype=torch.float32).view(3, 4)
    disk.save("row", Numbers(batch[1:2]))
    assert disk.load("row").values.equal(batch[1:2])
    (file,) = files(disk.folder)
    assert load_file(file)["values"].numel() == 4


def test_only_storable_classes_are_kept(disk: DiskCache) -> None:
    @dataclass
    class Other:
        nbytes: int = 8

    cache = ByteCache(1000, disk)
    with cache.trimming():
        cache.get_or_make("a", Other)
    assert not disk.folder.exists()


def test_memory_comes_first_then_the_disk_then_the_work(disk: DiskCache) -> None:
    made = list[int]()

    def make() -> Numbers:
        made.append(1)
        return numbers(1)

    for _ in range(2):
        cache = ByteCache(1 << 20, disk)
        with cache.trimming():
            first = cache.get_or_make("a", make)
            assert cache.get_or_make("a", make) is first
    assert len(made) == 1
    assert first.values.equal(numbers(1).values)


def damages(content: bytes) -> dict[str, bytes]:
    flipped, header = bytearray(content), bytearray(content)
    flipped[-3] ^= 4
    header[12] ^= 1
    return {
        "empty": b"",
        "truncated": content[: len(content) // 2],
        "one byte short": content[:-1],
        "longer": content + b"0",
        "a flipped bit": bytes(flipped),
        "a flipped bit in the header": bytes(header),
        "text": b"x" * 5000,
        "a huge header": (2**63).to_bytes(8, "little") + content[8:],
        "foreign": save({"values": torch.zeros(3)}),
        "foreign metadata": save({"values": torch.zeros(3)}, {"kind": "Numbers"}),
        "pickle": b"\x80\x04cos\nsystem\n",
    }


@pytest.mark.parametrize("damage", damages(b"0" * 100))
def test_a_damaged_file_is_replaced(disk: DiskCache, damage: str) -> None:
    disk.save("a", numbers(1))
    (file,) = files(disk.folder)
    file.write_bytes(damages(file.read_bytes())[damage])
    assert disk.load("a") is None
    disk.save("a", numbers(1))
    assert disk.load("a").values.equal(numbers(1).values)


def test_a_file_under_anothers_name_is_not_taken_for_it(disk: DiskCache) -> None:
    disk.save("a", numbers(1))
    (a,) = files(disk.folder)
    disk.save("b", numbers(2))
    (b,) = [file for file in files(disk.folder) if file != a]
    b.write_bytes(a.read_bytes())
    assert disk.load("b") is None
    assert disk.load("a").values.equal(numbers(1).values)


def test_tensors_of_something_else_are_not_taken(disk: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Numbers, "tensors", lambda self: {"other": self.values})
    disk.save("a", numbers(1))
    assert disk.load("a") is None
    assert not files(disk.folder)


@pytest.mark.parametrize("name", ["FORMAT", "__version__"])
def test_another_version_has_entries_of_its_own(disk: DiskCache, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.save("a", numbers(1))
    monkeypatch.setattr(disk_cache, name, "another")
    assert disk.load("a") is None


def test_it_is_off_unless_a_folder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(disk_cache.VARIABLE, raising=False)
    assert disk_cache.disk_cache(CPU) is None
    made = disk_cache.disk_cache(CPU, tmp_path / "default")
    assert made
    assert tmp_path / "default" in made.folder.parents
    monkeypatch.setenv(disk_cache.VARIABLE, str(tmp_path / "chosen"))
    made = disk_cache.disk_cache(CPU, tmp_path / "default")
    assert made
    assert tmp_path / "chosen" in made.folder.parents
    monkeypatch.setenv(disk_cache.VARIABLE, "off")
    assert disk_cache.disk_cache(CPU, tmp_path / "default") is None


# Privacy


def test_only_the_owner_can_open_the_folder(disk: DiskCache) -> None:
    before = os.umask(0)
    try:
        disk.save("a", numbers(1))
    finally:
        os.umask(before)
    assert stat.S_IMODE(disk.folder.stat().st_mode) == 0o700
    disk.folder.chmod(0o755)
    assert disk.load("a")
    assert stat.S_IMODE(disk.folder.stat().st_mode) == 0o700


def test_an_entry_is_deleted_some_time_after_its_last_use(disk: DiskCache) -> None:
    disk.save("old", numbers(1))
    (old,) = files(disk.folder)
    disk.save("used", numbers(2))
    (used,) = [file for file in files(disk.folder) if file != old]
    for file in (old, used):
        os.utime(file, (time.time() - 3000, time.time() - 3000))
    assert disk.load("used")
    os.utime(old, (time.time() - 3700, time.time() - 3700))
    assert disk.load("old") is None
    assert files(disk.folder) == [used]
    os.utime(used, (time.time() - 3700, time.time() - 3700))
    disk.sweep()
    assert not files(disk.folder)


def test_nothing_outside_the_folder_is_read_or_deleted(disk: DiskCache, tmp_path: Path) -> None:
    disk.save("a", numbers(1))
    (file,) = files(disk.folder)
    outside = tmp_path / file.name
    outside.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(outside)
    assert disk.load("a") is None
    file.unlink(missing_ok=True)
    others = [disk.folder / "photo.safetensors", disk.folder / "notes.txt"]
    for other in others:
        other.write_bytes(b"0" * 100)
        os.utime(other, (0, 0))
    DiskCache(disk.folder, 10, 0.0, CPU).sweep()
    assert all(other.exists() for other in [*others, outside])


def test_a_link_in_place_of_the_folder_is_not_followed(disk: DiskCache, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    disk.folder.symlink_to(elsewhere)
    disk.save("a", numbers(1))
    assert disk.load("a") is None
    assert not files(elsewhere)


# Bounds


def test_the_least_recently_used_go_first(disk: DiskCache) -> None:
    small = DiskCache(disk.folder, 13_000, 3600.0, CPU)
    for i in range(3):
        small.save(i, numbers(i))
        os.utime(small._path(i), (time.time() - 100 + i, time.time() - 100 + i))
    assert small.load(0)
    small.save(3, numbers(3))
    assert [small.load(i) is not None for i in range(4)] == [True, False, True, True]
    assert sum(file.stat().st_size for file in files(disk.folder)) <= 13_000


def test_an_entry_too_large_on_its_own_pushes_nothing_out(disk: DiskCache) -> None:
    small = DiskCache(disk.folder, 5000, 3600.0, CPU)
    small.save("a", numbers(1))
    small.save("huge", numbers(2, count=5000))
    small.save("just too large", numbers(2, count=1249))  # the header does not fit
    assert small.load("a")
    assert len(files(disk.folder)) == 1


def test_abandoned_partial_files_are_deleted_and_recent_ones_are_not(disk: DiskCache) -> None:
    disk.save("a", numbers(1))
    recent, abandoned = (disk.folder / f".{'0' * 64}.safetensors.{name}" for name in ("recent", "old"))
    for partial in (recent, abandoned):
        partial.write_bytes(b"0" * 100)
    os.utime(abandoned, (time.time() - 2000, time.time() - 2000))
    disk.sweep()
    assert recent.exists()
    assert not abandoned.exists()
    assert disk.load("a")


def test_a_smaller_entry_does_not_replace_a_larger_one(disk: DiskCache) -> None:
    disk.save("a", numbers(1, count=2000))
    disk.save("a", numbers(1, count=1000))
    assert len(disk.load("a").values) == 2000
    disk.save("a", numbers(1, count=3000))
    assert len(disk.load("a").values) == 3000


# Several processes


def work_at_random(disk: DiskCache, seed: int, seconds: float) -> tuple[int, int]:
    """Reads, writes and sweeps at random; returns how many entries were found, and how many were wrong.

    It takes that long, and until more than 20 were found.
    """
    chance, found, wrong, end = random.Random(seed), 0, 0, time.monotonic() + seconds
    while time.monotonic() < end or found <= 20:
        key = chance.randrange(12)
        entry = disk.load(key)
        if entry is None:
            disk.save(key, numbers(key, count=1000 + 500 * chance.randrange(3)))
            continue
        found += 1
        wrong += not torch.equal(entry.values, numbers(key, count=len(entry.values)).values)
        if chance.random() < 0.05:
            disk.sweep(room=chance.randrange(20_000))
    return found, wrong


def test_processes_that_read_write_and_evict_at_once_find_only_whole_entries(disk: DiskCache) -> None:
    small = DiskCache(disk.folder, 40_000, 3600.0, CPU)
    processes = [started(functools.partial(work_at_random, small, seed, 2.0)) for seed in range(4)]
    results = [returned(*process) for process in processes]
    assert [wrong for _, wrong in results] == [0, 0, 0, 0]
    small.sweep()
    assert sum(file.stat().st_size for file in files(disk.folder)) <= 40_000
    assert not [file for file in files(disk.folder) if file.name.startswith(".")]


def test_the_files_are_safetensors_without_the_key(disk: DiskCache) -> None:
    """A key contains the hash of an image, by which its owner could be found."""
    disk.save(("hash of an image", 3), numbers(1))
    (file,) = files(disk.folder)
    assert load_file(file)["values"].equal(numbers(1).values)
    header = json.loads(file.read_bytes()[8:].split(b"}}")[0] + b"}}")
    assert b"hash of an image" not in file.read_bytes()
    assert header["__metadata__"]["kind"] == "Numbers"
    save_file({"values": torch.zeros(1)}, file)
    assert disk.load(("hash of an image", 3)) is None
