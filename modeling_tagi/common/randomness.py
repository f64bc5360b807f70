"""Leaves the state of random generators as it was."""

import random
from contextlib import contextmanager

import numpy as np
import torch


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
