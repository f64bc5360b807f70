import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments
from without_package import run_without_package

import modeling_tagi
from modeling_tagi import TagiModel

PACKAGE = Path(modeling_tagi.__file__).parent
CODE = [file.name for file in PACKAGE.glob("*.py") if file.name not in ("__init__.py", "pipeline.py")]
WEIGHTS = ["config.json", "generation_config.json", "model.safetensors"]
TOKENIZER = ["tokenizer.json", "tokenizer_config.json"]

# Writes an adapter by each checkpoint, uses it, and saves the checkpoint again where that is asked.
USED = """
import json, torch, transformers
from safetensors.torch import load_file, save_file

for folder, auto, inputs, again, out in json.loads(sys.argv[1]):
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
    adapter, inputs = model.generate_adapter("say yes"), load_file(inputs)
    tokens = model.generate(inputs["input_ids"], adapter=adapter, max_new_tokens=5, min_new_tokens=5)
    adapter.save_pretrained(out + "-adapter")
    read_back = model.adapter_class.from_pretrained(out + "-adapter")
    with torch.no_grad():
        logits = model(**inputs, adapter=read_back).logits
    save_file({"tokens": tokens.contiguous(), "logits": logits.contiguous()}, out)
    if again:
        model.save_pretrained(again)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def use(model, inputs):
    adapter = model.generate_adapter("say yes")
    with torch.no_grad():
        logits = model(**inputs, adapter=adapter).logits
    tokens = model.generate(inputs["input_ids"], adapter=adapter, max_new_tokens=5, min_new_tokens=5)
    return {"tokens": tokens, "logits": logits}


def assert_equal(one, two):
    for name in ("tokens", "logits"):
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=0)


def test_what_ships_stays_small():
    # 30 lines of them for save_gguf, whose writer does not ship; a file and 260 lines for function.py, which is called
    # and saved wherever a checkpoint is; 95 for poolings
    assert len(CODE) <= 19 and sum(len((PACKAGE / name).read_text().splitlines()) for name in CODE) <= 5635


# The three lines that must always work


@pytest.fixture(scope="module")
def passed_on(make_backbone, make_model, tokenizer, random_ids, tmp_path_factory):
    """Checkpoints that a process without the package loaded and saved again, and another one did so with the copies.

    Returns:
        The folder, and by name what the model gave when it was saved.
    """
    folder, expected = tmp_path_factory.mktemp("passed-on"), {}
    make_backbone("t5").save_pretrained(folder / "backbone")
    for name, family in (("t5", "t5"), ("llama", "llama"), ("apart", "t5")):
        backbone = str(folder / "backbone") if name == "apart" else None
        model = make_model(family, backbone_name_or_path=backbone)
        model.tokenizer = None if backbone else tokenizer
        model.save_pretrained(folder / name, include_backbone=not backbone)
        model.tokenizer = tokenizer
        inputs = {"input_ids": random_ids(2, 5)}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = random_ids(2, 3, seed=1)
        save_file(inputs, folder / f"{name}.inputs")
        expected[name] = inputs, use(model, inputs)
    tokenizer.save_pretrained(folder / "backbone")
    (folder / "elsewhere").mkdir()
    for calls in (
        [("t5", "", "AutoModel", "-again"), ("llama", "", "AutoModelForCausalLM", "-again"),
         ("apart", "", "AutoModel", None)],
        [("t5", "-again", "AutoModelForSeq2SeqLM", "-thrice"), ("llama", "-again", "AutoModel", "-thrice")],
    ):  # fmt: skip
        arguments = [[f"{folder}/{name}{copy}", auto, f"{folder}/{name}.inputs", again and f"{folder}/{name}{again}",
                      f"{folder}/{name}{copy}.out"] for name, copy, auto, again in calls]  # fmt: skip
        run_without_package(USED, json.dumps(arguments), cwd=folder / "elsewhere")
    return folder, expected


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_saved_folder_works_without_the_package_and_so_does_its_copy(passed_on, family):
    folder, expected = passed_on
    inputs, given = expected[family]
    assert names(folder / family) == sorted(CODE + WEIGHTS + TOKENIZER) == names(folder / f"{family}-again")
    for name in (family, f"{family}-again"):
        assert_equal(load_file(folder / f"{name}.out"), given)
    for name in ("model.safetensors", "config.json", *CODE):
        again, thrice = ((folder / f"{family}-{copy}" / name).read_bytes() for copy in ("again", "thrice"))
        assert again == thrice, name
    assert_equal(use(TagiModel.from_pretrained(folder / f"{family}-again"), inputs), given)


def test_a_checkpoint_without_backbone_works_without_the_package(passed_on):
    folder, expected = passed_on
    assert not set(TOKENIZER) & set(names(folder / "apart"))  # the tokenizer is the backbone's
    assert_equal(load_file(folder / "apart.out"), expected["apart"][1])


@pytest.mark.parametrize("family", ["t5", "t5_v1_1", "mt5", "llama", "qwen2", "qwen3", "gpt2"])
@pytest.mark.parametrize("fusion", ["none", "concat", "cross_attention"])
def test_a_reloaded_model_answers_equally(make_model, random_ids, tmp_path, family, fusion):
    model = make_model(family, fusion)
    model.save_pretrained(tmp_path)
    assert names(tmp_path) == sorted(CODE + WEIGHTS)
    loaded = TagiModel.from_pretrained(tmp_path)
    assert type(loaded) is TagiModel and not loaded.training
    state, theirs = model.state_dict(), loaded.state_dict()
    assert state.keys() == theirs.keys() and all(torch.equal(state[key], theirs[key]) for key in state)
    ids = random_ids(2, 5)
    adapter = loaded.generate_adapter(ids)
    assert torch.equal(
        loaded.generate(ids, adapter=adapter, max_new_tokens=4),
        model.generate(ids, adapter=model.generate_adapter(ids), max_new_tokens=4),
    )


def test_dtype_is_the_saved_one_unless_another_is_asked_for(make_model, tmp_path):
    make_model("t5").to(torch.bfloat16).save_pretrained(tmp_path)
    for arguments, dtype in (({}, torch.bfloat16), ({"dtype": torch.float32}, torch.float32)):
        loaded = TagiModel.from_pretrained(tmp_path, **arguments)
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}


@pytest.mark.parametrize("family", ["t5", "mt5"])
@pytest.mark.parametrize("include_backbone", [True, False])
def test_a_half_precision_generator_stays_so_beside_modules_that_transformers_keeps_in_full(
    make_backbone, random_ids, tmp_path, family, include_backbone
):
    make_backbone(family).save_pretrained(tmp_path / "backbone")
    model = TagiModel.from_backbone(tmp_path / "backbone", r=4, dtype=torch.float16).eval()
    model.save_pretrained(tmp_path / "half", include_backbone=include_backbone)
    loaded = TagiModel.from_pretrained(tmp_path / "half")
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {name: parameter.dtype for name, parameter in loaded.named_parameters()} == dtypes
    assert {dtypes[name] for name in dtypes if name.endswith(".wo.weight")} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if not name.startswith("backbone.")} == {torch.float16}
    adapter = loaded.generate_adapter(random_ids(1, 5)[0])
    assert loaded.generate(random_ids(2, 4), adapter=adapter, max_new_tokens=2).shape == (2, 3)


def test_loading_info_is_given_where_asked(make_model, tmp_path):
    make_model("t5").save_pretrained(tmp_path)
    model, info = TagiModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(model, TagiModel) and not info["missing_keys"] and not info["unexpected_keys"]


def test_resized_embeddings_are_saved(make_model, random_ids, tmp_path):
    model = make_model("t5")
    model.resize_token_embeddings(120)
    model.save_pretrained(tmp_path)
    loaded = TagiModel.from_pretrained(tmp_path)
    inputs = {"input_ids": random_ids(1, 4), "decoder_input_ids": random_ids(1, 3)}
    assert loaded.config.get_text_config().vocab_size == 120
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


# Without the backbone


@pytest.fixture
def apart(make_backbone, make_model, tmp_path):
    """A function that saves a backbone, and a generator without it, and returns the generator's model."""

    def save(family, fusion="cross_attention", dtype=torch.float32, **fields):
        make_backbone(family).save_pretrained(tmp_path / "backbone")
        awake = make_model(family, fusion, **fields)
        model = TagiModel.from_backbone(
            tmp_path / "backbone", fusion=fusion, r=4, lora_alpha=8, generator_hidden_size=16, generator_index_size=4
        ).eval()
        model.load_state_dict(awake.state_dict())
        model.to(dtype).save_pretrained(tmp_path / "apart", include_backbone=False)
        return model

    return save


