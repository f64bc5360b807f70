"""The one handler of all commands: an error becomes one line on standard error, and an exit code.

Nothing here takes long to import: the handler must be in place before torch is.
"""

import errno
import os
import re
import sys
from typing import Callable, Sequence

from .interrupts import INTERRUPTED, Interrupts

TRACEBACK = "TAGI_TRACEBACK"  # set to 1, the environment variable that has every error print where it was raised
USER, BUG, PIPE = 2, 1, 141  # exit codes; the last is a shell's for SIGPIPE

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space, or choose another folder",
    errno.EDQUOT: "the disk's quota is used up; free some space, or choose another folder",
    errno.EROFS: "the file system is read-only; choose a folder on another",
    errno.EACCES: "the permission is missing; choose another place, or change its permissions",
    errno.EPERM: "the permission is missing; choose another place, or change its permissions",
    errno.EEXIST: "there is a file of that name already; choose another",
    errno.ENOTDIR: "a part of that path is a file, not a folder; choose another",
    errno.EISDIR: "that is a folder, but a file was expected",
    errno.ENOTEMPTY: "the folder is not empty; choose another",
    errno.ENAMETOOLONG: "the name is too long for the file system; choose a shorter one",
    errno.ENOENT: "there is no such file or folder",
    errno.EMFILE: "too many files are open; raise the limit with `ulimit -n`",
    errno.EIO: "the disk cannot be read or written",
}
_NO_MEMORY = "there is not enough memory; use a smaller model, smaller batches, or a machine with more"
# PyTorch, safetensors and tokenizers tell of a full disk or memory in errors of their own.
_BY_TEXT = [
    (re.compile(r"can't allocate memory|cannot allocate memory|out of memory|bad_alloc|bad allocation", re.I),
     _NO_MEMORY),
    (re.compile(r"no space left on device|inline_container.*unexpected pos|PytorchStreamWriter failed writing", re.I),
     _REASONS[errno.ENOSPC]),
]  # fmt: skip
_RUST = re.compile(r"\(os error (\d+)\)")


def run_command(name: str, call: Callable[[], int], when_interrupted: str = "interrupted") -> int:
    """Calls a command and returns its exit code; whatever goes wrong becomes one line on standard error.

    The code is what the command returns, `USER` for an error that the user can mend, `BUG` for any other, and what
    shells have for Ctrl-C and for a pipe that nobody reads. SystemExit, which argparse raises, passes through.

    Args:
        name: What the user called, such as `tagi run`; the line begins with it.
        call: Does the work.
        when_interrupted: What the line says after Ctrl-C.
    """
    with Interrupts(f"{name}: {when_interrupted}"):
        try:
            return call()
        except KeyboardInterrupt:
            print(f"\n{name}: {when_interrupted}", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:  # as in `tagi run … | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again at its end
            return PIPE
        except Exception as error:
            if os.environ.get(TRACEBACK, "0") != "0":
                import traceback

                traceback.print_exc()
            text, code = explained(error)
            print(f"{name}: {text}", file=sys.stderr)
            return code


def explained(error: Exception) -> tuple[str, int]:
    """Returns what an error means to the user, in one line, and the exit code: `USER` or `BUG`."""
    for cause in _chain(error):
        reason = _of_the_machine(cause)
        if reason is not None:
            return reason, USER
    text = " ".join(str(error).split())
    if isinstance(error, UnicodeDecodeError):
        return f"a text is not UTF-8 ({text}); convert it, for instance with iconv -f LATIN1 -t UTF-8", USER
    if isinstance(error, UnicodeEncodeError):
        return f"a text cannot be written in {error.encoding} ({text}); take that character out", USER
    if type(error).__name__ == "SafetensorError":  # not imported for that
        return f"a file of weights is damaged ({text}); copy it again, or make it anew", USER
    if isinstance(error, ValueError) and type(error).__name__ == "JSONDecodeError":
        return f"a file is not JSON ({text}); copy it again, or make it anew", USER
    if isinstance(error, (ValueError, OSError, ImportError)) and text:
        return text, USER
    where = "" if os.environ.get(TRACEBACK, "0") != "0" else f"; {TRACEBACK}=1 shows where"
    return f"an error of the program's own, {type(error).__name__}: {text}{where}", BUG


def require_utf8(arguments: Sequence[str]):
    """Refuses arguments that are not UTF-8, which Python hands over with stand-ins that no tokenizer reads.

    Raises:
        ValueError: for the first of them.
    """
    for number, text in enumerate(arguments, 1):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raw = os.fsencode(text) if all(ord(c) < 0xD800 or 0xDC80 <= ord(c) < 0xDD00 for c in text) else text
            raise ValueError(f"argument {number} is not UTF-8: {raw!r}; convert it") from None


def _chain(error: BaseException) -> list[BaseException]:
    """Returns an error and those that caused it."""
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def _of_the_machine(error: BaseException):
    """Returns what the machine lacked or refused, such as disk space; `None` if that was not the cause."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return f"{_NO_MEMORY} ({text})" if text else _NO_MEMORY
    if isinstance(error, OSError) and error.errno in _REASONS and error.strerror == os.strerror(error.errno):
        return f"{error.filename}: {_REASONS[error.errno]}" if error.filename else _REASONS[error.errno]
    if isinstance(error, (ValueError, OSError)):
        return None  # a message of its own, which may well speak of memory
    number = _RUST.search(text)
    if number and int(number[1]) in _REASONS:
        return f"{_REASONS[int(number[1])]} ({text})"
    return next((f"{reason} ({text:.200})" for pattern, reason in _BY_TEXT if pattern.search(text)), None)
