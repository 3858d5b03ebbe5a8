"""The library of learned styles: unique names, nothing lost, damaged files refused."""

import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_learned_style import made_up

from styleengine import LearnedStyle, StyleEngineError, style_library, workfolder
from styleengine.backbones import LatentBackbone
from styleengine.style_library import StyleLibrary, Unfinished


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
    assert library.add(style.renamed("CAT")).record.name == "CAT 4"  # some file systems ignore case
    assert torch.equal(library.open("cat 2").word, style.word)
    assert library.open("cat 2").record.name == "cat 2"
    assert library.path("cat 3").name == "cat 3.safetensors"


def test_the_state_for_resuming_is_not_kept(library: StyleLibrary, style: LearnedStyle) -> None:
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
    with pytest.raises(StyleEngineError, match="is not a usable style"):
        library.open("broken")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "", "..", ["cat"], {"path": "cat"}, None, 5, "\0", "x" * 9999]
)
def test_names_cannot_lead_out_of_the_folder(
    library: StyleLibrary, style: LearnedStyle, tmp_path: Path, name: str
) -> None:
    library.add(style)
    style.save(tmp_path / "secret.safetensors")
    with pytest.raises(StyleEngineError, match="There is no style"):
        library.open(name)


def test_a_sentence_names_some_styles_only(library: StyleLibrary, style: LearnedStyle) -> None:
    for _ in range(25):
        library.add(style)
    with pytest.raises(StyleEngineError, match=r"“cat 20” and 5 more\.$") as caught:
        library.open("a\nb<script>\u202e")
    assert "“a b<script> ”" in str(caught.value)


def test_a_full_library_refuses_more_without_naming_its_folder(
    library: StyleLibrary, style: LearnedStyle, cat: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style_library, "MOST_STYLES", 2)
    library.add(style)
    place = library.begin(cat, "begun", {})
    for one_more in (lambda: library.add(style), lambda: library.begin(cat, "x", {})):
        with pytest.raises(StyleEngineError, match="library is full") as caught:
            one_more()
        assert str(library.folder.parent) not in str(caught.value)
    assert library.put(place, style).record.name == "begun"  # what was begun in time is kept


