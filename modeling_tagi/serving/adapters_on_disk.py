"""Adapters of instructions in a folder that servers share: each is written once, and found again after a restart."""

import hashlib
import json
import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, Optional, Union

from filelock import FileLock
from huggingface_hub import cached_assets_path

from ..adapter import TagiAdapter
from ..adapter_files import CONFIG_FILE, PROVENANCE_FILE
from ..common.writing import replacing
from ..modeling_tagi import TagiModel
from ..tokens import instruction_text
from .generator_mark import generator_mark

_LEFT_OVER = 3600.0  # seconds after which what a killed process was writing is thrown away
_TRIES = 5


class AdaptersOnDisk:
    """Keeps the adapters of one generator in a folder, each a PEFT folder named by what it was made of.

    Threads and processes may share the folder. An adapter appears in one move, so nobody sees half of it, and only
    one of those that ask for it at once computes it. Where all together are larger than `max_bytes`, those that were
    used the longest ago leave.

    Args:
        folder: Where they are kept, in a folder for each generator; made if there is none. The bound is on it all.
        generate: Writes the adapter of an instruction. It is called in the thread that asks.
        generator: The mark of who writes them, `generator_mark`'s.
        max_bytes: What the folder may grow to; `None` is without a bound.
        spared_seconds: Adapters that were used so recently do not leave, since someone may be about to read them.
    """

    def __init__(
        self,
        folder: Union[str, os.PathLike],
        generate: Callable[[str], TagiAdapter],
        generator: str,
        max_bytes: Optional[int] = None,
        spared_seconds: float = 60.0,
    ):
        self.root, self.generator = Path(folder), generator
        self.folder = self.root / generator
        self.max_bytes, self.spared_seconds = max_bytes, spared_seconds
        self._generate = generate
        self.folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def of(
        cls, model: TagiModel, folder: Union[str, os.PathLike], max_bytes: Optional[int] = None
    ) -> "AdaptersOnDisk":
        """Returns the adapters that a model writes, kept in `folder`."""
        return cls(folder, model.generate_adapter, generator_mark(model), max_bytes)

    def id_of(self, instruction: str) -> str:
        """Returns the name of an instruction's adapter, 64 hex digits: of the generator and the instruction's text.

        Raises:
            ValueError: if the instruction is empty or not Unicode.
        """
        return hashlib.sha256(f"{self.generator}\n{instruction_text(instruction)}".encode()).hexdigest()

    def folder_for(self, instruction: str) -> Path:
        """Returns the PEFT folder of an instruction's adapter, which is computed and written if it is not there.

        Raises:
            ValueError: as `generate_adapter`, for an instruction that it cannot read; nothing is written then.
            OSError: if it cannot be written.
        """
        name = self.id_of(instruction)
        folder = self.folder / name
        if _used(folder):
            return folder
        with self._alone(name):
            if not _used(folder):  # another may have written it meanwhile
                adapter = self._generate(instruction_text(instruction))
                with replacing(folder) as beside:
                    adapter.save_pretrained(beside)
                self._shrink(keep=folder)
        return folder

    def load(self, instruction: str) -> TagiAdapter:
        """Returns an instruction's adapter, read from its folder; one whose files are damaged is computed anew.

        Raises:
            ValueError, OSError: as `folder_for`.
        """
        for tried in range(_TRIES):
            folder = self.folder_for(instruction)
            try:
                return TagiAdapter.from_pretrained(folder)
            except FileNotFoundError:  # it left at this moment
                if tried == _TRIES - 1:
                    raise
            except ValueError:
                _remove(folder)
        return self._generate(instruction_text(instruction))  # a disk that keeps nothing

    def find(self, name: str) -> Optional[Path]:
        """Returns the folder of the adapter with an id, which is then one just used; `None` if there is none."""
        folder = self.folder / name
        return folder if is_id(name) and _used(folder) else None

    def instruction_of(self, name: str) -> Optional[str]:
        """Returns the instruction that an adapter was made of; `None` if there is no such adapter."""
        try:
            described = json.loads((self.folder / name / PROVENANCE_FILE).read_text(encoding="utf-8"))
            return described["provenance"]["instruction"] if is_id(name) else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def ids(self) -> list[str]:
        """Returns the ids of all adapters of this generator, the one used last first."""
        found = [(used, folder.name) for used, folder in self._kept() if folder.parent == self.folder]
        return [name for _, name in sorted(found, reverse=True)]

    def nbytes(self) -> int:
        """Returns the bytes of all adapters in the folder, those of other generators among them."""
        return sum(_bytes_of(folder) for _, folder in self._kept())

    def _kept(self) -> list[tuple[float, Path]]:
        """Returns when each adapter was used last, and its folder."""
        found = []
        for folder in self.root.glob("*/*"):
            try:
                if is_id(folder.name):
                    found.append((folder.stat().st_mtime, folder))
            except FileNotFoundError:
                pass
        return found

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Keeps others from computing the same adapter during the block; the system releases a killed one's lock."""
        lock = FileLock(self.folder / f".lock-{name[:2]}", thread_local=False)
        try:
            lock.acquire()
        except NotImplementedError:  # a file system that knows no locks: two may compute the same
            pass
        try:
            yield
        finally:
            lock.release()

    def _shrink(self, keep: Path):
        """Removes adapters, those used the longest ago first, until the folder is within its bound."""
        now = time.time()
        for folder in self.root.glob("*/.*-*"):  # what killed processes were writing or removing
            if folder.is_dir() and now - _changed(folder, now) > _LEFT_OVER:
                shutil.rmtree(folder, ignore_errors=True)
        if self.max_bytes is None:
            return
        kept = sorted((used, folder, _bytes_of(folder)) for used, folder in self._kept())
        total = sum(size for _, _, size in kept)
        for used, folder, size in kept:
            if total <= self.max_bytes:
                return
            if folder != keep and now - _changed(folder, now) >= self.spared_seconds:
                _remove(folder)
                total -= size


def adapters_folder(folder: Union[str, os.PathLike, None] = None) -> Path:
    """Returns the folder that adapters are kept in; by default one in the cache of `huggingface_hub` for assets."""
    return Path(folder).expanduser() if folder else cached_assets_path("modeling-tagi", namespace="adapters")


def is_id(name: str) -> bool:
    """Tells whether a name is an adapter's id, and so no path out of the folder."""
    return len(name) == 64 and set(name) <= set("0123456789abcdef")


def _used(folder: Path) -> bool:
    """Notes that an adapter is used now; returns whether there is one."""
    try:
        os.utime(folder)
        return (folder / CONFIG_FILE).is_file()
    except FileNotFoundError:
        return False


def _changed(folder: Path, otherwise: float) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return otherwise


def _bytes_of(folder: Path) -> int:
    try:
        return sum(entry.stat().st_size for entry in os.scandir(folder))
    except FileNotFoundError:
        return 0


def _remove(folder: Path):
    """Removes an adapter in one move, so that nobody reads half of it."""
    gone = folder.with_name(f".gone-{folder.name}-{os.getpid()}-{time.monotonic_ns()}")
    try:
        os.replace(folder, gone)
    except FileNotFoundError:  # another did
        return
    shutil.rmtree(gone, ignore_errors=True)
