"""Style files: a saved style loads unchanged, and an invalid file is refused in a sentence."""

import base64
import io
import json
import os
import pickle
import random
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import load, save

from styleengine import StyleEngineError
from styleengine.backbones import LatentBackbone
from styleengine.learned_style import (
    METADATA_KEY,
    MOST_BYTES,
    MOST_HEADER_BYTES,
    THUMBNAIL_KEY,
    LearnedStyle,
    StyleRecord,
    fitting_name,
    mixed,
    thumbnail_of,
)


@pytest.fixture
def style(backbone: LatentBackbone, cat: Image.Image) -> LearnedStyle:
    return made_up(backbone, cat)


def made_up(backbone: LatentBackbone, painting: Image.Image, seed: int = 0, name: str = "cat") -> LearnedStyle:
    generator = torch.Generator().manual_seed(seed)
    record = StyleRecord(
        name=name,
        painting="0" * 64,
        backbone=backbone.name,
        revision=backbone.revision,
        words=backbone.words,
        settings={"steps": 20, "learning_rate": 1e-4, "mode": "attention", "save_memory": False},
        step=20,
        best_step=10,
        complete=True,
        history=[(0, 0.5), (10, 0.25), (20, 0.3)],
        version="0.1.0",
    )
    return LearnedStyle(
        record=record,
        word=torch.randn(backbone.word_width, generator=generator) * 0.02,
        latent_mean=torch.randn(4, generator=generator),
        latent_std=torch.rand(4, generator=generator) + 0.5,
        thumbnail=thumbnail_of(painting),
    )


def equal(one: LearnedStyle, other: LearnedStyle) -> bool:
    tensors = [(getattr(style, name) for name in ("word", "latent_mean", "latent_std")) for style in (one, other)]
    return all(torch.equal(a, b) for a, b in zip(*tensors, strict=True)) and one.record == other.record


def test_a_style_comes_back_from_its_file_as_it_was(style: LearnedStyle, tmp_path: Path) -> None:
    style = replace(style, state={"module.word": torch.ones(3, 2), "exp_avg.word": torch.zeros(3, 2)})
    path = style.save(tmp_path / "cat.safetensors")
    again = LearnedStyle.open(path, with_state=True)
    assert equal(again, style)
    assert again.sha256 == style.sha256
    assert again.thumbnail.tobytes() == style.thumbnail.tobytes()
    assert again.state.keys() == style.state.keys()
    assert torch.equal(again.state["module.word"], style.state["module.word"])
    assert again.source == str(path)
    assert [file.name for file in tmp_path.iterdir()] == ["cat.safetensors"]


def test_a_style_is_always_written_the_same(style: LearnedStyle) -> None:
    content = style.to_bytes()
    assert {LearnedStyle.open(content).to_bytes() for _ in range(10)} == {content}
    assert equal(LearnedStyle.open(content), style)


def test_a_finished_style_is_small(style: LearnedStyle, tmp_path: Path) -> None:
    wide = replace(style, word=torch.zeros(1024))
    assert wide.save(tmp_path / "cat.safetensors").stat().st_size < 64_000


def test_another_embedding_is_another_style_but_another_name_is_not(style: LearnedStyle) -> None:
    assert style.renamed("dog").sha256 == style.sha256
    assert style.renamed("dog").record.name == "dog"
    assert replace(style, word=style.word + 1e-6).sha256 != style.sha256


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("The Great Wave (1831)", "The Great Wave 1831"),
        ("../../etc/passwd", "etc passwd"),
        ("<b>bold</b>", "b bold b"),
        ("", "style"),
        ("...", "style"),
        ("星月夜", "星月夜"),
        ("x" * 300, "x" * 48),
        ("CON", "style CON"),
        ("nul.txt", "style nul.txt"),
        ("com1 .x", "style com1 .x"),
        ("console", "console"),
        ("cat. . .", "cat"),
        ("-rf", "rf"),
        ("a\0b\nc\td\x7f", "a b c d"),
        ("\u202egnp.cat", "gnp.cat"),
        ("a\u200bb\ufeff", "a b"),
        ("🎨\ufe0f", "style"),
        ("cat 🐈\u200d⬛ black", "cat black"),
        ("cafe\u0301", "caf\u00e9"),
        ("हिन्दी", "हिन्दी"),
        ("\u0301\u0302", "style"),
        ("\u3164\u115f", "style"),
        ("\ud800x\udfff", "x"),
        ("C:\\Users\\me\\cat", "C Users me cat"),
        ("a/b|c?d*e:f", "a b c d e f"),
        ("星" * 60, "星" * 48),
    ],
)
def test_names_are_made_to_fit(text: str, name: str) -> None:
    assert fitting_name(text) == name
    assert fitting_name(name) == name


