"""The command line, run in-process on the small random model."""

import json
from pathlib import Path

import numpy as np
import pytest
from clips import panned, write_raw
from PIL import Image

from styleengine import LearnedStyle, StyleEngine
from styleengine.cli import main
from styleengine.stylization import METADATA_KEY, read_record
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


def test_rerun_repeats_every_pixel(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("rerun", saved) == 0
    again = saved.with_name("out-again.png")
    assert np.array_equal(np.asarray(Image.open(saved)), np.asarray(Image.open(again)))
    assert "Every pixel is as it was" in capsys.readouterr().out


def test_rerun_repeats_masks_weights_and_two_styles(
    pictures: dict[str, Path], model_folder: Path, tmp_path: Path
) -> None:
    mask, out = tmp_path / "mask.png", tmp_path / "two.png"
    Image.linear_gradient("L").save(mask)
    styles = [pictures["style"], pictures["other"]]
    options = ["--weight", 1, "--weight", 0.5, "--mask", mask, "--mask", mask]
    assert run("zstar", pictures["content"], *styles, "-o", out, "--model", model_folder, *options, *FAST) == 0
    assert run("rerun", out, "-o", tmp_path / "again.png") == 0
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(Image.open(tmp_path / "again.png")))


def test_rerun_with_a_shared_mask_repeats_both_halves(
    pictures: dict[str, Path], model_folder: Path, tmp_path: Path
) -> None:
    mask, out = tmp_path / "mask.png", tmp_path / "two.png"
    Image.linear_gradient("L").save(mask)
    styles = [pictures["style"], pictures["other"]]
    assert run("zstar", pictures["content"], *styles, "-o", out, "--model", model_folder, "--mask", mask, *FAST) == 0
    assert run("rerun", out, "-o", tmp_path / "again.png") == 0
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(Image.open(tmp_path / "again.png")))


def test_rerun_refuses_an_input_that_has_changed(
    saved: Path, pictures: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("rerun", saved, "--style", pictures["other"]) == 2
    assert "is not the style image of this result: it has changed" in capsys.readouterr().err


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
    assert run("rerun", out) == 0
    again = Image.open(tmp_path / "out-again.png")
    assert again.size == (84, 64)
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(again))
    assert "Every pixel is as it was" in capsys.readouterr().out
    assert run("rerun", out, "--mask", pictures["style"]) == 2
    assert "is not the mask image of this result" in capsys.readouterr().err


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, pictures: dict[str, Path]) -> Path:
    frames = panned(Image.open(pictures["content"]).convert("RGB"), 4, (80, 64))
    return write_raw(tmp_path_factory.mktemp("clips") / "clip.mp4", frames)


