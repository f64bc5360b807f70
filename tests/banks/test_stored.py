import pytest
import torch

from modeling_tagi.banks.adapter_bank import AdapterBank
from modeling_tagi.banks.stored import StoredAdapters
from modeling_tagi.training.teacher import Teacher

NAMES = [f"task {n}" for n in range(5)]


@pytest.fixture
def bank(make_model, make_bank, tmp_path):
    model = make_model()
    made = AdapterBank(tmp_path / "bank")
    made.add(NAMES, make_bank(model, tasks=5).described({"backbone": None}, model.peft_config()))
    return made


def same(one, other):
    factors = ((getattr(x, name) for name in ("lora_a", "lora_b")) for x in (one, other))
    return one.scaling == other.scaling and all(
        ours.keys() == theirs.keys() and all(torch.equal(x, theirs[path]) for path, x in ours.items())
        for ours, theirs in zip(*factors)
    )


@pytest.mark.parametrize("kept", [0, 1, 2, 5])
def test_what_is_read_for_a_batch_is_what_the_loaded_bank_gives(bank, kept):
    loaded = bank.load()
    stored = StoredAdapters(bank, max_bytes=kept * loaded[0].nbytes)
    assert len(stored) == len(loaded)
    for index in ([3, 0, 3], [4], [1, 2, 0, 4, 3], [0, 0]):
        index = torch.tensor(index)
        assert same(stored[index], loaded[index]) and stored[index].provenance == loaded[index].provenance


def test_only_those_used_last_are_kept(bank, monkeypatch):
    read, reads = AdapterBank.read, []
    monkeypatch.setattr(AdapterBank, "read", lambda self, name, *a: (reads.append(name), read(self, name, *a))[1])
    stored = StoredAdapters(bank, max_bytes=2 * bank.read(NAMES[0]).nbytes)
    reads.clear()
    for index, expected in (([0, 1, 0], [0, 1]), ([1], []), ([2], [2]), ([1, 2], []), ([0], [0]), ([1], [1])):
        reads.clear()
        stored[torch.tensor(index)]
        assert reads == [NAMES[n] for n in expected]
    assert len(stored._kept) == 2 and stored._bytes == stored.max_bytes


def test_who_changes_a_batch_changes_neither_the_next_nor_the_file(bank):
    stored, loaded = StoredAdapters(bank), bank.load()
    for index in ([1], [1, 2]):
        for x in stored[index].lora_b.values():
            x.zero_()
    assert same(stored[[1, 2]], loaded[[1, 2]]) and same(bank.load(), loaded)


def test_a_number_that_no_adapter_has_is_refused(bank):
    for number in (5, -1):
        with pytest.raises(IndexError, match="adapter .* of 5"):
            StoredAdapters(bank)[torch.tensor([0, number])]


def test_a_teacher_says_the_same_of_stored_adapters_as_of_loaded_ones(bank, make_model, random_ids):
    backbone, index = make_model().backbone, torch.tensor([4, 1])
    ids = random_ids(4, 7) % 40 + 3
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, :3]}
    rows = torch.tensor([0, 1, 1, 0])
    loaded, stored, bare = (
        Teacher(backbone, adapters).logits(dict(batch), adapters[which], rows)
        for adapters, which in ((bank.load(), index), (StoredAdapters(bank), index), (bank.load(), index - 1))
    )
    assert torch.equal(loaded, stored) and not torch.allclose(loaded, bare, atol=1e-4)
