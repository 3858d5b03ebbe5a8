"""Every input gives a picture, a clip, a style, settings or a record, or one clear sentence.

Files are damaged in many ways and opened in another process: a decoder that crashes or hangs fails a
test and does not end it. Each test tries all its inputs, keeps the smallest input of each kind of
fault in `outputs/fuzz/`, and fails at the end if there is any.

STYLEENGINE_FUZZ_EXAMPLES=10000 pytest tests/test_fuzz.py tries so many inputs in all, other ones in
each run (--hypothesis-seed=N repeats one), and prints the outcomes.
"""

import base64
import gc
import io
import json
import math
import multiprocessing
import os
import re
import shutil
import struct
import subprocess
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from clips import greys, write_raw
from damage import DAMAGE, MAGICS, PNG, Part, as_large_as, clips, damaged, drawing, pictures
from hypothesis import HealthCheck, Phase, given, settings
from PIL import PngImagePlugin
from safetensors.torch import load, save

import styleengine
from styleengine import LearnedStyle, StyleEngineError
from styleengine.images import check_size, open_image, open_mask
from styleengine.learned_style import METADATA_KEY as STYLE_KEY
from styleengine.learned_style import THUMBNAIL_KEY, StyleRecord, thumbnail_of
from styleengine.rerun import Rerun
from styleengine.settings import Settings
from styleengine.stylization import METADATA_KEY, checked_record, read_record
from styleengine.video import open_clip, write_clip

try:
    import resource
except ImportError:  # not a POSIX system
    resource = None

ASKED = os.environ.get("STYLEENGINE_FUZZ_EXAMPLES", "")
EXAMPLES = int(ASKED or 900)
SHARES = {"picture": 0.3, "mask": 0.1, "clip": 0.15, "style": 0.15, "settings": 0.15, "record": 0.15}
PATIENCE = 30.0  # seconds for one input, on a busy machine
MOST_MEMORY = 2 << 30  # bytes that opening one file may allocate: a picture of 50 megapixels has several copies
MOST_ADDRESSES = 4 << 30  # bytes beyond those of the process at its start
MOST_LETTERS, MOST_SENTENCES = 600, 3
ROOT = Path(__file__).parents[1]
KEPT = ROOT / "outputs" / "fuzz"

# The functions that open an input of each kind. Each raises StyleEngineError or checks the result.


def open_as_picture(path: Path) -> None:
    for source in (path, path.read_bytes()):
        image = open_image(source, "content image")
        assert image.mode == "RGB"
        check_size(image.size, "picture")
        assert len(image.tobytes()) == 3 * image.width * image.height


def open_as_mask(path: Path) -> None:
    mask = open_mask(path)
    assert mask.mode == "L"
    check_size(mask.size, "mask")


def open_as_clip(path: Path) -> None:
    clip = open_clip(path)
    check_size(clip.poster.size, "poster")
    assert clip.poster.mode == "RGB"
    assert math.isfinite(clip.seconds)
    assert clip.seconds > 0
    assert clip.rate > 0
    assert all(map(math.isfinite, clip.times))
    assert list(clip.times) == sorted(clip.times)
    part = clip.select(0, 0, 3)
    frames = list(part.frames())
    assert 1 <= len(frames) == part.count <= 3
    assert part.seconds > 0
    for frame in frames:
        assert frame.mode == "RGB"
        check_size(frame.size, "frame")
    assert all(isinstance(note, str) for note in part.notes())


def open_as_style(path: Path) -> None:
    with suppress(StyleEngineError):
        LearnedStyle.open(path, with_state=True).to_bytes()
    style = LearnedStyle.open(path)
    assert all(
        x.isfinite().all() and x.dtype == torch.float32 for x in (style.word, style.latent_mean, style.latent_std)
    )
    assert style.thumbnail.mode == "RGB"
    assert style.to_bytes()
    assert style.renamed("other").to_bytes()
    check_plain(style.record.model_dump())


def open_as_record(path: Path) -> None:
    """A record is read, and its values are passed to an engine that does nothing."""
    if path.suffix == ".png":
        assert isinstance(read_record(path), dict)
    Rerun.opened(path).run(_NoEngine(), path.with_name("again" + path.suffix))  # type: ignore[arg-type]