@pytest.mark.parametrize("family", ["t5", "t5_v1_1", "llama", "gpt2"])
@pytest.mark.parametrize("fusion", ["none", "cross_attention"])
def test_a_checkpoint_without_backbone_loads_equal(apart, random_ids, tmp_path, family, fusion):
    model = apart(family, fusion)
    with safe_open(tmp_path / "apart" / "model.safetensors", framework="pt") as file:
        assert file.keys() and not any(key.startswith("backbone.") for key in file.keys())
    assert json.loads((tmp_path / "apart" / "config.json").read_text())["backbone_in_checkpoint"] is False
    assert model.config.backbone_in_checkpoint is True
    loaded = TagiModel.from_pretrained(tmp_path / "apart")
    assert type(loaded) is TagiModel
    ids = random_ids(2, 5)
    expected = model.generate(ids, adapter=model.generate_adapter(ids), max_new_tokens=5)
    assert torch.equal(loaded.generate(ids, adapter=loaded.generate_adapter(ids), max_new_tokens=5), expected)
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in model.state_dict().items())
    buffers = dict(loaded.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())

    loaded.save_pretrained(tmp_path / "again")  # stays apart
    assert (tmp_path / "again" / "model.safetensors").stat().st_size == (
        tmp_path / "apart" / "model.safetensors").stat().st_size
    loaded.save_pretrained(tmp_path / "whole", include_backbone=True)
    (tmp_path / "backbone").rename(tmp_path / "moved")
    whole = TagiModel.from_pretrained(tmp_path / "whole")
    assert torch.equal(whole.generate(ids, adapter=whole.generate_adapter(ids), max_new_tokens=5), expected)


