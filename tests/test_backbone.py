"""Backbones: what loads, what is refused and with which message."""

import hashlib
import json
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, DDPMPipeline, StableDiffusionPipeline
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from models import write_random_model, write_random_pixel_model
from PIL import Image
from safetensors.torch import load_file, save_file

from styleengine import StyleEngine, StyleEngineError, file_hashes
from styleengine.backbones import (
    BACKBONES,
    Backbone,
    LatentBackbone,
    PixelBackbone,
    default_model,
    hub,
    load_backbone,
    loading,
    named_backbones,
    origins,
    recommended_settings,
    reconstruct,
    working_device,
    working_dtype,
)
from styleengine.images import fit, to_tensor
from styleengine.stylization import model_name

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def model_copy(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def test_the_folder_a_pipeline_saves_loads_with_the_same_weights(model_folder: Path, backbone: Backbone) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(model_folder, safety_checker=None, local_files_only=True)
    x_t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    condition = backbone.condition([""])
    expected = pipeline.unet(x_t, 321, encoder_hidden_states=condition.expand(2, -1, -1)).sample
    torch.testing.assert_close(backbone.predict_noise(x_t, 321, condition), expected, atol=1e-6, rtol=0)
    their_condition = pipeline.encode_prompt("", "cpu", 1, False)[0]
    torch.testing.assert_close(condition, their_condition, atol=1e-6, rtol=0)
    torch.testing.assert_close(backbone.alphas_cumprod, pipeline.scheduler.alphas_cumprod)


def test_encoding_takes_the_mean_and_decoding_undoes_the_scale(backbone: Backbone, astronaut: Image.Image) -> None:
    pixels = to_tensor(fit(astronaut, (64, 48)))
    latents = backbone.encode(pixels)
    assert latents.shape == (1, 4, 48 // backbone.multiple, 64 // backbone.multiple)
    assert latents.dtype == torch.float32
    factor = backbone.vae.config.scaling_factor
    with torch.no_grad():
        torch.testing.assert_close(latents, backbone.vae.encode(pixels).latent_dist.mean * factor)
        torch.testing.assert_close(backbone.decode(latents), backbone.vae.decode(latents / factor).sample)
    assert torch.equal(backbone.encode(pixels), latents)


def test_reconstruct_gives_a_picture_of_the_same_size(backbone: Backbone, astronaut: Image.Image) -> None:
    assert reconstruct(backbone, fit(astronaut, (64, 48))).size == (64, 48)


def test_a_tiny_autoencoder_serves_too(backbone: Backbone, astronaut: Image.Image) -> None:
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )
    with_tiny = LatentBackbone(**{**vars(backbone), "vae": tiny})
    latents = with_tiny.encode(to_tensor(fit(astronaut, (64, 64))))
    assert latents.shape == (1, 4, 64 // with_tiny.multiple, 64 // with_tiny.multiple)
    assert with_tiny.decode(latents).shape == (1, 3, 64, 64)


def test_networks_are_in_evaluation_mode_and_need_no_gradients(backbone: Backbone) -> None:
    for network in (backbone.unet, backbone.vae, backbone.text_encoder):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_one_condition_serves_the_whole_batch(backbone: Backbone) -> None:
    x_t = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    null = backbone.condition([""])
    together = backbone.predict_noise(x_t, 500, null)
    apart = torch.cat([backbone.predict_noise(x[None], 500, null) for x in x_t])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


def test_half_precision_is_selected_by_name(model_folder: Path, astronaut: Image.Image) -> None:
    loaded = load_backbone(str(model_folder), "cpu", torch.bfloat16)
    assert loaded.unet.dtype == torch.bfloat16
    assert loaded.identity.endswith("/bfloat16")
    latents = loaded.encode(to_tensor(fit(astronaut, (64, 64))))
    noise = loaded.predict_noise(latents, 500, loaded.condition([""]))
    assert latents.dtype == noise.dtype == loaded.decode(latents).dtype == torch.float32


# Devices and number types


UNUSABLE = ["banana", "meta", "vulkan", "hpu", "xla", "privateuseone", "cuda:-1", "cpu:cpu", "/etc", "🎨"]


@pytest.mark.parametrize("device", [*UNUSABLE, "cuda", "cuda:0", "cuda:99", "mps", "xpu", torch.device("cuda")])
def test_a_missing_device_is_refused_with_a_list_of_the_available_ones(device: str | torch.device) -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("there is a GPU")
    for load in (StyleEngine, load_backbone):
        with pytest.raises(StyleEngineError, match=f"The device “{device}” cannot be used here. Choose one of: “cpu”."):
            load("mini", device)


def test_available_gpus_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(StyleEngineError, match="“cpu”, “cuda”, “cuda:0”, “cuda:1”"):
        working_device("cuda:99")
    assert working_device(None) == working_device("cuda") == torch.device("cuda")
    assert working_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("device", ["cpu", " CPU ", torch.device("cpu"), None, ""])
def test_devices_may_be_named_or_left_out(model_folder: Path, device: str | torch.device | None) -> None:
    if device or not torch.cuda.is_available():
        assert load_backbone(str(model_folder), device).device == torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.complex64, torch.bool, "float8", "banana", "", 16])
