"""What a program prints: progress bars, and nothing of libraries; and what a figure was measured with."""

import importlib.metadata
import platform
import sys
import warnings

import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from .processes import is_main


def quiet_libraries():
    """Silences what libraries print on their own, such as progress bars for loading files and deprecation warnings."""
    logging.disable_progress_bar()
    # silences a note that checkpoints are sorted by number if the file system keeps no times
    logging.get_logger("transformers.trainer_utils").setLevel(logging.ERROR)
    # the one message that refuses a file says what is wrong with it
    logging.get_logger("transformers.modeling_utils").addFilter(_is_no_load_report)
    logging.get_logger("datasets.packaged_modules.parquet.parquet").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", category=FutureWarning)


def _is_no_load_report(record) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def progress_bar(*args, **kwargs) -> tqdm:
    """Returns a progress bar that the main process shows; it updates seldom in a file, where each update is a line."""
    kwargs["disable"] = kwargs.get("disable", False) or not is_main()
    return tqdm(*args, **{"dynamic_ncols": True, "leave": False, "mininterval": 0.2 if sys.stderr.isatty() else 30,
                          **kwargs})  # fmt: skip


def circumstances(command: str, seed: int) -> dict:
    """Returns what a figure was made with: command, seed, versions, threads and device."""
    return {
        "command": command,
        "seed": seed,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")},
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