def test_any_text_becomes_a_name_that_is_a_safe_file_name_and_fits_itself() -> None:
    draw = random.Random(0)
    letters = [*" .-_aE/\\<>&:|?*\"'", "\u0301", "\u200d", "\u202e", "\ufe0f", "ﬁ", "\u1100", "\u1161", "con", "aux."]
    for _ in range(3000):
        text = "".join(draw.choice([*letters, chr(draw.randrange(0x110000))]) for _ in range(draw.randrange(70)))
        name = fitting_name(text)
        assert fitting_name(name) == name
        assert 1 <= len(name) <= 48
        assert name.isprintable()
        assert not set(name) & set('<>:"/\\|?*')
        assert name == name.strip(".- ")
        assert len(f".{name}.safetensors.12345678".encode()) <= 255


def parts(style: LearnedStyle) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    content = style.to_bytes()
    length = int.from_bytes(content[:8], "little")
    return load(content), json.loads(content[8 : 8 + length])["__metadata__"]


def with_tensors(**changed: torch.Tensor | None) -> Callable[[LearnedStyle], bytes]:
    def forge(style: LearnedStyle) -> bytes:
        tensors, metadata = parts(style)
        tensors |= {name: x for name, x in changed.items() if x is not None}
        return save({name: x for name, x in tensors.items() if changed.get(name, x) is not None}, metadata)

    return forge


def with_record(**changed: Any) -> Callable[[LearnedStyle], bytes]:
    def forge(style: LearnedStyle) -> bytes:
        tensors, metadata = parts(style)
        metadata[METADATA_KEY] = json.dumps({**json.loads(metadata[METADATA_KEY]), **changed})
        return save(tensors, metadata)

    return forge


def with_metadata(**changed: str) -> Callable[[LearnedStyle], bytes]:
    def forge(style: LearnedStyle) -> bytes:
        tensors, metadata = parts(style)
        return save(tensors, {**metadata, **changed})

    return forge


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/styleengine-was-unpickled"),))


def with_wrong_offsets(style: LearnedStyle) -> bytes:
    content = style.to_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["word"]["data_offsets"] = [0, 10**9]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def with_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[LearnedStyle], bytes]:
    """The style's file with a changed header."""

    def forge(style: LearnedStyle) -> bytes:
        content = style.to_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        text = change(header) or json.dumps(header)
        return struct.pack("<Q", len(text)) + text.encode() + content[8 + length :]

    return forge


def entry(name: str, **values: Any) -> Callable[[LearnedStyle], bytes]:
    return with_header(lambda header: header[name].update(values))


def twice(header: dict[str, Any]) -> str:
    text = json.dumps(header)
    return f'{text[:-1]}, "word": {json.dumps(header["word"])}}}'


def twice_within(header: dict[str, Any]) -> None:
    record = header["__metadata__"][METADATA_KEY]
    header["__metadata__"][METADATA_KEY] = f'{record[:-1]}, "step": 7}}'


def with_thumbnail(picture: bytes) -> Callable[[LearnedStyle], bytes]:
    return with_metadata(**{THUMBNAIL_KEY: base64.b64encode(picture).decode()})


