"""Work folders of unfinished clips on ZeroGPU, kept until the same run is started again.

They contain frames of users' clips. So only their owner can open the folder, and they are deleted after a while.
"""

import os
import re
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from styleengine.disk_cache import check_private, chosen_folder
from styleengine.file_hashes import store

MOST_CLIPS = 5
MOST_BYTES = 8 << 30
MOST_SECONDS = 24 * 3600.0
KEPT = re.compile("[0-9a-f]{64}")
IN_USE = "run-"  # how the names of the folders of current runs begin


@dataclass(frozen=True)
class KeptClips:
    """Kept work folders, by the SHA-256 of their runs: the latest five, of at most 8 GiB, for a day.

    Without a `folder`, or if it cannot be used, nothing is kept, and no method raises an error for it.
    """

    folder: Path | None

    @classmethod
    def usual(cls) -> Self:
        """Those beside the cache of inversions: in $STYLEENGINE_DISK_CACHE, else in the user's cache folder."""
        folder = chosen_folder(store().parent)
        return cls(folder and folder / "styleengine-clips")

    def take(self, run: str) -> Path:
        """The work folder that is kept for the run, or a new one. It is the caller's, who keeps or deletes it."""
        with suppress(OSError):
            if self.folder:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                check_private(self.folder)
                self.sweep()
                work = tempfile.mkdtemp(prefix=IN_USE, dir=self.folder)
                with suppress(OSError):  # none is kept, or another run has just taken it
                    os.rename(self.folder / run, work)
                    os.utime(work)
                return Path(work)
        return Path(tempfile.mkdtemp(prefix="styleengine-clip-"))

    def keep(self, run: str, work: Path) -> bool:
        """Keeps a folder that `take` gave; False if it is not kept, since there is no place or it is too large."""
        if not self.folder or work.parent != self.folder:
            return False
        kept = self.folder / run
        with suppress(OSError):
            shutil.rmtree(kept, ignore_errors=True)
            os.rename(work, kept)
            os.utime(kept)
            self.sweep()
        return kept.is_dir()

    def sweep(self) -> None:
        """Deletes folders that are too old, also those of runs that were killed, then the oldest beyond the limits."""
        with suppress(OSError):
            now, count, total = time.time(), 0, 0
            for age, path in sorted((now - path.stat().st_mtime, path) for path in self._folders()):
                kept = KEPT.fullmatch(path.name) is not None
                count, total = count + kept, total + (_bytes(path) if kept else 0)
                if age > MOST_SECONDS or (kept and (count > MOST_CLIPS or total > MOST_BYTES)):
                    shutil.rmtree(path, ignore_errors=True)

    def _folders(self) -> list[Path]:
        if not self.folder:
            return []
        check_private(self.folder)
        return [path for path in self.folder.iterdir() if KEPT.fullmatch(path.name) or path.name.startswith(IN_USE)]


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))