def test_a_number_type_that_models_do_not_run_in_is_refused(dtype: torch.dtype) -> None:
    for load in (StyleEngine, load_backbone):
        with pytest.raises(
            StyleEngineError, match=r"Models cannot run in “.*”. Choose one of: float32, float16, bfloat16"
        ):
            load("mini", "cpu", dtype)


def test_number_types_may_be_named() -> None:
    cpu = torch.device("cpu")
    assert working_dtype("bfloat16", cpu) == working_dtype(torch.bfloat16, cpu) == torch.bfloat16
    assert working_dtype(None, cpu) == torch.float32
    assert working_dtype(None, torch.device("cuda")) == torch.float16


# Pixel-space models


@pytest.fixture(scope="module")
def pixels(pixel_model_folder: Path) -> Backbone:
    return load_backbone(str(pixel_model_folder), "cpu")


def test_a_ddpms_folder_loads_with_its_weights_and_its_schedule(pixel_model_folder: Path, pixels: Backbone) -> None:
    pipeline = DDPMPipeline.from_pretrained(pixel_model_folder, local_files_only=True)
    x_t = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    assert isinstance(pixels, PixelBackbone)
    torch.testing.assert_close(pixels.predict_noise(x_t, 321, pixels.condition([""])), pipeline.unet(x_t, 321).sample)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(pixels.alphas_cumprod, (1 - betas).cumprod(0).float(), atol=1e-6, rtol=1e-4)
    assert not pixels.unet.training
    assert not any(parameter.requires_grad for parameter in pixels.unet.parameters())


def test_on_pixels_encoding_and_decoding_change_nothing(pixels: Backbone, astronaut: Image.Image) -> None:
    picture = to_tensor(fit(astronaut, (64, 48)))
    assert torch.equal(pixels.decode(pixels.encode(picture)), picture)
    assert pixels.multiple == 4  # the U-Net halves twice
    assert pixels.condition(["", "a"]).numel() == 0
    assert pixels.identity.startswith(f"{pixels.name}@{pixels.revision}/")


