"""The processes of one run, as accelerate or torchrun started them: which one writes, and how they exchange data."""

from datetime import timedelta
from typing import Any, Callable, Sequence

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

_PATIENCE = timedelta(hours=6)  # of one process for the others: a teacher's cache takes long to fill, a model to push


def processes() -> PartialState:
    """Returns accelerate's account of them; a lone process is one of one."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)


def is_main() -> bool:
    """Tells whether this is the process that writes, prints and pushes."""
    return processes().is_main_process


def wait():
    """Waits until every process is here."""
    processes().wait_for_everyone()


def say(text: str):
    """Prints once, however many processes there are."""
    if is_main():
        print(text, flush=True)


def from_main(make: Callable[[], Any]) -> Any:
    """Returns in every process what `make` returns in the main one; it is called there alone."""
    if processes().num_processes == 1:
        return make()
    return broadcast_object_list([make() if is_main() else None])[0]


def of_this_process(items: Sequence) -> list:
    """Returns this process's part of the items; with n processes, every n-th of them."""
    return list(items[processes().process_index:: processes().num_processes])


def gathered(items: list) -> list:
    """Returns in every process the lists of all of them as one."""
    return gather_object(items) if processes().num_processes > 1 else items


def end():
    """Ends the group of processes in good order, when all are done."""
    wait()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
