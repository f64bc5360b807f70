"""File systems that are full or cannot be written to, in a name space of this process's own."""

import ctypes
import os
from pathlib import Path

_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000
_PRIVATE, _REMOUNT, _READ_ONLY = (1 << 18) | (1 << 14), 1 << 5, 1
_libc = ctypes.CDLL(None, use_errno=True)
_may = False


def enter() -> bool:
    """Takes this process, which must have one thread, to a name space of its own; says whether that was allowed."""
    global _may
    user, group = os.getuid(), os.getgid()
    if _libc.unshare(_NEW_MOUNTS) != 0:
        if _libc.unshare(_NEW_MOUNTS | _NEW_USER) != 0:
            return False
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _may = _libc.mount(b"none", b"/", None, _PRIVATE, None) == 0
    return _may


def possible() -> bool:
    return _may


def mount(folder: Path, kilobytes: int, again: bool = False):
    """A file system of this size at `folder`; `again` gives one that is there another size."""
    folder.mkdir(exist_ok=True)
    _call(b"tmpfs", folder, _REMOUNT if again else 0, f"size={kilobytes}k".encode())


def make_read_only(folder: Path):
    """What is mounted at `folder` can only be read from now on."""
    _call(b"tmpfs", folder, _REMOUNT | _READ_ONLY, None)


def unmount(folder: Path):
    _libc.umount2(bytes(folder), 2)


def _call(kind: bytes, folder: Path, flags: int, data):
    if _libc.mount(kind, bytes(folder), kind, flags, data) != 0:
        raise OSError(ctypes.get_errno(), f"cannot mount {folder}")