def test_the_named_backbone_takes_the_checkpoints_dtype(apart, tmp_path):
    apart("t5", dtype=torch.bfloat16)
    for arguments, dtype in (({}, torch.bfloat16), ({"dtype": torch.float32}, torch.float32)):
        loaded = TagiModel.from_pretrained(tmp_path / "apart", **arguments)
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}


def test_a_backbone_that_is_not_there_is_named_with_its_checkpoint(apart, tmp_path):
    apart("t5")
    (tmp_path / "backbone").rename(tmp_path / "moved")
    with pytest.raises(OSError, match=f"{tmp_path}/apart holds a generator without its backbone.*{tmp_path}/backbone"):
        TagiModel.from_pretrained(tmp_path / "apart")


def test_a_tensor_that_a_backboneless_checkpoint_lacks_is_named(apart, tmp_path):
    apart("t5")
    drop(tmp_path / "apart", "fusion.1.gate")
    with pytest.raises(ValueError, match="apart lacks 1 of the model's tensors: fusion.1.gate"):
        TagiModel.from_pretrained(tmp_path / "apart")


@pytest.mark.parametrize(
    "fields, why",
    [
        ({}, "no backbone_name_or_path says where it is"),
        ({"backbone_name_or_path": "user/stock", "backbone_trained": True}, "training has changed it"),
    ],
)
def test_a_backbone_to_be_had_nowhere_else_is_not_left_out(make_model, tmp_path, fields, why):
    with pytest.raises(ValueError, match=f"cannot be left out.*{why}; use include_backbone=True"):
        make_model("t5", **fields).save_pretrained(tmp_path / "apart", include_backbone=False)
    assert not (tmp_path / "apart").exists()


# A backbone that was trained


def train_all(model, ids):
    model.train().set_trainable("all")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    model(ids, labels=ids, instruction_input_ids=ids).loss.backward()
    optimizer.step()
    return model.eval()


def same_backbone(one, two):
    states = two.backbone.state_dict()
    return all(torch.equal(x, states[name]) for name, x in one.backbone.state_dict().items())


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_trained_backbone_goes_into_a_checkpoint_that_named_it(apart, random_ids, tmp_path, family):
    apart(family)
    model = train_all(TagiModel.from_pretrained(tmp_path / "apart"), random_ids(2, 5))
    assert model.generate_adapter([5, 6]).provenance[0]["backbone"] is None  # of which nothing has a name yet
    for number in range(2):
        model.save_pretrained(tmp_path / f"trained{number}")
        loaded = TagiModel.from_pretrained(tmp_path / f"trained{number}")
        assert same_backbone(loaded, model) and loaded.config.backbone_trained
        provenance = loaded.generate_adapter([5, 6]).provenance[0]
        assert provenance["backbone"] == str(tmp_path / f"trained{number}")
    with pytest.raises(ValueError, match="cannot be left out.*training has changed it"):
        model.save_pretrained(tmp_path / "refused", include_backbone=False)


