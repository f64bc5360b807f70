"""All cases in order, and how one of them is run and judged."""

import gc
import importlib
import pkgutil
import re
import shutil
import time
import traceback
from pathlib import Path

import mounts
import python_adapters
import python_calls
import shell_checkpoints
import shell_data
import shell_disks
import shell_more
import shell_runs
import shell_settings
import shell_studies
from case import Case, Place
from judged import tree, verdict

SHELL = [
    *shell_settings.CASES, *shell_checkpoints.CASES, *shell_data.CASES, *shell_disks.DISKS, *shell_runs.TASK_NAMES,
    *shell_runs.CUT_OFF, *shell_runs.RUN_FOLDERS, *shell_runs.OUTPUTS, *shell_studies.STUDIES, *shell_settings.MORE,
    *shell_studies.REST, shell_checkpoints.MALICIOUS, *shell_studies.TEXT_AND_SIGNALS, *shell_data.SNI,
    *shell_data.TRAIN, *shell_studies.MODULES,
    shell_runs.TRAVERSAL, *shell_checkpoints.PLAN_LIKE_TRAIN, shell_studies.LATE,
]  # fmt: skip
PYTHON = [*python_calls.FIRST, *python_adapters.CASES, *python_calls.LAST]
CASES = [*SHELL, *PYTHON, *shell_studies.AT_ONCE, *shell_more.CASES]


def import_everything():
    """Imports once what every command would import, so that its children need not."""
    import torch

    torch.set_num_threads(1)
    import modeling_tagi

    for found in pkgutil.walk_packages(modeling_tagi.__path__, "modeling_tagi."):
        if found.name.endswith("__main__") or ".modules." in found.name:
            continue
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as missing:  # what an extra brings, such as vllm
            if missing.name.split(".")[0] == "modeling_tagi":
                raise
    for name in ("matplotlib.figure", "peft", "pyarrow.parquet", "transformers.models.t5.modeling_t5"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # children need not look at the modules when they collect garbage


def judge(case: Case, world, folder: Path) -> tuple[str, str, float]:
    """Runs a case in a new folder.

    Returns:
        The verdict, what happened and the seconds it took.
    """
    slug = re.sub(r"\W+", "-", case.name)[:50].strip("-")
    root, logs = folder / "cases" / f"{case.where}-{slug}", folder / "logs"
    logs.mkdir(exist_ok=True)
    _remove(root)
    place, began = Place(world, root, logs), time.monotonic()
    try:
        if case.make:
            case.make(place)
        before = {**tree(world.folder), **tree(root)}
        outcome = case.act(place)
        after = {**tree(world.folder), **tree(root)}
        found, happened = verdict(case, place, outcome, before, after)
    except Exception:  # of the script, not of the command
        found, happened = "no verdict", traceback.format_exc().replace("\n", " ")[-600:]
    seconds = time.monotonic() - began
    _remove(root)
    return found, happened, seconds


def _remove(root: Path):
    mounts.unmount(root / "outer" / "here" / "mnt")
    shutil.rmtree(root, ignore_errors=True)
