import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from hub_stand_in import Repository
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM

from modeling_tagi import TagiAdapter
from modeling_tagi.banks import adapter_bank
from modeling_tagi.banks.adapter_bank import AdapterBank
from modeling_tagi.banks.stored import StoredAdapters
from modeling_tagi.fit import fingerprint
from modeling_tagi.training.model_checks import check_model
from modeling_tagi.training.run import Run
from modeling_tagi.training.run_state import RunState
from modeling_tagi.training.settings import build_settings
from modeling_tagi.training.stages import STAGES, run_stages
from modeling_tagi.training.tokenizer import read_tokenizer

TASKS = ("first", "last", "both", "swap")


def make_lora(backbone, folder, seed=0, **fields):
    """A LoRA that PEFT has made and saved, no longer at its start."""
    model = get_peft_model(
        AutoModelForSeq2SeqLM.from_pretrained(backbone),
        LoraConfig(**{"task_type": "SEQ_2_SEQ_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q", "v"], **fields}),
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loras(backbones, tmp_path_factory):
    """A LoRA for each task, by task."""
    folder = tmp_path_factory.mktemp("loras")
    return {task: str(make_lora(backbones(), folder / task, n)) for n, task in enumerate(TASKS)}


@pytest.fixture
def run_of(backbones, tmp_path):
    def make(collection, **sections):
        values = {
            "output_dir": str(tmp_path / "run"), "max_input_length": 48, "max_target_length": 8,
            "backbone": {"name": backbones()},
            "tagi": {"r": 2, "lora_alpha": 4, "generator_hidden_size": 8, "generator_index_size": 4},
            "task_adapters": {"given": collection},
            "finetuning": {"steps": 2, "tasks_per_batch": 2, "examples_per_task": 2, "alignment": "delta"},
        }  # fmt: skip
        for section, fields in sections.items():
            values[section] = {**values.get(section, {}), **fields}
        return Run(build_settings(values), ["task_adapters", "finetuning"], STAGES)

    return make


def check(run, records):
    tokenizer = read_tokenizer(run.settings, records, [])
    check_model(run.settings, tokenizer, {"train": records})
    return tokenizer


def go(run, records):
    tokenizer = check(run, records)
    state = RunState(run, tokenizer, records, [])
    run_stages(state)
    return json.loads((run.folder / "stages" / "finetuning" / "log.jsonl").read_text().splitlines()[-1]), state.bank


@pytest.mark.parametrize("alignment", ["factors", "delta"])
def test_peft_loras_are_teachers_of_logits_and_updates(run_of, loras, records, alignment):
    run = run_of(loras, finetuning={"alignment": alignment})
    log, bank = go(run, records)
    assert log["loss_alignment"] > 0 and log["loss_distillation"] > 0
    assert bank.names == list(TASKS) and bank.reads == "prompt"
    assert all(torch.equal(x, TagiAdapter.from_pretrained(loras["both"]).lora_b[path])
               for path, x in bank.load(["both"]).lora_b.items())  # fmt: skip


def test_a_collection_may_be_a_file(run_of, loras, records, tmp_path):
    (tmp_path / "loras.yaml").write_text(yaml.safe_dump(loras))
    log, bank = go(run_of(str(tmp_path / "loras.yaml"), task_adapters={"reads": "input"}), records)
    assert bank.reads == "input" and log["loss_distillation"] > 0


def test_a_collections_file_that_is_missing_is_named(run_of, records):
    with pytest.raises(FileNotFoundError, match="task_adapters.given names the file nowhere.yaml, which is not"):
        check(run_of("nowhere.yaml"), records)


