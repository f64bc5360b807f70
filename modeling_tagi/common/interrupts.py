"""Ctrl-C for commands. It is in place before anything else, so this file imports next to nothing."""

import os
import signal

INTERRUPTED = 130  # the exit code, a shell's for SIGINT


class Interrupts:
    """Lets Ctrl-C end the process at once while a module is imported: libraries in C can swallow a KeyboardInterrupt.

    Elsewhere Ctrl-C raises KeyboardInterrupt as always; a second one ends the process at once. Where someone else has
    a handler, or in another thread than the main one, nothing changes.

    Args:
        line: What is said when the process ends at once.
    """

    def __init__(self, line: str):
        self.line, self.came, self.before = line, False, None

    def __enter__(self):
        before = signal.getsignal(signal.SIGINT)
        if before is signal.default_int_handler or isinstance(getattr(before, "__self__", None), Interrupts):
            try:
                signal.signal(signal.SIGINT, self._interrupt)
                self.before = before
            except ValueError:  # not in the main thread
                pass

    def __exit__(self, *error):
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def _interrupt(self, number, frame):
        if self.came or _imports(frame):
            os.write(2, f"\n{self.line}\n".encode())
            os._exit(INTERRUPTED)
        self.came = True
        raise KeyboardInterrupt


def _imports(frame) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
