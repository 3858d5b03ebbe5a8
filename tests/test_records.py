"""Records: they contain no folders, are sufficient to repeat a result, and may come from untrusted files."""

import base64
import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import panned, write_raw
from PIL import Image, ImageCms, ImageOps
from safetensors import safe_open

from styleengine import (
    HSpaceSettings,
    InSTLearningSettings,
    InSTSettings,
    LearnedStyle,
    QSAttnSettings,
    Style,
    StyleEngine,
    StyleEngineError,
    ZStarSettings,
    ZStarVideoSettings,
)
from styleengine.backbones import BACKBONES
from styleengine.cli import main
from styleengine.images import content_hash, open_image, open_mask, save_png
from styleengine.learned_style import THUMBNAIL_KEY
from styleengine.rerun import Rerun
from styleengine.style_library import SHIPPED
from styleengine.stylization import METADATA_KEY, file_name, model_name, read_record

HASH = "0" * 64
COMMIT = "a" * 40
NAME = "caf\udce9.png"  # a file name that is no UTF-8, as Python gives it


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A folder with pictures that no result may name."""
    folder = tmp_path / "home-of-bob"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for name, size in {"content": (90, 80), "style": (80, 90), "other": (90, 90), "mask": (90, 80)}.items():
        blocks = noise.integers(0, 256, (6, 6, 3), np.uint8)
        picture = Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)
        (picture.convert("L") if name == "mask" else picture).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the current one, for results."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def private_engine(model_folder: Path, private: Path) -> StyleEngine:
    shutil.copytree(model_folder, private / "own-model")
    return StyleEngine(str(private / "own-model"), device="cpu")


def zstar(engine: StyleEngine, folder: Path, out: Path, **options: Any) -> Path:
    settings = ZStarSettings(size=64, steps=2)
    styles = [Style.open(folder / "style.png", **options)]
    return engine.zstar(folder / "content.png", styles, settings).save(out)


def write_result(path: Path, record: Any) -> Path:
    """A picture with any text as its record."""
    text = record if isinstance(record, str) else json.dumps(record)
    return save_png(Image.new("RGB", (64, 64)), path, {METADATA_KEY: text})


def record_of(method: str = "qs_attn", **changes: Any) -> dict[str, Any]:
    inputs = [{"role": "content", "sha256": HASH, "name": "content.png"}]
    settings = {"prompt": "ink"} if method == "qs_attn" else {}
    whole = {"method": method, "backbone": "mini", "revision": "r", "settings": settings, "inputs": inputs}
    return {**whole, **changes}


def test_no_saved_file_contains_a_folder(private_engine: StyleEngine, private: Path, elsewhere: Path) -> None:
    content, style, mask = (private / f"{name}.png" for name in ("content", "style", "mask"))
    clip = write_raw(private / "clip.mp4", panned(Image.open(content), 2, (80, 64)))
    learning = InSTLearningSettings(size=32, steps=2, batch=1, views=1, check_every=1)
    learned = private_engine.inst_learn(style, learning).save(private / "learned.safetensors")
    shutil.copy(learned, elsewhere)
    fast: dict[str, Any] = {"size": 64, "steps": 2}
    private_engine.zstar(content, [Style.open(style, mask=mask)], ZStarSettings(**fast)).save("zstar.png")
    private_engine.h_space(content, style, HSpaceSettings(t_edit=300, **fast), mask=mask).save("h.png")
    private_engine.qs_attn(content, "ink", QSAttnSettings(patches=2, **fast)).save("qs.png")
    private_engine.inst_apply(content, [str(learned)], InSTSettings(**fast)).save("inst.png")
    private_engine.zstar_video(clip, [style], ZStarVideoSettings(**fast, rate=0), output="clip.mp4")
    written = sorted(elsewhere.iterdir())
    assert [file.name for file in written] == [
        *("clip.mp4", "h.png", "inst.png", "learned.safetensors", "qs.png", "zstar.png")
    ]
    for file in written:
        content_bytes = file.read_bytes()
        assert b"own-model" in content_bytes  # the folder's own name
        for part in (private.name, str(private.parent), str(Path.home()) + "/"):
            assert part.encode() not in content_bytes, (file.name, part)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        *((known, known) for known in ("mini", "sd15", "owner/name", "owner/name@main", "owner/name@refs/pr/1")),
        *((path, "sd") for path in ("/home/bob/sd", "/home/bob/sd/", "./sd", "../sd", "~/models/sd", "a/b/sd")),
        *((path, "sd") for path in (r"C:\\Users\\bob\\sd", r"\\server\share\sd", "/home/a@b/sd")),
    ],
)
def test_a_model_is_recorded_by_its_name_without_a_path(model: str, name: str) -> None:
    assert model_name(model) == name


def test_a_folder_of_two_parts_is_distinguished_from_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bob" / "sd").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert model_name("bob/sd") == "sd"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        *((source, "a.png") for source in ("a.png", "/home/bob/a.png", b"/home/bob/a.png", Path("b/a.png"))),
        *((source, "a.png") for source in (r"C:\Users\bob\a.png", r"\\server\bob\a.png")),
        *((source, "") for source in (None, 3, io.BytesIO(), [], "")),
        (f"/home/bob/{NAME}", "caf?.png"),
    ],
)
def test_an_input_is_recorded_by_its_files_name_without_a_path(source: Any, name: str) -> None:
    assert file_name(source) == name


def test_no_colour_profile_of_a_painting_or_mask_is_saved_in_a_style_or_record(
    engine: StyleEngine, private: Path, tmp_path: Path
) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name in ("style", "mask"):
        Image.open(private / f"{name}.png").save(private / f"{name}.png", icc_profile=profile)
    settings = InSTLearningSettings(size=32, steps=1, batch=1, views=1)
    style = engine.inst_learn(private / "style.png", settings)
    painted = Image.open(private / "mask.png").convert("L")
    result = engine.zstar(
        private / "content.png", [Style(style.thumbnail, mask=painted)], ZStarSettings(size=64, steps=2)
    )
    shared = safe_open(style.save(tmp_path / "style.safetensors"), "pt").metadata()[THUMBNAIL_KEY]
    for data in (shared, result.inputs[2].data):
        assert b"iCCP" not in base64.b64decode(data)


def test_a_file_name_that_is_not_utf_8_is_recorded_and_found_again(
    engine: StyleEngine, private: Path, elsewhere: Path
) -> None:
    os.rename(private / "style.png", private / NAME)
    settings = ZStarSettings(size=64, steps=2)
    result = engine.zstar(private / "content.png", [Style.open(private / NAME)], settings)
    result = replace(result, notes=[f"From {NAME}."])
    again = Rerun.opened(result.save("out.png"), folders=[private])
    assert again.record.inputs[1].name == "caf?.png"
    assert again.inputs[1].path == private / NAME


def test_inputs_are_found_beside_the_result_in_the_current_folder_and_in_folders_given(
    engine: StyleEngine, private: Path, elsewhere: Path, tmp_path: Path
) -> None:
    (tmp_path / "results").mkdir()
    out = zstar(engine, private, tmp_path / "results" / "out.png")
    with pytest.raises(StyleEngineError, match=r"content image “content\.png” .--content FILE.*style image “style"):
        Rerun.opened(out)
    shutil.copy(private / "content.png", out.parent / "content.png")
    shutil.copy(private / "style.png", elsewhere / "style.png")
    assert [given.name for given in Rerun.opened(out).inputs] == ["content.png", "style.png"]
    (elsewhere / "style.png").unlink()
    assert Rerun.opened(out, folders=[private]).inputs[1].path == private / "style.png"
    assert Rerun.opened(out, folders=[private / "style.png"]).inputs[1].path == private / "style.png"
    assert Rerun.opened(out, {"style": [private / "style.png"]}).inputs[1].path == private / "style.png"


def test_a_renamed_file_is_found_by_its_content_and_one_of_the_name_but_another_content_is_not_taken(
    engine: StyleEngine, private: Path, elsewhere: Path
) -> None:
    out = zstar(engine, private, elsewhere / "out.png")
    os.rename(private / "style.png", private / "renamed.png")
    os.rename(private / "other.png", private / "style.png")
    again = Rerun.opened(out, folders=[private])
    assert again.inputs[1].path == private / "renamed.png"
    (private / "renamed.png").unlink()
    with pytest.raises(StyleEngineError, match=r"style image “style\.png”.*file of that name has different content"):
        Rerun.opened(out, folders=[private])


def test_files_are_named_in_any_order_and_one_that_is_no_input_is_refused(
    engine: StyleEngine, private: Path, elsewhere: Path
) -> None:
    styles = [private / "style.png", private / "other.png"]
    out = engine.zstar(private / "content.png", styles, ZStarSettings(size=64, steps=2)).save("out.png")
    again = Rerun.opened(out, {"style": styles[::-1], "content": [private / "content.png"]})
    assert [given.name for given in again.inputs] == ["content.png", "style.png", "other.png"]
    with pytest.raises(StyleEngineError, match=r"^mask\.png is not the style image of this result"):
        Rerun.opened(out, {"style": [private / "mask.png"]}, [private])
    with pytest.raises(StyleEngineError, match="has no input --mask"):
        Rerun.opened(out, {"mask": [private / "mask.png"]}, [private])
    with pytest.raises(StyleEngineError, match="does not exist"):
        Rerun.opened(out, {"style": [private / "gone.png"]}, [private])
    with pytest.raises(StyleEngineError, match="no folder or file"):
        Rerun.opened(out, folders=[private / "gone"])


@pytest.mark.parametrize("painted", [False, True])
def test_a_mask_shared_by_two_styles_is_requested_once_and_a_painted_one_never(
    engine: StyleEngine, private: Path, elsewhere: Path, painted: bool
) -> None:
    styles = [private / "style.png", private / "other.png"]
    mask = open_mask(private / "mask.png") if painted else private / "mask.png"
    result = engine.zstar(private / "content.png", styles, ZStarSettings(size=64, steps=2), mask=mask)
    out = result.save("out.png")
    os.rename(private / "mask.png", elsewhere.parent / "away.png")
    if painted:
        again = Rerun.opened(out, folders=[private])
    else:
        with pytest.raises(StyleEngineError) as error:
            Rerun.opened(out, folders=[private])
        assert str(error.value).count("--mask") == 1
        again = Rerun.opened(out, {"mask": [elsewhere.parent / "away.png"]}, [private])
    repeated = again.run(engine, elsewhere / "again.png")
    assert np.array_equal(np.asarray(repeated.image), np.asarray(result.image))
    assert [(entry.sha256, entry.inverted, entry.data) for entry in repeated.inputs] == [
        (entry.sha256, entry.inverted, entry.data) for entry in result.inputs
    ]


def test_a_painted_mask_of_h_space_comes_from_the_record(engine: StyleEngine, private: Path, elsewhere: Path) -> None:
    mask = open_mask(private / "mask.png")
    (private / "mask.png").unlink()
    settings = HSpaceSettings(size=64, steps=2, t_edit=300)
    result = engine.h_space(private / "content.png", private / "style.png", settings, mask=mask)
    again = Rerun.opened(result.save("out.png"), folders=[private]).run(engine, elsewhere / "again.png")
    assert np.array_equal(np.asarray(again.image), np.asarray(result.image))
    assert again.inputs[2].data == result.inputs[2].data != ""


def test_a_bundled_style_needs_no_folder(elsewhere: Path) -> None:
    shipped = sorted(SHIPPED.iterdir())[0]
    entry = {"role": "learnt style", "sha256": LearnedStyle.open(shipped).sha256, "name": "its.safetensors"}
    result = write_result(elsewhere / "out.png", record_of("inst", inputs=[entry]))
    assert Rerun.opened(result).inputs[0].path == shipped


def test_records_of_the_first_version_are_read(engine: StyleEngine, private: Path, elsewhere: Path) -> None:
    """They contain paths, and for a mask that was used inverted the hash of its negative."""
    content, style = (open_image(private / f"{name}.png") for name in ("content", "style"))
    inverted = ImageOps.invert(open_mask(private / "mask.png"))
    inputs = [
        {"role": "content", "sha256": content_hash(content), "source": "/home/ann/content.png", "weight": 1.0},
        {"role": "style", "sha256": content_hash(style), "source": r"C:\Users\ann\style.png", "weight": 0.5},
        {"role": "mask", "sha256": content_hash(inverted), "source": "/home/ann/m.png", "weight": 1.0},
    ]
    record = record_of("zstar", backbone="/home/ann/model", settings={"size": 64, "steps": 2}, inputs=inputs)
    out = write_result(elsewhere / "out.png", record)
    again = Rerun.opened(out, folders=[private])
    assert [entry.name for entry in again.record.inputs] == ["content.png", "style.png", "m.png"]
    assert [entry["name"] for entry in read_record(out)["inputs"]] == ["content.png", "style.png", "m.png"]
    assert "ann" not in json.dumps(read_record(out)["inputs"])
    used = again.inputs[2].opened
    assert isinstance(used, Image.Image)
    assert content_hash(used) == content_hash(inverted)
    mask = again.run(engine, elsewhere / "again.png").inputs[2]
    assert (mask.inverted, mask.sha256) == (True, content_hash(open_mask(private / "mask.png")))


def test_the_search_is_bounded_and_does_not_enter_subfolders(
    engine: StyleEngine, private: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = zstar(engine, private, elsewhere / "out.png")
    many, opened = elsewhere.parent / "many", list[Path]()
    (many / "below").mkdir(parents=True)
    shutil.copy(private / "style.png", many / "below")
    for number in range(30):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(many / f"{number}.png")
    os.mkfifo(many / "pipe.png")
    (many / "link.png").symlink_to(many / "gone.png")

    def noted(path: Path, what: str = "image") -> Image.Image:
        opened.append(path)
        return open_image(path, what)

    monkeypatch.setattr("styleengine.found_inputs.MOST_FILES", 10)
    monkeypatch.setattr("styleengine.found_inputs.open_image", noted)
    with pytest.raises(StyleEngineError, match="style image"):
        Rerun.opened(out, folders=[private / "content.png", many])
    assert sum(path.parent == many for path in opened) == 10


def bad_records() -> Iterator[tuple[str, Any]]:
    entry = {"role": "content", "sha256": HASH, "name": "content.png"}
    yield from {
        "number": 3,
        "list": [],
        "empty": "",
        "no-json": "{",
        "deep": "[" * 100_000,
        "null": "null",
        "long-number": '{"method": ' + "9" * 10_000 + "}",
        "top-missing": {"method": "zstar"},
        "method-number": record_of(method=3),
        "method-list": record_of(method=["zstar"]),
        "method-unknown": record_of(method="paint\x1b[31m"),
        "method-long": record_of(method="x" * 100_000),
        "backbone": record_of(backbone=None),
        "backbone-empty": record_of(backbone=""),
        "revision": record_of(revision={}),
        "settings-list": record_of(settings=[1]),
        "settings-nested": record_of(settings={"prompt": {"a": 1}}),
        "settings-null": record_of(settings={"prompt": None}),
        "settings-type": record_of(settings={"steps": "many"}),
        "settings-truth": record_of(settings={"steps": True}),
        "settings-nan": record_of(settings={"balance": float("nan")}),
        "settings-range": record_of(settings={"size": 10**9}),
        "settings-unknown": record_of(settings={"brush": 1}),
        "settings-self": record_of(settings={"self": 1}),
        "settings-many": record_of(settings={str(number): number for number in range(100_000)}),
        "surrogate": record_of(settings={"prompt": "\udce9"}),
        "inputs-none": record_of(inputs=None),
        "inputs-dict": record_of(inputs={"content": HASH}),
        "inputs-empty": record_of(inputs=[]),
        "inputs-numbers": record_of(inputs=[1]),
        "inputs-many": record_of(inputs=[entry] * 100_000),
        "input-empty": record_of(inputs=[{}]),
        "input-role": record_of(inputs=[{**entry, "role": "palette"}]),
        "input-role-type": record_of(inputs=[{**entry, "role": []}]),
        "input-hash": record_of(inputs=[{**entry, "sha256": "abc"}]),
        "input-hash-type": record_of(inputs=[{**entry, "sha256": 5}]),
        "input-name": record_of(inputs=[{**entry, "name": 5}]),
        "input-name-long": record_of(inputs=[{**entry, "name": "x" * 100_000}]),
        "input-name-nul": record_of(inputs=[{**entry, "name": "a\0b.png"}]),
        "input-name-folder": record_of(inputs=[{**entry, "name": ".."}]),
        "input-weight": record_of(inputs=[{**entry, "weight": "heavy"}]),
        "input-weight-nan": record_of(inputs=[{**entry, "weight": float("nan")}]),
        "input-weight-negative": record_of(inputs=[{**entry, "weight": -1}]),
        "input-weight-huge": record_of(inputs=[{**entry, "weight": 10**400}]),
        "input-weight-infinite": json.dumps(record_of(inputs=[{**entry, "weight": 0}])).replace('": 0}', '": 1e999}'),
        "input-inverted": record_of(inputs=[{**entry, "inverted": "perhaps"}]),
        "input-data-type": record_of(inputs=[{**entry, "data": [1]}]),
        "mask-first": record_of("zstar", inputs=[{**entry, "role": "mask"}, entry]),
        "mask-twice": record_of(
            "zstar", inputs=[entry, *({**entry, "role": role} for role in ("style", "mask", "mask"))]
        ),
        "mask-garbled": record_of("h_space", inputs=masked(entry, "!!!")),
        "mask-no-picture": record_of("h_space", inputs=masked(entry, base64.b64encode(b"picture").decode())),
        "mask-other": record_of("h_space", inputs=masked(entry, as_data(Image.new("L", (32, 32))))),
        "mask-large": record_of("h_space", inputs=masked(entry, as_data(Image.new("1", (30_000, 30_000))))),
        "other-methods-inputs": record_of("inst"),
        "no-style": record_of("zstar"),
        "other-methods-settings": record_of("zstar", settings={"prompt": "ink"}),
        "versions": record_of(versions=[1]),
        "device": record_of(device=1),
    }.items()


def masked(entry: dict[str, Any], data: str) -> list[dict[str, Any]]:
    return [entry, {**entry, "role": "style"}, {**entry, "role": "mask", "data": data}]


def as_data(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(("kind", "record"), bad_records(), ids=lambda value: value if isinstance(value, str) else "")
def test_an_invalid_record_gives_a_sentence(
    kind: str, record: Any, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_result(elsewhere / "out.png", record)
    assert main(["rerun", "out.png"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("styleengine: ")
    assert said.count("\n") == 1
    assert said.rstrip("\n").isprintable()
    assert len(said) < 1200


def test_a_record_longer_than_any_that_is_written_is_not_parsed(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = write_result(elsewhere / "out.png", record_of())
    assert read_record(result)["method"] == "qs_attn"
    monkeypatch.setattr("styleengine.stylization.MOST_RECORD", 50)
    with pytest.raises(StyleEngineError, match="carries no StyleEngine record"):
        read_record(result)


def test_the_recorded_revision_of_a_hub_model_is_loaded(
    elsewhere: Path, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"role": "content", "sha256": content_hash(open_image(private / "content.png")), "name": "content.png"}

    def model(backbone: str, revision: str) -> str:
        record = record_of(backbone=backbone, revision=revision, inputs=[entry])
        return Rerun.opened(write_result(elsewhere / "out.png", record), folders=[private]).model

    pinned = BACKBONES["sd15"].revision
    assert pinned
    assert model("sd15", pinned) == "sd15"
    assert model("sd15", COMMIT) == f"{BACKBONES['sd15'].location}@{COMMIT}"
    assert model("ddpm-church-256", COMMIT) == f"google/ddpm-church-256@{COMMIT}"
    assert model("owner/name", COMMIT) == f"owner/name@{COMMIT}"
    assert model("owner/name@main", COMMIT) == f"owner/name@{COMMIT}"
    assert model("owner/name", "../../x") == "owner/name"
    assert model("mini", "of another day") == "mini"
    with pytest.raises(StyleEngineError, match=r"“own” of this result is a local folder.*--model"):
        model("own", "123")
    with pytest.raises(StyleEngineError, match="--model"):
        model("x" * 4000, "123")
    (private / "own").mkdir()
    (private / "own" / "model_index.json").write_text("{}")
    assert model("own", "123") == str(private / "own")
    assert model("/home/ann/own", "123") == str(private / "own")


def test_rerun_states_why_pixels_differ(
    private_engine: StyleEngine, private: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = zstar(private_engine, private, elsewhere / "out.png")
    stated = {**read_record(result), "device": "cuda", "dtype": "float16", "revision": "1234"}
    stated["versions"] = {**stated["versions"], "torch": "1.0"}
    write_result(result, stated)
    capsys.readouterr()
    assert main(["rerun", "out.png", "--inputs", str(private)]) == 0
    said = capsys.readouterr().out
    assert "the model is not the recorded one (revision 1234 then" in said
    for clause in ("revision: 1234 then", "device: cuda then, cpu now", "precision: float16 then", "torch: 1.0 then"):
        assert clause in said
    assert "pillow" not in said
