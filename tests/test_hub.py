"""The download of a model, by the hub's client from a hub on this machine: progress, errors, and another try."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import COMMIT, NAME, FakeHub, fake_hub
from huggingface_hub import constants

from styleengine.backbones.hub import configuration, download
from styleengine.backbones.origins import Origin
from styleengine.errors import Cancelled, StyleEngineError

ORIGIN = Origin(NAME, "main")
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub(model_folder: Path, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub with the small random model, and an empty cache."""
    with fake_hub(model_folder, tmp_path / "hub") as served:
        yield served


def test_the_progress_counts_the_bytes_of_all_files_that_are_loaded(hub: FakeHub) -> None:
    events: list[tuple[int, int]] = []
    folder, revision = download(NAME, ORIGIN, on_bytes=lambda *event: events.append(event))
    loaded = {file.relative_to(folder).as_posix(): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    assert revision == COMMIT
    assert loaded.items() <= hub.files.items()
    totals = {total for _, total in events}
    assert totals == {sum(loaded.values())}
    done = [count for count, _ in events]
    assert done == sorted(done)
    assert done[0] == hub.files["model_index.json"]  # which is there first
    assert done[-1] == sum(loaded.values())
    assert len(set(done)) > 20  # in small steps


def test_weights_that_are_pickled_only_are_refused_before_anything_is_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    hub.folder = shutil.copytree(hub.folder, tmp_path / "pickled")
    for file in hub.folder.rglob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(StyleEngineError, match=r"only as pickled files.*convert it once.*save_pretrained\(FOLDER\)"):
        download(NAME, ORIGIN)
    assert set(hub.sent) <= {"model_index.json"}


def test_a_model_that_is_here_is_complete_at_once(hub: FakeHub) -> None:
    events: list[tuple[int, int]] = []
    download(NAME, ORIGIN)
    hub.sent.clear()
    download(NAME, ORIGIN, on_bytes=lambda *event: events.append(event))
    assert {done / total for done, total in events} == {1}
    assert not hub.sent


def test_an_exception_in_the_callback_ends_the_download_and_another_try_takes_what_is_complete(hub: FakeHub) -> None:
    config = Path(constants.HF_HUB_CACHE, "models--owner--name", "snapshots", COMMIT, "unet", "config.json")

    def cancel(done: int, total: int) -> None:
        if config.exists() and done > total // 4:
            raise Cancelled

    hub.open.clear()
    with pytest.raises(Cancelled):
        download(NAME, ORIGIN, on_bytes=cancel)
    hub.open.set()
    assert UNET in hub.sent
    hub.sent.clear()
    events: list[tuple[int, int]] = []
    download(NAME, ORIGIN, on_bytes=lambda *event: events.append(event))
    assert UNET in hub.sent
    assert "unet/config.json" not in hub.sent
    assert 0 < events[0][0] < events[-1][0] == events[-1][1]


def test_a_download_that_breaks_off_is_told_in_a_sentence(hub: FakeHub) -> None:
    hub.status = 500
    with pytest.raises(StyleEngineError, match="The download of the model “owner/name” broke off"):
        download(NAME, ORIGIN, on_bytes=lambda *_: None)
    with pytest.raises(StyleEngineError, match="broke off"):
        download(NAME, ORIGIN)
    hub.status = 200
    assert (download(NAME, ORIGIN)[0] / "unet").is_dir()


def test_a_full_disk_is_told_in_a_sentence(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def full(done: int, total: int) -> None:
        monkeypatch.setattr("huggingface_hub.file_download._chmod_and_move", fail)

    with pytest.raises(StyleEngineError, match="no room on the disk"):
        download(NAME, ORIGIN, on_bytes=full)


def test_without_a_connection_the_model_is_loaded_from_this_machine_or_the_reason_is_given(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused connection is no OSError in the hub's client."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    with fake_hub(model_folder, tmp_path) as served:
        folder, _ = download(NAME, ORIGIN)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
            assert download(NAME, ORIGIN) == (folder, COMMIT)
            with pytest.raises(StyleEngineError, match="hub cannot be reached"):
                download("owner/other", Origin("owner/other"))
        assert served.sent


def test_configurations_are_downloaded_without_weights(hub: FakeHub) -> None:
    folder = configuration(NAME, ORIGIN)
    assert (folder / "unet" / "config.json").is_file()
    assert set(hub.sent) <= {"model_index.json", "recommended.json", "unet/config.json"}
