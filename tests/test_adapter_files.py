import json
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from modeling_tagi import TagiAdapter
from modeling_tagi.adapter import InstructionMemory

WEIGHTS, MEMORY = "adapter_model.safetensors", "tagi_memory.safetensors"
CONFIG, ORIGIN = "adapter_config.json", "tagi_adapter.json"
PATHS = ("layers.0.self_attn.q_proj", "layers.0.self_attn.v_proj")
A, B = (f"base_model.model.{PATHS[0]}.lora_{letter}.weight" for letter in "AB")


def some_adapter(**fields):
    generator = torch.Generator().manual_seed(0)
    memory = InstructionMemory(
        mask=torch.tensor([[1, 1, 1]]), states=torch.randn(1, 3, 6, generator=generator),
        keys=torch.randn(1, 2, 2, 3, 4, generator=generator), values=torch.randn(1, 2, 2, 3, 4, generator=generator),
    )  # fmt: skip
    a = {path: torch.randn(1, 4, 6, generator=generator) for path in PATHS}
    b = {path: torch.randn(1, 6, 4, generator=generator) for path in PATHS}
    made = TagiAdapter(a, b, 8.0, **{"memory": memory, **fields})
    return made.described({"backbone": "user/base", "backbone_fingerprint": [0.5, 0.25]})


@pytest.fixture
def folder(tmp_path):
    some_adapter().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def refused(folder, message, kind=ValueError):
    with pytest.raises(kind, match=message) as caught:
        TagiAdapter.from_pretrained(folder)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# Files of weights


@pytest.mark.parametrize("name", [WEIGHTS, MEMORY])
def test_a_damaged_file_of_weights_is_named_with_the_mend(folder, name):
    whole = (folder / name).read_bytes()
    for content in (whole[:-20], whole[:5], b"", bytes(range(256)) * 9, pickle.dumps({"a": 1}, protocol=4)):
        (folder / name).write_bytes(content)
        said = refused(folder, "is no whole safetensors file")
        assert said.startswith(str(folder / name)) and "save the adapter there again" in said


@pytest.mark.parametrize("name, key", [(WEIGHTS, A), (MEMORY, "keys")])
@pytest.mark.parametrize("value, word", [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_what_is_not_finite_is_not_read(folder, name, key, value, word):
    tensors = load_file(folder / name)
    tensors[key][0, 0] = value
    save_file(tensors, folder / name)
    refused(folder, f"{name}: .* holds {word}, but an adapter's numbers must be finite; save the adapter there again")
    assert len(TagiAdapter.from_pretrained(folder, check_finite=False)) == 1


@pytest.mark.parametrize("name", ["lora_b", "memory"])
def test_what_is_not_finite_is_not_written(tmp_path, name):
    adapter = some_adapter()
    x = adapter.lora_b[PATHS[1]] if name == "lora_b" else adapter.memory.states
    x[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="no adapter was written to .*there: .* holds NaN"):
        adapter.save_pretrained(tmp_path / "there")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, message",
    [
        ({A: torch.ones(4, 6, dtype=torch.int32)}, r"A of '.*q_proj' is of torch.int32, but an adapter is of float32"),
        ({B: torch.ones(6, 4).to(torch.float8_e4m3fn)}, "B of '.*q_proj' is of torch.float8_e4m3fn, but"),
        ({A: torch.ones(3, 6)}, "A and B of '.*' are 3 × 6 and 6 × 4, but must be rank × inputs"),
        ({A: torch.ones(3, 6), B: torch.ones(6, 3)}, "factors of '.*' are of rank 3, but adapter_config.json says r"),
        ({A: torch.ones(4, 6, 1)}, "A and B of '.*' are 4 × 6 × 1 and 6 × 4"),
        ({A: torch.ones(())}, "A and B of '.*' are a single number and 6 × 4"),
        ({A: torch.ones(4, 0)}, "A and B of '.*' are 4 × 0"),
        ({A.removeprefix("base_model.model."): torch.ones(4, 6)}, "holds two tensors for A of 'layers.0"),
    ],
)
def test_factors_of_another_shape_or_type_are_refused(folder, change, message):
    save_file({**load_file(folder / WEIGHTS), **change}, folder / WEIGHTS)
    assert WEIGHTS in refused(folder, message)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"keys": None}, "lacks keys of an instruction memory"),
        ({"mask": None}, "lacks mask of"),
        ({"states": None, "keys": None, "values": None}, "lacks states or prefix_keys"),
        ({"colour": torch.ones(1)}, "holds 'colour', which is no part of an instruction memory"),
        ({"mask": torch.ones(1, 3)}, "mask is 1 × 3 of torch.float32, but must be 1 × tokens of whole numbers"),
        ({"mask": torch.full((1, 3), 2)}, "1 for a token and 0 for padding"),
        ({"mask": torch.zeros(1, 3, dtype=torch.long)}, "mask is 1 × 3"),
        ({"mask": torch.ones(2, 3, dtype=torch.long)}, "mask is 2 × 3"),
        ({"states": torch.ones(3, 3, 6)}, "states is 3 × 3 × 6, but must have 3 axes, the first of length 1"),
        ({"states": torch.ones(1, 4, 6)}, "states is 1 × 4 × 6, .* the tokens of 3, as the mask"),
        ({"states": torch.ones(1, 3, 6, dtype=torch.long)}, "states is of torch.int64, but an adapter is of"),
        ({"values": torch.ones(1, 2, 3, 3, 4)}, "keys and values are .*, but must have the same layers, heads"),
        ({"values": torch.ones(2)}, "values is 2, but must have 5 axes"),
    ],
)
def test_a_memory_of_other_tensors_is_refused(folder, change, message):
    tensors = {**load_file(folder / MEMORY), **change}
    save_file({name: x for name, x in tensors.items() if x is not None}, folder / MEMORY)
    assert refused(folder, message).startswith(str(folder / MEMORY))


