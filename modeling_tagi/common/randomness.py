"""One seed, many streams: every stage of a run, and every purpose within a stage, draws random numbers of its own."""

import hashlib
import random
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(seed: int, *names: str) -> int:
    """Returns the seed of the stream of random numbers that `names` name.

    Streams of different names are unrelated: two stages never see the same draws, and a purpose that is added or
    left out changes no other.

    Args:
        seed: The run's.
        names: The stage, the purpose, and whatever else tells streams apart, such as "finetuning" and "batches".

    Returns:
        A number from 0 to 2³² − 1, which torch and NumPy take as a seed as well.
    """
    text = "\0".join([str(seed), *names])  # a mark between them, so that ("a", "bc") and ("ab", "c") differ
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


@contextmanager
def unchanged_randomness():
    """Restores the state of every random generator after the block."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
