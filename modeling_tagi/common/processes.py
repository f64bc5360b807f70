"""The processes of one run, as accelerate or torchrun started them: which one writes, what is shared and gathered."""

from datetime import timedelta
from typing import Any, Callable, Sequence

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

_PATIENCE = timedelta(hours=6)  # that one waits for the others: while a teacher's cache is filled, or a model pushed


def processes() -> PartialState:
    """accelerate's own account of them; alone, a process is all there is."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)


def is_main() -> bool:
    """Whether this is the process that writes, prints and pushes."""
    return processes().is_main_process


def wait():
    """Until every process is here."""
    processes().wait_for_everyone()


def say(text: str):
    """Prints once, however many processes there are."""
    if is_main():
        print(text, flush=True)


def from_main(make: Callable[[], Any]) -> Any:
    """What `make` gives in the main process, in all of them; it is not called in the others."""
    if processes().num_processes == 1:
        return make()
    return broadcast_object_list([make() if is_main() else None])[0]


def own_share(items: Sequence) -> list:
    """Every how-many-th of `items`: each is one process's alone."""
    return list(items[processes().process_index:: processes().num_processes])


def gathered(items: list) -> list:
    """The lists of all processes as one, in all of them."""
    return gather_object(items) if processes().num_processes > 1 else items


def end():
    """Leaves the others in good order, when all are done."""
    wait()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