def png(size: tuple[int, int] = (128, 128), mode: str = "RGB", info: PngImagePlugin.PngInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def huge_png() -> bytes:
    """A picture of 128×128 pixels by its header's name, of 60000×60000 by its header."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1_000_000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def nested(style: LearnedStyle) -> bytes:
    text = b"{" + b'"a":{' * 100_000
    return struct.pack("<Q", len(text)) + text


DAMAGE: dict[str, tuple[Callable[[LearnedStyle], bytes], str]] = {
    "empty": (lambda style: b"", "not a safetensors file"),
    "text": (lambda style: b"hello, this is text and no tensors", "not a safetensors file"),
    "pickle": (lambda style: pickle.dumps(Malicious()), "not a safetensors file"),
    "zip": (lambda style: b"PK\x03\x04" + b"\0" * 100, "not a safetensors file"),
    "huge header": (lambda style: struct.pack("<Q", MOST_HEADER_BYTES + 1) + b"{" * 100, "header has more than"),
    "absurd header": (lambda style: struct.pack("<Q", 2**63) + b"{}" * 100, "header has more than"),
    "header beyond the end": (lambda style: struct.pack("<Q", 5000) + b"{}" * 100, "cut off"),
    "header no JSON": (lambda style: struct.pack("<Q", 50) + b"{" * 100, "header is damaged"),
    "header nested deeply": (nested, "header is damaged"),
    "truncated in the tensors": (lambda style: style.to_bytes()[:-4], "damaged or cut off"),
    "truncated in the header": (lambda style: style.to_bytes()[:300], "cut off"),
    "offsets beyond the end": (with_wrong_offsets, "damaged or cut off"),
    "too large": (lambda style: style.to_bytes() + b"\0" * MOST_BYTES, "more than 1 MiB"),
    "a tensor twice": (with_header(twice), "header is damaged"),
    "a field twice": (with_header(twice_within), "its metadata"),
    "offsets negative": (entry("word", data_offsets=[-128, 0]), "damaged or cut off"),
    "offsets reversed": (entry("word", data_offsets=[128, 0]), "damaged or cut off"),
    "offsets overlapping": (
        with_header(lambda header: header["latent_std"].update(data_offsets=header["latent_mean"]["data_offsets"])),
        "damaged or cut off",
    ),
    "shape negative": (entry("word", shape=[-32]), "damaged or cut off"),
    "shape absurd": (entry("word", shape=[2**40, 2**40]), "damaged or cut off"),
    "shape of nothing": (entry("word", shape=[0, 2**62]), "damaged or cut off"),
    "shape no list": (entry("word", shape="x"), "damaged or cut off"),
    "shape nested deeply": (
        with_header(lambda header: json.dumps(header).replace("[32]", "[" * 900 + "]" * 900)),
        "damaged or cut off",
    ),
    "type unknown": (entry("word", dtype="F31"), "damaged or cut off"),
    "type of half bytes": (entry("word", dtype="F4", shape=[256]), "damaged or cut off"),
    "type whole": (entry("word", dtype="I32"), "of type int32"),
    "type brain float": (entry("word", dtype="BF16", shape=[64]), "of type bfloat16"),
    "type complex": (entry("word", dtype="C64", shape=[16]), "of type complex64"),
    "type truth": (entry("word", dtype="BOOL", shape=[128]), "of type bool"),
    "metadata no text": (with_header(lambda header: header["__metadata__"].update(more=5)), "damaged or cut off"),
    "metadata a list": (with_header(lambda header: header.update(__metadata__=[])), "no style of StyleEngine"),
    "header a list": (with_header(lambda header: " [1]"), "not a safetensors file"),
    "header not UTF-8": (lambda style: struct.pack("<Q", 4) + b'{"\xff"' + b"\0" * 9, "header is damaged"),
    "header a number without end": (
        lambda style: struct.pack("<Q", 9000) + b'{"a":' + b"9" * 8994 + b"}",
        "header is damaged",
    ),
    "one number for a word": (with_tensors(word=torch.tensor(1.0)), "wrong shape"),
    "foreign tensors": (lambda style: save({"word": torch.ones(3)}), "no style of StyleEngine"),
    "foreign metadata": (lambda style: save({"word": torch.ones(3)}, {"a": "b"}), "no style of StyleEngine"),
    "tensor missing": (with_tensors(latent_mean=None), "not those of a style"),
    "tensor too many": (with_tensors(extra=torch.ones(2)), "not those of a style"),
    "state where none is wanted": (with_tensors(**{"state.module.a": torch.ones(2)}), "not those of a style"),
    "NaN": (with_tensors(word=torch.full((32,), torch.nan)), "non-finite or implausible values"),
    "infinite": (with_tensors(latent_std=torch.full((4,), torch.inf)), "non-finite or implausible values"),
    "enormous": (with_tensors(word=torch.full((32,), 1e20)), "non-finite or implausible values"),
    "no numbers": (with_tensors(word=torch.ones(0)), "non-finite or implausible values"),
    "half precision": (with_tensors(word=torch.ones(32).half()), "of type float16"),
    "whole numbers": (with_tensors(word=torch.ones(32).long()), "of type int64"),
    "a matrix for a word": (with_tensors(word=torch.ones(4, 8)), "wrong shape"),
    "unequal channels": (with_tensors(latent_mean=torch.ones(5)), "wrong shape"),
    "negative spread": (with_tensors(latent_std=-torch.ones(4)), "wrong shape"),
    "record no JSON": (with_metadata(**{METADATA_KEY: "{"}), "its metadata"),
    "record a list": (with_metadata(**{METADATA_KEY: "[1]"}), "its metadata"),
    "another format": (with_record(format=2), "of another version"),
    "unknown field": (with_record(run="rm -rf"), "its metadata"),
    "step out of bounds": (with_record(step=-1), "its metadata"),
    "history without end": (with_record(history=[[0, 1.0]] * 10_001), "its metadata"),
    "history not finite": (with_record(history=[[0, float("nan")]]), "its metadata"),
    "settings nested": (with_record(settings={"a": {"b": 1}}), "its metadata"),
    "name too long": (with_record(name="x" * 100), "its metadata"),
    "name a path": (with_record(name="../../x"), "its name has invalid characters"),
    "name with markup": (with_record(name="<img src=x>"), "its name has invalid characters"),
    "name of a device": (with_record(name="CON"), "its name has invalid characters"),
    "name turned around": (with_record(name="a\u202eb"), "its name has invalid characters"),
    "name no Unicode": (with_record(name="a\ud800"), "its metadata"),
    "name a list": (with_record(name=["a"]), "its metadata"),
    "model of several lines": (with_record(backbone="a\nb"), "its metadata"),
    "model turned around": (with_record(backbone="a\u202eb"), "its metadata"),
    "words with control characters": (with_record(words="a\x1b[2J"), "its metadata"),
    "revision without end": (with_record(revision="x" * 10_000), "its metadata"),
    "settings not finite": (with_record(settings={"a": float("inf")}), "its metadata"),
    "settings nested deeply": (
        with_metadata(**{METADATA_KEY: '{"settings": ' + "[" * 100_000 + "}"}),
        "its metadata",
    ),
    "settings a whole number without end": (with_record(settings={"a": 10**400}), "its metadata"),
    "thumbnail too large": (with_thumbnail(png((129, 128))), "its thumbnail is damaged"),
    "thumbnail a bomb": (with_thumbnail(huge_png()), "its thumbnail is damaged"),
    "thumbnail cut off": (with_thumbnail(png()[:60]), "its thumbnail is damaged"),
    "thumbnail of no chunks": (with_thumbnail(b"\x89PNG\r\n\x1a\n"), "its thumbnail is damaged"),
    "thumbnail no base64": (with_metadata(**{THUMBNAIL_KEY: "%%"}), "its thumbnail is damaged"),
    "thumbnail no PNG": (with_metadata(**{THUMBNAIL_KEY: "R0lGODlhAQABAAAAACw="}), "its thumbnail is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_invalid_style_is_refused_in_one_sentence(damage: str, style: LearnedStyle, tmp_path: Path) -> None:
    forge, words = DAMAGE[damage]
    path = tmp_path / "forged.safetensors"
    path.write_bytes(forge(style))
    with pytest.raises(StyleEngineError, match=words) as caught:
        LearnedStyle.open(path)
    sentence = str(caught.value)
    assert sentence.startswith("forged.safetensors is not a usable style: ")
    assert len(sentence) < 250
    assert "\n" not in sentence
    assert not Path("/tmp/styleengine-was-unpickled").exists()


def test_forging_changes_only_what_it_should(style: LearnedStyle, tmp_path: Path) -> None:
    path = tmp_path / "same.safetensors"
    for forge in (with_tensors(), with_record(), with_metadata()):
        path.write_bytes(forge(style))
        assert equal(LearnedStyle.open(path), style)


def test_every_truncated_file_is_refused(style: LearnedStyle, tmp_path: Path) -> None:
    content, path = style.to_bytes(), tmp_path / "cut.safetensors"
    for length in range(0, len(content), 997):
        path.write_bytes(content[:length])
        with pytest.raises(StyleEngineError, match="is not a usable style"):
            LearnedStyle.open(path)


def test_texts_in_a_thumbnail_are_not_unpacked(style: LearnedStyle, tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    for number in range(60):
        info.add_itxt(f"bomb {number}", "\0" * 1_000_000, zip=True)
        info.add(b"iCCP", b"x\0\0" + zlib.compress(bytes(1_000_000)))
    content = with_thumbnail(png(info=info))(style)
    tracemalloc.start()
    try:
        opened = LearnedStyle.open(content)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert opened.thumbnail.info == {}
    assert opened.thumbnail.size == (128, 128)


def test_a_thumbnail_contains_nothing_but_pixels(style: LearnedStyle) -> None:
    style.thumbnail.info |= {"icc_profile": b"secret", "exif": b"secret", "xmp": b"secret", "comment": "secret"}
    _, metadata = parts(style)
    assert b"secret" not in base64.b64decode(metadata[THUMBNAIL_KEY])


def test_a_style_is_read_from_a_path_its_bytes_or_an_open_file(style: LearnedStyle, tmp_path: Path) -> None:
    path = style.save(tmp_path / "cat.safetensors")
    with path.open("rb") as file:
        for source in (str(path), path, path.read_bytes(), io.BytesIO(path.read_bytes()), file):
            assert equal(LearnedStyle.open(source), style)
    assert LearnedStyle.open(path.read_bytes()).source == ""


@pytest.mark.parametrize("source", [None, 5, {"path": "x"}, ["x"], io.StringIO("x"), object()])
def test_what_is_no_file_at_all_is_refused_in_a_sentence(source: Any) -> None:
    with pytest.raises(StyleEngineError, match="No style was given"):
        LearnedStyle.open(source)


def test_no_more_is_read_than_a_style_may_have() -> None:
    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            assert 0 < size <= MOST_BYTES + 1
            return bytes(size)

    with pytest.raises(StyleEngineError, match="The file is not a usable style: it has more than 1 MiB"):
        LearnedStyle.open(Endless())  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform == "win32", reason="kinds of files and names that Windows does not have")
def test_what_is_no_plain_file_is_not_read_and_its_folder_not_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    names = ["pipe.safetensors", "folder.safetensors", "gone", "a\0b", "x" * 5000, "caf\udce9\n.safetensors"]
    for path in ("/dev/zero", "", *(f"{tmp_path}/{name}" for name in names)):
        with pytest.raises(StyleEngineError, match="does not exist or is not a file") as caught:
            LearnedStyle.open(path)
        assert str(tmp_path) not in str(caught.value)
        assert str(caught.value).isprintable()


@pytest.mark.skipif(sys.platform == "win32", reason="names that Windows does not have")
def test_a_file_whose_name_is_not_utf_8_is_read(style: LearnedStyle, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.safetensors"
    Path(os.fsdecode(path)).write_bytes(style.to_bytes())
    assert equal(LearnedStyle.open(os.fsdecode(path)), style)
    Path(os.fsdecode(path)).write_bytes(b"broken")
    with pytest.raises(StyleEngineError, match="not a usable style") as caught:
        LearnedStyle.open(os.fsdecode(path))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("mini", "mini"),
        ("owner/name@main", "owner/name@main"),
        ("/home/me/models/sd15", "sd15"),
        ("/home/me/models/sd15/", "sd15"),
        ("../models/sd15", "sd15"),
        ("~/sd15", "sd15"),
        ("C:\\models\\sd15", "sd15"),
        ("/", "model"),
    ],
)
def test_a_record_names_a_model_s_folder_by_its_last_part(style: LearnedStyle, model: str, name: str) -> None:
    assert style.record.replace(backbone=model).backbone == name


def test_no_sentence_about_a_model_names_its_folder(style: LearnedStyle, backbone: LatentBackbone) -> None:
    assert Path(backbone.name).is_absolute()
    with pytest.raises(StyleEngineError) as caught:
        replace(style, word=torch.ones(5)).check_fits(backbone)
    messages = str(caught.value) + replace(style, record=style.record.replace(revision="abc")).note_for(backbone)
    assert str(Path(backbone.name).parent) not in messages


def test_a_file_that_is_missing_or_cannot_be_written_is_named(style: LearnedStyle, tmp_path: Path) -> None:
    with pytest.raises(StyleEngineError, match=r"gone.safetensors does not exist"):
        LearnedStyle.open(tmp_path / "gone.safetensors")
    with pytest.raises(StyleEngineError, match=r"name the file cat.safetensors, not cat.bin"):
        style.save(tmp_path / "cat.bin")
    with pytest.raises(StyleEngineError, match="There is no folder"):
        style.save(tmp_path / "nowhere" / "cat.safetensors")


def test_a_style_fits_text_encoders_of_its_shape_only(style: LearnedStyle, backbone: LatentBackbone) -> None:
    style.check_fits(backbone)
    others = [
        replace(style, record=style.record.replace(words="49408 tokens, width 768, 12 layers")),
        replace(style, word=torch.ones(backbone.word_width + 1)),
        replace(style, latent_mean=torch.ones(16), latent_std=torch.ones(16)),
    ]
    for other in others:
        with pytest.raises(StyleEngineError, match="cannot use it"):
            other.check_fits(backbone)


def test_a_style_of_other_weights_comes_with_a_note(style: LearnedStyle, backbone: LatentBackbone) -> None:
    assert style.note_for(backbone) == ""
    other = replace(style, record=style.record.replace(revision="abc"))
    assert "it may look different" in other.note_for(backbone)


def test_mixing_interpolates_between_two_styles(backbone: LatentBackbone, cat: Image.Image) -> None:
    one, other = (made_up(backbone, cat, seed) for seed in (0, 1))
    assert mixed(one, other, 0) is one
    assert mixed(one, other, 1) is other
    there, back = mixed(one, other, 0.3), mixed(other, one, 0.7)
    torch.testing.assert_close(there.word, back.word)
    torch.testing.assert_close(there.latent_mean, 0.7 * one.latent_mean + 0.3 * other.latent_mean)
    torch.testing.assert_close(there.word.norm(), 0.7 * one.word.norm() + 0.3 * other.word.norm())
    straight = 0.7 * one.word + 0.3 * other.word
    assert torch.cosine_similarity(there.word, straight, dim=0) > 0.99999
    torch.testing.assert_close(mixed(one, one, 0.4).word, one.word)


def test_styles_of_different_width_are_not_mixed(style: LearnedStyle) -> None:
    with pytest.raises(StyleEngineError, match="different shape"):
        mixed(style, replace(style, word=torch.ones(5)), 0.5)
