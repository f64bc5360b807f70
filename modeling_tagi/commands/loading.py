"""Loads checkpoints and adapters for the commands, and tells the user so."""

import sys


def announce(text: str):
    """Prints to a terminal (not to a file) what comes next, before the imports that take seconds."""
    if sys.stderr.isatty():
        print(f"{text} …", file=sys.stderr, flush=True)


def load_model(checkpoint: str):
    """Returns a checkpoint's model in eval mode, on the GPU if there is one."""
    announce(f"loading {checkpoint}")
    import torch

    from ..common.console import quiet_libraries
    from ..modeling_tagi import TagiModel

    quiet_libraries()
    return TagiModel.from_pretrained(checkpoint).eval().to("cuda" if torch.cuda.is_available() else "cpu")


def load_adapter(folder: str):
    """Returns the adapter of a folder that `tagi generate` or PEFT wrote."""
    announce(f"loading {folder}")
    from ..adapter import TagiAdapter

    return TagiAdapter.from_pretrained(folder)
