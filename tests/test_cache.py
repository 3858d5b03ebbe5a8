"""The cache: bounded in bytes, entries made once, and consistent after errors."""

import threading
import time
from dataclasses import dataclass

import pytest

from styleengine.cache import ByteCache


@dataclass
class Entry:
    nbytes: int
    name: str = ""


def fill(cache: ByteCache, **sizes: int) -> None:
    for name, size in sizes.items():
        cache.get_or_make(name, lambda size=size, name=name: Entry(size, name))


def kept(cache: ByteCache, *names: str) -> set[str]:
    """Which of the names are in the cache, found by looking them up."""
    found = set()
    for name in names:
        try:
            cache.get_or_make(name, refuse)
            found.add(name)
        except LookupError:
            pass
    return found


def refuse() -> Entry:
    raise LookupError


def test_a_hit_gives_what_was_made() -> None:
    cache = ByteCache(100)
    first = cache.get_or_make("a", lambda: Entry(10))
    assert cache.get_or_make("a", refuse) is first
    assert len(cache) == 1
    assert cache.nbytes == 10


def test_an_entry_can_be_looked_up_without_making_it() -> None:
    cache = ByteCache(100)
    assert cache.get("a") is None
    fill(cache, a=40, b=40)
    assert cache.get("a") is cache.get_or_make("a", refuse)
    fill(cache, c=40)
    assert cache.get("b") is None


def test_the_longest_unused_goes_first() -> None:
    cache = ByteCache(100)
    fill(cache, a=40, b=40)
    cache.get_or_make("a", refuse)
    fill(cache, c=40)
    assert kept(cache, "a", "b", "c") == {"a", "c"}
    assert cache.nbytes == 80


def test_its_entries_never_exceed_its_capacity() -> None:
    cache = ByteCache(100)
    for i in range(50):
        fill(cache, **{f"entry {i}": (i * 37) % 60 + 1})
        assert cache.nbytes <= 100


def test_an_entry_too_large_on_its_own_is_given_but_neither_kept_nor_pushes_others_out() -> None:
    cache = ByteCache(100)
    fill(cache, a=40, b=40)
    assert cache.get_or_make("huge", lambda: Entry(101)).nbytes == 101
    assert kept(cache, "a", "b", "huge") == {"a", "b"}


def test_no_capacity_keeps_nothing() -> None:
    cache = ByteCache(0)
    fill(cache, a=1)
    assert len(cache) == 0


def test_entries_that_grew_are_counted_at_their_new_size() -> None:
    cache = ByteCache(100)
    fill(cache, a=40, b=40)
    grown = cache.get_or_make("b", refuse)
    grown.nbytes = 90  # type: ignore[misc]
    cache.trim()
    assert kept(cache, "a", "b") == {"b"}


def test_growth_is_trimmed_when_the_work_fails_too() -> None:
    cache = ByteCache(100)
    fill(cache, a=40, b=40)

    def work() -> None:
        with cache.trimming():
            cache.get_or_make("b", refuse).nbytes = 90  # type: ignore[misc]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert kept(cache, "a", "b") == {"b"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_while_making_leaves_the_cache_as_it_was(error: type[BaseException]) -> None:
    cache = ByteCache(100)
    fill(cache, a=40)

    def fail() -> Entry:
        raise error

    with pytest.raises(error):
        cache.get_or_make("b", fail)
    assert kept(cache, "a", "b") == {"a"}
    assert cache.get_or_make("b", lambda: Entry(1, "second try")).name == "second try"


def test_cleared_it_is_empty() -> None:
    cache = ByteCache(100)
    fill(cache, a=40, b=40)
    cache.clear()
    assert (len(cache), cache.nbytes) == (0, 0)


def in_threads(count: int, work) -> None:
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)


def test_threads_that_miss_the_same_key_make_it_once() -> None:
    cache, made, got = ByteCache(100), [], []

    def make() -> Entry:
        made.append(1)
        time.sleep(0.05)
        return Entry(1)

    in_threads(8, lambda i: got.append(cache.get_or_make("a", make)))
    assert len(made) == 1
    assert len(got) == 8
    assert all(entry is got[0] for entry in got)


def test_different_keys_are_made_concurrently() -> None:
    cache, meeting = ByteCache(100), threading.Barrier(2, timeout=5)

    def make() -> Entry:
        meeting.wait()  # passes only if both are being made at once
        return Entry(1)

    in_threads(2, lambda i: cache.get_or_make(i, make))
    assert len(cache) == 2


def test_after_an_error_a_waiting_thread_makes_it_and_never_two_at_once() -> None:
    cache, running, most, attempts = ByteCache(100), [], [], []

    def make() -> Entry:
        running.append(1)
        most.append(len(running))
        attempts.append(1)
        number = len(attempts)
        time.sleep(0.02)
        running.pop()
        if number <= 3:
            raise ValueError
        return Entry(1)

    def work(i: int) -> None:
        for _ in range(5):
            try:
                cache.get_or_make("a", make)
                return
            except ValueError:
                continue

    in_threads(6, work)
    assert max(most) == 1
    assert len(attempts) == 4


def test_nothing_is_left_behind_for_keys_that_are_done() -> None:
    cache = ByteCache(10)
    for i in range(100):
        fill(cache, **{f"entry {i}": 1})
        cache.get_or_make(f"entry {i}", refuse)
    assert not cache._making