def test_a_trainers_checkpoints_have_the_trained_backbone(apart, random_ids, tmp_path):
    apart("t5")
    model = TagiModel.from_pretrained(tmp_path / "apart")
    model.set_trainable("all")
    rows = [{"input_ids": row, "labels": row} for row in random_ids(4, 5)]
    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=2, save_steps=2, per_device_train_batch_size=2, learning_rate=1e-2,
        report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows).train()
    loaded = TagiModel.from_pretrained(tmp_path / "out" / "checkpoint-2")
    assert same_backbone(loaded, model) and loaded.config.backbone_trained
    assert loaded.generate_adapter([5, 6]).provenance[0]["backbone"] == str(tmp_path / "out" / "checkpoint-2")


@pytest.mark.parametrize("start", ["from_backbone", "whole", "apart"])
def test_adapters_of_a_trained_backbone_do_not_name_the_stock_one(apart, random_ids, tmp_path, start):
    model = apart("t5")
    model.save_pretrained(tmp_path / "whole")
    if start != "from_backbone":
        model = TagiModel.from_pretrained(tmp_path / start)
    stock = str(tmp_path / ("whole" if start == "whole" else "backbone"))  # a whole checkpoint has it, and names none
    assert model.generate_adapter([5, 6]).provenance[0]["backbone"] == stock
    train_all(model, random_ids(2, 5))
    for adapter in (model.generate_adapter([5, 6]), model.fresh_adapter()):
        assert adapter.provenance[0]["backbone"] is None
    assert model.config.backbone_trained


@pytest.mark.parametrize("change", [lambda x: x.add_(0.1), lambda x: x[7].add_(1), lambda x: x[3:5].mul_(1.001)])
def test_weights_that_were_changed_by_hand_are_written_too(apart, tmp_path, change):
    apart("t5")
    model = TagiModel.from_pretrained(tmp_path / "apart")
    change(model.backbone.decoder.block[1].layer[1].EncDecAttention.v.weight.data)
    model.save_pretrained(tmp_path / "again")
    assert same_backbone(TagiModel.from_pretrained(tmp_path / "again"), model)


@pytest.mark.parametrize(
    "leave", [lambda m: m.bfloat16(), lambda m: m.half(), lambda m: m.bfloat16().float(), lambda m: m.train()]
)
def test_a_backbone_that_was_only_cast_or_passed_through_is_still_left_out(apart, random_ids, tmp_path, leave):
    apart("t5")
    model = leave(TagiModel.from_pretrained(tmp_path / "apart"))
    model(random_ids(1, 4), labels=random_ids(1, 4))
    model.save_pretrained(tmp_path / "again")
    assert not TagiModel.from_pretrained(tmp_path / "again").config.backbone_in_checkpoint
    assert not model.config.backbone_trained


def test_training_the_generator_alone_leaves_the_backbone_out(apart, random_ids, tmp_path):
    apart("llama")
    model, ids = TagiModel.from_pretrained(tmp_path / "apart").train(), random_ids(2, 5)
    model.set_trainable("generator")
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    model(ids, labels=ids, instruction_input_ids=ids).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path / "again")
    assert not any(key.startswith("backbone.") for key in load_file(tmp_path / "again" / "model.safetensors"))


# Broken checkpoints


def drop(folder, *gone):
    tensors = load_file(folder / "model.safetensors")
    for name in gone:
        del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "gone",
    [
        ["hypernetwork.stacks.0.index"],
        ["hypernetwork.shared_a.encoder-block-0-layer-0-SelfAttention-q", "fusion.0.gate"],
        ["backbone.encoder.final_layer_norm.weight"],
        ["backbone.shared.weight"],
    ],
)
def test_missing_tensors_are_an_error_that_names_them(make_model, tmp_path, gone):
    make_model("t5").save_pretrained(tmp_path / "broken")
    drop(tmp_path / "broken", *gone)
    with pytest.raises(ValueError, match="broken lacks .* of the model's tensors") as error:
        TagiModel.from_pretrained(tmp_path / "broken")
    assert all(name in str(error.value) for name in gone) and "\n" not in str(error.value)


