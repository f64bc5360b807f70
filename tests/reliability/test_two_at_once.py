"""Two processes in one folder: nothing is mixed."""

import multiprocessing
from collections import Counter

import torch

from modeling_tagi import TagiAdapter
from modeling_tagi.banks.adapter_bank import AdapterBank
from modeling_tagi.serving.adapters_on_disk import AdaptersOnDisk

FORKED = multiprocessing.get_context("fork")


def numbered(number):
    """An adapter that tells its number in each of its files."""
    made = TagiAdapter({"q": torch.full((1, 2, 3), float(number))}, {"q": torch.ones(1, 4, 2)}, 4.0 * number)
    return made.described({"instruction": str(number)})


def number_of(adapter):
    """What the files of an adapter say; one number, unless they are of several adapters."""
    said = {float(adapter.provenance[0]["instruction"]), adapter.lora_alpha / 4, float(adapter.lora_a["q"].mean())}
    return said.pop() if len(said) == 1 else "mixed"


def run_at_once(*works):
    processes = [FORKED.Process(target=work) for work in works]
    for process in processes:
        process.start()
    yield from iter(lambda: any(process.is_alive() for process in processes), False)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(works)


def test_a_reader_beside_a_writer_reads_one_adapter_or_none(tmp_path):
    def write():
        for number in range(2, 300):
            numbered(number).save_pretrained(tmp_path / "adapter")

    numbered(1).save_pretrained(tmp_path / "adapter")
    seen = Counter()
    for _ in run_at_once(write):
        try:
            seen[number_of(TagiAdapter.from_pretrained(tmp_path / "adapter"))] += 1
        except FileNotFoundError:
            seen["refused"] += 1
    assert seen.total() and not seen["mixed"]
    assert number_of(TagiAdapter.from_pretrained(tmp_path / "adapter")) == 299


def test_two_writers_of_a_bank_add_all_that_each_has(tmp_path):
    def writer(first):
        def write():
            bank = AdapterBank(tmp_path / "bank")
            for number in range(first, 60, 2):
                bank.add([f"task {number}"], numbered(number + 1))
        return write

    for _ in run_at_once(writer(0), writer(1)):
        bank = AdapterBank(tmp_path / "bank")
        assert all(number_of(bank.read(name)) == int(name.split()[1]) + 1 for name in bank.names[-3:])
    assert sorted(AdapterBank(tmp_path / "bank").names) == sorted(f"task {number}" for number in range(60))


def test_two_processes_fill_a_bounded_cache_of_adapters_together(tmp_path):
    def fill():
        cache = AdaptersOnDisk(tmp_path, lambda text: numbered(int(text)), "mark", 100_000, spared_seconds=0.0)
        for number in range(1, 120):
            assert number_of(cache.load(str(number))) == number

    for _ in run_at_once(fill, fill):
        pass
    cache = AdaptersOnDisk(tmp_path, None, "mark")
    assert 0 < cache.nbytes() <= 100_000
    assert all(cache.instruction_of(name) for name in cache.ids())
