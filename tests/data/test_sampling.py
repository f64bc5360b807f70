import pytest

from modeling_tagi.data.records import Record
from modeling_tagi.data.sampling import TaskBatchSampler, TextBatchSampler, fewer_tasks


def make(tasks=6, wordings=3, instances=5):
    return [
        Record(f"t{t}", f"wording {w} of {t}", f"input {n}", ("y",), group=f"g{t % 2}")
        for t in range(tasks) for w in range(wordings) for n in range(instances)
    ]


def test_a_batch_has_different_tasks_with_examples_of_one_wording_side_by_side():
    records = make()
    wordings = set()
    for batch in TaskBatchSampler(records, 4, 3, steps=30):
        chosen = [records[index] for index in batch]
        blocks = [chosen[start:start + 3] for start in range(0, 12, 3)]
        assert len({block[0].task for block in blocks}) == 4
        for block in blocks:
            assert len({(r.task, r.instruction) for r in block}) == 1
            assert len({r.input for r in block}) == 3
            wordings.add(block[0].instruction)
    assert len(wordings) == 18


def test_every_task_comes_up_equally_often_whatever_its_size():
    # 2 tasks of 1 and 100 records, one a batch: each is drawn 200 of 400 times, standard deviation 10
    records = [Record("small", "i", "x", ("y",))] + [Record("large", "j", f"x{n}", ("y",)) for n in range(100)]
    small = sum(batch == [0] for batch in TaskBatchSampler(records, 1, 1, steps=400))
    assert 150 < small < 250


def test_a_step_depends_on_seed_and_step_alone():
    records = make()
    sampler = TaskBatchSampler(records, 4, 3, steps=10, seed=1)
    batches = list(sampler)
    assert len(sampler) == len(batches) == 10
    assert list(sampler) == batches == [sampler.batch(step) for step in range(10)]
    assert TaskBatchSampler(records, 4, 3, steps=99, seed=1).batch(7) == batches[7]
    assert list(TaskBatchSampler(records, 4, 3, steps=10, seed=2)) != batches
    assert batches[0] != batches[1]


def test_too_few_tasks_or_examples_are_drawn_with_replacement():
    records = make(tasks=2, wordings=1, instances=2)
    for batch in TaskBatchSampler(records, 3, 5, steps=5):
        assert len(batch) == 15
        assert all(len({records[i].task for i in batch[start:start + 5]}) == 1 for start in (0, 5, 10))


def test_groups_mix_their_tasks():
    records = make()
    mixed = set()
    for batch in TaskBatchSampler(records, 2, 6, steps=20, by="group"):
        blocks = [[records[i] for i in batch[start:start + 6]] for start in (0, 6)]
        assert {block[0].group for block in blocks} == {"g0", "g1"}
        for block in blocks:
            assert len({r.group for r in block}) == 1
            mixed.add(len({r.task for r in block}))
    assert max(mixed) > 1


def test_every_batch_can_hold_all_units_in_order():
    records = make()
    for batch in TaskBatchSampler(records, 1, 2, steps=5, every=True):
        assert [records[i].task for i in batch[::2]] == [f"t{t}" for t in range(6)]


def test_nothing_to_draw_from_is_refused():
    with pytest.raises(ValueError, match="no records"):
        TaskBatchSampler([], 1, 1, 1)
    with pytest.raises(ValueError, match="no passages"):
        TextBatchSampler(0, 1, 1)


def test_text_batches_are_drawn_by_seed_and_step():
    sampler = TextBatchSampler(10, 4, steps=6, seed=3)
    batches = list(sampler)
    assert len(sampler) == len(batches) == 6 and list(sampler) == batches
    assert list(TextBatchSampler(10, 4, steps=2, seed=3)) == batches[:2]
    assert list(TextBatchSampler(10, 4, steps=6, seed=4)) != batches
    for batch in batches:
        assert len({passage for passage, _ in batch}) == 4 and all(0 <= passage < 10 for passage, _ in batch)
    assert len({draw for batch in batches for _, draw in batch}) == 24


def test_few_passages_are_used_again_with_other_cuts():
    (batch,) = TextBatchSampler(2, 5, steps=1)
    assert len(batch) == 5 and len({draw for _, draw in batch}) == 5


def test_fewer_tasks_are_spread_over_groups_and_nested():
    records = make(tasks=9)
    chosen = {n: {r.task for r in fewer_tasks(records, n, seed=4)} for n in (1, 4, 6, 9)}
    assert [len(tasks) for tasks in chosen.values()] == [1, 4, 6, 9]
    assert chosen[1] < chosen[4] < chosen[6] < chosen[9]
    groups = [next(r.group for r in records if r.task == task) for task in chosen[4]]
    assert sorted(groups) == ["g0", "g0", "g1", "g1"]
    assert {r.task for r in fewer_tasks(records, 4, seed=5)} != chosen[4]
    assert fewer_tasks(records, 9) == records


def test_more_tasks_than_there_are_are_refused():
    with pytest.raises(ValueError, match="train_tasks is 7, but the train split has 6 tasks"):
        fewer_tasks(make(), 7)