def test_a_config_of_another_generator_is_an_error(make_model, tmp_path):
    make_model("t5", "concat").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "fusion": "cross_attention"}))
    with pytest.raises(ValueError, match="lacks 10 of the model's tensors: fusion.0.gate.* and 2 more; save"):
        TagiModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(make_model, tmp_path, name):
    make_model("t5").save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(OSError, match=f"{tmp_path}.*{name}|{name}.*{tmp_path}"):
        TagiModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["truncated", "empty", "random"])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_broken_file_of_weights_is_named(make_model, tmp_path, content, sharded):
    make_model("t5").save_pretrained(tmp_path, **({"max_shard_size": "60KB"} if sharded else {}))
    broken = sorted(tmp_path.glob("*.safetensors"))[-1]
    whole = broken.read_bytes()
    broken.write_bytes({"truncated": whole[:-100], "empty": b"", "random": b"?" * 500}[content])
    with pytest.raises(ValueError, match=f"{broken} is broken .*save the checkpoint again") as error:
        TagiModel.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_a_broken_index_of_shards_is_named(make_model, tmp_path):
    make_model("t5").save_pretrained(tmp_path, max_shard_size="60KB")
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ValueError, match=f"{tmp_path}/model.safetensors.index.json is broken"):
        TagiModel.from_pretrained(tmp_path)


def test_a_pickle_is_not_read(make_model, tmp_path):
    model = make_model("t5")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=f"{tmp_path} holds its weights as pytorch_model.bin, a pickle.* is refused"):
        TagiModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["hypernetwork.stacks.0.hidden_bias", "backbone.shared.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(make_model, tmp_path, name, value):
    make_model("t5").save_pretrained(tmp_path)
    tensors = {key: x.clone() for key, x in load_file(tmp_path / "model.safetensors").items()}
    tensors[name].view(-1)[3] = value
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"1 tensors with numbers that are not finite: {name}.*earlier checkpoint"):
        TagiModel.from_pretrained(tmp_path)


def test_other_shapes_are_one_message(make_model, tmp_path):
    make_model("t5").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "generator_hidden_size": 24}))
    with pytest.raises(ValueError, match="other shapes than its config.json says: hypernetwork.stacks") as error:
        TagiModel.from_pretrained(tmp_path)
    assert "\n" not in str(error.value) and "the config says" in str(error.value)


# What is no checkpoint, and no backbone


def test_a_plain_model_is_no_checkpoint_but_may_be_a_backbone(make_backbone, tmp_path):
    make_backbone("t5").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"no TAGI checkpoint but a model of type 't5'; .*from_backbone.'{tmp_path}'"):
        TagiModel.from_pretrained(tmp_path)


def test_an_adapters_folder_says_how_it_is_loaded(make_model, random_ids, tmp_path):
    make_model("t5", "none").save_pretrained(tmp_path / "model")
    model = TagiModel.from_pretrained(tmp_path / "model")
    model.config.backbone_trained = True
    model.generate_adapter(random_ids(1, 4)).save_pretrained(tmp_path / "adapter")
    given = {"_adapter_model_path": str(tmp_path / "adapter")}  # as AutoModel finds it
    with pytest.raises(ValueError, match=f"{tmp_path}/adapter is an adapter, .*adapter_class.from_pretrained"):
        TagiModel.from_pretrained(tmp_path / "model", adapter_kwargs=given)
    (tmp_path / "model" / "adapter_config.json").write_bytes((tmp_path / "adapter/adapter_config.json").read_bytes())
    with pytest.raises(ValueError, match="holds an adapter's adapter_config.json beside the checkpoint's files; move"):
        TagiModel.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("name", [None, "", " ", 7, "a\0b"])
def test_what_names_nothing_is_refused(name):
    for load, what in ((TagiModel.from_pretrained, "checkpoint"), (TagiModel.from_backbone, "backbone")):
        with pytest.raises(ValueError, match=f"the {what} is named .* folder or a repository"):
            load(name)


def test_a_backbone_that_is_none_is_refused_in_one_line(make_model, tmp_path):
    make_model("t5").save_pretrained(tmp_path)
    for name, why in ((tmp_path / "nowhere", "there is no folder"), (tmp_path / "config.json", "there is no folder"),
                      (tmp_path, "is a TAGI checkpoint, which has a generator")):  # fmt: skip
        with pytest.raises((ValueError, OSError), match=f"{name}.* {why}|{why} {name}") as error:
            TagiModel.from_backbone(name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, "half a byte"])
