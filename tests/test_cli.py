"""The command line, run in-process on the small random model."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from clips import panned, write_raw
from PIL import Image

import styleengine
from styleengine import LearnedStyle, StyleEngine, ZStarSettings
from styleengine.__main__ import main as entry_point
from styleengine.cli import main
from styleengine.methods.zstar import PRESETS
from styleengine.style_library import StyleLibrary
from styleengine.stylization import METADATA_KEY, read_record
from styleengine.version import __version__
from styleengine.video import open_clip, read_comment

FAST = ["--size", "64", "--steps", "4"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0)
    paths = {}
    for name, size in {"content": (120, 90), "style": (80, 100), "other": (90, 90)}.items():
        paths[name] = folder / f"{name}.png"
        blocks = noise.integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).save(paths[name])
    return paths


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def rerun(result: Path, *options: object, among: Sequence[Path]) -> int:
    return run("rerun", result, *options, *(part for folder in among for part in ("--inputs", folder)))


@pytest.fixture
def saved(pictures: dict[str, Path], model_folder: Path, tmp_path: Path) -> Path:
    out = tmp_path / "out.png"
    code = run("zstar", pictures["content"], pictures["style"], "-o", out, "--model", model_folder, *FAST)
    assert code == 0
    return out


def test_zstar_writes_a_picture_of_the_contents_shape_with_its_record(saved: Path) -> None:
    with Image.open(saved) as image:
        assert image.size == (84, 64)
    record = read_record(saved)
    assert record["settings"]["steps"] == 4
    assert [entry["role"] for entry in record["inputs"]] == ["content", "style"]


def test_rerun_repeats_every_pixel(
    saved: Path, pictures: dict[str, Path], model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rerun(saved, among=[pictures["content"].parent, model_folder]) == 0
    again = saved.with_name("out-again.png")
    assert np.array_equal(np.asarray(Image.open(saved)), np.asarray(Image.open(again)))
    assert "Identical to the saved result" in capsys.readouterr().out


def test_rerun_repeats_masks_weights_and_two_styles(
    pictures: dict[str, Path], model_folder: Path, tmp_path: Path
) -> None:
    mask, out = tmp_path / "mask.png", tmp_path / "two.png"
    Image.linear_gradient("L").save(mask)
    styles = [pictures["style"], pictures["other"]]
    options = ["--weight", 1, "--weight", 0.5, "--mask", mask, "--mask", mask]
    assert run("zstar", pictures["content"], *styles, "-o", out, "--model", model_folder, *options, *FAST) == 0
    assert rerun(out, "-o", tmp_path / "again.png", among=[pictures["content"].parent, model_folder]) == 0
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(Image.open(tmp_path / "again.png")))


def test_a_preset_gives_its_settings_and_flags_change_them(
    pictures: dict[str, Path], model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "preset.png"
    options = ["--preset", "StyleID", "--temperature", "1.25", "--model", model_folder, *FAST]
    assert run("zstar", pictures["content"], pictures["style"], "-o", out, *options) == 0
    expected = ZStarSettings(**{**PRESETS["StyleID"], "temperature": 1.25, "size": 64, "steps": 4})
    assert read_record(out)["settings"] == expected.model_dump()


def test_rerun_with_a_shared_mask_repeats_both_halves(
    pictures: dict[str, Path], model_folder: Path, tmp_path: Path
) -> None:
    mask, out = tmp_path / "mask.png", tmp_path / "two.png"
    Image.linear_gradient("L").save(mask)
    styles = [pictures["style"], pictures["other"]]
    assert run("zstar", pictures["content"], *styles, "-o", out, "--model", model_folder, "--mask", mask, *FAST) == 0
    assert rerun(out, "-o", tmp_path / "again.png", among=[pictures["content"].parent, model_folder]) == 0
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(Image.open(tmp_path / "again.png")))


def test_rerun_refuses_an_input_that_has_changed(
    saved: Path, pictures: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("rerun", saved, "--style", pictures["other"]) == 2
    assert "is not the style image of this result: its content differs" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["latent", "pixel"])
def test_h_space_writes_a_picture_that_rerun_repeats(
    pictures: dict[str, Path],
    model_folder: Path,
    pixel_model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    mask, out = tmp_path / "mask.png", tmp_path / "out.png"
    Image.linear_gradient("L").save(mask)
    model = model_folder if kind == "latent" else pixel_model_folder
    options = ["--gamma", "0.6", "--no-calibration", "--t-boost", "600", "--seed", "5", "--mask", mask, *FAST]
    assert run("h-space", pictures["content"], pictures["style"], "-o", out, "--model", model, *options) == 0
    record = read_record(out)
    assert record["method"] == "h_space"
    assert (record["settings"]["gamma"], record["settings"]["calibration"]) == (0.6, False)
    assert rerun(out, among=[pictures["content"].parent, model]) == 0
    again = Image.open(tmp_path / "out-again.png")
    assert again.size == (84, 64)
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(again))
    assert "Identical to the saved result" in capsys.readouterr().out
    assert run("rerun", out, "--mask", pictures["style"]) == 2
    assert "is not the mask image of this result" in capsys.readouterr().err


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, pictures: dict[str, Path]) -> Path:
    frames = panned(Image.open(pictures["content"]).convert("RGB"), 4, (80, 64))
    return write_raw(tmp_path_factory.mktemp("clips") / "clip.mp4", frames)


def test_zstar_video_writes_a_clip_with_its_record_and_reports_what_was_left_out(
    clip: Path, pictures: dict[str, Path], model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.mp4"
    options = ["--frames", 2, "--rate", 5, "--begin", 0.1, "--compare", "--model", model_folder]
    assert run("zstar-video", clip, pictures["style"], "-o", out, *options, *FAST) == 0
    assert len(open_clip(out).times) == 2
    assert json.loads(read_comment(out))[METADATA_KEY]["settings"]["begin"] == 0.1
    said = capsys.readouterr().out
    assert "out.mp4: 80×64, 2 frames at 5 per second" in said
    assert "The first 0.1 s were left out." in said
    assert said.count("mean 0.") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]

    assert rerun(out, among=[clip, pictures["style"].parent, model_folder]) == 0
    assert "Identical to the saved result" in capsys.readouterr().out
    assert len(open_clip(tmp_path / "out-again.mp4").times) == 2
    other = write_raw(tmp_path / "other.mp4", panned(Image.new("RGB", (200, 100), "red"), 4, (80, 64)))
    assert run("rerun", out, "--content", other) == 2
    assert "is not the clip of this result" in capsys.readouterr().err


def test_an_interrupted_clip_is_resumed_by_the_same_command(
    clip: Path,
    pictures: dict[str, Path],
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["zstar-video", clip, pictures["style"], "-o", tmp_path / "out.mp4", "--model", model_folder]
    command += ["--rate", 0, *FAST]
    whole = StyleEngine.run

    def interrupted(self: StyleEngine, *arguments, on_step, **options):
        def stop(event) -> None:
            if event.phase == "stylizing frame 2 of 4":
                raise KeyboardInterrupt

        return whole(self, *arguments, on_step=stop, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StyleEngine, "run", interrupted)
        assert run(*command) == 130
    assert "Run the same command again to resume" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4.work"]
    assert run(*command) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert len(open_clip(tmp_path / "out.mp4").times) == 4


def test_rerun_repeats_a_result_of_qs_attn(
    pictures: dict[str, Path], model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    options = [
        "--balance",
        "0.7",
        "--patches",
        "2",
        "--selection",
        "random",
        "--seed",
        "5",
        "--size",
        "64",
        "--steps",
        "2",
    ]
    assert run("qs-attn", pictures["content"], "ink | oil::2", "-o", out, "--model", model_folder, *options) == 0
    assert "similarity after" in capsys.readouterr().out
    record = read_record(out)
    assert (record["method"], record["settings"]["prompt"]) == ("qs_attn", "ink | oil::2")
    assert rerun(out, among=[pictures["content"], model_folder]) == 0
    assert "Identical to the saved result" in capsys.readouterr().out


LEARN = ["--size", "32", "--steps", "4", "--batch", "2", "--views", "2", "--check-every", "2"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, pictures: dict[str, Path], model_folder: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("learned")
    for name in ("style", "other"):
        out = folder / f"{name}.safetensors"
        assert run("inst", "learn", pictures[name], "-o", out, "--model", model_folder, *LEARN) == 0
    return {name: folder / f"{name}.safetensors" for name in ("style", "other")}


def test_inst_learns_a_painting_and_keeps_nothing_but_the_style(learned: dict[str, Path]) -> None:
    style = LearnedStyle.open(learned["style"])
    assert style.record.name == "style"
    assert style.record.complete
    assert (style.record.step, style.record.settings["batch"]) == (4, 2)
    assert sorted(file.name for file in learned["style"].parent.iterdir()) == ["other.safetensors", "style.safetensors"]


def test_inst_learns_several_paintings_as_one_style(
    pictures: dict[str, Path], model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, options = tmp_path / "both.safetensors", ["--model", model_folder, *LEARN]
    assert run("inst", "learn", pictures["style"], pictures["other"], "-o", out, *options) == 0
    assert (LearnedStyle.open(out).record.name, LearnedStyle.open(out).record.paintings) == ("style", 2)
    assert run("inst", "learn", pictures["style"], "missing.jpg", "-o", out, *options) == 2
    assert "The 2nd painting missing.jpg does not exist" in capsys.readouterr().err
    assert run("inst", "learn", *[pictures["style"]] * 17, "-o", out, *options) == 2
    assert "17 paintings were given. Choose at most 16" in capsys.readouterr().err


@pytest.mark.parametrize("inputs", [["CONTENT", "style"], ["CONTENT", "style", "other"], ["style"]])
def test_inst_makes_an_image_that_rerun_repeats(
    inputs: list[str],
    pictures: dict[str, Path],
    learned: dict[str, Path],
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named, out = {"CONTENT": pictures["content"], **learned}, tmp_path / "out.png"
    options = ["--prompt", "a * b", "--strength", "0.5", "--mix", "0.25", "--model", model_folder, *FAST]
    assert run("inst", "apply", *(named[name] for name in inputs), "-o", out, *options) == 0
    record = read_record(out)
    assert (record["method"], record["settings"]["prompt"], record["settings"]["mix"]) == ("inst", "a * b", 0.25)
    assert [entry["name"] for entry in record["inputs"]] == [named[name].name for name in inputs]
    assert rerun(out, among=[pictures["content"].parent, learned["style"].parent, model_folder]) == 0
    assert "Identical to the saved result" in capsys.readouterr().out
    if "other" not in inputs:
        assert run("rerun", out, "--style", learned["other"]) == 2
        assert "is not the learned style of this result" in capsys.readouterr().err


@pytest.mark.parametrize(("model", "size"), [("mini", "320"), ("sd15", "512")])
def test_help_shows_the_recommended_values_of_the_model_that_will_run(
    model: str, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["zstar", "--help", "--model", model])
    assert f"(default {size}, 64 to 1536)" in " ".join(capsys.readouterr().out.split())


def test_inst_takes_a_style_of_the_library_by_its_name(
    pictures: dict[str, Path],
    learned: dict[str, Path],
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("STYLEENGINE_STYLES", str(tmp_path / "styles"))
    name = StyleLibrary().add(LearnedStyle.open(learned["style"])).record.name
    command, options = ["inst", "apply", pictures["content"]], ["--model", model_folder, *FAST]
    assert run(*command, learned["style"], "-o", tmp_path / "file.png", *options) == 0
    assert run(*command, "--style", name, "-o", tmp_path / "name.png", *options) == 0
    with Image.open(tmp_path / "file.png") as one, Image.open(tmp_path / "name.png") as other:
        assert one.tobytes() == other.tobytes()
    assert run(*command, "--style", "no such", "-o", tmp_path / "none.png", *options) == 2
    assert "no such" in capsys.readouterr().err


def test_interrupted_learning_is_resumed_by_the_same_command_with_the_same_style(
    pictures: dict[str, Path],
    learned: dict[str, Path],
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "again.safetensors"
    command = ["inst", "learn", pictures["style"], "-o", out, "--model", model_folder, *LEARN]
    whole, steps = StyleEngine.inst_learn, list[int]()

    def interrupted(self: StyleEngine, *arguments, on_step, **options):
        def stop(event) -> None:
            if event.step == 3:
                raise KeyboardInterrupt

        return whole(self, *arguments, on_step=stop, **options)

    def watched(self: StyleEngine, *arguments, on_step, **options):
        return whole(self, *arguments, on_step=lambda event: steps.append(event.step), **options)

    with monkeypatch.context() as patch:
        patch.setattr(StyleEngine, "inst_learn", interrupted)
        assert run(*command) == 130
    assert "Run the same command again to resume" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["again.partial.safetensors"]
    monkeypatch.setattr(StyleEngine, "inst_learn", watched)
    assert run(*command) == 0
    assert steps == [3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["again.safetensors"]
    again, before = LearnedStyle.open(out), LearnedStyle.open(learned["style"])
    assert float((again.word - before.word).abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["inst", "learn", "missing.jpg", "-o", "NEW"], "painting missing.jpg does not exist"),
        (["inst", "learn", "STYLE", "-o", "OUT"], "saved as SAFETENSORS"),
        (["inst", "learn", "STYLE", "-o", "NEW", "--learning-rate", "0"], "must be above 0"),
        (["inst", "apply", "CONTENT", "-o", "OUT"], "No styles were given"),
        (["inst", "apply", "CONTENT", "STYLE", "LEARNED", "-o", "OUT"], "is a second image"),
        (["inst", "apply", "CONTENT", "gone.safetensors", "-o", "OUT"], "gone.safetensors does not exist"),
        (["inst", "apply", "CONTENT", "LEARNED", "-o", "out.jpg"], "saved as PNG"),
        (["inst", "apply", "CONTENT", "LEARNED", "-o", "OUT", "--model", "mini"], "cannot use it"),
        (["inst", "apply", "CONTENT", "LEARNED", "-o", "OUT", "--prompt", "ink", "--model", "MODEL"], "has no *"),
        (["qs-attn", "CONTENT", "ink", "-o", "OUT", "--balance", "2"], "must be at most 1"),
        (["qs-attn", "missing.jpg", "ink", "-o", "OUT"], "content image missing.jpg does not exist"),
        (["qs-attn", "CONTENT", "ink", "-o", "out.jpg"], "saved as PNG"),
        (["h-space", "CONTENT", "missing.jpg", "-o", "OUT"], "style image missing.jpg does not exist"),
        (["h-space", "CONTENT", "STYLE", "-o", "out.jpg"], "saved as PNG"),
        (["h-space", "CONTENT", "STYLE", "-o", "OUT", "--gamma", "2"], "must be at most 1"),
        (["zstar-video", "CONTENT.txt", "STYLE", "-o", "out.mp4"], "does not exist"),
        (["zstar-video", "CLIP", "STYLE", "-o", "OUT"], "saved as MP4"),
        (["zstar", "missing.jpg", "STYLE", "-o", "OUT"], "does not exist"),
        (["zstar", "CONTENT", "STYLE", "-o", "out.jpg"], "saved as PNG"),
        (["zstar", "CONTENT", "STYLE", "-o", "nowhere/out.png"], "no folder nowhere"),
        (["zstar", "CONTENT", "STYLE", "-o", "OUT", "--strength", "99"], "must be at most 4"),
        (["zstar", "CONTENT", "STYLE", "-o", "OUT", "--weight", "1", "--weight", "1"], "given 2 times for 1"),
        (["zstar", "CONTENT", "STYLE", "-o", "OUT", "--model", "no-such-model"], "no model “no-such-model”"),
        (["rerun", "CONTENT"], "carries no StyleEngine record"),
        (["rerun", "CLIP"], "carries no StyleEngine record"),
    ],
)
def test_user_errors_give_a_sentence_and_exit_code_2(
    arguments: list[str],
    sentence: str,
    pictures: dict[str, Path],
    clip: Path,
    learned: dict[str, Path],
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = {"CONTENT": pictures["content"], "STYLE": pictures["style"], "OUT": tmp_path / "out.png", "CLIP": clip}
    named |= {"NEW": tmp_path / "new.safetensors", "LEARNED": learned["style"], "MODEL": model_folder}
    assert run(*(named.get(argument, argument) for argument in arguments)) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_result_of_an_unknown_method_cannot_be_repeated(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("styleengine.rerun.METHODS", {})
    assert run("rerun", saved) == 2
    assert "cannot repeat the method “zstar”" in capsys.readouterr().err


def refused(*arguments: object) -> bool:
    """Whether a command ends with exit code 2, by argparse or by the package."""
    try:
        return run(*arguments) == 2
    except SystemExit as ended:
        return ended.code == 2


@pytest.mark.parametrize("spelling", ["same", "dots", "symlink", "hard link"])
@pytest.mark.parametrize(
    "command",
    [
        ["zstar", "TARGET", "STYLE", "--mask", "CONTENT"],
        ["zstar", "CONTENT", "TARGET"],
        ["zstar", "CONTENT", "STYLE", "--mask", "TARGET"],
        ["h-space", "TARGET", "STYLE"],
        ["h-space", "CONTENT", "TARGET"],
        ["h-space", "CONTENT", "STYLE", "--mask", "TARGET"],
        ["qs-attn", "TARGET", "ink"],
        ["inst", "apply", "TARGET", "LEARNED"],
    ],
    ids=lambda command: "-".join(command[:4]).lower(),
)
def test_an_output_that_is_an_input_is_refused(
    command: list[str],
    spelling: str,
    pictures: dict[str, Path],
    learned: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "below").mkdir()
    target = Path(shutil.copy(pictures["content"], tmp_path / "target.png"))
    before, out = target.read_bytes(), tmp_path / "out.png"
    if spelling == "symlink":
        out.symlink_to(target)
    elif spelling == "hard link":
        os.link(target, out)
    else:
        out = target if spelling == "same" else tmp_path / "below" / ".." / "target.png"
    named = {"TARGET": target, "CONTENT": pictures["content"], "STYLE": pictures["style"], "LEARNED": learned["style"]}
    arguments = [named.get(argument, argument) for argument in command]
    assert run(*arguments, "-o", out, *FAST) == 2
    assert "is one of the inputs: name another file with -o, or give --overwrite" in capsys.readouterr().err
    assert target.read_bytes() == before


def test_a_clip_and_a_result_are_not_overwritten_unasked(
    saved: Path, pictures: dict[str, Path], clip: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = clip.read_bytes(), saved.read_bytes()
    assert run("zstar-video", clip, pictures["style"], "-o", clip, *FAST) == 2
    folders = [pictures["content"].parent, model_folder]
    assert rerun(saved, "-o", saved, among=folders) == 2
    assert rerun(saved, "-o", pictures["style"], among=folders) == 2
    assert capsys.readouterr().err.count("is one of the inputs") == 3
    assert (clip.read_bytes(), saved.read_bytes()) == before


def test_with_overwrite_an_input_is_replaced(
    saved: Path, pictures: dict[str, Path], model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = np.asarray(Image.open(saved))
    assert rerun(saved, "-o", saved, "--overwrite", among=[pictures["content"].parent, model_folder]) == 0
    assert "Identical to the saved result" in capsys.readouterr().out
    assert np.array_equal(np.asarray(Image.open(saved)), first)
    assert run("zstar", saved, pictures["style"], "-o", saved, "--overwrite", "--model", model_folder, *FAST) == 0
    assert read_record(saved)["inputs"][0]["name"] == "out.png"


def test_an_unrelated_output_is_replaced_as_ever(saved: Path, pictures: dict[str, Path], model_folder: Path) -> None:
    shutil.copy(pictures["other"], saved.with_name("again.png"))
    folders = [pictures["content"].parent, model_folder]
    assert rerun(saved, "-o", saved.with_name("again.png"), among=folders) == 0
    assert read_record(saved.with_name("again.png"))["method"] == "zstar"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "cp1251", "utf-8"])
def test_a_result_is_saved_and_reported_whatever_the_consoles_encoding(
    encoding: str, pictures: dict[str, Path], model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = Path(shutil.copy(pictures["content"], tmp_path / "caf\udce9 λ ж.png"))
    out, printed = tmp_path / "out \udce9 λ ж.png", {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, buffer in printed.items():
        monkeypatch.setattr(sys, name, io.TextIOWrapper(buffer, encoding=encoding, errors="strict"))
    assert run("zstar", content, pictures["style"], "-o", out, "--model", model_folder, *FAST) == 0
    assert run("zstar", tmp_path / "gone \udce9 λ.png", pictures["style"], "-o", out) == 2
    assert refused("zstar", "λ \udce9", "--strength", "λ \udce9")
    for command in (["h-space"], ["qs-attn"], ["inst", "learn"], ["inst", "apply"], ["zstar-video"]):
        with pytest.raises(SystemExit) as ended:
            run(*command, "--help")
        assert ended.value.code == 0
    assert b"84" in printed["stdout"].getvalue()
    assert b"does not exist" in printed["stderr"].getvalue()
    assert read_record(out)["inputs"][0]["name"] == "caf? λ ж.png"


def test_no_name_that_is_not_utf_8_stops_a_command(
    pictures: dict[str, Path],
    clip: Path,
    learned: dict[str, Path],
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def odd(path: Path) -> Path:
        return Path(shutil.copy(path, tmp_path / f"\udce9 {path.name}"))

    content, style, mask = (odd(pictures[name]) for name in ("content", "style", "other"))
    odd_clip, odd_style, model = odd(clip), odd(learned["style"]), ["--model", model_folder]
    outs = [tmp_path / f"\udcff{number}.png" for number in range(4)]
    masked = ["--mask", mask, *model, *FAST]
    assert run("zstar", content, style, "-o", outs[0], *masked) == 0
    assert run("h-space", content, style, "-o", outs[1], *masked) == 0
    assert run("qs-attn", content, "ink", "-o", outs[2], "--patches", 2, *model, *FAST) == 0
    assert run("inst", "apply", content, odd_style, "-o", outs[3], *model, *FAST) == 0
    video = tmp_path / "\udcff.mp4"
    assert run("zstar-video", odd_clip, style, "-o", video, "--frames", 2, *model, *FAST) == 0
    assert run("inst", "learn", style, "-o", tmp_path / "\udcff.safetensors", *model, *LEARN) == 0
    for result in (*outs, video):
        assert rerun(result, among=[tmp_path, model_folder]) == 0
        assert "Identical" in capsys.readouterr().out


class Gone(io.RawIOBase):
    """A pipe that nobody reads."""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("stream", [None, "gone", "closed"])
def test_a_closed_pipe_does_not_prevent_saving(
    stream: str | None,
    pictures: dict[str, Path],
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("stdout", "stderr"):
        text = io.TextIOWrapper(io.BufferedWriter(Gone())) if stream == "gone" else io.StringIO()
        if stream == "closed":
            text.close()
        monkeypatch.setattr(sys, name, text if stream else None)
    out = tmp_path / "out.png"
    assert run("zstar", pictures["content"], pictures["style"], "-o", out, "--model", model_folder, *FAST) == 0
    assert run("zstar", "gone.png", pictures["style"], "-o", out) == 2
    monkeypatch.undo()
    assert read_record(out)["method"] == "zstar"


def test_a_command_prints_its_result_and_no_warnings(
    pictures: dict[str, Path], model_folder: Path, tmp_path: Path
) -> None:
    arguments = ["zstar", pictures["content"], pictures["style"], "-o", tmp_path / "out.png", "--model", model_folder]
    command = [sys.executable, "-m", "styleengine", *map(str, [*arguments, *FAST, "--device", "cpu"])]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.close()  # as `| true` does
        assert process.stderr is not None
        said = process.stderr.read().decode("ascii")
    assert process.returncode == 0
    assert read_record(tmp_path / "out.png")["method"] == "zstar"
    rest = [line for line in said.replace("\r", "\n").splitlines() if line.strip() and "/" not in line]
    assert not rest
    assert not any(word in said for word in ("xformers", "shards", "weights", "Warning", "WARNING"))


def test_the_package_imports_its_parts_lazily() -> None:
    code = (
        "import sys, styleengine; print(sorted({'torch', 'diffusers'} & sys.modules.keys()), styleengine.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"[] {__version__}\n"
    assert all(getattr(styleengine, name) is not None for name in styleengine.__all__)
    assert {*styleengine.MODULES} <= {*styleengine.__all__}
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = styleengine.Nothing


def test_ctrl_c_ends_with_130_and_leaves_nothing(
    pictures: dict[str, Path],
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    command = ["zstar", pictures["content"], pictures["style"], "-o", tmp_path / "out.png", "--model", model_folder]
    for place in (
        "styleengine.cli._parser",
        "styleengine.cli.StyleEngine",
        "styleengine.cli.StyleEngine.run",
        "styleengine.images.os.replace",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, stop)
            assert run(*command, *FAST) == 130
        assert capsys.readouterr().err.endswith("styleengine: stopped.\n")
        assert not list(tmp_path.iterdir())
    monkeypatch.setattr("styleengine.cli.main", stop)
    assert entry_point() == 130


@pytest.mark.parametrize("command", [[], ["zstar"], ["rerun"], ["inst"], ["inst", "apply"]])
def test_help_fits_a_narrow_console(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    with pytest.raises(SystemExit) as ended:
        run(*command, "--help")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: styleengine")


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e400", "-1", "9" * 5000, "", "many", "0x10", "1,5"])
@pytest.mark.parametrize("flag", ["--size", "--steps", "--strength", "--weight", "--seed", "--first-layer"])
def test_a_bad_number_is_refused(
    flag: str,
    number: str,
    pictures: dict[str, Path],
    shared_engine: StyleEngine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("styleengine.cli.StyleEngine", lambda *_: shared_engine)
    arguments = [pictures["content"], pictures["style"], "-o", tmp_path / "out.png"]
    assert refused("zstar", *arguments, f"{flag}={number}")
    assert len(capsys.readouterr().err) < 3000
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["paint"],
        ["zstar"],
        ["zstar", "CONTENT", "STYLE"],
        ["zstar", "CONTENT", "STYLE", "-o", "OUT", "--mode", "paint"],
        ["zstar", "CONTENT", "STYLE", "-o", "OUT", "--brush", "3"],
        ["zstar", "CONTENT", "STYLE", "-o", "FOLDER"],
        ["zstar", "CONTENT", "STYLE", "-o", "LONG"],
        ["zstar", "CONTENT", "STYLE", "-o", "ALMOST-TOO-LONG"],
        ["zstar", "CONTENT", "STYLE", "-o", ""],
        ["zstar", "CONTENT", "STYLE", "-o", "CONTENT/out.png"],
        ["zstar", "FOLDER", "STYLE", "-o", "OUT"],
        ["zstar", "CONTENT", "FOLDER", "-o", "OUT"],
        ["zstar", "LONG", "STYLE", "-o", "OUT"],
        ["zstar", "CONTENT", "LONG", "-o", "OUT"],
        ["zstar", "", "STYLE", "-o", "OUT"],
        ["zstar", "CONTENT", "STYLE", "-o", "OUT", "--mask", "FOLDER"],
        ["zstar", "CONTENT", "STYLE", "-o", "OUT", "--model", "FOLDER"],
        ["zstar", "CONTENT", "STYLE", "-o", "OUT", "--model", "CONTENT"],
        ["qs-attn", "CONTENT", "ink \udce9", "-o", "OUT"],
        ["inst", "apply", "FOLDER.safetensors", "-o", "OUT"],
        ["inst", "learn", "FOLDER", "-o", "NEW"],
        ["zstar-video", "FOLDER", "STYLE", "-o", "OUT.mp4"],
        ["zstar-video", "CONTENT", "LONG", "-o", "OUT.mp4"],
        ["zstar-video", "LONG", "STYLE", "-o", "OUT.mp4"],
        ["rerun", "FOLDER"],
        ["rerun", "LONG"],
        ["rerun", ""],
        ["rerun", "CONTENT", "--inputs", "LONG"],
    ],
    ids=" ".join,
)
def test_a_bad_argument_is_refused_in_a_sentence(
    arguments: list[str],
    pictures: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "folder.png"
    folder.mkdir()
    long, almost = tmp_path / f"{'x' * 300}.png", tmp_path / f"{'x' * 248}.png"
    named = {"CONTENT": pictures["content"], "STYLE": pictures["style"], "FOLDER": folder, "LONG": long}
    named |= {"OUT": tmp_path / "out.png", "NEW": tmp_path / "new.safetensors", "ALMOST-TOO-LONG": almost}
    assert refused(*(named.get(argument, argument) for argument in arguments))
    assert "Traceback" not in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_a_folder_that_cannot_be_written_is_reported_before_the_run_and_a_full_disk_after_it(
    pictures: dict[str, Path],
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["zstar", pictures["content"], pictures["style"], "-o", tmp_path / "out.png", "--model", model_folder]

    def fails(number: int) -> Callable[..., None]:
        def fail(*arguments: object, **options: object) -> None:
            raise OSError(number, os.strerror(number))

        return fail

    with monkeypatch.context() as patch:
        patch.setattr("styleengine.cli.tempfile.NamedTemporaryFile", fails(errno.EROFS))
        patch.setattr("styleengine.cli.StyleEngine", None)
        assert run(*command, *FAST) == 2
    assert "could not be written (Read-only file system): save elsewhere." in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("styleengine.images.write_whole", fails(errno.ENOSPC))
        assert run(*command, *FAST) == 2
    assert "could not be written (No space left on device): save elsewhere." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
