"""The processes of one run, as accelerate or torchrun started them: which one writes, and how they exchange data."""

from datetime import timedelta
from typing import Any, Callable, Sequence

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

_PATIENCE = timedelta(hours=6)  # how long a process waits for others, such as for the main one to push a model


def processes() -> PartialState:
    """Returns accelerate's state of the run's processes, which may be a single one."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)


def is_main() -> bool:
    """Tells whether this is the process that writes, prints and pushes."""
    return processes().is_main_process


def wait():
    """Waits until every process has called this."""
    processes().wait_for_everyone()


def say(text: str):
    """Prints once, however many processes there are."""
    if is_main():
        print(text, flush=True)


def from_main(make: Callable[[], Any]) -> Any:
    """Calls `make` in the main process alone, and returns its result in every process."""
    if processes().num_processes == 1:
        return make()
    return broadcast_object_list([make() if is_main() else None])[0]


def of_this_process(items: Sequence) -> list:
    """Returns this process's part of the items; with n processes, every n-th of them."""
    return list(items[processes().process_index:: processes().num_processes])


def gathered(items: list) -> list:
    """Returns the concatenated lists of all processes, in every process."""
    return gather_object(items) if processes().num_processes > 1 else items


def end():
    """Waits for all processes, then shuts down their process group."""
    wait()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
