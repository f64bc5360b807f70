"""`tagi run --engine llama.cpp`, in llama.cpp itself, on a tiny model."""

import importlib.util
import json

import pytest
import torch
from tiny_gguf import PIECES, write_gguf_of

from modeling_tagi import TagiModel
from modeling_tagi.commands.main import main

FIELDS = {"fusion": "none", "r": 4, "lora_alpha": 32, "generator_hidden_size": 16, "generator_index_size": 4}
INPUTS = ["one two", "a longer input, with the like", "x"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))


@pytest.fixture
def checkpoint(tmp_path, make_backbone, awaken):
    """A checkpoint whose backbone is a GGUF file, and writes letters alone, not halves of characters."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    stock = make_backbone("llama", vocab_size=len(PIECES), tie_word_embeddings=False, max_position_embeddings=512)
    letters = torch.tensor([len(piece) == 1 and piece.isascii() and piece.isalpha() for piece in PIECES])
    with torch.no_grad():
        for x in stock.parameters():
            x.mul_(4) if x.ndim == 2 else None
        stock.lm_head.weight *= letters[:, None]
    write_gguf_of(stock, tmp_path / "tiny.gguf")
    model = awaken(TagiModel.from_backbone(tmp_path, gguf_file="tiny.gguf", **FIELDS))
    model.save_pretrained(tmp_path / "checkpoint", include_backbone=False)
    return str(tmp_path / "checkpoint")


def run(capsys, *arguments):
    assert main(["run", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_outputs_are_those_of_transformers(checkpoint, tmp_path, capsys):
    options = ["--max_new_tokens", "8", "--json"]
    asked = [checkpoint, "say it", *INPUTS, *options]
    expected = run(capsys, *asked)
    assert run(capsys, *asked, "--engine", "llama.cpp") == expected
    assert run(capsys, *asked, "--engine", "llama.cpp", "--batch_size", "1") == expected
    assert [json.loads(line)["input"] for line in expected] == INPUTS
    assert len({json.loads(line)["output"] for line in expected}) > 1
    assert main(["generate", checkpoint, "say it", "--output_dir", str(tmp_path / "adapter")]) == 0
    capsys.readouterr()
    by_adapter = [checkpoint, "--adapter", str(tmp_path / "adapter"), *options, "--engine", "llama.cpp", *INPUTS]
    assert run(capsys, *by_adapter) == expected


def refused(capsys, *arguments):
    code = main(["run", *arguments, "--engine", "llama.cpp"])
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    return line


def test_a_base_that_llama_cpp_cannot_take_is_refused(checkpoint, tmp_path, capsys):
    asked = [checkpoint, "say it", "one", "--base"]
    assert "--base is 'me/model', but the engine llama.cpp takes a GGUF file" in refused(capsys, *asked, "me/model")
    assert "there is no such file" in refused(capsys, *asked, str(tmp_path / "none.gguf"))
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "tiny.gguf").read_bytes()[:500])
    assert "llama.cpp does not load" in refused(capsys, *asked, str(tmp_path / "cut.gguf"))


@pytest.mark.parametrize("family, fusion, said", [
    ("llama", "cross_attention", "the generator has fusion 'cross_attention': its model attends to the encoded instr"),
    ("t5", "none", "the backbone (t5) is an encoder-decoder, which llama.cpp's server does not run"),
    ("llama", "none", "the backbone is in the checkpoint alone, but the engine llama.cpp takes a GGUF file: convert"),
])  # fmt: skip
def test_checkpoints_that_llama_cpp_cannot_run_are_refused(family, fusion, said, make_model, tmp_path, capsys):
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    make_model(family, fusion).save_pretrained(tmp_path / "checkpoint")
    assert said in refused(capsys, str(tmp_path / "checkpoint"), "say it", "one")


def test_options_that_do_not_go_together_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["run", "model", "say it", "one", "--base", "x.gguf"])
    assert "--base is the GGUF file of --engine llama.cpp; give that too" in capsys.readouterr().err


def test_without_the_package_the_message_names_it(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "xllamacpp" else find(name, *a))
    assert main(["run", "nowhere", "say it", "one", "--engine", "llama.cpp"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("pip install xllamacpp")
