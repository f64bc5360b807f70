import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_checkpoints import CODE, PACKAGE, TOKENIZER, WEIGHTS, names
from without_package import run_without_package

from modeling_tagi import TagiModel

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
    # and saved wherever a checkpoint is; 95 for poolings; 45 for one LoRA for all tasks
    assert len(CODE) <= 19 and sum(len((PACKAGE / name).read_text().splitlines()) for name in CODE) <= 5680


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