# JSON


@pytest.mark.parametrize("name", [CONFIG, ORIGIN])
@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "it is no JSON"), (b"{", "it is no JSON"), (b"\0", "it is no JSON"), (b"[" * 100_000, "it is no JSON"),
        ('{"r": 4}'.encode("utf-16"), "it is no JSON in UTF-8"), (b"[]", "holds a list, but must hold an object"),
        (b"null", "holds null"), (b'"x"', "holds a text"), (b"4", "holds a number"), (b"true", "holds true or false"),
    ],
)  # fmt: skip
def test_damaged_json_is_named_with_the_mend(folder, name, content, message):
    (folder / name).write_bytes(content)
    said = refused(folder, message)
    assert said.startswith(str(folder / name)) and "save the adapter there again" in said


def test_json_of_a_windows_editor_is_read(folder):
    (folder / CONFIG).write_bytes(b"\xef\xbb\xbf" + (folder / CONFIG).read_bytes())
    assert len(TagiAdapter.from_pretrained(folder)) == 1


def rewrite(folder, name, **fields):
    values = {**json.loads((folder / name).read_text()), **fields}
    (folder / name).write_text(json.dumps({key: value for key, value in values.items() if value != "gone"}))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"r": 8}, "of rank 4, but adapter_config.json says r is 8"),
        ({"r": 0}, "r is 0, but must be a whole number of at least 1"),
        ({"r": "4"}, "r is '4', but must be"), ({"r": True}, "r is True, but must be"),
        ({"r": "gone"}, "lacks r, which"),
        ({"lora_alpha": -3}, "lora_alpha is -3, but must be a number above 0"),
        ({"lora_alpha": 0}, "lora_alpha is 0, but"), ({"lora_alpha": "8"}, "lora_alpha is '8', but"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf, but"), ({"lora_alpha": float("nan")}, "is nan, but"),
        ({"lora_alpha": "gone"}, "lacks lora_alpha, which must be a number above 0"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path is 5, but must be a name or a folder"),
        ({"revision": ["main"]}, "revision is .'main'., but"), ({"task_type": 1}, "task_type is 1, but"),
        ({"fan_in_fan_out": "yes"}, "fan_in_fan_out is 'yes', but must be true or false"),
    ],
)  # fmt: skip
def test_a_configuration_of_other_values_is_refused(folder, fields, message):
    rewrite(folder, CONFIG, **fields)
    assert CONFIG in refused(folder, message)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"provenance": "me"}, "provenance is a text, but must be an object"),
        ({"provenance": [1]}, "provenance is a list"),
        ({"needs_memory": "yes"}, "needs_memory is 'yes', but must be true or false"),
        ({"provenance": {"backbone_fingerprint": "0.5"}}, "backbone_fingerprint is '0.5', but must be a list of"),
        ({"provenance": {"backbone_fingerprint": [0.5, None]}}, "backbone_fingerprint is .*, but must be a list of"),
    ],
)
def test_a_record_of_origin_of_other_types_is_refused(folder, fields, message):
    rewrite(folder, ORIGIN, **fields)
    assert refused(folder, message).startswith(str(folder / ORIGIN))


