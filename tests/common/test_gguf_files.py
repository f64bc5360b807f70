import json
import subprocess
import sys

import pytest
import torch
from tiny_gguf import write_tiny_gguf
from transformers import BitsAndBytesConfig

from modeling_tagi import TagiConfig, TagiModel
from modeling_tagi.common.gguf_files import gguf_path
from modeling_tagi.evaluation.backbones import load_backbone
from modeling_tagi.hub import is_repository, named_with_file, readable, repository_of
from modeling_tagi.named_backbone import backbone_hash
from modeling_tagi.planning.inputs import backbone_shape
from modeling_tagi.training.backbones import backbone_config, load_backbone_to_train
from modeling_tagi.training.settings import build_settings
from modeling_tagi.training.tokenizer import read_tokenizer

FIELDS = {"fusion": "none", "r": 2, "generator_hidden_size": 8, "generator_index_size": 4}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets"


@pytest.fixture
def folder(tmp_path):
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    place = tmp_path / "models"
    place.mkdir()
    write_tiny_gguf(place / "tiny.gguf")
    return place


def logits(model, **inputs):
    with torch.no_grad():
        return model.eval().backbone(input_ids=torch.arange(3, 20)[None], **inputs).logits


@pytest.mark.parametrize("dtype", [None, "float16", torch.bfloat16])
def test_a_generator_is_made_saved_and_read_again(folder, tmp_path, dtype):
    model = TagiModel.from_backbone(folder, gguf_file="tiny.gguf", dtype=dtype, **FIELDS)
    assert str(model.dtype).endswith(str(dtype or "float32").split(".")[-1])
    assert not getattr(model.backbone, "is_quantized", False)
    assert not hasattr(model.backbone.config, "quantization_config")
    assert model.tokenizer.chat_template and model.tokenizer.pad_token
    for include in (False, True):
        model.save_pretrained(tmp_path / "saved", include_backbone=include)
        said = json.loads((tmp_path / "saved" / "config.json").read_text())
        assert str(tmp_path / "assets") not in json.dumps(said) and "quantization_config" not in json.dumps(said)
        assert said["backbone_name_or_path"] == (None if include else str(folder / "tiny.gguf"))
        again = TagiModel.from_pretrained(tmp_path / "saved")
        assert again.dtype == model.dtype and torch.equal(logits(again), logits(model))
        again.note_training_of_backbone(always=True)
        assert again.config.backbone_trained is False


def test_training_that_reaches_the_backbone_is_seen(folder):
    model = TagiModel.from_backbone(folder, gguf_file="tiny.gguf", **FIELDS)
    with torch.no_grad():
        model.backbone.model.layers[0].mlp.up_proj.weight.add_(0.1)
    model.note_training_of_backbone(always=True)
    assert model.config.backbone_trained is True


def test_it_is_the_same_model_as_the_one_that_was_written(folder):
    from transformers import AutoModelForCausalLM

    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file="tiny.gguf", dtype=torch.float32).eval()
    model = TagiModel.from_backbone(folder, gguf_file="tiny.gguf", **FIELDS)
    with torch.no_grad():
        assert torch.equal(read(input_ids=torch.arange(3, 20)[None]).logits, logits(model))


def test_a_file_is_converted_once(folder, cache):
    first = readable(str(folder / "tiny.gguf"))
    weights = next(cache.rglob("model.safetensors"))
    written = weights.stat().st_mtime_ns
    assert readable(str(folder / "tiny.gguf")) == first and weights.stat().st_mtime_ns == written
    write_tiny_gguf(folder / "other.gguf", seed=1)
    assert readable(str(folder / "other.gguf")) != first
    assert not [path for path in weights.parents[1].iterdir() if path.name.startswith(".")]  # nothing half made


def test_another_file_under_the_name_is_refused(folder, tmp_path):
    model = TagiModel.from_backbone(folder, gguf_file="tiny.gguf", **FIELDS)
    model.save_pretrained(tmp_path / "saved", include_backbone=False)
    write_tiny_gguf(folder / "tiny.gguf", seed=1)
    with pytest.raises(ValueError, match="another model's, or were changed"):
        TagiModel.from_pretrained(tmp_path / "saved")
    (folder / "tiny.gguf").unlink()
    with pytest.raises(OSError, match="holds a generator without its backbone.*no such file"):
        TagiModel.from_pretrained(tmp_path / "saved")


def test_a_checkpoint_takes_its_backbone_from_where_the_caller_says(folder, tmp_path):
    model = TagiModel.from_backbone(folder, gguf_file="tiny.gguf", **FIELDS)
    model.save_pretrained(tmp_path / "saved", include_backbone=False)
    (folder / "tiny.gguf").rename(tmp_path / "moved.gguf")
    config = TagiConfig.from_pretrained(tmp_path / "saved")
    config.backbone_name_or_path = str(tmp_path / "moved.gguf")
    assert torch.equal(logits(TagiModel.from_pretrained(tmp_path / "saved", config=config)), logits(model))


