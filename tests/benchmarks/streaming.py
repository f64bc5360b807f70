"""How much memory does a training split of 10,000 to 1,000,000 records need: read whole, and read as a stream?

    python tests/benchmarks/streaming.py [--records 10000 100000 1000000] [--batches 200]

The records are made on the fly and written to a file of JSON lines in a temporary folder (about 0.4 GB for a million).
Each case reads it as a run does, with the check for leaks, and draws batches of 8 tasks with 4 examples each.
"""

import random
import tempfile
import time
from pathlib import Path

from harness import Ratio, finish, parser, peak_memory, started

from modeling_tagi.data.records import Record
from modeling_tagi.data.sampling import StreamBatchSampler, TaskBatchSampler
from modeling_tagi.data.sources import read_source
from modeling_tagi.data.streams import RecordStream
from modeling_tagi.data.tables import write_table

QUESTION = "What is the peak memory of a split of the most records by that of the fewest, read as a stream?"
TASKS = 500
MIB = 2**20


def main():
    made = parser(__doc__, repeats=1)
    made.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="ascending")
    made.add_argument("--whole", type=int, default=100_000, help="most records that are read whole too")
    made.add_argument("--batches", type=int, default=200)
    made.add_argument("--buffer", type=int, default=16, help="records of each of the 500 instructions that are kept")
    options = started(made, quick={"records": [10_000, 100_000], "whole": 10_000})
    cases = {}
    with tempfile.TemporaryDirectory() as folder:
        write_table(records(100, "evaluated"), Path(folder) / "unseen.jsonl")
        for number in options.records:
            write_table(records(number, "trained"), Path(folder) / "train.jsonl")
            megabytes = (Path(folder) / "train.jsonl").stat().st_size / MIB
            for streaming in (False, True):
                if streaming or number <= options.whole:
                    start = time.perf_counter()
                    peak = peak_memory(lambda: draw(folder, streaming, options), warm=False) / MIB
                    name = f"{'stream' if streaming else 'whole'} {number}"
                    cases[name] = {"peak_mib": round(peak, 1), "seconds": round(time.perf_counter() - start, 1),
                                   "file_mib": round(megabytes, 1)}  # fmt: skip
                    print(f"{name:16} {peak:8.1f} MiB {cases[name]['seconds']:8.1f} s, file {megabytes:8.1f} MiB",
                          flush=True)  # fmt: skip
    first, last = (cases[f"stream {n}"]["peak_mib"] for n in (options.records[0], options.records[-1]))
    most = max((n for n in options.records if n <= options.whole), default=None)
    ratios = [Ratio(f"stream, {options.records[-1]} by {options.records[0]} records", last / first, at_most=1.1)]
    if most is not None:
        by = cases[f"stream {most}"]["peak_mib"] / cases[f"whole {most}"]["peak_mib"]
        ratios.append(Ratio(f"{most} records, stream by whole", by))
    finish(QUESTION, ratios, options, cases=cases)


def records(number: int, kind: str):
    """Records of many tasks in turn, an input of 40 words each."""
    rng = random.Random(kind)
    for place in range(number):
        words = " ".join(f"{rng.getrandbits(24):x}" for _ in range(40))
        task = f"{kind} {place % TASKS}"
        yield Record(task, f"Do what the {task} asks for.", f"{place} {words}", (words[:12],))


def draw(folder: str, streaming: bool, options):
    train = read_source("tables", folder, streaming=streaming, buffer=options.buffer)[0]["train"]
    sampler = StreamBatchSampler if isinstance(train, RecordStream) else TaskBatchSampler
    for batch in sampler(train, 8, 4, steps=options.batches):
        assert len(batch) == 32


if __name__ == "__main__":
    main()
