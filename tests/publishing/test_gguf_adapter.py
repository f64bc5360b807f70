"""GGUF LoRA files: what they hold, what llama.cpp makes of them, and what is refused."""

import logging
from dataclasses import replace

import pytest
import torch
from tiny_gguf import ARCHITECTURES, PIECES, rows, write_gguf_of, write_tiny_gguf
from transformers.utils.logging import warning_once

from modeling_tagi import TagiAdapter

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS = {
    "llama": LINEAR,
    "mistral": LINEAR,
    "qwen2": LINEAR,
    "qwen3": LINEAR,
    "gemma": LINEAR,
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "t5": ["q", "k", "v", "o", "wi", "wo"],
}
ROUNDING = {"gpt2": 1e-3, "gpt_neox": 1e-3, "gemma": 1e-3}  # llama.cpp looks up its GELU in a table of float16


@pytest.fixture(scope="module")
def model(make_model):
    return make_model("llama", "none", target_modules=LINEAR)


@pytest.fixture(scope="module")
def adapter(model):
    return model.generate_adapter([[5, 6, 7]]).described({"instruction": "Say it.", "backbone": "me/llama"})


def read(file):
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return fields, {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}


def updates(file):
    """The update of each weight, by its name, as llama.cpp computes it."""
    fields, tensors = read(file)
    names = {name.removesuffix(".lora_a") for name in tensors if name.endswith(".lora_a")}
    assert len(tensors) == 2 * len(names)
    return {
        name: fields["adapter.lora.alpha"] / len(a) * tensors[f"{name}.lora_b"] @ a
        for name, a in ((name, tensors[f"{name}.lora_a"]) for name in names)
    }


def delta(adapter, path):
    return adapter.scaling * adapter.lora_b[path][0] @ adapter.lora_a[path][0]


