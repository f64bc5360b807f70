"""Checkpoints and adapters for the commands that use them."""

import sys


def announce(text: str):
    """Says at a terminal what comes next, before it is imported, which takes seconds; in a file it would be noise."""
    if sys.stderr.isatty():
        print(f"{text} …", file=sys.stderr, flush=True)


def load_model(checkpoint: str):
    """Returns it in eval mode, on the GPU if there is one."""
    announce(f"loading {checkpoint}")
    import torch

    from ..common.console import quiet_libraries
    from ..modeling_tagi import TagiModel

    quiet_libraries()
    return TagiModel.from_pretrained(checkpoint).eval().to("cuda" if torch.cuda.is_available() else "cpu")


def load_adapter(folder: str):
    """Returns what `tagi generate` wrote, or another plain LoRA of PEFT's."""
    announce(f"loading {folder}")
    from ..adapter import TagiAdapter

    return TagiAdapter.from_pretrained(folder)
