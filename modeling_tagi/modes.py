"""A model put into another mode for a while, by as many threads at once as want it."""

import threading
from contextlib import contextmanager
from typing import Callable, Iterator
from weakref import WeakKeyDictionary

from torch import nn

_LOCK = threading.Lock()
_HELD: "WeakKeyDictionary[nn.Module, dict]" = WeakKeyDictionary()  # model -> change -> [who holds it, its undoing]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turns dropout off inside the block; every module's mode is as it was after the last thread's block."""
    with _held(model, _to_eval):
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Keeps gradients from the model's weights, and dropout off, inside the block; all is as it was after the last
    thread's block."""
    with _held(model, _to_eval), _held(model, _without_gradients):
        yield


@contextmanager
def keeping_caches(model: nn.Module) -> Iterator[None]:
    """Puts gradient checkpointing aside inside the block, for calls without gradients: nothing is recomputed then, but
    layers would lose their key-value caches; all is as it was after the last thread's block."""
    with _held(model, _without_checkpointing):
        yield


@contextmanager
def _held(model: nn.Module, change: Callable[[nn.Module], Callable[[], None]]) -> Iterator[None]:
    """Changes the model if no other block has done so, and undoes it unless another still needs it."""
    with _LOCK:
        changes = _HELD.setdefault(model, {})
        if change not in changes:
            changes[change] = [0, change(model)]
        changes[change][0] += 1
    try:
        yield
    finally:
        with _LOCK:
            changes[change][0] -= 1
            if not changes[change][0]:
                changes.pop(change)[1]()


def _to_eval(model: nn.Module) -> Callable[[], None]:
    training = {module for module in model.modules() if module.training}
    model.eval()

    def undo():  # of what was done inside the block as well, such as a `train()` before an interrupt
        for module in model.modules():
            module.training = module in training

    return undo


def _without_checkpointing(model: nn.Module) -> Callable[[], None]:
    checkpointed = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    for module in checkpointed:
        module.gradient_checkpointing = False

    def undo():
        for module in checkpointed:
            module.gradient_checkpointing = True

    return undo


def _without_gradients(model: nn.Module) -> Callable[[], None]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)

    def undo():
        for parameter in trained:
            parameter.requires_grad = True

    return undo
