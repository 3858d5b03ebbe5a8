"""What teaches the embedded model: the procedural styles and the captions."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))

from captions import caption_of, group_of
from crops import subject_of
from styles import STYLES, apply


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    y, x = np.mgrid[:64, :64]
    waves = np.stack([np.sin(x / 7), np.cos(y / 9), np.sin((x + y) / 11)], 2)
    return ((waves + 1) * 127).astype(np.uint8)


def test_there_are_at_least_thirty_styles_with_words_of_their_own() -> None:
    words = {style.words("a boat") for style in STYLES.values()}
    assert len(words) == len(STYLES) >= 30
    assert all(phrase.count("boat") == 1 and "a a " not in phrase for phrase in words)


@pytest.mark.parametrize("name", STYLES)
def test_each_style_redraws_the_picture_and_does_it_again_from_the_same_seed(name: str, picture: np.ndarray) -> None:
    first, again = (apply(name, picture, np.random.default_rng(3)) for _ in range(2))
    assert first.shape == picture.shape
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - picture).mean() > 5


def test_a_style_can_be_named_without_a_subject() -> None:
    assert STYLES["mosaic"].words() == "a mosaic"
    assert STYLES["night"].words() == "a picture at night"
    assert STYLES["golden"].words() == "a golden picture"
    assert STYLES["golden"].words("a frog") == "a golden frog"
    assert STYLES["chalk"].words("a frog") == "a chalk drawing of a frog on a blackboard"


def test_captions_come_from_descriptions_names_and_hand(tmp_path: Path) -> None:
    stamp = tmp_path / "frog-1.png"
    stamp.with_suffix(".txt").write_text("A frog.\nfr.utf8=Une grenouille.\n")
    assert caption_of(stamp, "tuxpaint-stamps-default") == "photo of a frog"
    assert subject_of("photo of a frog") == "a frog"
    clip_art = Path("openclipart/png/transportation/boating/SailBoat_02.png")
    assert caption_of(clip_art, "openclipart-png") == "clip art of sail boat transportation boating"
    wallpaper = Path("wallpapers/Autumn/contents/images/2560x1600.jpg")
    assert caption_of(wallpaper, "plasma-workspace-wallpapers") == "painting of an autumn tree and a fox"


def test_views_of_one_picture_are_one_group() -> None:
    def wallpaper(file: str) -> str:
        return group_of(Path("usr/share/wallpapers/Flow/contents") / file)

    assert wallpaper("images/5120x2880.jpg") == wallpaper("images_dark/720x1440.jpg")
    pieces = [Path(f"activities/paintings/resource/image/{name}.webp") for name in ("GreatWave_a1", "GreatWave_d3")]
    assert group_of(pieces[0]) == group_of(pieces[1])
    assert group_of(Path("stamps/frog.png")) != group_of(Path("stamps/toad.png"))