def test_zstar_video_writes_a_clip_with_its_record_and_says_what_was_left_out(
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

    assert run("rerun", out) == 0
    assert "Every pixel is as it was" in capsys.readouterr().out
    assert len(open_clip(tmp_path / "out-again.mp4").times) == 2
    other = write_raw(tmp_path / "other.mp4", panned(Image.new("RGB", (200, 100), "red"), 4, (80, 64)))
    assert run("rerun", out, "--content", other) == 2
    assert "is not the clip of this result" in capsys.readouterr().err


def test_an_interrupted_clip_goes_on_with_the_same_command(
    clip: Path,
    pictures: dict[str, Path],
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["zstar-video", clip, pictures["style"], "-o", tmp_path / "out.mp4", "--model", model_folder]
    command += ["--rate", 0, *FAST]
    whole = StyleEngine.zstar_video

    def interrupted(self: StyleEngine, *arguments, on_step, **options):
        def stop(event) -> None:
            if event.phase == "stylizing frame 2 of 4":
                raise KeyboardInterrupt

        return whole(self, *arguments, on_step=stop, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StyleEngine, "zstar_video", interrupted)
        assert run(*command) == 130
    assert "The same command goes on" in capsys.readouterr().err
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
    assert run("rerun", out) == 0
    assert "Every pixel is as it was" in capsys.readouterr().out


LEARN = ["--size", "32", "--steps", "4", "--batch", "2", "--views", "2", "--check-every", "2"]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory, pictures: dict[str, Path], model_folder: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("learnt")
    for name in ("style", "other"):
        out = folder / f"{name}.safetensors"
        assert run("inst", "learn", pictures[name], "-o", out, "--model", model_folder, *LEARN) == 0
    return {name: folder / f"{name}.safetensors" for name in ("style", "other")}


def test_inst_learns_a_painting_and_keeps_nothing_but_the_style(learnt: dict[str, Path]) -> None:
    style = LearnedStyle.open(learnt["style"])
    assert style.record.name == "style"
    assert style.record.complete
    assert (style.record.step, style.record.settings["batch"]) == (4, 2)
    assert sorted(file.name for file in learnt["style"].parent.iterdir()) == ["other.safetensors", "style.safetensors"]


@pytest.mark.parametrize("inputs", [["CONTENT", "style"], ["CONTENT", "style", "other"], ["style"]])
def test_inst_draws_what_rerun_repeats(
    inputs: list[str],
    pictures: dict[str, Path],
    learnt: dict[str, Path],
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named, out = {"CONTENT": pictures["content"], **learnt}, tmp_path / "out.png"
    options = ["--prompt", "a * b", "--strength", "0.5", "--mix", "0.25", "--model", model_folder, *FAST]
    assert run("inst", "apply", *(named[name] for name in inputs), "-o", out, *options) == 0
    record = read_record(out)
    assert (record["method"], record["settings"]["prompt"], record["settings"]["mix"]) == ("inst", "a * b", 0.25)
    assert [entry["source"] for entry in record["inputs"]] == [str(named[name]) for name in inputs]
    assert run("rerun", out) == 0
    assert "Every pixel is as it was" in capsys.readouterr().out
    if "other" not in inputs:
        assert run("rerun", out, "--style", learnt["other"]) == 2
        assert "is not the learnt style of this result" in capsys.readouterr().err


def test_an_interrupted_learning_goes_on_with_the_same_command_to_the_same_style(
    pictures: dict[str, Path],
    learnt: dict[str, Path],
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
    assert "The same command goes on" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["again.partial.safetensors"]
    monkeypatch.setattr(StyleEngine, "inst_learn", watched)
    assert run(*command) == 0
    assert steps == [3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["again.safetensors"]
    again, before = LearnedStyle.open(out), LearnedStyle.open(learnt["style"])
    assert float((again.word - before.word).abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["inst", "learn", "missing.jpg", "-o", "NEW"], "painting missing.jpg does not exist"),
        (["inst", "learn", "STYLE", "-o", "OUT"], "saved as SAFETENSORS"),
        (["inst", "learn", "STYLE", "-o", "NEW", "--learning-rate", "0"], "greater than 0"),
        (["inst", "apply", "CONTENT", "-o", "OUT"], "No styles were given"),
        (["inst", "apply", "CONTENT", "STYLE", "LEARNT", "-o", "OUT"], "is a second picture"),
        (["inst", "apply", "CONTENT", "gone.safetensors", "-o", "OUT"], "gone.safetensors does not exist"),
        (["inst", "apply", "CONTENT", "LEARNT", "-o", "out.jpg"], "saved as PNG"),
        (["inst", "apply", "CONTENT", "LEARNT", "-o", "OUT", "--model", "mini"], "cannot read it"),
        (["inst", "apply", "CONTENT", "LEARNT", "-o", "OUT", "--prompt", "ink", "--model", "MODEL"], "put a * there"),
        (["qs-attn", "CONTENT", "ink", "-o", "OUT", "--balance", "2"], "less than or equal to 1"),
        (["qs-attn", "missing.jpg", "ink", "-o", "OUT"], "content image missing.jpg does not exist"),
        (["qs-attn", "CONTENT", "ink", "-o", "out.jpg"], "saved as PNG"),
        (["h-space", "CONTENT", "missing.jpg", "-o", "OUT"], "style image missing.jpg does not exist"),
        (["h-space", "CONTENT", "STYLE", "-o", "out.jpg"], "saved as PNG"),
        (["h-space", "CONTENT", "STYLE", "-o", "OUT", "--gamma", "2"], "less than or equal to 1"),
        (["zstar-video", "CONTENT.txt", "STYLE", "-o", "out.mp4"], "does not exist"),
        (["zstar-video", "CLIP", "STYLE", "-o", "OUT"], "saved as MP4"),
        (["zstar", "missing.jpg", "STYLE", "-o", "OUT"], "does not exist"),
        (["zstar", "CONTENT", "STYLE", "-o", "out.jpg"], "saved as PNG"),
        (["zstar", "CONTENT", "STYLE", "-o", "nowhere/out.png"], "no folder nowhere"),
        (["zstar", "CONTENT", "STYLE", "-o", "OUT", "--strength", "99"], "less than or equal to 4"),
        (["zstar", "CONTENT", "STYLE", "-o", "OUT", "--weight", "1", "--weight", "1"], "given 2 times for 1"),
        (["zstar", "CONTENT", "STYLE", "-o", "OUT", "--model", "no-such-model"], "no model “no-such-model”"),
        (["rerun", "CONTENT"], "carries no StyleEngine record"),
        (["rerun", "CLIP"], "carries no StyleEngine record"),
    ],
)
def test_what_can_be_put_right_is_said_in_a_sentence_and_exits_2(
    arguments: list[str],
    sentence: str,
    pictures: dict[str, Path],
    clip: Path,
    learnt: dict[str, Path],
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = {"CONTENT": pictures["content"], "STYLE": pictures["style"], "OUT": tmp_path / "out.png", "CLIP": clip}
    named |= {"NEW": tmp_path / "new.safetensors", "LEARNT": learnt["style"], "MODEL": model_folder}
    assert run(*(named.get(argument, argument) for argument in arguments)) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_result_of_a_method_to_come_cannot_be_repeated_yet(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("styleengine.rerun.REPEATERS", {})
    assert run("rerun", saved) == 2
    assert "cannot repeat the method “zstar”" in capsys.readouterr().err