def test_a_ddpm_in_the_first_format_of_diffusers_without_subfolders_loads(
    pixel_model_folder: Path, tmp_path: Path
) -> None:
    for name in ("unet/config.json", f"{UNET_WEIGHTS}", "scheduler/scheduler_config.json", "model_index.json"):
        shutil.copy(pixel_model_folder / name, tmp_path)
    flat = load_backbone(str(tmp_path), "cpu")
    nested = load_backbone(str(pixel_model_folder), "cpu")
    x_t = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(flat.predict_noise(x_t, 9, flat.condition([""])), nested.predict_noise(x_t, 9, x_t))
    assert flat.recommended["h_space"] == {"size": 64}
    before = flat.revision
    weights = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    first = min(weights)
    save_file(
        {**weights, first: weights[first] + 1}, tmp_path / "diffusion_pytorch_model.safetensors", {"format": "pt"}
    )
    assert revision(tmp_path) != before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"in_channels": 4}, "it takes 4 channels and gives 3, not 3 and 3"),
        ({"out_channels": 6}, "it takes 3 channels and gives 6"),
        ({"num_class_embeds": 10}, "is conditioned on classes"),
        ({"mid_block_type": None}, "no mid block"),
        ({"prediction_type": "sample"}, r"predicts “sample”; StyleEngine works with .* the noise"),
    ],
    ids=str,
)
def test_a_ddpm_of_another_kind_is_refused(tmp_path: Path, options: dict, sentence: str) -> None:
    folder = write_random_pixel_model(tmp_path / "other", **options)
    with pytest.raises(StyleEngineError, match=sentence):
        load_backbone(str(folder))


def test_a_ddpm_without_safetensors_is_refused(pixel_model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pixel_model_folder, tmp_path / "model"))
    (folder / UNET_WEIGHTS).rename((folder / UNET_WEIGHTS).with_suffix(".bin"))
    with pytest.raises(StyleEngineError, match=r"could not be loaded.*unconditional DDPM.*with safetensors weights"):
        load_backbone(str(folder))


def test_the_size_that_a_ddpm_was_trained_at_is_recommended_and_its_folder_may_recommend_more(
    pixel_model_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pixel_model_folder, tmp_path / "model"))
    sized = {"size": 64}
    assert recommended_settings(str(folder)) == {"h_space": sized, "qs_attn": sized}
    (folder / "recommended.json").write_text('{"h_space": {"gamma": 0.6}, "other": {"size": 1}}')
    assert recommended_settings(str(folder)) == {
        "h_space": {"size": 64, "gamma": 0.6},
        "qs_attn": sized,
        "other": {"size": 1},
    }
    assert load_backbone(str(folder), "cpu").recommended["h_space"] == {"size": 64, "gamma": 0.6}
    church = recommended_settings("ddpm-church-256")
    assert church == {"h_space": {"size": 256, "t_edit": 370}, "qs_attn": {"size": 256}}
    assert "size" in recommended_settings("mini")["zstar"]


def test_a_folder_beside_the_embedded_model_has_a_name(
    pixel_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(pixel_model_folder, tmp_path / "squares")
    (tmp_path / "notes").mkdir()
    monkeypatch.setattr(origins, "MODELS", tmp_path)
    assert list(named_backbones()) == [*BACKBONES, "squares"]
    loaded = load_backbone("squares", "cpu")
    assert (loaded.name, type(loaded)) == ("squares", PixelBackbone)
    with pytest.raises(StyleEngineError, match="“ddpm-bedroom-256”, “squares”"):
        load_backbone("foo")


# What is refused


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        StyleEngineError, match=r"no model “foo”. Name one of “mini”, “sd15”, .*, a local diffusers folder"
    ):
        load_backbone("foo")