def test_a_run_reads_it(folder):
    settings = build_settings({"backbone": {"name": str(folder), "gguf_file": "tiny.gguf"}})
    name = str(folder / "tiny.gguf")
    assert (settings.backbone.name, settings.backbone.gguf_file) == (name, None)
    assert backbone_config(settings, 5).model_type == "llama"
    assert backbone_shape(settings, None, [])[1] == "repository"
    trained = load_backbone_to_train(settings, name, None, 5)
    same = zip(trained.state_dict().values(), load_backbone(name).cpu().state_dict().values())
    assert all(torch.equal(x, y) for x, y in same) and trained.dtype == torch.float32
    assert read_tokenizer(settings, [], []).decode([3]) == "!"


def test_a_package_is_found_without_being_imported(folder, tmp_path, monkeypatch):
    package = tmp_path / "held" / "a_model_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (folder / "tiny.gguf").rename(package / "tiny.gguf")
    monkeypatch.syspath_prepend(str(tmp_path / "held"))
    model = TagiModel.from_backbone("package:a_model_package", gguf_file="tiny.gguf", **FIELDS)
    assert model.config.backbone_name_or_path == "package:a_model_package/tiny.gguf"
    assert model.config.backbone_sha256 == backbone_hash(str(package / "tiny.gguf"))
    model.save_pretrained(tmp_path / "saved", include_backbone=False)
    assert torch.equal(logits(TagiModel.from_pretrained(tmp_path / "saved")), logits(model))
    assert "a_model_package" not in sys.modules
    with pytest.raises(FileNotFoundError, match="its GGUF files: tiny.gguf"):
        gguf_path("package:a_model_package/other.gguf")


def test_a_file_that_is_cut_off_is_refused(folder):
    whole = (folder / "tiny.gguf").read_bytes()
    for length in (0, 3, 100, len(whole) // 2, len(whole) - 50):
        (folder / "tiny.gguf").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cannot be read .*cut off"):
            readable(str(folder / "tiny.gguf"))


@pytest.mark.parametrize(
    "fields, what", [({"architecture": "nomodel"}, "nomodel"), ({"tokenizer": False}, "tokenizer")]
)
def test_a_file_that_transformers_cannot_read_is_refused(folder, fields, what):
    write_tiny_gguf(folder / "tiny.gguf", **fields)
    with pytest.raises(ValueError, match=f"cannot be read .*{what}"):
        TagiModel.from_backbone(folder, gguf_file="tiny.gguf", **FIELDS)


@pytest.mark.parametrize("name, file, said", [
    ("package:no_such_package", "x.gguf", "no installed package 'no_such_package'"),
    ("package:json.tool", "x.gguf", "no installed package"),
    ("./nowhere", "x.gguf", "no such file"),
    ("/nowhere", "x.gguf", "no such file"),
    ("package:json", None, "say which of its files"),
    ("nowhere", "x.bin", "ends in .gguf"),
    ("a/b/x.gguf", "x.gguf", "already"),
])  # fmt: skip
def test_what_is_not_there_is_refused(name, file, said):
    with pytest.raises((ValueError, OSError), match=said):
        TagiModel.from_backbone(name, gguf_file=file, **FIELDS)


def test_quantization_beside_it_is_refused(folder):
    with pytest.raises(ValueError, match="quantization_config is given too"):
        TagiModel.from_backbone(
            folder, gguf_file="tiny.gguf", quantization_config=BitsAndBytesConfig(load_in_8bit=True), **FIELDS
        )


def test_without_the_package_that_reads_it_the_message_names_it(folder):
    code = (
        "import sys, importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'gguf' else find(name, *a)\n"
        f"from modeling_tagi.hub import readable\nreadable({str(folder / 'tiny.gguf')!r})"
    )
    env = {"HF_ASSETS_CACHE": str(folder / "assets"), "PATH": ""}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert found.returncode == 1 and "pip install gguf" in found.stderr.splitlines()[-1]


def test_names():
    assert named_with_file("user/name", "x.gguf") == "user/name/x.gguf" and named_with_file("a/b", None) == "a/b"
    assert repository_of("user/name/sub/x.gguf") == "user/name" == repository_of("user/name")
    assert not is_repository("name/x.gguf")
    with pytest.raises(ValueError, match="backbone.name says not where"):
        build_settings({"backbone": {"gguf_file": "x.gguf"}})


def test_a_real_model_answers_and_round_trips(smollm2, tmp_path, monkeypatch):
    name, file = smollm2
    monkeypatch.undo()  # the converted folder is kept for the next time
    model = TagiModel.from_backbone(name, gguf_file=file, **FIELDS, generator="shared").eval()
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = model.tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.backbone.generate(**inputs, max_new_tokens=10, do_sample=False)
    assert "Paris" in model.tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:])
    model.save_pretrained(tmp_path / "saved", include_backbone=False)
    assert torch.equal(logits(TagiModel.from_pretrained(tmp_path / "saved")), logits(model))
