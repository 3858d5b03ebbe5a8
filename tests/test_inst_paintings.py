"""InST from several paintings of one artist: views, embedding, record, resuming, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_inst import DRAW, FAST, at_step, finished

from styleengine import StyleEngine, StyleEngineError
from styleengine.backbones import LatentBackbone
from styleengine.images import content_hash, fit, to_tensor
from styleengine.learned_style import LearnedStyle, thumbnail_of
from styleengine.methods.inst.learner import Learner, learn
from styleengine.methods.inst.paintings import hash_of, opened_paintings
from styleengine.methods.inst.views import cut, prepare
from styleengine.perceptual import Clip


@pytest.fixture(scope="module")
def clip(backbone: LatentBackbone) -> Clip:
    return Clip(backbone)


@pytest.fixture(scope="module")
def three(cat: Image.Image, coffee: Image.Image, rocket: Image.Image) -> list[Image.Image]:
    return [cat, coffee, rocket]


def flat(level: int, width: int = 96) -> Image.Image:
    """A ramp around a level, so that crops show which painting they are of and whether they are mirrored."""
    row = np.linspace(level - 9, level + 9, width).round().astype(np.uint8)
    return Image.fromarray(np.tile(row[None, :, None], (64, 1, 3)))


def test_one_painting_in_a_list_is_learned_exactly_as_alone(
    backbone: LatentBackbone, clip: Clip, cat: Image.Image
) -> None:
    alone, listed = (finished(learn(backbone, given, lambda: clip, FAST, name="a")) for given in (cat, [cat]))
    assert listed.to_bytes() == alone.to_bytes()
    assert alone.record.painting == hash_of(cat) == hash_of([cat]) == content_hash(cat)
    assert b"paintings" not in alone.without_state().to_bytes()


def test_the_embedding_and_the_statistics_are_the_means_over_the_centres_of_the_paintings(
    backbone: LatentBackbone, clip: Clip, three: list[Image.Image]
) -> None:
    views = prepare(backbone, three, lambda: clip, FAST.replace(views=8))
    learner = Learner(backbone, views, FAST)
    with torch.no_grad():
        words = [learner.module(views.pooled[i : i + 1], views.tokens[i : i + 1])[0] for i in range(3)]
    torch.testing.assert_close(learner.word()[0], torch.stack(words).mean(0))
    centres = [backbone.encode(to_tensor(fit(painting, (32, 32))))[0].flatten(1) for painting in three]
    style = finished(learn(backbone, three, lambda: clip, FAST))
    torch.testing.assert_close(style.latent_mean, torch.stack([z.mean(1) for z in centres]).mean(0))
    torch.testing.assert_close(style.latent_std, torch.stack([z.std(1) for z in centres]).mean(0))
    assert style.thumbnail.tobytes() == thumbnail_of(three[0]).tobytes()
    assert style.record.paintings == 3
    found = Learner(backbone, prepare(backbone, three, lambda: clip, FAST), FAST).validation_loss(
        backbone.condition_with_word("*", style.word[None])
    )
    assert found == pytest.approx(min(loss for _, loss in style.record.history))


@pytest.mark.parametrize(("views", "each"), [(8, [3, 3, 2]), (3, [1, 1, 1]), (1, [1, 1, 1]), (4, [2, 1, 1])])
def test_the_crops_are_spread_over_the_paintings_and_begin_with_their_centres(views: int, each: list[int]) -> None:
    paintings = [flat(50), flat(120), flat(200)]
    crops = [np.asarray(crop).astype(int) for crop in cut(paintings, FAST.replace(views=views), 8)]
    which = [min(range(3), key=lambda i: abs(crop.mean() - (50, 120, 200)[i])) for crop in crops]
    assert [which.count(i) for i in range(3)] == each
    assert which[:3] == [0, 1, 2]
    rising = [crop[16, -1, 0] > crop[16, 0, 0] for crop in crops]
    assert rising == [i // 3 % 2 == 0 for i in range(len(crops))]


def test_each_of_many_paintings_is_validated(backbone: LatentBackbone, clip: Clip, cat: Image.Image) -> None:
    paintings = [cat.rotate(20 * number) for number in range(10)]
    views = prepare(backbone, paintings, lambda: clip, FAST.replace(views=1))
    assert len(views.latents) == views.paintings == 10
    learner = Learner(backbone, views, FAST)
    condition = backbone.condition_with_word("*", learner.word())
    before = learner.validation_loss(condition)
    views.latents[9] += 1
    assert learner.validation_loss(condition) != before


def test_learning_several_paintings_is_resumed_and_not_with_others(
    backbone: LatentBackbone, clip: Clip, three: list[Image.Image], tmp_path: Path
) -> None:
    whole = finished(learn(backbone, three, lambda: clip, FAST))
    part = at_step(learn(backbone, three, lambda: clip, FAST), 3).save(tmp_path / "part.safetensors")
    known = LearnedStyle.open(part, with_state=True)
    assert known.record.paintings == 3
    again = finished(learn(backbone, three, lambda: clip, FAST, known=known))
    assert torch.equal(again.word, whole.word)
    for others in (three[:2], three[0], [three[1], three[0], three[2]], [*three, three[0]]):
        with pytest.raises(StyleEngineError, match=r"what differs: painting\)"):
            next(learn(backbone, others, lambda: clip, FAST, known=known))


def test_the_engine_learns_several_files_as_one_style(
    engine: StyleEngine, three: list[Image.Image], tmp_path: Path
) -> None:
    paths = [tmp_path / f"painting {number}.png" for number in range(3)]
    for path, painting in zip(paths, three, strict=True):
        painting.save(path)
    style = engine.inst_learn(paths, FAST)
    assert (style.record.name, style.record.paintings, style.record.complete) == ("painting 0", 3, True)
    assert engine.inst_learn(iter(three), FAST).sha256 == style.sha256 != engine.inst_learn(three[0], FAST).sha256
    again = LearnedStyle.open(style.save(tmp_path / "three.safetensors"))
    assert again.record == style.record
    assert engine.inst_apply(three[0], again, DRAW).image.size == engine.inst_apply(three[0], style, DRAW).image.size


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "No painting was given"),
        (None, "No painting was given"),
        (["CAT", "gone.png"], "The 2nd painting gone.png does not exist"),
        (["CAT", "CAT", b"no image"], "The 3rd painting is not an image that can be read"),
        (["CAT", None], "No 2nd painting was given"),
        ([3, "CAT"], "No 1st painting was given"),
        (["CAT", Image.new("RGB", (8, 8))], "The 2nd painting has only 8×8 pixels"),
        (["CAT"] * 10 + [b""], "11th painting"),
        (["CAT"] * 17, "17 paintings were given. Choose at most 16 of one artist."),
    ],
)
def test_a_bad_painting_is_named_by_its_number(
    given: Any, sentence: str, cat: Image.Image, engine: StyleEngine
) -> None:
    images = [cat if source == "CAT" else source for source in given] if given is not None else None
    for learned in (opened_paintings, engine.inst_learn):
        with pytest.raises(StyleEngineError) as raised:
            learned(images)
        assert sentence in str(raised.value)
