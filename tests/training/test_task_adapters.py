import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.trainer_callback import PrinterCallback

from modeling_tagi.banks.adapter_bank import AdapterBank
from modeling_tagi.data.collate import RecordCollator
from modeling_tagi.data.sampling import Drawn
from modeling_tagi.training.setting_fields import AdapterSettings
from modeling_tagi.training.task_adapters import AdapterTuner
from modeling_tagi.training.trainer import TagiTrainer

FAMILIES = ("t5", "llama")


def tuner_of(model, names):
    model.requires_grad_(False)
    return AdapterTuner(model.backbone, names, model.hypernetwork.shared_factors(), model.config.lora_alpha)


def tune(model, names, batches, records, tokens, arguments):
    tuner = tuner_of(model, names)
    trainer = TagiTrainer(
        model=tuner,
        args=arguments,
        train_dataset=Drawn(records),
        data_collator=RecordCollator(tokens, "prompt", {name: n for n, name in enumerate(names)}, "task"),
        batch_sampler=batches,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return tuner.adapter()


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_start_at_one_a_and_at_b_zero(make_model, family):
    model = make_model(family)
    adapter = tuner_of(model, ["x", "y", "z"]).adapter()
    shared = model.hypernetwork.shared_factors()
    assert adapter.lora_a.keys() == shared.keys() and len(adapter) == 3
    for path, a in adapter.lora_a.items():
        assert torch.equal(a, shared[path].expand_as(a))
        assert not adapter.lora_b[path].any()
    assert adapter.scaling == model.config.scaling


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_sum_over_tasks_of_each_tasks_mean(make_model, make_tokens, records, family):
    model = make_model(family)
    names = ["first", "both"]
    chosen = [r for r in records if r.task in names][:5]
    collator = RecordCollator(make_tokens(family), "prompt", {"first": 0, "both": 1}, "task")
    tuner = tuner_of(model, names)
    expected = 0
    for name in names:
        batch = collator([r for r in chosen if r.task == name])
        batch.pop("adapter_index")
        expected += model(**batch).loss.item()
    assert tuner(**collator(chosen))["loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_tuning_together_is_tuning_each_alone(make_model, make_tokens, records, training_arguments, family):
    model, tokens, steps = make_model(family), make_tokens(family), 5
    names = ["first", "swap", "both"]
    of_task = {name: [i for i, r in enumerate(records) if r.task == name] for name in names}
    # records 0, 1; then 1, 2; … of each task
    draws = {name: [[of[(s + n) % len(of)] for n in range(2)] for s in range(steps)] for name, of in of_task.items()}
    arguments = training_arguments(
        max_steps=steps, learning_rate=1e-2, weight_decay=0.1, max_grad_norm=AdapterSettings().max_grad_norm
    )
    together = [[i for name in names for i in draws[name][step]] for step in range(steps)]
    bank = tune(model, names, together, records, tokens, arguments)
    for number, name in enumerate(names):
        alone = tune(model, [name], draws[name], records, tokens, arguments)
        for path in bank.lora_a:
            assert alone.lora_b[path].abs().max() > 1e-2
            assert torch.allclose(bank.lora_a[path][number], alone.lora_a[path][0], atol=1e-5)
            assert torch.allclose(bank.lora_b[path][number], alone.lora_b[path][0], atol=1e-5)


def test_tuning_leaves_the_backbone_alone(make_model, make_tokens, records, training_arguments):
    model = make_model()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    swaps = [i for i, r in enumerate(records) if r.task == "swap"]
    tune(model, ["swap"], [swaps] * 3, records, make_tokens(), training_arguments(max_steps=3))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_accumulated_batches_count_alike(make_model, make_tokens, records, training_arguments):
    swaps = [i for i, r in enumerate(records) if r.task == "swap"]
    halves = [swaps[:3], swaps[:3]]
    sgd = {"optim": "sgd", "learning_rate": 1.0}
    both = tune(make_model(), ["swap"], halves, records, make_tokens(),
                training_arguments(gradient_accumulation_steps=2, **sgd))  # fmt: skip
    once = tune(make_model(), ["swap"], halves[:1], records, make_tokens(), training_arguments(**sgd))
    for path, b in once.lora_b.items():
        assert b.abs().max() > 1e-4 and torch.allclose(both.lora_b[path], b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bank_loads_in_peft_with_equal_logits(
    make_model, make_tokens, make_bank, backbones, records, tmp_path, family
):
    model = make_model(family).eval()
    bank = AdapterBank(tmp_path / "bank")
    source = {"backbone": backbones(family), "backbone_revision": None}
    bank.add(["one", "two"], make_bank(model).described(source, model.peft_config()))
    batch = RecordCollator(make_tokens(family), "prompt")(records[:4])
    if family == "t5":
        batch["decoder_input_ids"] = model.backbone.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
    labels = batch.pop("labels")
    auto = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    loaded = bank.load()
    for number, name in enumerate(bank.names):
        stock = auto.from_pretrained(backbones(family), dtype=torch.float32).eval()
        with torch.no_grad():
            bare = stock(**batch).logits
            peft = PeftModel.from_pretrained(stock, tmp_path / "bank" / name).eval()
            theirs, ours = peft(**batch).logits, model(**batch, adapter=loaded[number]).logits
        assert labels.shape and not torch.allclose(bare, ours, atol=1e-2)
        assert torch.allclose(theirs, ours, atol=1e-5)


def test_a_bank_is_read_as_it_was_written(make_model, make_bank, tmp_path):
    model = make_model()
    adapters = make_bank(model, tasks=3).described({"backbone": None}, model.peft_config())
    bank = AdapterBank(tmp_path)
    bank.add(["Sentiment Analysis", "a/b"], adapters[:2], [{"records": 3}, {"records": 4}])
    bank.add(["plain"], adapters[2])
    again = AdapterBank(tmp_path)
    assert again.names == ["Sentiment Analysis", "a/b", "plain"]
    assert again.numbers() == {"Sentiment Analysis": 0, "a/b": 1, "plain": 2}
    loaded = again.load()
    for path, b in adapters.lora_b.items():
        assert torch.equal(loaded.lora_a[path], adapters.lora_a[path]) and torch.equal(loaded.lora_b[path], b)
    index = json.loads((tmp_path / "index.json").read_text())["adapters"]
    assert index["a/b"]["records"] == 4 and index["plain"] == {"folder": "plain"}
    folders = [entry["folder"] for entry in index.values()]
    assert sorted(folders) == sorted(p.name for p in tmp_path.iterdir() if p.is_dir())


def test_names_that_differ_in_odd_characters_get_folders_of_their_own(make_model, make_bank, tmp_path):
    adapters = make_bank(make_model(), tasks=3)
    bank = AdapterBank(tmp_path)
    bank.add(["a b", "a/b", ".."], adapters)
    assert len(list(tmp_path.glob("*/adapter_config.json"))) == 3
    for path, b in bank.load().lora_b.items():
        assert torch.equal(b, adapters.lora_b[path])


def test_a_folder_without_adapters_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no index.json with task adapters; run the stage task_adapters"):
        AdapterBank(tmp_path).load()


def test_a_missing_adapter_is_named(make_model, make_bank, tmp_path):
    AdapterBank(tmp_path).add(["one", "two"], make_bank(make_model()))
    (tmp_path / "two" / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="two"):
        AdapterBank(tmp_path).load()