def test_ranks_may_differ_where_updates_are_compared(run_of, loras, backbones, records, tmp_path):
    wide = make_lora(backbones(), tmp_path / "wide", 9, r=5, lora_alpha=3)
    mixed = {**loras, "swap": str(wide)}
    _, bank = go(run_of(mixed), records)
    loaded, alone = bank.load(), TagiAdapter.from_pretrained(loras["first"])
    assert loaded.rank == 5
    for path in alone.lora_a:
        for number, adapter in ((0, alone), (3, TagiAdapter.from_pretrained(wide))):
            update = loaded.scaling * loaded.lora_b[path][number] @ loaded.lora_a[path][number]
            expected = adapter.scaling * adapter.lora_b[path][0] @ adapter.lora_a[path][0]
            torch.testing.assert_close(update, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"r": 3}, r"its A of 'encoder.*q' is \(3, 16\), the generator's \(2, 16\); set tagi.r .* alignment|delta"),
        ({"target_modules": ["q"]}, r"its A of '.*\.v' is missing, the generator's \(2, 16\); set tagi.r"),
        ({"target_modules": ["q", "v", "o"]}, r"its A of '.*\.o' is \(2, 16\), the generator's missing"),
        ({"use_dora": True}, "uses use_dora; a TagiAdapter is plain LoRA"),
    ],
)
def test_loras_of_other_ranks_and_modules_are_refused_by_name(
    run_of, loras, backbones, records, tmp_path, fields, message
):
    odd = str(make_lora(backbones(), tmp_path / "odd", **fields))
    with pytest.raises(ValueError, match=message) as caught:
        check(run_of({**loras, "last": odd}, finetuning={"alignment": "factors"}), records)
    assert "the task adapter of 'last'" in str(caught.value) and odd in str(caught.value)


def test_a_lora_of_another_backbone_is_refused_by_name(run_of, loras, backbones, records):
    with pytest.raises(ValueError, match="'first' .* is for the backbone .*t5-0.0.*, but this run uses"):
        check(run_of(loras, backbone={"name": backbones("t5", 0.1)}), records)


def test_a_lora_of_another_revision_is_refused(loras, backbones, tmp_path):
    bank = AdapterBank.of(loras)
    config = json.loads(open(os.path.join(loras["last"], "adapter_config.json")).read())
    assert config["base_model_name_or_path"] == backbones() and config["revision"] is None
    bank.require_backbone(backbones(), "abc")  # of no revision that is known
    pinned = tmp_path / "pinned"
    shutil.copytree(loras["last"], pinned)
    (pinned / "adapter_config.json").write_text(json.dumps({**config, "revision": "abc"}))
    bank = AdapterBank.of({**loras, "last": str(pinned)})
    for revision in (None, "abc"):
        bank.require_backbone(backbones(), revision)
    with pytest.raises(ValueError, match="'last' .* is for revision abc of .*, but this run uses def"):
        bank.require_backbone(backbones(), "def")


@pytest.mark.parametrize(
    "theirs, ours, fits",
    [
        ("user/base", "user/base", True),
        ("user/base", "other/base", False),
        ("user/base", "{folder}/base", True),  # a copy of it
        ("user/base", "{folder}/large", False),
    ],
)
def test_backbones_are_compared_by_name(theirs, ours, fits, tmp_path):
    for name in ("base", "large"):
        (tmp_path / name).mkdir()
    assert adapter_bank._same_backbone(theirs, ours.format(folder=tmp_path)) is fits


def test_a_run_that_teaches_its_backbone_has_no_use_for_others_adapters(run_of, loras, records):
    with pytest.raises(ValueError, match="as it is, but this run makes or teaches its own; .*_tuning.steps to 0"):
        check(run_of(loras, instruction_tuning={"steps": 1}), records)


def test_weights_tell_a_backbone_where_adapters_know_them(run_of, make_model, make_bank, backbones, records, tmp_path):
    model = make_model()
    adapters = make_bank(model, tasks=2)
    mark = [x + 1 for x in fingerprint(adapters, model.backbone)]
    AdapterBank(tmp_path / "bank").add(
        ["one", "two"], adapters.described({"backbone": "elsewhere", "backbone_fingerprint": mark})
    )
    run = run_of(None, task_adapters={"given": str(tmp_path / "bank")})
    check(run, records)  # its name says nothing, and there are no weights yet
    with pytest.raises(ValueError, match="the task adapter of 'one' .*elsewhere, whose weights are not this model's"):
        STAGES["task_adapters"].run(RunState(run, None, records, []))


def test_a_generated_adapter_with_its_instruction_is_no_teacher(run_of, make_model, loras, records, tmp_path):
    make_model(trained=True).generate_adapter([5, 6]).save_pretrained(tmp_path / "fused")
    with pytest.raises(ValueError, match="'both' .* has an instruction memory, which a teacher would lose"):
        check(run_of({**loras, "both": str(tmp_path / "fused")}), records)


@pytest.mark.parametrize("collection", [{}, {"first": 3}, {"first": ""}, {1: "user/name"}])
def test_a_collection_that_names_nothing_is_refused(run_of, collection):
    with pytest.raises(ValueError, match="task_adapters.given is .*, but must hold a folder or repository"):
        run_of(collection)