def test_a_precision_that_nothing_computes_in_is_refused(make_model, tmp_path, dtype):
    make_model("t5").save_pretrained(tmp_path)
    for load in (TagiModel.from_pretrained, TagiModel.from_backbone):
        with pytest.raises(ValueError, match="dtype is .* computes in one of float64, float32, bfloat16, float16"):
            load(tmp_path, dtype=dtype)


def test_a_backbones_own_code_is_not_run(make_backbone, tmp_path):
    make_backbone("t5").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    code = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForSeq2SeqLM": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps({**config, **code}))
    (tmp_path / "mine.py").write_text("raise SystemExit('was run')")
    with pytest.raises(ValueError, match="trust_remote_code"):  # and not asked for from inside
        TagiModel.from_backbone(tmp_path)


def test_no_file_tells_where_it_was_made(apart, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "backbone")
    model = apart("t5")
    model.tokenizer = type(tokenizer).from_pretrained(tmp_path / "backbone")
    model.save_pretrained(tmp_path / "again", include_backbone=False)
    told = [path.name for path in (tmp_path / "again").iterdir() if str(tmp_path).encode() in path.read_bytes()]
    assert told == ["config.json"]  # where the backbone has to be found, and nothing else
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config.pop("backbone_name_or_path") == str(tmp_path / "backbone")
    assert str(tmp_path) not in json.dumps(config)
    model.save_pretrained(tmp_path / "whole")
    assert not [path for path in (tmp_path / "whole").iterdir() if str(tmp_path).encode() in path.read_bytes()]
    assert model.config.backbone_name_or_path == str(tmp_path / "backbone")


# The tokenizer beside it


def test_the_checkpoints_own_tokenizer_comes_before_the_backbones(apart, tokenizer, tmp_path):
    model = apart("t5")
    tokenizer.save_pretrained(tmp_path / "backbone")
    assert model.tokenizer("ab")["input_ids"] == tokenizer("ab")["input_ids"]
    other = type(tokenizer)(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁ab", -1.0)], extra_ids=0)
    other.save_pretrained(tmp_path / "apart")
    assert TagiModel.from_pretrained(tmp_path / "apart").tokenizer("ab")["input_ids"] == other("ab")["input_ids"]


@pytest.mark.parametrize("family", ["t5", "llama", "gpt2"])
def test_no_tokenizer_is_made_up(make_model, tmp_path, family):
    make_model(family).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no tokenizer at"):
        TagiModel.from_pretrained(tmp_path).generate_adapter("say yes")


def test_a_broken_tokenizer_is_not_replaced_by_the_backbones(apart, tokenizer, tmp_path):
    apart("t5")
    for place in ("backbone", "apart"):
        tokenizer.save_pretrained(tmp_path / place)
    (tmp_path / "apart" / "tokenizer.json").write_text("{")
    model = TagiModel.from_pretrained(tmp_path / "apart")
    with pytest.raises(ValueError, match=f"the tokenizer at '{tmp_path}/apart' cannot be read.*set model.tokenizer"):
        model.generate_adapter("say yes")
    with pytest.raises(ValueError, match="cannot be read"):
        model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()


# Saving over what is there


def test_a_model_is_saved_over_the_folder_that_it_was_loaded_from(make_model, random_ids, tmp_path):
    make_model("llama").save_pretrained(tmp_path / "model", max_shard_size="20KB")
    model, ids = TagiModel.from_pretrained(tmp_path / "model"), random_ids(1, 4)
    assert len(list((tmp_path / "model").glob("model-*-of-*.safetensors"))) > 1
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with torch.no_grad():
        expected = model(ids).logits
        model.save_pretrained(tmp_path / "model")
        assert [path.name for path in (tmp_path / "model").glob("model*.safetensors*")] == ["model.safetensors"]
        for again in (model, TagiModel.from_pretrained(tmp_path / "model")):
            assert torch.equal(again(ids).logits, expected)
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_a_save_that_fails_leaves_the_checkpoint_that_was_there(make_model, tmp_path, monkeypatch):
    make_model("llama").save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(OSError, match="No space left"):
        make_model("llama", seed=3).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_variant_lies_beside_the_weights(make_model, tmp_path):
    model = make_model("llama")
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, variant="fp16")
    assert {"model.safetensors", "model.fp16.safetensors"} <= {path.name for path in tmp_path.iterdir()}
