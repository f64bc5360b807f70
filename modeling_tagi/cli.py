"""Where `tagi` was before commands/main.py; an installation made before that still starts it here."""

from .commands.main import main, train

__all__ = ["main", "train"]