def test_a_missing_lora_is_named(run_of, loras, records, tmp_path):
    with pytest.raises(FileNotFoundError, match="the task adapter of 'swap' .*nowhere.*there is no folder"):
        check(run_of({**loras, "swap": str(tmp_path / "nowhere")}), records)


def put(hub, name, folder):
    files = {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
    hub.repositories[name] = Repository()
    hub.repositories[name].commit("main", files, "adapters")


def test_loras_come_from_repositories_by_name(run_of, loras, records, hub):
    for task, folder in loras.items():
        put(hub, f"user/{task}", folder)
    revision = hub.revision("user/last")
    collection = {task: f"user/{task}" for task in TASKS} | {"last": f"user/last@{revision}"}
    _, bank = go(run_of(collection), records)
    local = AdapterBank.of(loras).load()
    assert all(torch.equal(x, local.lora_b[path]) for path, x in bank.load().lora_b.items())
    assert any(f"/user/last/resolve/{revision}/adapter_config.json" in line for line in hub.requests)
    why = "the task adapter of 'both' .user/nobody@v1.: .*there is no such repository"
    with pytest.raises(FileNotFoundError, match=why):
        AdapterBank.of({**collection, "both": "user/nobody@v1"}).load()


def test_a_bank_comes_from_one_repository(make_model, make_bank, hub, tmp_path):
    model = make_model()
    adapters = make_bank(model, tasks=2)
    AdapterBank(tmp_path / "bank").add(["one", "two"], adapters, [{"reads": "input"}] * 2)
    put(hub, "user/bank", tmp_path / "bank")
    for name in ("user/bank", f"user/bank@{hub.revision('user/bank')}"):
        bank = AdapterBank.open(name)
        assert bank.names == ["one", "two"] and bank.reads == "input"
        assert all(torch.equal(x, adapters.lora_b[path]) for path, x in bank.load().lora_b.items())
    with pytest.raises(FileNotFoundError, match="no folder of task adapters user/nothing, and it cannot be had from"):
        AdapterBank.open("user/nothing")
    put(hub, "user/empty", tmp_path / "bank" / "one")
    with pytest.raises(FileNotFoundError, match="user/empty has no index.json with task adapters"):
        AdapterBank.open("user/empty")


@pytest.mark.parametrize("entry, message", [
    ({"source": "somebody/else"}, "is no index of task adapters"), ({"folder": 3}, "is no index of task adapters"),
    ({"folder": "../../outside"}, "names folders that are not beside it"), ({"folder": "/etc"}, "not beside it"),
    ({"folder": ".."}, "not beside it"),
])  # fmt: skip
def test_an_index_of_others_names_nothing_but_its_own_folders(tmp_path, entry, message):
    (tmp_path / "index.json").write_text(json.dumps({"adapters": {"one": entry}}))
    with pytest.raises(ValueError, match=message):
        AdapterBank(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{}", "no JSON", '{"adapters": ["one"]}'])
def test_a_file_that_is_no_index_is_said_to_be_none(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ValueError, match="index.json is no index of task adapters"):
        AdapterBank(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_refused_before_training(run_of, loras, records, tmp_path, value):
    shutil.copytree(loras["last"], tmp_path / "last")
    file = tmp_path / "last" / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = value
    save_file(tensors, file)
    with pytest.raises(ValueError, match="the task adapter of 'last' .*adapter_model.safetensors: .* must be finite"):
        check(run_of({**loras, "last": str(tmp_path / "last")}), records)
    bank = AdapterBank.of({"last": str(tmp_path / "last")})
    for read in (bank.load, lambda: StoredAdapters(bank)[[0]]):
        with pytest.raises(ValueError, match="the task adapter of 'last' .* must be finite"):
            read()


def test_names_of_strangers_stay_in_the_banks_folder(make_model, make_bank, tmp_path):
    names = ["../../pwn", "/etc/passwd", "a\0b", "x" * 300, "."]
    bank = AdapterBank(tmp_path / "deep" / "bank")
    bank.add(names, make_bank(make_model(), tasks=len(names)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep"]
    assert {path.name for path in (tmp_path / "deep").iterdir()} <= {"bank", "bank.lock"}
    assert AdapterBank(tmp_path / "deep" / "bank").names == names and len(bank.load()) == len(names)


def test_a_bank_is_not_written_over_something_else(make_model, make_bank, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "tagi"}')
    with pytest.raises(ValueError, match="holds a TAGI checkpoint .*; choose another folder"):
        AdapterBank(tmp_path).add(["first"], make_bank(make_model(), tasks=1))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