class _NoEngine:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *inputs, **options: None


OPENERS: dict[str, Callable[[Path], None]] = {
    "picture": open_as_picture,
    "mask": open_as_mask,
    "clip": open_as_clip,
    "style": open_as_style,
    "record": open_as_record,
}


def check_plain(values: Any) -> None:
    """It can be written as JSON in UTF-8."""
    json.dumps(values, allow_nan=False, ensure_ascii=False).encode()


# The outcome of one input.


def outcome_of(opener: Callable[[Any], None], given: Any, folder: Path | None = None) -> tuple[str, str]:
    """("opened" | "refused", sentence) or (kind of fault, what happened)."""
    try:
        opener(given)
    except StyleEngineError as error:
        wrong = wrong_with_sentence(str(error), folder)
        return (f"sentence: {wrong}" if wrong else "refused"), str(error)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - that nothing else is raised is the claim
        places = traceback.extract_tb(error.__traceback__)
        own = [place for place in places if "/styleengine/" in place.filename] or places
        place = f"{Path(own[-1].filename).name}, {own[-1].name}"
        return f"raises {type(error).__name__} in {place}", f"{str(error)[:200]} ({own[-1].line})"
    return "opened", ""


def wrong_with_sentence(sentence: str, folder: Path | None) -> str:
    """Why the sentence should not be shown to a user; "" if there is no reason."""
    try:
        sentence.encode()
    except UnicodeEncodeError:
        return "no UTF-8"
    if len(sentence) > MOST_LETTERS:
        return "too long"
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in sentence):
        return "control characters"
    own = [
        str(place)
        for place in (folder, ROOT, Path(styleengine.__file__).parent, Path.home(), tempfile.gettempdir())
        if place
    ]
    if any(f"{place}/" in sentence or sentence.endswith(place) for place in own if len(place) > 1):
        return "a folder of the server"
    said = re.sub(r"“[^”]*”|'[^']*'|\"[^\"]*\"", "…", sentence)  # quoted text is the user's own
    if re.search(r"Traceback|NoneType|<class|<_io|object at|0x[0-9a-f]{6}|\b[A-Z]\w*(Error|Exception|Warning)\b", said):
        return "names of Python types"
    if not 1 <= len(re.findall(r"[.!?](?=\s|$)", said)) <= MOST_SENTENCES or said[-1:] != ".":
        return "not one to three sentences"
    return ""


class Opener:
    """A process in which files are opened: it may crash or hang."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: Any = None
        self.near: Connection

    def open(self, kind_of_input: str, path: Path) -> dict[str, Any]:
        """The outcome: "kind" and "detail" as of `outcome_of`, "seconds", and "memory" in bytes."""
        if self.process is None:
            self._begin()
        began = time.monotonic()
        try:
            self.near.send((kind_of_input, path))
            if self.near.poll(PATIENCE):
                return self.near.recv()
            kind = f"hangs for more than {PATIENCE:.0f} s"
        except (EOFError, OSError):
            self.process.join(5)
            kind = f"crashes with exit code {self.process.exitcode}"
        self.end()
        return {"kind": kind, "detail": "", "seconds": time.monotonic() - began, "memory": 0}

    def _begin(self) -> None:
        context = multiprocessing.get_context("fork")
        self.near, far = context.Pipe()
        self.process = context.Process(target=open_files, args=(far, self.folder), daemon=True)
        self.process.start()
        far.close()

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.near.close()
            self.process = None


def open_files(far: Connection, folder: Path) -> None:
    """The loop of an `Opener`'s process: it opens files in a temporary folder that must stay empty."""
    passing = folder / f"passing-{os.getpid()}"
    passing.mkdir()
    tempfile.tempdir = os.environ["TMPDIR"] = str(passing)
    torch.set_num_threads(1)  # OpenMP's threads do not survive the fork
    begun: list[str] = []
    subprocess.Popen.__init__ = lambda self, command, *rest, **options: begun.append(str(command))  # type: ignore
    if resource and Path("/proc/self/status").exists():
        limit = in_use("VmSize") + MOST_ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    files = open_descriptors()
    while True:
        try:
            kind_of_input, path = far.recv()
        except EOFError:
            return
        before, began = forget_peak(), time.monotonic()
        kind, detail = outcome_of(OPENERS[kind_of_input], path, path.parent)
        seconds, memory = time.monotonic() - began, max(0, in_use("VmHWM") - before)
        if kind in ("opened", "refused") or begun:
            left = [file.name for file in passing.iterdir()]
            if begun:
                kind, detail = "runs another program", begun[0]
            elif left:
                kind, detail = "leaves files behind", ", ".join(left)
            elif memory > MOST_MEMORY:
                kind, detail = "takes too much memory", f"{memory >> 20} MiB; {detail}"
            elif open_descriptors() > files and not gc.collect() and open_descriptors() > files:
                kind = "leaves files open"
        shutil.rmtree(passing)
        passing.mkdir()
        begun.clear()
        gc.collect(1)
        files = open_descriptors()
        far.send({"kind": kind, "detail": detail, "seconds": seconds, "memory": memory})


