"""A bank of 10,000 task adapters: its index, and the adapters of a batch against loading all of them.

    python tests/benchmarks/bank.py [--quick] [--adapters 10000] [--batch 32] [--threads 2]

The adapters are tiny, so that the bank can be made in minutes; what is measured is what grows with their number.
"""

import json
import random
import tempfile
import time
from pathlib import Path
from statistics import median

from harness import Ratio, finish, measured, parser, peak_memory, started
from shapes import random_adapters, tagi

from modeling_tagi.banks.adapter_bank import AdapterBank
from modeling_tagi.banks.index import BankIndex
from modeling_tagi.banks.stored import StoredAdapters
from modeling_tagi.common.console import progress_bar

QUESTION = "memory of reading the adapters of a batch from disk, against loading the whole bank"
AT_ONCE = 50  # adapters that are added together


def main():
    made = parser(__doc__)
    made.add_argument("--adapters", type=int, default=10_000)
    made.add_argument("--batch", type=int, default=32, help="adapters of a batch")
    options = started(made, quick={"adapters": 200, "batch": 4, "repeats": 3})
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), options)


def compare(folder: Path, options):
    """Makes a bank in `folder`, and measures."""
    names = [f"task {number}" for number in range(options.adapters)]
    adding = fill(folder, names)
    bank, draw = AdapterBank(folder), random.Random(0)
    warm, grown, entry = StoredAdapters(bank), BankIndex(folder), {names[-1]: {"folder": "task"}}

    def batch(stored):
        return stored[draw.sample(range(len(names)), options.batch)]

    times = measured({
        "open": lambda: AdapterBank(folder),
        "batch": lambda: batch(StoredAdapters(bank)),
        "batch, last ones kept": lambda: batch(warm),
        "add to the index": lambda: grown.add(entry),
        "write the index anew": lambda: (folder / "copy.json").write_text(json.dumps({"adapters": grown}, indent=2)),
    }, options)  # fmt: skip
    start = time.perf_counter()
    bank.load()
    times["all"] = [time.perf_counter() - start]
    memory = {"batch": peak_memory(lambda: batch(StoredAdapters(bank))), "all": peak_memory(bank.load)}
    tenth = max(1, len(adding) // 10)
    finish(QUESTION, [
        # a forked process's own pages are some MiB, which a quick run's small bank is too
        Ratio("memory: a batch / all", memory["batch"] / memory["all"], at_most=None if options.quick else 0.1),
        Ratio("time: a batch / all, read once", median(times["batch"]) / times["all"][0],
              at_most=2 * options.batch / len(names)),
        Ratio.of("one adapter more: in the index / the index anew", times["add to the index"],
                 times["write the index anew"], at_most=None if options.quick else 0.5),
        Ratio("adding: the last tenth of the bank / the first", median(adding[-tenth:]) / median(adding[:tenth]),
              at_most=1.5),
    ], options, milliseconds={name: round(1000 * median(values), 2) for name, values in times.items()},
       mebibytes={name: round(value / 2**20, 1) for name, value in memory.items()},
       milliseconds_to_add_one=round(1000 * median(adding), 2))  # fmt: skip


def fill(folder: Path, names: list[str]) -> list[float]:
    """Puts adapters of these names into a new bank; seconds for each one, batch by batch."""
    model = tagi("tiny-t5", r=4, fusion="none")
    adapters = random_adapters(model, AT_ONCE).described({"backbone": None}, model.peft_config())
    bank, seconds = AdapterBank(folder), []
    for start in progress_bar(range(0, len(names), AT_ONCE), desc="making the bank", unit="batch"):
        some, begun = names[start: start + AT_ONCE], time.perf_counter()
        bank.add(some, adapters)
        seconds.append((time.perf_counter() - begun) / len(some))
    return seconds


if __name__ == "__main__":
    main()