# PEFT's other kinds of LoRA


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"init_lora_weights": "corda"}, "init_lora_weights='corda'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights='loftq'"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights='lora_ga'"),
        ({"init_lora_weights": "mica"}, "init_lora_weights='mica'"),
        ({"alora_invocation_tokens": [7, 8]}, "alora_invocation_tokens"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"target_parameters": ["mlp.up_proj.weight"]}, "target_parameters"),
        ({"lora_bias": True}, "lora_bias"), ({"bias": "all"}, "bias"), ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"), ({"alpha_pattern": {"q": 3}}, "alpha_pattern"),
        ({"use_qalora": True}, "use_qalora"), ({"kasa_config": {"x": 1}}, "kasa_config"),
        ({"megatron_config": {"x": 1}}, "megatron_config"), ({"arrow_config": {"top_k": 1}}, "arrow_config"),
        ({"a_field_of_the_future": 1}, "a_field_of_the_future"),
    ],
)  # fmt: skip
def test_lora_that_is_not_plain_is_refused_by_its_field(folder, fields, named):
    rewrite(folder, CONFIG, **fields)
    said = refused(folder, f"adapter uses {named}; a TagiAdapter is plain LoRA of one rank and scale")
    assert ("path_initial_model_for_weight_conversion" in said) is ("init" in named)


def peft_model(backbone, **fields):
    """A LoRA of PEFT's on a copy of a backbone, no longer at its start."""
    from copy import deepcopy

    torch.manual_seed(0)
    fields = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **fields}
    model = get_peft_model(deepcopy(backbone), LoraConfig(**fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize("fields", [
    {}, {"init_lora_weights": "gaussian"}, {"init_lora_weights": "orthogonal"}, {"init_lora_weights": False},
    {"target_modules": "all-linear", "lora_dropout": 0.5}, {"layers_to_transform": [1], "exclude_modules": ["v_proj"]},
])  # fmt: skip
def test_plain_lora_of_pefts_gives_its_outputs(make_backbone, make_model, random_ids, tmp_path, fields):
    backbone, ids = make_backbone("llama"), random_ids(2, 5)
    theirs, model = peft_model(backbone, **fields), make_model("llama", "none")
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected, got = theirs(ids).logits, model(ids, adapter=TagiAdapter.from_pretrained(tmp_path)).logits
        assert not torch.allclose(got, model(ids).logits, atol=1e-3)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fields, named", [
    ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"), ({"init_lora_weights": "olora"}, "olora"),
    ({"alora_invocation_tokens": [7, 8]}, "alora_invocation_tokens"),
    ({"target_modules": ["embed_tokens"]}, "which is no LoRA factor"),
])  # fmt: skip
def test_other_lora_of_pefts_is_refused(make_backbone, tmp_path, fields, named):
    peft_model(make_backbone("llama"), **fields).save_pretrained(tmp_path)
    refused(tmp_path, named)


# In memory


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_an_adapter_is_not_cast_to_what_rounds_it_away(dtype):
    with pytest.raises(ValueError, match=f"an adapter cannot be cast to {dtype}; its dtypes are torch.float32, "):
        some_adapter().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_an_adapter_is_cast_to_other_floats(dtype):
    cast = some_adapter().to(dtype)
    assert cast.lora_a[PATHS[0]].dtype == cast.memory.keys.dtype == dtype and cast.memory.mask.dtype == torch.int64


def test_what_is_no_adapter_is_named():
    adapter = some_adapter()
    for call, message in (
        (lambda: TagiAdapter.stack([None]), "stack takes TagiAdapters .*, but number 0 is a NoneType"),
        (lambda: TagiAdapter.stack([adapter, "x"]), "but number 1 is a str"),
        (lambda: TagiAdapter.stack("adapter"), "stack got a str, but takes a list of TagiAdapters"),
        (lambda: TagiAdapter.stack(None), "stack got a NoneType, but takes a list"),
        (lambda: TagiAdapter.combine([adapter, {}], [1, 1], memory=0), "combine takes .*, but number 1 is a dict"),
        (lambda: adapter.similarity("adapter"), "similarity takes .*, but number 1 is a str"),
    ):
        with pytest.raises(TypeError, match=message):
            call()