def in_use(name: str) -> int:
    """A number of bytes from the kernel's statistics of this process; 0 where there are none."""
    with suppress(OSError, AttributeError):
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


def forget_peak() -> int:
    """Resets the peak of memory; returns how much is in use now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return in_use("VmRSS")


def open_descriptors() -> int:
    with suppress(OSError):
        return len(os.listdir("/proc/self/fd"))
    return 0


# Trying many inputs.


class Trial:
    """Counts the outcomes of the inputs of one kind, and keeps the smallest input of each kind of fault."""

    def __init__(self, kind_of_input: str) -> None:
        self.kind_of_input = kind_of_input
        self.counts = {"opened": 0, "refused": 0}
        self.faults: dict[str, tuple[int, str, bytes, str]] = {}
        self.slowest = self.memory = 0.0
        self.slow = b""

    def note(self, content: bytes, kind: str, detail: str, seconds: float, memory: int = 0, suffix: str = "") -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if seconds > self.slowest:
            self.slowest, self.slow = seconds, content
        self.memory = max(self.memory, memory)
        if kind not in ("opened", "refused") and (kind not in self.faults or len(content) < self.faults[kind][0]):
            self.faults[kind] = len(content), detail, content, suffix

    def summary(self) -> str:
        counts = ", ".join(f"{count} {kind}" for kind, count in self.counts.items())
        return (
            f"{self.kind_of_input}: {sum(self.counts.values())} inputs: {counts}; slowest {self.slowest:.2f} s, "
            f"most memory {self.memory / 2**20:.0f} MiB"
        )

    def close(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Prints the counts if requested, and fails if there were faults."""
        lines = []
        for number, (kind, (_, detail, content, suffix)) in enumerate(self.faults.items()):
            KEPT.mkdir(parents=True, exist_ok=True)
            file = KEPT / f"{self.kind_of_input}-{number}{suffix or '.bin'}"
            file.write_bytes(content)
            lines.append(f"{kind} ({self.counts[kind]} times), as for {file.relative_to(ROOT)}: {detail}")
        if ASKED:
            with capsys.disabled():
                print("\n" + self.summary())
        if lines:
            pytest.fail("\n".join([self.summary(), *lines]), pytrace=False)


def try_many(
    kind_of_input: str, strategy: st.SearchStrategy[Any], attempt: Callable[[Any], None], share: float = 1.0
) -> None:
    """Calls `attempt` with as many inputs as are this kind's share of all."""

    @settings(
        max_examples=max(1, round(EXAMPLES * SHARES[kind_of_input] * share)),
        derandomize=not ASKED,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def attempts(case: Any) -> None:
        attempt(case)

    attempts()


@pytest.fixture(scope="module")
def opener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opener]:
    opener = Opener(tmp_path_factory.mktemp("fuzz"))
    yield opener
    opener.end()


