"""CLIP beside a backbone: preprocessing as in transformers, embeddings, patch tokens and messages."""

from pathlib import Path

import pytest
import torch
from models import write_random_clip, write_random_model, write_tiny_tokenizer
from PIL import Image
from transformers import CLIPImageProcessorPil

from styleengine import StyleEngineError
from styleengine.backbones import Backbone, hub, load_backbone
from styleengine.images import to_tensor
from styleengine.perceptual import Clip


@pytest.fixture(scope="module")
def clip(backbone: Backbone) -> Clip:
    return Clip(backbone)


def test_pictures_are_prepared_as_the_image_processor_does(backbone: Backbone, clip: Clip, cat: Image.Image) -> None:
    processor = CLIPImageProcessorPil.from_pretrained(backbone.folder / "clip")
    square = cat.crop((0, 0, 128, 128))
    expected = processor(square, return_tensors="pt").pixel_values
    assert (clip.prepare(to_tensor(square)) - expected).abs().mean() < 0.02  # PIL rounds to 8 bits in between


def test_an_oblong_picture_is_cropped_to_its_centre(clip: Clip) -> None:
    picture = torch.rand(1, 3, 40, 90) * 2 - 1
    assert torch.equal(clip.prepare(picture), clip.prepare(picture[..., 25:65]))


def test_embeddings_are_unit_vectors_of_one_space(clip: Clip, cat: Image.Image) -> None:
    of_picture, of_texts = clip.image_embeddings(to_tensor(cat)), clip.text_embeddings(["a cat", "ink"])
    assert of_picture.shape == (1, 24)
    assert of_texts.shape == (2, 24)
    assert torch.allclose(of_picture.norm(dim=1), torch.ones(1))
    assert torch.allclose(of_texts.norm(dim=1), torch.ones(2))
    assert not torch.allclose(of_texts[0], of_texts[1])


def test_the_gradient_by_the_picture_raises_the_similarity(clip: Clip, cat: Image.Image) -> None:
    picture = to_tensor(cat).mul(0.9).requires_grad_()
    target = clip.text_embeddings(["ink"])
    before = (clip.image_embeddings(picture) * target).sum()
    before.backward()
    assert picture.grad is not None
    step = 0.02 * picture.grad / picture.grad.abs().max()
    assert (clip.image_embeddings(picture.detach() + step) * target).sum() > before


def test_patch_tokens_do_not_include_the_class_token(clip: Clip, cat: Image.Image) -> None:
    assert clip.patch_tokens(to_tensor(cat)).shape == (1, 16, 32)


def test_texts_beyond_the_limit_are_truncated(clip: Clip) -> None:
    assert clip.longest_text == 16
    long, longer = "ink " * 20, "ink " * 40
    assert torch.equal(clip.text_embeddings([long]), clip.text_embeddings([longer]))


def test_the_note_on_a_truncated_text_states_where_it_ends(clip: Clip) -> None:
    assert clip.note_on("") == clip.note_on("ink") == clip.note_on("a " * 14) == ""
    text = "A b C d e f g h i j k l m n o p q"
    note = clip.note_on(text)
    read = note.split("up to “…")[1].split("”")[0]
    assert read == "A b C d e f g h i j k l m n"
    assert torch.equal(clip.text_embeddings([read]), clip.text_embeddings([text]))
    assert not torch.equal(clip.text_embeddings([text[: len(read) - 2]]), clip.text_embeddings([text]))


def test_the_clip_from_the_hub_is_pinned(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, **options: object) -> str:
        asked.append((repository, options["revision"]))
        return str(write_random_clip(tmp_path / "clip", write_tiny_tokenizer()))

    monkeypatch.setattr(hub, "snapshot_download", download)
    folder = write_random_model(tmp_path / "model")
    (folder / "clip").rename(tmp_path / "elsewhere")
    Clip(load_backbone(str(folder), "cpu"))
    assert asked == [("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41")]


def test_without_a_clip_of_its_own_and_without_the_hub_there_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_random_model(tmp_path / "model")
    (folder / "clip").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(StyleEngineError, match="the hub cannot be reached"):
        Clip(load_backbone(str(folder), "cpu"))


def test_a_broken_clip_is_named(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model")
    weights = write_random_clip(folder / "clip", write_tiny_tokenizer()) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(StyleEngineError, match="The CLIP of the model “model” could not be loaded") as error:
        Clip(load_backbone(str(folder), "cpu"))
    assert str(tmp_path) not in str(error.value)