@pytest.mark.parametrize("name", ["./gone/model", "/gone/model", "~/model", "a/b/c"])
def test_a_missing_folder_is_not_taken_for_a_hub_id(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(StyleEngineError, match="There is no model"):
        load_backbone(name)


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StyleEngineError, match=r"model_index\.json is missing.*save_pretrained"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_pickled_weights_are_refused_and_not_unpickled(model_copy: Path, part: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(model_copy / "unpickled"),))

    for weights in (model_copy / part).glob("*.safetensors"):
        weights.unlink()
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin"):
        (model_copy / part / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(StyleEngineError, match=r"could not be loaded.*safetensors"):
        load_backbone(str(model_copy))
    assert not (model_copy / "unpickled").exists()


@pytest.mark.parametrize(
    "file",
    [
        "unet/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        UNET_WEIGHTS,
    ],
)
@pytest.mark.parametrize("damage", ["gone", "garbage"])
def test_an_incomplete_or_damaged_folder_is_refused(model_copy: Path, file: str, damage: str) -> None:
    if damage == "gone":
        (model_copy / file).unlink()
    else:
        (model_copy / file).write_text("not what it should be")
    with pytest.raises(StyleEngineError, match="could not be loaded"):
        load_backbone(str(model_copy))


def test_a_model_that_predicts_the_picture_is_refused(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "sample", prediction_type="sample")
    with pytest.raises(StyleEngineError, match=r"predicts “sample”; StyleEngine works with .* the noise"):
        load_backbone(str(folder))


@pytest.mark.parametrize("write", [write_random_model, write_random_pixel_model], ids=["latent", "pixel"])
@pytest.mark.parametrize("timestep", [1, 500, 998])
def test_v_prediction_is_converted_to_noise_as_in_diffusers(
    tmp_path: Path, write: Callable[..., Path], timestep: int
) -> None:
    backbone = load_backbone(str(write(tmp_path / "v", prediction_type="v_prediction")))
    x_t = torch.randn(2, backbone.unet.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    condition = backbone.condition([""])
    conditioning = (condition.expand(2, -1, -1),) if condition.numel() else ()
    velocity = backbone.unet(x_t, timestep, *conditioning).sample
    betas = betas_of(backbone.alphas_cumprod)
    scheduler = DDIMScheduler(trained_betas=betas, prediction_type="v_prediction", clip_sample=False)
    scheduler.set_timesteps(1000)
    clean = scheduler.step(velocity, timestep, x_t).pred_original_sample
    alpha = backbone.alphas_cumprod[timestep]
    noise = backbone.predict_noise(x_t, timestep, condition)
    torch.testing.assert_close(alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, x_t, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(noise, velocity)


def betas_of(alphas_cumprod: torch.Tensor) -> list[float]:
    before = torch.cat([torch.ones(1), alphas_cumprod[:-1]])
    return (1 - alphas_cumprod / before).tolist()


# The hub


def failing_download(error: Exception):
    def snapshot_download(*arguments: object, **options: object) -> str:
        raise error

    return snapshot_download


def response(status: int) -> SimpleNamespace:
    return SimpleNamespace(status_code=status, headers={}, request=None)


@pytest.mark.parametrize("name", ["owner/name", "owner/name@main", "sd15"])
@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("offline"),
        HfHubHTTPError("502", response=response(502)),  # type: ignore[arg-type]
        ConnectionError("refused"),
        TimeoutError("slow"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_without_a_network_the_embedded_model_is_suggested(
    monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    monkeypatch.setattr(hub, "snapshot_download", failing_download(error))
    with pytest.raises(
        StyleEngineError, match=f"“{name}” is not on this machine and the hub cannot be reached.*“mini”"
    ):
        load_backbone(name)


def test_offline_a_hub_id_fails_fast() -> None:
    """With the library's own offline switch and nothing patched."""
    began = time.perf_counter()
    with pytest.raises(StyleEngineError, match="hub cannot be reached"):
        load_backbone("owner-that-is-not/name-that-is-not")
    assert time.perf_counter() - began < 5


def test_a_repository_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RepositoryNotFoundError("404", response=response(404))  # type: ignore[arg-type]
    monkeypatch.setattr(hub, "snapshot_download", failing_download(error))
    with pytest.raises(StyleEngineError, match="The hub has no model “owner/name” that you may read"):
        load_backbone("owner/name@v1")


def test_a_revision_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RevisionNotFoundError("404", response=response(404))  # type: ignore[arg-type]
    monkeypatch.setattr(hub, "snapshot_download", failing_download(error))
    with pytest.raises(StyleEngineError, match="has no revision “v1”"):
        load_backbone("owner/name@v1")


def test_a_name_that_no_repository_can_have_is_refused() -> None:
    with pytest.raises(StyleEngineError, match="The hub has no model “a b/c d”"):
        load_backbone("a b/c d")


def test_only_safetensors_are_downloaded_at_the_pinned_revision(
    monkeypatch: pytest.MonkeyPatch, model_folder: Path, tmp_path: Path
) -> None:
    asked: dict[str, object] = {}
    commit = tmp_path / "0123456789abcdef"
    shutil.copytree(model_folder, commit)

    def snapshot_download(location: str, **options: object) -> str:
        asked.update(options, location=location)
        return str(commit)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    loaded = load_backbone("owner/name@v1.0")
    assert (asked["location"], asked["revision"]) == ("owner/name", "v1.0")
    assert asked["allow_patterns"] == ["*.json", "*.txt", "*.safetensors"]
    assert loaded.revision == commit.name
    load_backbone("sd15")
    assert asked["location"] == BACKBONES["sd15"].location
    assert len(str(asked["revision"])) == 40


SD_FILES = [
    "README.md",
    "model_index.json",
    "v1-5-pruned.safetensors",
    "v1-5-pruned-emaonly.safetensors",
    "feature_extractor/preprocessor_config.json",
    "safety_checker/model.safetensors",
    "scheduler/scheduler_config.json",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    *(f"{part}/config.json" for part in ("text_encoder", "unet", "vae")),
    *(f"text_encoder/model{kind}" for kind in (".safetensors", ".fp16.safetensors")),
    "text_encoder/pytorch_model.bin",
    *(
        f"{part}/diffusion_pytorch_model{kind}"
        for part in ("unet", "vae")
        for kind in (".safetensors", ".fp16.safetensors", ".non_ema.safetensors", ".bin")
    ),
]
PARTS = {"unet", "vae", "text_encoder", "tokenizer", "scheduler", "clip"}


@pytest.mark.parametrize("half", [False, True])
def test_only_the_files_that_are_loaded_are_downloaded(half: bool) -> None:
    chosen = hub.loaded_files(SD_FILES, PARTS, half)
    weights = [file for file in chosen if file.endswith(".safetensors")]
    kind = ".fp16.safetensors" if half else ".safetensors"
    networks = ("text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model")
    assert weights == [name + kind for name in networks]
    assert {Path(file).parent.as_posix() for file in chosen} == {*PARTS, "."} - {"clip"}
    assert not [file for file in chosen if file.endswith((".bin", ".md"))]


def test_a_network_at_the_top_level_is_downloaded_and_half_only_where_there_is_any() -> None:
    files = [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bin",
        "scheduler_config.json",
    ]
    for half in (False, True):
        assert hub.loaded_files([*files, "model_index.json"], {"unet", "scheduler", "clip"}, half) == [
            files[0],
            files[1],
            files[3],
            "model_index.json",
        ]


def test_a_model_index_names_the_parts() -> None:
    index = '{"_class_name": "X", "unet": ["diffusers", "U"], "safety_checker": ["s", "S"], "vae": [null, null]}'
    assert hub.named_parts(index) == {"unet", "clip"}
    assert hub.named_parts("nonsense") == hub.named_parts("[1]") == set()


@pytest.mark.parametrize("half", [False, True])
def test_the_index_is_downloaded_first_and_then_the_files_it_names(
    monkeypatch: pytest.MonkeyPatch, model_folder: Path, half: bool
) -> None:
    files = [file.relative_to(model_folder).as_posix() for file in model_folder.rglob("*") if file.is_file()]
    files += ["unet/diffusion_pytorch_model.fp16.safetensors", "safety_checker/config.json"]
    asked: list[list[str]] = []

    def snapshot_download(location: str, revision: str, allow_patterns: list[str]) -> str:
        assert (location, revision) == ("owner/name", "v1")
        asked.append(allow_patterns)
        return str(model_folder)

    monkeypatch.setattr(hub.HfApi, "list_repo_files", lambda self, location, revision: files)
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert hub.download("a name", origins.Origin("owner/name", "v1"), half)[0] == model_folder
    assert asked[0] == ["model_index.json"]
    assert ("unet/diffusion_pytorch_model.fp16.safetensors" in asked[1]) is half
    assert (UNET_WEIGHTS in asked[1]) is not half
    assert {"clip/model.safetensors", "text_encoder/model.safetensors"} <= set(asked[1])
    assert "safety_checker/config.json" not in asked[1]


def test_a_model_whose_weights_are_float16_files_loads(model_copy: Path, backbone: Backbone) -> None:
    for folder, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        file = model_copy / folder / f"{name}.safetensors"
        file.rename(file.with_name(f"{name}.fp16.safetensors"))
    loaded = load_backbone(str(model_copy), "cpu")
    for ours, other in zip(loaded.networks, backbone.networks, strict=True):
        for name, weight in ours.state_dict().items():
            assert torch.equal(weight, other.state_dict()[name])


# Choice and identity


def test_the_model_is_chosen_by_argument_then_variable_then_machine(
    monkeypatch: pytest.MonkeyPatch, model_folder: Path
) -> None:
    monkeypatch.delenv("STYLEENGINE_MODEL", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_model() == "mini"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_model() == "sd15"
    monkeypatch.setenv("STYLEENGINE_MODEL", str(model_folder))
    assert default_model() == str(model_folder)
    assert load_backbone(device="cpu", dtype=torch.float32).name == str(model_folder)
    with pytest.raises(StyleEngineError, match="no model “other”"):
        load_backbone("other")


def revision(folder: Path) -> str:
    return loading.folder_revision(folder)


def test_the_revision_follows_the_weights_wherever_they_change(model_copy: Path) -> None:
    before = revision(model_copy)
    file = model_copy / UNET_WEIGHTS
    assert file.stat().st_size > 1 << 17
    weights = load_file(file)
    for name in (min(weights), max(weights)):
        changed = {**weights, name: weights[name] + 1}
        save_file(changed, file, {"format": "pt"})
        assert revision(model_copy) != before
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    seen = revision(model_copy)
    file.write_bytes(content)
    assert revision(model_copy) != seen


def test_the_revision_is_of_the_content_and_not_of_the_place(model_copy: Path, model_folder: Path) -> None:
    assert revision(model_copy) == revision(model_folder)
    (model_copy / "README.md").write_text("A note.")
    assert revision(model_copy) == revision(model_folder)
    (model_copy / "recommended.json").write_text('{"zstar": {"strength": 2.0}}')
    assert revision(model_copy) == revision(model_folder)
    (model_copy / "unet" / "config.json").write_text("{}")
    assert revision(model_copy) != revision(model_folder)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names of the files that are hashed; nothing is cached before, and a change counts as old at once."""
    monkeypatch.setattr(file_hashes, "_known", {})
    monkeypatch.setattr(file_hashes, "FRESH", -1.0)
    monkeypatch.setattr(file_hashes, "store", lambda: tmp_path / "cache" / "file-hashes.json")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))  # pytest's folders are not temporary here
    names, digest = list[str](), hashlib.file_digest

    def noted(content: Any, algorithm: str) -> Any:
        names.append(Path(content.name).name)
        return digest(content, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", noted)
    return names


def forget() -> None:
    """Brings the cache to the state of a new process."""
    file_hashes._known.clear()


def test_a_models_files_are_hashed_only_once(model_copy: Path, hashed: list[str]) -> None:
    first = revision(model_copy)
    assert "diffusion_pytorch_model.safetensors" in hashed
    hashed.clear()
    assert revision(model_copy) == first
    forget()
    assert revision(model_copy) == first
    assert not hashed
    inside = {file.name for file in model_copy.rglob("*")}
    assert "file-hashes.json" not in inside


def test_hashes_of_temporary_models_are_not_saved(
    model_copy: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(model_copy.parent))
    first = revision(model_copy)
    hashed.clear()
    assert revision(model_copy) == first
    assert not hashed  # in memory they are
    assert not file_hashes.store().exists()


def test_a_changed_file_is_hashed_again_though_its_size_and_date_stay(model_copy: Path, hashed: list[str]) -> None:
    file = model_copy / UNET_WEIGHTS
    first, status, content = revision(model_copy), file.stat(), bytearray(file.read_bytes())
    time.sleep(0.02)  # the grain of the file system's clock
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    hashed.clear()
    assert revision(model_copy) != first
    assert hashed == [file.name]


def test_the_hash_of_a_file_that_changed_a_moment_ago_is_not_cached(
    model_copy: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_hashes, "FRESH", 3600.0)
    first = revision(model_copy)
    hashed.clear()
    assert revision(model_copy) == first
    assert "diffusion_pytorch_model.safetensors" in hashed
    assert not file_hashes.store().exists()


@pytest.mark.parametrize("kept", ["{", "[]", '{"a": 3}', '{"a": "zz"}', "", b"\xff"])
def test_a_damaged_file_of_hashes_counts_as_empty(model_copy: Path, hashed: list[str], kept: str | bytes) -> None:
    expected = revision(model_copy)
    forget()
    file_hashes.store().write_bytes(kept.encode() if isinstance(kept, str) else kept)
    assert revision(model_copy) == expected


def test_hashes_that_cannot_be_saved_cause_no_error(
    model_copy: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (model_copy / "file").write_text("in the way")
    monkeypatch.setattr(file_hashes, "store", lambda: model_copy / "file" / "file-hashes.json")
    assert revision(model_copy) == revision(model_copy)


def test_the_number_of_saved_hashes_is_limited(
    model_copy: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_hashes, "MOST_KNOWN", 3)
    revision(model_copy)
    assert len(json.loads(file_hashes.store().read_text())) == 3


# What error messages may contain


def test_errors_do_not_contain_a_models_folder(model_copy: Path) -> None:
    """They are shown to every user of the app."""
    damages: dict[str, Callable[[], object]] = {
        "recommended.json": lambda: (model_copy / "recommended.json").write_text("{"),
        "diffusion_pytorch_model.safetensors": lambda: (model_copy / UNET_WEIGHTS).unlink(),
        "could not be loaded": lambda: shutil.rmtree(model_copy / "vae"),
        "model_index.json": lambda: (model_copy / "model_index.json").unlink(),
    }
    for named, damage in damages.items():
        damage()
        with pytest.raises(StyleEngineError, match=named) as error:
            load_backbone(str(model_copy))
        assert str(model_copy.parent) not in str(error.value)
        (model_copy / "recommended.json").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "Error no file named x.bin found in directory /srv/a b/model/unet.",
            "Error no file named x.bin found in directory unet.",
        ),
        ("/srv/a b/model does not appear to have a file", "model does not appear to have a file"),
        ("cannot read '/home/me/.cache/x.json': gone", "cannot read 'x.json': gone"),
        ("cannot read C:\\Users\\me\\x.json", "cannot read x.json"),
        ("see https://huggingface.co/docs/a and owner/name", "see https://huggingface.co/docs/a and owner/name"),
        ("", "ValueError"),
    ],
)
def test_a_librarys_message_is_passed_on_without_folders(said: str, shown: str) -> None:
    assert loading.reason(ValueError(said), Path("/srv/a b/model")) == shown


def test_the_title_of_a_local_model_is_its_folders_name(backbone: Backbone) -> None:
    assert backbone.title == "random"
    assert model_name("sd15") == "sd15"
    assert model_name("owner/name@main") == "owner/name@main"


def test_the_identity_names_weights_and_precision(backbone: Backbone, model_folder: Path) -> None:
    assert backbone.identity == f"{model_folder}@{revision(model_folder)}/float32"


def test_loading_a_folder_makes_no_network_request(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        pytest.fail("asked the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    assert load_backbone(str(model_folder)).name == str(model_folder)