@pytest.fixture
def trying(opener: Opener, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Opens files of a strategy of (content, suffix) as inputs of one kind."""

    def run(kind_of_input: str, strategy: st.SearchStrategy[tuple[bytes, str]]) -> None:
        trial = Trial(kind_of_input)

        def attempt(case: tuple[bytes, str]) -> None:
            content, suffix = case
            path = tmp_path / f"given{suffix}"
            path.write_bytes(content)
            trial.note(content, suffix=suffix, **opener.open(kind_of_input, path))

        try_many(kind_of_input, strategy, attempt)
        trial.close(capsys)

    return run


# The inputs.

DAMAGES = st.lists(
    st.tuples(st.sampled_from(DAMAGE), st.integers(0, 65_535), st.integers(0, 2**32 - 1)), min_size=1, max_size=4
)
JSON_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 1000),
        st.integers(),
        st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**400, -0.0, 1e308, 1e-320]),
        st.just(5000).map(lambda digits: 10**digits),
        st.floats(),
        st.text(max_size=20),
        st.text(st.characters(categories=["Cs", "Cc", "Co", "Cn"]), max_size=5),
        st.sampled_from(["", "0", "nan", "-1e999", "true", "\0", "\ud800", "../../etc/passwd", "<b>x</b>"]),
        st.just(100_000).map(lambda count: "a" * count),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=8), inner, max_size=4),
        st.tuples(inner, st.sampled_from([3, 300, 3000])).map(lambda pair: nested(*pair)),
    ),
    max_leaves=6,
)


def nested(inner: Any, depth: int) -> Any:
    for _ in range(depth):
        inner = [inner]
    return inner


def damaged_files(valid: dict[str, bytes], suffix: str = "") -> st.SearchStrategy[tuple[bytes, str]]:
    """The given files with damages, and others of which only the first bytes are valid."""
    names = st.sampled_from(sorted(valid))
    spoilt = st.builds(
        lambda name, damages, other: (damaged(valid[name], damages, valid[other]), suffix or Path(name).suffix),
        names,
        DAMAGES,
        names,
    )
    made_up = st.builds(
        lambda magic, rest, repeats: (MAGICS[magic] + rest * repeats, suffix or f".{magic}"),
        st.sampled_from(sorted(MAGICS)),
        st.binary(max_size=200),
        st.integers(1, 20),
    )
    return st.one_of(spoilt, spoilt, spoilt, spoilt, made_up)


def learned_style() -> LearnedStyle:
    record = StyleRecord(
        name="a style",
        painting="0" * 64,
        backbone="mini",
        revision="r",
        words="49408 tokens",
        settings={"steps": 3, "learning_rate": 0.1},
        step=3,
        best_step=2,
        complete=True,
        history=[(0, 1.0), (3, 0.5)],
        version="0.1.0",
    )
    generator = torch.Generator().manual_seed(0)
    word = torch.randn(32, generator=generator)
    return LearnedStyle(record, word, torch.zeros(4), torch.ones(4), thumbnail_of(drawing()))


def style_files() -> st.SearchStrategy[tuple[bytes, str]]:
    """Damaged bytes, headers with other values, and valid files with tensors and metadata that no style has."""
    content = learned_style().to_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    metadata, tensors = header["__metadata__"], load(content)
    record: dict[str, Any] = json.loads(metadata[STYLE_KEY])

    def with_header(key: str, value: Any, stated: int | None) -> bytes:
        text = json.dumps({**header, key: value}).encode()
        return struct.pack("<Q", len(text) if stated is None else stated) + text + content[8 + length :]

    def with_entry(name: str, kind: Any, shape: Any, offsets: Any) -> bytes:
        return with_header(name, {"dtype": kind, "shape": shape, "data_offsets": offsets}, None)

    def with_tensor(name: str, value: float, kind: torch.dtype, shape: list[int]) -> bytes:
        return save({**tensors, name: torch.full(shape, value).to(kind)}, metadata)

    def with_record(key: str, value: Any) -> bytes:
        with suppress(ValueError):
            return save(tensors, {**metadata, STYLE_KEY: json.dumps({**record, key: value})})
        return content

    def with_metadata(key: str, value: str) -> bytes:
        return save(tensors, {**metadata, key: value})

    def with_thumbnail(picture: bytes, damages: Any) -> bytes:
        return with_metadata(THUMBNAIL_KEY, base64.b64encode(damaged(picture, damages)).decode())

    numbers = st.one_of(st.integers(-1, 300), st.sampled_from([2**31, 2**63, 2**64, -(2**63)]))
    names = st.sampled_from([*tensors, "state.a", "other"])
    thumbnails = {
        name: picture for name, picture in pictures().items() if name.startswith(("png", "gif", "tiff", "webp"))
    }
    thumbnail = base64.b64decode(metadata[THUMBNAIL_KEY])
    made = st.one_of(
        st.builds(
            with_header,
            st.sampled_from([*header, "other"]),
            JSON_VALUES.filter(fits_json),
            st.none() | numbers.filter(lambda n: 0 <= n < 2**64),
        ),
        st.builds(
            with_entry,
            names,
            st.sampled_from(["F32", "F16", "BF16", "F64", "I8", "U8", "BOOL", "F8_E4M3", "F4", "C64", "X", "", 3]),
            st.lists(numbers, max_size=4) | JSON_VALUES.filter(fits_json),
            st.lists(numbers, max_size=3) | JSON_VALUES.filter(fits_json),
        ),
        st.builds(
            with_tensor,
            names,
            st.floats(width=32),
            st.sampled_from(
                [torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.bool, torch.int8]
            ),
            st.lists(st.integers(0, 9), max_size=4),
        ),
        st.builds(with_record, st.sampled_from([*record, "other"]), JSON_VALUES.filter(fits_json)),
        st.builds(
            with_metadata,
            st.sampled_from([*metadata, "other"]),
            st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
        ),
        st.builds(with_thumbnail, st.sampled_from([thumbnail, *thumbnails.values()]), st.just([]) | DAMAGES),
        st.builds(damaged, st.just(content), DAMAGES, st.just(content)),
    )
    return made.map(lambda file: (file, ".safetensors"))


def fits_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (ValueError, RecursionError):
        return False
    return True


def records() -> st.SearchStrategy[Any]:
    """Records of all methods, some with parts replaced, or arbitrary values."""
    methods = st.sampled_from(["zstar", "zstar_video", "h_space", "qs_attn", "inst", "inst_learn", "", "x"])
    roles = st.sampled_from(["content", "style", "mask", "clip", "learnt style", "painting", "x"])
    names = st.sampled_from(
        ["", "content.png", "given.png", "../content.png", "/etc/hostname", "a" * 300, "a\0b", "\ud800.png"]
    )
    one = {
        "role": roles,
        "sha256": st.sampled_from(["", "0" * 64]),
        "name": names,
        "weight": st.floats(0, 2),
        "inverted": st.booleans(),
        "data": st.just(""),
    }
    either = {key: st.one_of(good, good, good, JSON_VALUES) for key, good in one.items()}
    mask = {**one, "role": st.just("mask"), "name": st.just(""), "data": st.builds(damaged_base64, DAMAGES)}
    entry = st.one_of(
        st.fixed_dictionaries(one),
        st.fixed_dictionaries(mask),
        st.fixed_dictionaries({}, optional=either),
        st.just({}),
        JSON_VALUES,
    )
    known = {name for kind in settings_classes() for name in kind.model_fields}
    values = st.dictionaries(st.sampled_from(sorted(known)), JSON_VALUES, max_size=3)
    plain = {
        "method": methods,
        "backbone": st.just("mini"),
        "revision": st.just("r"),
        "settings": values | st.just({}),
        "inputs": st.lists(entry, max_size=3),
    }
    parts = {key: st.one_of(good, good, good, good, JSON_VALUES) for key, good in plain.items()}
    return st.one_of(
        st.fixed_dictionaries(plain),
        st.fixed_dictionaries(parts),
        st.fixed_dictionaries({}, optional=parts),
        JSON_VALUES,
    )


def damaged_base64(damages: Any) -> str:
    return base64.b64encode(damaged(pictures()["png-L-1"], damages[1:])).decode()


def record_files() -> st.SearchStrategy[tuple[bytes, str]]:
    texts = st.one_of(
        records().filter(fits_json).map(json.dumps),
        records().filter(fits_json).map(lambda record: json.dumps(record)[:-1]),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50),
        st.sampled_from([("[", 100_000), ("9", 5000), ("NaN", 1), ('{"method": 1e999}', 1), ("null", 1), ("", 1)]).map(
            lambda text: text[0] * text[1]
        ),
    )

    def in_clip(text: str, damages: Any) -> tuple[bytes, str]:
        placed = clip.replace(b"x" * 4000, json.dumps({METADATA_KEY: None}).encode()[:-5] + text.encode()[:3900] + b"}")
        return damaged(placed, damages), ".mp4"

    with tempfile.TemporaryDirectory() as folder:
        clip = write_clip(Path(folder) / "clip.mp4", greys(2), Fraction(10), record="x" * 4000).read_bytes()
    form = st.sampled_from(["tEXt", "iTXt", "zTXt", "iTXt compressed"])
    rarely = st.one_of(st.just([]), st.just([]), DAMAGES)
    return st.one_of(
        st.builds(in_png, texts, form, rarely),
        st.builds(in_png, texts, form, rarely),
        st.builds(in_clip, texts, rarely),
    )


def in_png(text: str, form: str = "iTXt", damages: Any = ()) -> tuple[bytes, str]:
    chunks, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    if form.startswith("iTXt"):
        chunks.add_itxt(METADATA_KEY, text, zip=form.endswith("compressed"))
    else:
        chunks.add_text(METADATA_KEY, text.encode("latin-1", "replace").decode("latin-1"), zip=form == "zTXt")
    drawing().save(buffer, "PNG", pnginfo=chunks)
    return damaged(buffer.getvalue(), damages), ".png"


def settings_classes(base: type[Settings] = Settings) -> list[type[Settings]]:
    """All settings classes, with the shared ones; not the header of a style file, which has no defaults."""
    known = [found for kind in base.__subclasses__() for found in (kind, *settings_classes(kind))]
    return [kind for kind in known if not any(field.is_required() for field in kind.model_fields.values())]


# The tests.


def test_damaged_pictures_give_a_picture_or_a_sentence(trying: Callable[..., None]) -> None:
    trying("picture", damaged_files(pictures()))


def test_damaged_masks_give_a_mask_or_a_sentence(trying: Callable[..., None]) -> None:
    trying("mask", damaged_files(pictures()))


def test_damaged_clips_give_a_clip_or_a_sentence(trying: Callable[..., None]) -> None:
    trying("clip", damaged_files(clips()))


def test_damaged_style_files_give_a_style_or_a_sentence(trying: Callable[..., None]) -> None:
    trying("style", style_files())


def test_forged_records_give_a_record_or_a_sentence(trying: Callable[..., None]) -> None:
    trying("record", record_files())


def test_records_of_any_shape_give_a_record_or_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    trial = Trial("record")

    def attempt(record: Any) -> None:
        began = time.monotonic()
        kind, detail = outcome_of(lambda given: checked_record(given, "given.png"), record)
        trial.note(shown(record), kind, detail, time.monotonic() - began)

    try_many("record", records(), attempt)
    trial.close(capsys)


def test_settings_of_any_kind_are_settings_or_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    trial = Trial("settings")
    classes = settings_classes()

    def values_of(kind: type[Settings]) -> st.SearchStrategy[tuple[type[Settings], dict[str, Any]]]:
        known = st.dictionaries(st.sampled_from(sorted(kind.model_fields)), JSON_VALUES, max_size=4)
        unknown = st.dictionaries(st.text(max_size=8), JSON_VALUES, max_size=2)
        values = st.one_of(known, known, st.builds(lambda one, other: {**one, **other}, known, unknown))
        return st.tuples(st.just(kind), values)

    def attempt(case: tuple[type[Settings], dict[str, Any]]) -> None:
        kind, values = case
        began = time.monotonic()
        how, detail = outcome_of(lambda given: check_settings(kind, given), values)
        trial.note(f"{kind.__name__} {shown(values)!r}".encode(), how, detail, time.monotonic() - began)

    try_many("settings", st.sampled_from(classes).flatmap(values_of), attempt)
    trial.close(capsys)


def check_settings(kind: type[Settings], values: dict[str, Any]) -> None:
    made = kind(**values)
    check_plain(made.model_dump())
    assert kind(**json.loads(json.dumps(made.model_dump()))) == made
    assert made.replace() == made
    for knob in kind.knobs():
        value = getattr(made, knob.name)
        if knob.low is not None and isinstance(value, (int, float)):
            assert knob.low <= value
        if knob.high is not None and isinstance(value, (int, float)):
            assert value <= knob.high


def shown(value: Any) -> bytes:
    """A part of its representation, as bytes."""
    try:
        return repr(value)[:100_000].encode(errors="backslashreplace")
    except (RecursionError, ValueError) as error:
        return f"{type(error).__name__} when shown: {type(value).__name__}".encode()


# Inputs that once caused faults, one of each kind.


def clip_with(name: str, **options: Any) -> Callable[[], bytes]:
    def made() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            return write_raw(Path(folder) / f"clip.{name}", greys(2, (512, 512)), **options).read_bytes()

    return made


def clip_of_oblong_pixels(across: int, down: int) -> bytes:
    content = clip_with("mp4", aspect=Fraction(4, 3))()
    return content.replace(b"pasp" + struct.pack(">II", 4, 3), b"pasp" + struct.pack(">II", across, down))


def picture_with_record(record: Any) -> Callable[[], bytes]:
    return lambda: in_png(record if isinstance(record, str) else json.dumps(record))[0]


WHOLE: dict[str, Any] = {"method": "zstar", "backbone": "mini", "revision": "r", "settings": {}, "inputs": []}
ENTRY: dict[str, Any] = {"role": "content", "sha256": "0" * 64, "name": "content.png", "weight": 1.0}
FILES: dict[str, tuple[str, str, Callable[[], bytes]]] = {
    "picture that another program would draw": ("picture", ".eps", lambda: pictures_of("eps")),
    "the same called a PNG": ("picture", ".png", lambda: pictures_of("eps")),
    "PNG of 49 megapixels in a few bytes": ("picture", ".png", lambda: flat_png(7000, 7000)),
    "PNG of 400 megapixels": ("picture", ".png", lambda: flat_png(20_000, 20_000)),
    "TIFF that claims 49 megapixels": ("picture", ".tif", lambda: as_large_as(pictures_of("tiff-F"), 7000, 7000)),
    "clip with pixels 6000 times as wide as high": ("clip", ".mp4", lambda: clip_of_oblong_pixels(6000, 1)),
    "clip with pixels 6000 times as high as wide": ("clip", ".mp4", lambda: clip_of_oblong_pixels(1, 6000)),
    "clip with years between its frames": ("clip", ".mkv", clip_with("mkv", moments=[Fraction(0), Fraction(10**9)])),
    "record nested without end": ("record", ".png", picture_with_record("[" * 100_000)),
    "record with a number of 5000 digits": ("record", ".png", picture_with_record("9" * 5000)),
    "record whose method is a list": ("record", ".png", picture_with_record({**WHOLE, "method": []})),
    "record whose inputs are null": ("record", ".png", picture_with_record({**WHOLE, "inputs": None})),
    "record whose inputs are text": ("record", ".png", picture_with_record({**WHOLE, "inputs": "abc"})),
    "record with an input of nothing": ("record", ".png", picture_with_record({**WHOLE, "inputs": [{}]})),
    "record with an input that is null": ("record", ".png", picture_with_record({**WHOLE, "inputs": [None]})),
    "record with an input whose role is a list": (
        "record",
        ".png",
        picture_with_record({**WHOLE, "inputs": [{**ENTRY, "role": ["content"]}]}),
    ),
    "record with an input whose name is a number": (
        "record",
        ".png",
        picture_with_record({**WHOLE, "inputs": [{**ENTRY, "name": 3}]}),
    ),
    "record with an input whose name is not UTF-8": (
        "record",
        ".png",
        picture_with_record({**WHOLE, "inputs": [{**ENTRY, "name": "\ud800.png"}]}),
    ),
    "record with a name that is too long for a file": (
        "record",
        ".png",
        picture_with_record({**WHOLE, "inputs": [{**ENTRY, "name": "a" * 5000}]}),
    ),
    "record with a name of control characters": (
        "record",
        ".png",
        picture_with_record({**WHOLE, "inputs": [{**ENTRY, "name": "a\0\x1b[31m"}]}),
    ),
    "record whose settings are null": ("record", ".png", picture_with_record({**WHOLE, "settings": None})),
    "record whose settings are a list": ("record", ".png", picture_with_record({**WHOLE, "settings": [1]})),
    "record with the settings of another method": (
        "record",
        ".png",
        picture_with_record({**WHOLE, "settings": dict.fromkeys("abcdefghijklmnop", 1)}),
    ),
}
VALUES: dict[str, dict[str, Any]] = {
    "a number of 5000 digits": {"size": 10**5000},
    "a list in a list, 3000 times": {"size": nested(1, 3000)},
    "a text of 100,000 letters": {"size": "a" * 100_000},
    "a text of control characters": {"size": "\0\x1b[31m\x85"},
    "an unknown name of control characters": {"\x1b[31m": 1},
    "an unknown name that is not UTF-8": {"\ud800": 1},
    "an unknown name of 100,000 letters": {"a" * 100_000: 1},
    "many unknown names": dict.fromkeys("abcdefghijklmnopqrstuvwxyz", 1),
    "a large list": {"size": list(range(100_000))},
    "NaN": {"size": math.nan},
    "infinity": {"steps": math.inf, "size": -math.inf},
}


def pictures_of(kind: str) -> bytes:
    return next(content for name, content in pictures().items() if name.startswith(kind))


def flat_png(width: int, height: int) -> bytes:
    """A black grey-scale picture, which compresses a thousandfold."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    return PNG.join(b"\x89PNG\r\n\x1a\n", [Part(b"IHDR", header), Part(b"IDAT", rows), Part(b"IEND", b"")], b"")


@pytest.mark.parametrize("name", FILES)
def test_files_that_caused_faults_give_a_sentence_or_are_opened(name: str, opener: Opener, tmp_path: Path) -> None:
    kind_of_input, suffix, content = FILES[name]
    path = tmp_path / f"given{suffix}"
    path.write_bytes(content())
    how = opener.open(kind_of_input, path)
    assert how["kind"] in ("opened", "refused"), how


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("kind", settings_classes(), ids=lambda kind: kind.__name__)
def test_values_that_caused_faults_give_a_sentence(kind: type[Settings], name: str) -> None:
    how, sentence = outcome_of(lambda values: kind(**values), VALUES[name])
    assert how == "refused", sentence[:300]


ODD: dict[str, Callable[[Path], Any]] = {
    "nothing": lambda folder: None,
    "a number": lambda folder: 3,
    "a list": lambda folder: ["a.png"],
    "an upload as it is sent": lambda folder: {"path": "/etc/hostname"},
    "an object": lambda folder: object(),
    "an empty name": lambda folder: "",
    "a name with a null byte": lambda folder: "a\0b.png",
    "a name too long for a file": lambda folder: "a" * 300 + ".png",
    "a name that is not UTF-8": lambda folder: folder / "\udcff.png",
    "a name of control characters": lambda folder: folder / "a\n\x1b[31m.png",
    "a folder": lambda folder: folder,
    "what is not there": lambda folder: folder / "gone.png",
    "a pipe": lambda folder: folder / "pipe.png",
    "a link to itself": lambda folder: folder / "loop.png",
    "a device": lambda folder: "/dev/zero",
    "a file of the system": lambda folder: "/etc/hosts",
}
READERS: dict[str, Callable[[Any], Any]] = {
    "picture": open_image,
    "mask": open_mask,
    "clip": open_clip,
    "style": LearnedStyle.open,
    "record": read_record,
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("reader", READERS)
def test_an_invalid_file_gives_a_sentence_without_a_folder(reader: str, name: str, tmp_path: Path) -> None:
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    how, sentence = outcome_of(READERS[reader], ODD[name](tmp_path), tmp_path)
    assert how == "refused", sentence[:300]
