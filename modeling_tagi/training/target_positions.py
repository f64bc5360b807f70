"""An output head that computes logits where they are needed alone."""

from collections.abc import Iterable
from contextlib import contextmanager

from torch import Tensor, nn


def is_adapted(head: nn.Module, backbone: nn.Module, targets: Iterable[str]) -> bool:
    """Tells whether adapters of the modules `targets`, by path, change the head: it then works on whole rows, each
    with its own update."""
    return any(backbone.get_submodule(path) is head for path in targets)


@contextmanager
def reading_at(head: nn.Module, places: Tensor):
    """Makes an output head compute logits `[tokens, vocab]` at some `places [batch, seq]` alone.

    A causal model's logits for a whole prompt would be by far the largest tensor of a step.
    """
    handle = head.register_forward_pre_hook(lambda module, args: (args[0][places], *args[1:]))
    try:
        yield
    finally:
        handle.remove()
