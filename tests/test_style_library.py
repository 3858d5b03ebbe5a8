"""The library of learnt styles: names of their own, nothing lost, nothing damaged let in."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_learned_style import made_up

from styleengine import LearnedStyle, StyleEngineError, style_library
from styleengine.backbone import LatentBackbone
from styleengine.style_library import StyleLibrary


@pytest.fixture
def style(backbone: LatentBackbone, cat: Image.Image) -> LearnedStyle:
    return made_up(backbone, cat)


@pytest.fixture
def library(tmp_path: Path) -> StyleLibrary:
    return StyleLibrary(tmp_path / "styles", tmp_path / "shipped")


def test_an_empty_library_has_no_folder_yet(library: StyleLibrary) -> None:
    assert library.names() == []
    with pytest.raises(StyleEngineError, match="no style “cat” in the library"):
        library.open("cat")


def test_styles_get_names_of_their_own_and_come_back(library: StyleLibrary, style: LearnedStyle) -> None:
    kept = [library.add(style).record.name for _ in range(3)]
    assert kept == ["cat", "cat 2", "cat 3"] == library.names()
    assert library.add(style.renamed("CAT")).record.name == "CAT 4"  # some file systems know no capitals
    assert torch.equal(library.open("cat 2").word, style.word)
    assert library.open("cat 2").record.name == "cat 2"
    assert library.path("cat 3").name == "cat 3.safetensors"


def test_what_learning_needs_is_not_kept(library: StyleLibrary, style: LearnedStyle) -> None:
    library.add(replace(style, state={"module.a": torch.ones(3)}))
    assert not library.open("cat").state


def test_shipped_styles_come_first_and_keep_their_names(library: StyleLibrary, style: LearnedStyle) -> None:
    library.shipped.mkdir()
    style.renamed("wave").save(library.shipped / "wave.safetensors")
    assert library.add(style.renamed("wave")).record.name == "wave 2"
    assert library.names() == ["wave", "wave 2"]
    assert library.path("wave").parent == library.shipped


def test_styles_of_other_models_and_damaged_files_are_not_offered(
    library: StyleLibrary, style: LearnedStyle, backbone: LatentBackbone
) -> None:
    library.add(style)
    library.add(replace(style.renamed("wide"), word=torch.ones(768)))
    (library.folder / "broken.safetensors").write_bytes(b"broken")
    assert library.names(backbone) == ["cat"]
    with pytest.raises(StyleEngineError, match="is no style that can be used"):
        library.open("broken")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "", ".."])
def test_names_lead_nowhere_else(library: StyleLibrary, style: LearnedStyle, tmp_path: Path, name: str) -> None:
    library.add(style)
    style.save(tmp_path / "secret.safetensors")
    with pytest.raises(StyleEngineError, match="There is no style"):
        library.open(name)


def test_a_full_library_takes_no_more(
    library: StyleLibrary, style: LearnedStyle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style_library, "MOST_STYLES", 1)
    library.add(style)
    with pytest.raises(StyleEngineError, match="library is full"):
        library.add(style)


def test_a_library_that_cannot_be_written_says_so(style: LearnedStyle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StyleEngineError, match="name another folder in \\$STYLEENGINE_STYLES"):
        StyleLibrary(tmp_path / "file" / "styles").add(style)


def test_the_folder_can_be_named_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STYLEENGINE_STYLES", str(tmp_path))
    assert StyleLibrary().folder == tmp_path


def test_an_unfinished_painting_is_found_again(library: StyleLibrary, cat: Image.Image) -> None:
    place = library.begin(cat, "my <cat>", {"steps": 3})
    (again,) = library.unfinished().values()
    assert again.name == place.name == "my cat"
    assert again.painting().tobytes() == cat.convert("RGB").tobytes()
    assert again.run() == {"steps": 3}
    place.save_preview(20, cat)
    place.save_preview(3, cat)
    assert [step for step, _ in again.previews()] == [3, 20]
    assert library.begin(cat, "my cat", {}).name == "my cat 2"
    again.delete()
    assert list(library.unfinished()) == ["my cat 2"]
    assert library.names() == []


def test_of_too_many_unfinished_the_one_longest_untouched_gives_way(
    library: StyleLibrary, cat: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style_library, "MOST_UNFINISHED", 2)
    for age, name in ((50, "b"), (100, "a")):
        os.utime(library.begin(cat, name, {}).run_file, (age, age))
    library.begin(cat, "c", {})
    assert list(library.unfinished()) == ["a", "c"]


def test_a_damaged_record_of_a_run_is_named(library: StyleLibrary, cat: Image.Image) -> None:
    place = library.begin(cat, "cat", {})
    place.run_file.write_text("{")
    with pytest.raises(StyleEngineError, match="What was kept of learning “cat” is damaged"):
        place.run()
