import dataclasses

import pytest
import torch
from safetensors import safe_open
from transformers.trainer_callback import PrinterCallback

from modeling_tagi.data.collate import RecordCollator
from modeling_tagi.data.sampling import Drawn, TaskBatchSampler
from modeling_tagi.training import losses, teacher_cache
from modeling_tagi.training.objective import Objective
from modeling_tagi.training.teacher import Teacher, frozen_copy
from modeling_tagi.training.teacher_cache import Kept, TeacherCache
from modeling_tagi.training.trainer import TagiTrainer

FAMILIES = ("t5", "llama")
GROUPS = {"one": 0, "two": 1}
STATES, ALL, FEW = Kept("states"), Kept("top_k", k=1000, temperature=2.0), Kept("top_k", k=8, temperature=2.0)
OBJECTIVE = Objective(distillation_weight=2.0, temperature=2.0, alignment="delta", alignment_weight=0.5)


@pytest.fixture
def made(make_model, make_bank, make_tokens):
    """A model, a teacher of another backbone and a collator."""

    def make(family="t5", bank=GROUPS, dropout=0.0):
        model = make_model(family, dropout=dropout, trained=True)
        backbone = frozen_copy(model.backbone)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for weight in backbone.parameters():
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
        return model, Teacher(backbone, make_bank(model)), RecordCollator(make_tokens(family), bank_index=bank)

    return make


@pytest.fixture
def shards_of_7(monkeypatch):
    monkeypatch.setattr(teacher_cache, "_SHARD", 7)


def fill(folder, teacher, collator, records, kept=STATES):
    return TeacherCache.filled(folder, teacher, collator, records, kept, batch_size=3)


def loss_of(trainer, model, batch):
    trainer._terms.clear()
    loss = trainer.compute_loss(model.train(), batch).item()
    return loss, {name: total.item() for name, (total, _) in trainer._terms.items()}