@pytest.mark.parametrize("family", TARGETS)
def test_the_file_holds_the_updates_by_llama_cpps_names_and_rows(family, make_model, tmp_path):
    model = make_model(family, "none", target_modules=TARGETS[family])
    adapter = model.generate_adapter([[5, 6, 7]])
    adapter.save_gguf(tmp_path / "a.gguf")
    found, config = updates(tmp_path / "a.gguf"), model.backbone.config
    architecture = {"mistral": "llama", **ARCHITECTURES}.get(family, family)
    assert read(tmp_path / "a.gguf")[0]["general.architecture"] == architecture
    (key,) = (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(key, 2)
    assert set(found) == {f"{names.get_name(path)}.weight" for path in adapter.lora_a}
    if family == "mistral":  # converted as a Llama
        config = replace_type(config, "llama")
    for path in adapter.lora_a:
        expected = rows(config, f"{path}.weight", delta(adapter, path))
        torch.testing.assert_close(found[f"{names.get_name(path)}.weight"], expected, rtol=1e-5, atol=1e-7)


def replace_type(config, kind):
    return type("Config", (), {**config.to_dict(), "model_type": kind})


@pytest.mark.parametrize("family", [family for family in TARGETS if family not in ("t5", "mistral")])
def test_llama_cpp_computes_what_we_do(family, make_model, make_backbone, tmp_path, random_ids):
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    from llama_cpp_server import Server

    whole = {"sliding_window": None} if family == "phi3" else {}  # llama.cpp lets Phi 3 see all
    backbone = make_backbone(family, vocab_size=len(PIECES), **whole)
    with torch.no_grad():
        for name, x in backbone.named_parameters():  # else a tiny model says nearly nothing
            x.mul_(3) if x.ndim == 2 else x.normal_(0, 0.1) if name.endswith("bias") else None
    model = make_model(family, "none", backbone=backbone, target_modules=TARGETS[family])
    adapter = model.generate_adapter([[5, 6, 7]])
    adapter.save_gguf(tmp_path / "a.gguf")
    server = Server(write_gguf_of(backbone, tmp_path / "base.gguf"), [tmp_path / "a.gguf"])
    ids = random_ids(1, 9)
    with torch.no_grad():
        expected = [model(ids, adapter=adapter).logits[0, -1], backbone(ids).logits[0, -1]]
    for number, logits in zip((0, None), expected):
        found = torch.tensor(server.log_probabilities(ids[0].tolist(), len(PIECES), number))
        torch.testing.assert_close(found, logits.log_softmax(-1), rtol=0, atol=ROUNDING.get(family, 1e-5))
    assert (expected[0] - expected[1]).abs().max() > 0.05
    made = model.generate(ids, adapter=adapter, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    found = server.tokens(ids[0].tolist(), 12, 0)  # llama.cpp ends at more tokens
    assert len(found) > 3 and found == made[0, ids.shape[1]:].tolist()[: len(found)]


def test_a_prompt_that_another_adapter_has_read_is_read_again(make_model, make_backbone, tmp_path, random_ids):
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    from llama_cpp_server import Server

    backbone = make_backbone("llama", vocab_size=len(PIECES))
    model = make_model("llama", "none", backbone=backbone, target_modules=LINEAR)
    adapters = model.generate_adapter([[5, 6, 7], [8, 9, 10]])
    for number in (0, 1):
        adapters[number].save_gguf(tmp_path / f"{number}.gguf")
    base = write_gguf_of(backbone, tmp_path / "base.gguf")
    server = Server(base, [tmp_path / "0.gguf", tmp_path / "1.gguf"])
    prompts = random_ids(2, 40)
    for number in (0, 1, 0):
        for ids in prompts:
            with torch.no_grad():
                expected = model(ids[None], adapter=adapters[number]).logits[0, -1].log_softmax(-1)
            found = torch.tensor(server.log_probabilities(ids.tolist(), len(PIECES), number))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_metadata_say_what_it_is(adapter, tmp_path):
    adapter.save_gguf(tmp_path / "say-it.gguf")
    assert read(tmp_path / "say-it.gguf")[0] == {
        "general.architecture": "llama", "general.type": "adapter", "general.name": "say-it",
        "general.description": "Say it.", "general.base_model.count": 1, "general.base_model.0.name": "me/llama",
        "general.file_type": 0, "adapter.type": "lora", "adapter.lora.alpha": 8.0,
    }  # fmt: skip
    bare = replace(adapter, provenance=())
    bare.save_gguf(tmp_path / "say-it.gguf", name="mine")  # in place of the earlier one
    assert read(tmp_path / "say-it.gguf")[0]["general.name"] == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["say-it.gguf"]


@pytest.mark.parametrize("alpha", [8, 3, 0.1, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rank_and_scale_come_out_right(alpha, dtype, adapter, tmp_path):
    changed = replace(adapter, lora_alpha=alpha).to(dtype)
    changed.save_gguf(tmp_path / "a.gguf")
    expected = delta(changed.to(torch.float32), "model.layers.1.mlp.up_proj")
    found = updates(tmp_path / "a.gguf")["blk.1.ffn_up.weight"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=float(expected.abs().max()) * 1e-6)


def test_modules_of_other_ranks_keep_the_scale_of_the_adapter(adapter, tmp_path):
    path = "model.layers.1.mlp.up_proj"
    a, b = ({**of, path: torch.cat([of[path]] * 2, dim)} for of, dim in ((adapter.lora_a, 1), (adapter.lora_b, 2)))
    replace(adapter, lora_a=a, lora_b=b).save_gguf(tmp_path / "a.gguf")
    torch.testing.assert_close(updates(tmp_path / "a.gguf")["blk.1.ffn_up.weight"], 2 * delta(adapter, path))


@pytest.fixture
def folder(adapter, tmp_path):
    adapter.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_from_a_folder_asks_the_model_that_it_names(adapter, folder, model, make_config, tmp_path):
    model.backbone.save_pretrained(tmp_path / "base")
    adapter.save_gguf(tmp_path / "a.gguf")
    TagiAdapter.from_pretrained(folder).save_gguf(tmp_path / "b.gguf", tmp_path / "base", name="a")
    named = adapter.described({**adapter.provenance[0], "backbone": str(tmp_path / "base")})
    named.save_pretrained(folder)
    TagiAdapter.from_pretrained(folder).save_gguf(tmp_path / "c.gguf", name="a")
    for other in "bc":
        for name, update in updates(tmp_path / "a.gguf").items():
            assert torch.equal(updates(tmp_path / f"{other}.gguf")[name], update)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_checkpoint_with_a_backbone_of_its_own_is_asked_too(adapter, folder, model, tmp_path):
    model.save_pretrained(tmp_path / "checkpoint")
    TagiAdapter.from_pretrained(folder).save_gguf(tmp_path / "a.gguf", tmp_path / "checkpoint")
    assert len(updates(tmp_path / "a.gguf")) == len(adapter.lora_a)


def test_a_gguf_base_is_asked_and_compared(adapter, folder, model, make_backbone, tmp_path):
    base = write_gguf_of(model.backbone, tmp_path / "base.gguf")
    adapter.save_gguf(tmp_path / "a.gguf", name="a")
    TagiAdapter.from_pretrained(folder).save_gguf(tmp_path / "b.gguf", base, name="a")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    other = write_gguf_of(make_backbone("llama", intermediate_size=48), tmp_path / "other.gguf")
    with pytest.raises(ValueError, match="down_proj' by 32 × 64, but blk.0.ffn_down.weight of the base is 32 × 48"):
        adapter.save_gguf(tmp_path / "c.gguf", other)
    with pytest.raises(ValueError, match="is a GGUF adapter, but must be a model"):
        adapter.save_gguf(tmp_path / "c.gguf", tmp_path / "a.gguf")
    (tmp_path / "cut.gguf").write_bytes(base.read_bytes()[:100])
    with pytest.raises(ValueError, match="is no whole GGUF file"):
        adapter.save_gguf(tmp_path / "c.gguf", tmp_path / "cut.gguf")
    assert not (tmp_path / "c.gguf").exists()


def test_an_instruction_memory_is_said_to_be_lost(make_model, tmp_path, caplog):
    warning_once.cache_clear()
    fused = make_model("llama")
    with caplog.at_level(logging.WARNING):
        fused.generate_adapter([[5, 6, 7]]).save_gguf(tmp_path / "a.gguf")
    assert "without the instruction memory" in caplog.text and len(updates(tmp_path / "a.gguf")) == 4


@pytest.mark.parametrize("name, said", [
    ("a.bin", "must be a name that ends in .gguf"),
    ("folder.gguf", "is a folder"),
    ("model.gguf", "is there already and is no GGUF adapter"),
    ("text.gguf", "is there already and is no GGUF adapter"),
])  # fmt: skip
def test_files_that_would_be_lost_are_refused(name, said, adapter, tmp_path):
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "text.gguf").write_text("mine")
    write_tiny_gguf(tmp_path / "model.gguf")
    before = {file: file.stat().st_size for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=said):
        adapter.save_gguf(tmp_path / name)
    assert {file: file.stat().st_size for file in tmp_path.iterdir()} == before


def test_what_cannot_be_written_is_refused(adapter, make_model, tmp_path, monkeypatch):
    file, bart = tmp_path / "a.gguf", make_model("bart", "none")
    with pytest.raises(ValueError, match="writes one adapter to a file, this object holds 2"):
        TagiAdapter.stack([adapter, adapter]).save_gguf(file)
    with pytest.raises(ValueError, match="A of 'model.layers.0.self_attn.q_proj' holds NaN"):
        replace(adapter, lora_a={path: a * torch.nan for path, a in adapter.lora_a.items()}).save_gguf(file)
    with pytest.raises(ValueError, match="model type 'bart' cannot get a GGUF LoRA.*arcee, gemma, .*qwen2"):
        bart.generate_adapter([[5, 6, 7]]).save_gguf(file)
    with pytest.raises(ValueError, match="does not say which model it is for; give base_model="):
        replace(adapter, provenance=(), origin=None).save_gguf(file)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        replace(adapter, origin=None).save_gguf(file, tmp_path / "nowhere")
    odd = replace(adapter, lora_a={"model.odd": adapter.lora_a["model.layers.0.self_attn.q_proj"]},
                  lora_b={"model.odd": adapter.lora_b["model.layers.0.self_attn.q_proj"]})  # fmt: skip
    with pytest.raises(ValueError, match="'model.odd', for which llama.cpp's architecture 'llama' has no weight"):
        odd.save_gguf(file)
    monkeypatch.setattr("modeling_tagi.adapter.GGUF_WRITER", [])  # as in a checkpoint's own code
    with pytest.raises(ImportError, match="only an installed modeling_tagi writes adapters as GGUF"):
        adapter.save_gguf(file)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_of_its_own_takes_a_lora_and_a_tied_one_does_not(tied, make_model, make_backbone, tmp_path):
    model = make_model("llama", "none", backbone=make_backbone("llama", tie_word_embeddings=tied))
    adapter = model.generate_adapter([[5, 6, 7]])
    a, b = torch.ones(1, 4, 32), torch.ones(1, 100, 4)
    changed = replace(adapter, lora_a={"lm_head": a}, lora_b={"lm_head": b})
    if tied:
        with pytest.raises(ValueError, match="'lm_head', for which .* has the token embeddings as its head has no"):
            changed.save_gguf(tmp_path / "a.gguf")
    else:
        changed.save_gguf(tmp_path / "a.gguf")
        torch.testing.assert_close(updates(tmp_path / "a.gguf")["output.weight"], delta(changed, "lm_head"))
