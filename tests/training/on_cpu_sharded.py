"""train.py with sharded weights on a CPU. There accelerate shards none, and is told that its processes are on an
accelerator; everything after that is its own."""

import os
import runpy
import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import DistributedType

made = PartialState.__init__


def made_as_on_an_accelerator(state, *args, **kwargs):
    made(state, *args, **kwargs)
    state.distributed_type = DistributedType.MULTI_GPU


if __name__ == "__main__":
    PartialState.__init__ = made_as_on_an_accelerator
    sys.argv[0] = str(Path(__file__).parents[2] / "train.py")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    runpy.run_path(sys.argv[0], run_name="__main__")