@pytest.fixture
def make_trainer(training_arguments):
    def make(model, teacher, collator, records, batches=((0,),), **arguments):
        trainer = TagiTrainer(
            model=model, args=training_arguments(**arguments), train_dataset=Drawn(records), data_collator=collator,
            batch_sampler=batches, objective=OBJECTIVE, teacher=teacher,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        return trainer

    return make


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kept", [STATES, ALL], ids=["states", "the whole vocabulary"])
@pytest.mark.parametrize("bank", [GROUPS, {"two": 1}], ids=["all taught", "some taught"])
def test_the_loss_from_the_cache_is_the_teachers_own(made, make_trainer, records, tmp_path, family, kept, bank):
    model, teacher, collator = made(family, bank)
    trainer = make_trainer(model, teacher, collator, records)
    chosen = [records[number] for number in (3, 17, 0, 5, 17)]
    expected, terms = loss_of(trainer, model, collator(chosen))
    collator.answers = fill(tmp_path / "cache", teacher, collator, records, kept)
    teacher.backbone = None  # is not run any more
    batch = collator(chosen)
    assert "teacher_input_ids" not in batch
    loss, cached_terms = loss_of(trainer, model, batch)
    assert terms["distillation"] > 0.01 and cached_terms == pytest.approx(terms, abs=1e-6, rel=1e-5)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_fewer_tokens_give_a_lower_bound_that_grows_to_the_exact_divergence():
    torch.manual_seed(0)
    student, teacher = (2 * torch.randn(40, 200) for _ in range(2))
    exact = losses.distillation_loss(student, teacher, 3.0)
    bounds = [losses.distillation_loss(student, losses.top_k(teacher, k, 3.0), 3.0) for k in (1, 8, 64, 150, 200, 300)]
    assert all(one < other for one, other in zip(bounds, bounds[1:-1])) and bounds[3] < exact
    assert bounds[4] == bounds[5] and abs(bounds[4] - exact) < 1e-6 * exact


def test_the_gradient_for_the_whole_vocabulary_is_that_of_the_exact_divergence():
    torch.manual_seed(0)
    gradients = []
    teacher = 5 * torch.randn(10, 50)
    for answers in (teacher, losses.top_k(teacher, 50, 2.0), losses.top_k(teacher, 49, 2.0)):
        student = (5 * torch.randn(10, 50, generator=torch.Generator().manual_seed(1))).requires_grad_()
        losses.distillation_loss(student, answers, 2.0).backward()
        gradients.append(student.grad)
    # 49 tokens of 50 and the rest, which is the 50th, are all there is
    assert all(torch.allclose(gradients[0], other, atol=1e-6) for other in gradients[1:])


def test_kept_tokens_are_a_distribution_with_the_rest():
    kept = losses.top_k(20 * torch.randn(30, 100), 8, 1.0)
    assert torch.allclose(kept.values.exp().sum(-1) + kept.rest.exp(), torch.ones(30))
    assert kept.rest.isfinite().all()


@pytest.mark.parametrize("kept", [STATES, FEW], ids=["states", "top_k"])
def test_a_cache_that_is_there_is_not_computed_again(made, records, tmp_path, shards_of_7, kept, monkeypatch):
    _, teacher, collator = made()
    first = fill(tmp_path / "cache", teacher, collator, records, kept)(records)
    assert len(list((tmp_path / "cache").iterdir())) == 4  # 24 records
    monkeypatch.setattr(teacher, "logits", None)
    again = fill(tmp_path / "cache", teacher, collator, records, kept)(records)
    assert first.keys() == again.keys() and all(torch.equal(x, again[name]) for name, x in first.items())


def change_backbone(teacher, records):
    next(teacher.backbone.parameters()).data.mul_(1.01)
    return records


def change_adapter(teacher, records):
    next(iter(teacher.bank.lora_b.values()))[0].mul_(1.01)
    return records


def change_record(teacher, records):
    return [*records[:-1], dataclasses.replace(records[-1], input="plum plum plum")]


@pytest.mark.parametrize("change", [change_backbone, change_adapter, change_record])
def test_what_is_stale_is_computed_again(made, records, tmp_path, shards_of_7, change):
    _, teacher, collator = made()
    before = fill(tmp_path / "cache", teacher, collator, records)(records)["teacher_states"]
    changed = change(teacher, records)
    after = fill(tmp_path / "cache", teacher, collator, changed)(changed)["teacher_states"]
    anew = fill(tmp_path / "another", teacher, collator, changed)(changed)["teacher_states"]
    assert torch.equal(after, anew) and (before.shape != after.shape or not torch.equal(before, after))


def test_another_kind_takes_the_place_of_the_first(made, records, tmp_path):
    _, teacher, collator = made()
    fill(tmp_path / "cache", teacher, collator, records, STATES)
    assert fill(tmp_path / "cache", teacher, collator, records, FEW)(records).keys() == {
        "teacher_values", "teacher_tokens", "teacher_rest"
    }  # fmt: skip


def test_a_fill_that_was_killed_goes_on_from_its_last_file(made, records, tmp_path, shards_of_7, monkeypatch):
    _, teacher, collator = made()
    whole = fill(tmp_path / "whole", teacher, collator, records)(records)["teacher_states"]
    folder, save = tmp_path / "cache", teacher_cache.save_file

    def dying(tensors, path, metadata):
        save(tensors, path, metadata)
        if len(list(folder.glob("0*"))) == 2:
            path.write_bytes(path.read_bytes()[:100])
            raise KeyboardInterrupt

    monkeypatch.setattr(teacher_cache, "save_file", dying)
    with pytest.raises(KeyboardInterrupt):
        fill(folder, teacher, collator, records)
    monkeypatch.setattr(teacher_cache, "save_file", save)
    done = {path.name: path.stat().st_mtime_ns for path in folder.glob("0*")}
    assert len(done) == 2 and len(list(folder.iterdir())) == 3
    resumed = fill(folder, teacher, collator, records)(records)["teacher_states"]
    assert torch.equal(resumed, whole)
    assert all((folder / name).stat().st_mtime_ns == time for name, time in done.items())
    assert sorted(path.name for path in folder.iterdir()) == [f"{n:06}.safetensors" for n in range(4)]


def test_a_damaged_file_is_computed_again(made, records, tmp_path, shards_of_7):
    _, teacher, collator = made()
    first = fill(tmp_path / "cache", teacher, collator, records)(records)["teacher_states"]
    file = tmp_path / "cache" / "000001.safetensors"
    file.write_bytes(file.read_bytes()[:-20])
    assert torch.equal(fill(tmp_path / "cache", teacher, collator, records)(records)["teacher_states"], first)


def test_files_hold_nothing_but_numbers_for_target_tokens(made, records, tmp_path):
    _, teacher, collator = made()
    fill(tmp_path / "cache", teacher, collator, records, FEW)
    with safe_open(tmp_path / "cache" / "000000.safetensors", "pt") as file:
        tokens = sum(len(collator.tokens.target(record.targets[0])) for record in records)
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    assert shapes == {"values": (tokens, 8), "tokens": (tokens, 8), "rest": (tokens,)}


def test_states_are_refused_where_the_logits_are_not_the_heads(made, records, tmp_path, monkeypatch):
    _, teacher, collator = made()
    logits = teacher.logits
    monkeypatch.setattr(teacher, "logits", lambda *args: logits(*args).tanh())
    with pytest.raises(ValueError, match="caps or scales them, or adapters change the head.*keep 'top_k'"):
        fill(tmp_path / "cache", teacher, collator, records)
    assert fill(tmp_path / "cache", teacher, collator, records, FEW)(records)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind is 'topk', but must be one of 'states', 'top_k'"):
        Kept("topk")


@pytest.mark.parametrize("kept", [STATES, ALL], ids=["states", "top_k"])
def test_training_from_the_cache_is_training_from_the_teacher(made, make_trainer, records, tmp_path, kept):
    after = []
    for cached in (False, True):
        model, teacher, collator = made()
        start = {name: x.detach().clone() for name, x in model.state_dict().items()}
        if cached:
            collator.answers = fill(tmp_path / "cache", teacher, collator, records, kept)
        batches = TaskBatchSampler(records, 2, 2, steps=4)
        make_trainer(model, teacher, collator, records, batches, max_steps=4, optim="sgd", dataloader_num_workers=0,
                     learning_rate=0.05).train()  # fmt: skip
        after.append(model.state_dict())
    for name, x in after[0].items():
        step = (x - start[name]).abs().max()
        assert torch.allclose(x, after[1][name], rtol=0, atol=1e-7 + 1e-4 * float(step)), name
    assert any((x - start[name]).abs().max() > 1e-2 for name, x in after[0].items())