def test_a_library_that_cannot_be_written_gives_a_sentence_without_naming_its_folder(
    style: LearnedStyle, cat: Image.Image, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    library = StyleLibrary(tmp_path / "file" / "styles")
    for write in (lambda: library.add(style), lambda: library.begin(cat, "x", {})):
        with pytest.raises(StyleEngineError, match="name another folder in \\$STYLEENGINE_STYLES") as caught:
            write()
        assert str(tmp_path) not in str(caught.value)


def test_a_full_disk_leaves_nothing_half_begun(
    library: StyleLibrary, cat: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(workfolder, "write_whole", full)
    with pytest.raises(StyleEngineError, match="cannot be written \\(No space left on device\\)") as caught:
        library.begin(cat, "x", {})
    assert str(library.folder) not in str(caught.value)
    assert not list((library.folder / "unfinished").iterdir())


def test_styles_are_read_once_until_their_files_change(
    library: StyleLibrary, style: LearnedStyle, backbone: LatentBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[str]()
    opened = LearnedStyle.open.__func__  # type: ignore[attr-defined]

    def counted(cls: type[LearnedStyle], file: Path) -> LearnedStyle:
        read.append(file.name)
        return opened(cls, file)

    monkeypatch.setattr(LearnedStyle, "open", classmethod(counted))
    library.add(style)
    (library.folder / "broken.safetensors").write_bytes(b"broken")
    for _ in range(3):
        assert library.names(backbone) == ["cat"]
    assert sorted(read) == ["broken.safetensors", "cat.safetensors"]
    replace(style, word=torch.ones(768)).save(library.folder / "cat.safetensors")
    assert library.names(backbone) == []
    style.renamed("broken").save(library.folder / "broken.safetensors")
    assert library.names(backbone) == ["broken"]
    assert len(read) == 4
    (library.folder / "broken.safetensors").unlink()
    assert library.names(backbone) == []
    assert len(library._shapes) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="names and kinds of files that Windows does not have")
def test_unrelated_files_in_the_folder_are_skipped(
    library: StyleLibrary, style: LearnedStyle, backbone: LatentBackbone
) -> None:
    library.add(style)
    folder = os.fsencode(library.folder)
    (library.folder / "folder.safetensors").mkdir()
    os.mkfifo(library.folder / "pipe.safetensors")
    (library.folder / "gone.safetensors").symlink_to("nowhere")
    (library.folder / ".hidden.safetensors").write_bytes(style.to_bytes())
    (library.folder / "two\nlines.safetensors").write_bytes(style.to_bytes())
    for name in (b"caf\xe9.safetensors",):
        Path(os.fsdecode(os.path.join(folder, name))).write_bytes(style.to_bytes())
    unfinished = library.folder / "unfinished"
    unfinished.mkdir()
    (unfinished / "file").write_text("no folder")
    Path(os.fsdecode(os.fsencode(unfinished) + b"/caf\xe9")).mkdir()
    assert library.names() == library.names(backbone) == ["cat"]
    assert list(library.unfinished()) == []


def test_the_folder_can_be_named_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STYLEENGINE_STYLES", str(tmp_path))
    assert StyleLibrary().folder == tmp_path


def test_an_unfinished_painting_is_found_again(library: StyleLibrary, cat: Image.Image) -> None:
    place = library.begin(cat, "my <cat>", {"steps": 3})
    (again,) = library.unfinished().values()
    assert again.name == place.name == "my cat"
    assert [painting.tobytes() for painting in again.paintings()] == [cat.convert("RGB").tobytes()]
    assert again.manifest() == {"steps": 3}
    place.save_preview(20, cat)
    place.save_preview(3, cat)
    assert [step for step, _ in again.previews()] == [3, 20]
    assert library.begin(cat, "my cat", {}).name == "my cat 2"
    again.delete()
    assert list(library.unfinished()) == ["my cat 2"]
    assert library.names() == []


def test_an_unfinished_painting_of_an_earlier_version_is_found(library: StyleLibrary, cat: Image.Image) -> None:
    folder = library.folder / "unfinished" / "cat"
    folder.mkdir(parents=True)
    for name in ("painting", "content", "preview-00003"):
        cat.save(folder / f"{name}.png")
    (folder / "run.json").write_bytes('{"settings": {"steps": 3}, "model": "mini é"}'.encode())
    place = library.unfinished()["cat"]
    assert place.manifest() == {"settings": {"steps": 3}, "model": "mini é"}
    assert [place.content()] == place.paintings() == [cat.convert("RGB")]
    assert place.previews() == [(3, folder / "preview-00003.png")]


def test_all_paintings_of_an_unfinished_run_are_found_again_or_it_counts_as_damaged(
    library: StyleLibrary, cat: Image.Image, coffee: Image.Image, rocket: Image.Image
) -> None:
    place = library.begin(cat, "three", {"steps": 3}, more=[coffee, rocket])
    (again,) = library.unfinished().values()
    assert [painting.tobytes() for painting in again.paintings()] == [
        painting.convert("RGB").tobytes() for painting in (cat, coffee, rocket)
    ]
    for count in (0, -1, 17, 10**9, True, "2", 2.0, None, [2]):
        place.save_manifest({"paintings": count})
        with pytest.raises(StyleEngineError, match="saved progress of “three” is damaged"):
            again.paintings()
    place.save_manifest({"paintings": 3})
    (place.path / "painting-2.png").unlink()
    with pytest.raises(StyleEngineError, match="saved progress of “three” is damaged"):
        again.paintings()


def aged(place: Unfinished, hours: float) -> Unfinished:
    then = time.time() - hours * 3600
    for path in (place.manifest_file, place.path):
        if path.exists():
            os.utime(path, (then, then))
    return place


def test_of_too_many_unfinished_the_one_longest_untouched_is_deleted(
    library: StyleLibrary, cat: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style_library, "MOST_UNFINISHED", 3)
    for hours, name in ((3, "b"), (2, "a"), (5, "in use")):
        aged(library.begin(cat, name, {}), hours)
    library.begin(cat, "c", {}, in_use=["in use"])
    assert list(library.unfinished()) == ["a", "c", "in use"]
    library.take_up("in use")
    library.begin(cat, "d", {})
    assert list(library.unfinished()) == ["c", "d", "in use"]


def test_what_was_touched_within_the_hour_is_not_deleted_but_one_more_is_refused(
    library: StyleLibrary, cat: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style_library, "MOST_UNFINISHED", 2)
    for name in ("a", "b"):
        aged(library.begin(cat, name, {}), 0.9)
    with pytest.raises(StyleEngineError, match="2 paintings are being learned or were left unfinished within the hour"):
        library.begin(cat, "c", {})
    assert list(library.unfinished()) == ["a", "b"]


def test_a_folder_that_was_begun_but_not_written_is_not_offered_keeps_its_name_and_is_deleted_later(
    library: StyleLibrary, cat: Image.Image
) -> None:
    half = Unfinished(library.folder / "unfinished" / "cat")
    half.path.mkdir(parents=True)
    (half.path / "painting.png").write_bytes(b"half")
    assert library.unfinished() == {}
    assert library.begin(cat, "cat", {}).name == "cat 2"
    aged(half, 2)
    assert library.begin(cat, "cat", {}).name == "cat"


def test_folders_begun_at_the_same_time_get_unique_names_even_in_two_processes(
    library: StyleLibrary, cat: Image.Image
) -> None:
    libraries = [library, StyleLibrary(library.folder, library.shipped)]
    names = list[str]()
    together = threading.Barrier(8)

    def begin(number: int) -> None:
        together.wait()
        names.append(libraries[number % 2].begin(cat, ("Same", "same")[number % 2], {"steps": number}).name)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({name.casefold() for name in names}) == 8
    assert sorted(place.manifest()["steps"] for place in library.unfinished().values()) == list(range(8))


@pytest.mark.parametrize(
    "names",
    [("cat", "CAT", "Cat"), ("caf\u00e9", "cafe\u0301"), ("fi", "\ufb01"), ("<cat>", "cat"), ("🎨", "", "CON", "con")],
)
def test_names_that_look_alike_do_not_collide(
    library: StyleLibrary, style: LearnedStyle, cat: Image.Image, names: tuple[str, ...]
) -> None:
    kept = [library.add(replace(style, record=style.renamed(name).record)).record.name for name in names]
    begun = [library.begin(cat, name, {}).name for name in names]
    assert len({style_library._folded(name) for name in (*kept, *begun)}) == 2 * len(names)
    assert len(library.names()) == len(names)


def test_an_added_style_never_takes_the_name_of_a_painting_that_is_being_learned(
    library: StyleLibrary, style: LearnedStyle, cat: Image.Image
) -> None:
    place = library.begin(cat, "cat", {})
    assert library.add(style).record.name == "cat 2"
    library.put(place, replace(style, record=style.record.replace(complete=False)))
    assert library.put(place, style).record.name == "cat"
    assert sorted(library.names()) == ["cat", "cat 2"]


def test_metadata_of_a_paintings_file_is_not_kept(library: StyleLibrary, cat: Image.Image, tmp_path: Path) -> None:
    annotated = cat.copy()
    annotated.info |= {"icc_profile": b"secret", "exif": b"secret", "comment": "secret", "xmp": b"secret"}
    place = library.begin(annotated, "cat", {}, annotated)
    assert b"secret" not in b"".join(file.read_bytes() for file in place.path.iterdir())


def test_a_damaged_record_of_a_run_is_named(library: StyleLibrary, cat: Image.Image) -> None:
    place = library.begin(cat, "cat", {})
    place.manifest_file.write_text("{")
    with pytest.raises(StyleEngineError, match="The saved progress of “cat” is damaged"):
        place.manifest()
