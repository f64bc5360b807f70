import gzip
import json
import random
from collections import Counter
from functools import partial

import pytest
from accelerate import skip_first_batches
from torch.utils.data import DataLoader

from modeling_tagi.data import streams
from modeling_tagi.data.records import Record
from modeling_tagi.data.sampling import BatchShards, StreamBatchSampler, TaskBatchSampler
from modeling_tagi.data.sources import read_source
from modeling_tagi.data.splits import LeakError
from modeling_tagi.data.streams import RecordStream, number_of, wording_of
from modeling_tagi.data.tables import write_table


def made(count, tasks=5):
    """Records of tasks that lie one after the other, as a file in the order of tasks has them."""
    for number in range(count):
        task = number * tasks // count
        yield Record(f"t{task}", f"do {task}", f"input {number}", (f"output {number}",), f"g{task % 2}")


def drawn(sampler):
    return [[record.input for record in batch] for batch in sampler]


@pytest.fixture
def tables(tmp_path):
    def build(train, unseen=(Record("new", "do something new", "other", ("x",)),), suffix=".jsonl"):
        write_table(train, tmp_path / "train.jsonl")
        write_table(unseen, tmp_path / "unseen.jsonl")
        if suffix == ".parquet":
            from datasets import Dataset

            rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
            Dataset.from_list(rows).to_parquet(str(tmp_path / "train.parquet"))
        elif suffix == ".jsonl.gz":
            (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress((tmp_path / "train.jsonl").read_bytes()))
        if suffix != ".jsonl":
            (tmp_path / "train.jsonl").unlink()
        return str(tmp_path)

    return build


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_a_stream_that_fits_has_the_batches_of_its_list(tables, suffix):
    records = random.Random(0).sample(list(made(60)), 60)
    folder = tables(records, suffix=suffix)
    stream = read_source("tables", folder, streaming=12)[0]["train"]
    assert isinstance(stream, RecordStream) and list(stream.all()) == records
    plain = TaskBatchSampler(read_source("tables", folder)[0]["train"], 3, 4, steps=30, seed=2)
    ours = drawn(StreamBatchSampler(stream, 3, 4, steps=30, seed=2))
    # the same places among a task's records, which a stream keeps in their order
    assert ours == [[records[index].input for index in batch] for batch in plain]


def test_a_stream_keeps_some_records_of_every_task_and_draws_others_as_well():
    stream = RecordStream([partial(made, 1000)], keep=8)
    assert Counter(record.task for record in stream) == dict.fromkeys([f"t{n}" for n in range(5)], 8)
    assert number_of(stream) == 1000 and number_of(list(stream)) == 40
    batches = list(StreamBatchSampler(stream, 3, 4, steps=400, seed=1))
    for batch in batches:
        assert [len({record.task for record in batch[at: at + 4]}) for at in (0, 4, 8)] == [1, 1, 1]
        assert len({record.task for record in batch}) == 3 and len(set(batch)) >= 11
    seen = {record for batch in batches for record in batch}
    assert len(seen) > 500 > len(stream) and {record.task for record in batches[0]} != {"t0"}
    counts = Counter(record.task for batch in batches for record in batch)
    assert all(abs(count / 960 - 1) < 0.15 for count in counts.values())  # as likely one as another


def test_all_of_a_stream_is_read_in_the_steps_that_there_are():
    records = [Record("task", f"wording {place // 400}", f"{place}", ("yes",)) for place in range(800)]
    read = []

    def opened():
        for record in records:
            read.append(record)
            yield record

    stream = RecordStream([opened], keep=4)
    read.clear()
    list(StreamBatchSampler(stream, 1, 2, steps=20))
    assert len(read) == len(records)


def test_draws_from_a_stream_are_of_the_seed_alone_and_can_be_taken_up():
    def sampler(seed=3, steps=40):
        return StreamBatchSampler(RecordStream([partial(made, 500)], keep=4), 2, 4, steps=steps, seed=seed)

    whole, again = sampler(), sampler()
    batches = drawn(whole)
    assert drawn(whole) == drawn(again) == batches != drawn(sampler(seed=4))
    taken_up = skip_first_batches(DataLoader(_Itself(), batch_sampler=sampler(), collate_fn=list), 25)
    assert drawn(taken_up) == batches[25:]


class _Itself:
    def __getitem__(self, record):
        return record


def test_parts_of_a_stream_take_turns_and_an_empty_one_is_passed_over():
    parts = [partial(made, 2, 1), lambda: iter(()), partial(made, 3, 1)]
    fresh = RecordStream(parts).fresh()
    assert [next(fresh).input[-1] for _ in range(7)] == ["0", "0", "1", "1", "0", "2", "1"]


def test_a_leak_is_found_in_records_that_are_not_kept(tables):
    records = list(made(300))
    clean = tables(records)
    assert read_source("tables", clean, streaming=2)[2]["train"]["records"] == 300
    stream = read_source("tables", clean, streaming=2)[0]["train"]
    hidden = next(record for record in records if record not in stream)
    folder = tables(records, unseen=[Record("new", "do something new", hidden.input.upper(), ("x",))])
    with pytest.raises(LeakError, match="unseen: 1 instance"):
        read_source("tables", folder, streaming=2)


def test_fewer_tasks_of_a_stream_are_those_of_the_list(tables):
    folder = tables(made(100))
    plain = read_source("tables", folder, train_tasks=3, seed=1)[0]["train"]
    stream = read_source("tables", folder, streaming=2, train_tasks=3, seed=1)[0]["train"]
    assert {r.task for r in stream} == {r.task for r in plain} and list(stream.all()) == plain


def test_what_cannot_be_streamed_is_said(tables, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="data.streaming is on, but source 'builtin' is read whole"):
        read_source("builtin", streaming=64)
    folder = tables(made(10))
    monkeypatch.setattr(streams, "MOST_INSTRUCTIONS", 3)
    with pytest.raises(ValueError, match="more than 3 instructions"):
        read_source("tables", folder, streaming=64)
    (tmp_path / "train.jsonl").rename(tmp_path / "train.json")
    with pytest.raises(ValueError, match="may be a list, which is read whole"):
        read_source("tables", folder, streaming=64)


def test_a_file_that_changes_while_it_is_read_is_noticed():
    count = [20]
    sampler = StreamBatchSampler(RecordStream([lambda: made(20, count[0] // 4)]), 2, 4, steps=30)
    count[0] = 28
    with pytest.raises(ValueError, match="was changed while it was read.*start anew"):
        list(sampler)


@pytest.mark.parametrize("number", [2, 3])
def test_shares_of_a_batch_are_the_batch_and_split_no_instruction(number):
    records = list(made(40, tasks=8))
    for sampler in (
        TaskBatchSampler(records, 6, 2, steps=5), StreamBatchSampler(RecordStream([lambda: records]), 6, 2, steps=5)
    ):
        shares = list(BatchShards(sampler, number))
        assert len(shares) == len(BatchShards(sampler, number)) == 5 * number
        for step, batch in enumerate(sampler):
            own = shares[step * number: (step + 1) * number]
            assert sum(own, []) == batch and all(own)
            named = [{wording_of(r if isinstance(r, Record) else records[r]) for r in share} for share in own]
            assert sum(map(len, named)) == len(set.union(*named)) == 6


def test_a_batch_with_fewer_tasks_than_processes_goes_to_each_whole():
    records = list(made(8, tasks=1))
    (batch,) = sampler = TaskBatchSampler(records, 1, 4, steps=1)
    assert list(BatchShards(sampler, 2)) == [batch, batch]
