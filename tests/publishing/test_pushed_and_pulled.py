import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hub_stand_in import log_in
from huggingface_hub import ModelCard, constants
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSeq2SeqLM

from modeling_tagi import TagiAdapter, TagiModel
from modeling_tagi.evaluation.compare import compare
from modeling_tagi.hub import HubError, said_in_one_line
from modeling_tagi.instructions import InstructionIndex
from modeling_tagi.publishing.cards import is_edited

# Without the package: whoever imports it by its name is refused.
ELSEWHERE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == "modeling_tagi" or name.startswith("modeling_tagi."):
            raise ImportError("modeling_tagi must not be needed")

sys.meta_path.insert(0, Refuse())
import json, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

ids, tokens, source, change = sys.argv[1:]
model = AutoModel.from_pretrained(source, trust_remote_code=True)
adapter = model.generate_adapter("say yes")
out = model.generate(load_file(ids)["ids"], adapter=adapter, max_new_tokens=5, min_new_tokens=5)
save_file({"tokens": out.contiguous()}, tokens)
with torch.no_grad():
    for layer in model.fusion:
        layer.gate.mul_(2)
model.push_to_hub(change, commit_message="changed")
adapter.push_to_hub(change + "-adapter", tag="v1")
print(json.dumps(adapter.provenance[0]))
"""


def elsewhere(hub, tmp_path, name, source, change):
    """Pulls `source` in a process that has not the package, uses it, and pushes it again, changed, as `change`."""
    (tmp_path / name).mkdir()
    environment = {
        "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_x", "HOME": str(tmp_path / name),
        "HF_HOME": str(tmp_path / name), **{x: os.environ[x] for x in ("PATH", "OMP_NUM_THREADS") if x in os.environ},
    }  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, tmp_path / "ids.safetensors", tmp_path / name / "tokens", source, change],
        cwd=tmp_path / name, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return load_file(tmp_path / name / "tokens")["tokens"], json.loads(result.stdout.splitlines()[-1])


def test_a_model_is_pushed_then_changed_by_a_process_without_the_package_and_pulled_again(
    make_model, tokenizer, random_ids, hub, tmp_path
):
    model = make_model("t5")
    model.tokenizer = tokenizer
    model.push_to_hub("user/generator")
    pushed = hub.files("user/generator")
    assert not [name for name in pushed if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    ids = random_ids(2, 5)
    save_file({"ids": ids}, tmp_path / "ids.safetensors")

    tokens, provenance = elsewhere(hub, tmp_path, "one", "user/generator", change="user/changed")
    expected = model.generate(ids, adapter=model.generate_adapter("say yes"), max_new_tokens=5, min_new_tokens=5)
    assert torch.equal(tokens, expected)
    revision = hub.revision("user/generator")
    assert (provenance["generator"], provenance["generator_revision"]) == ("user/generator", revision)

    # the code has travelled along, but not the cards, which only the package can write
    assert set(hub.files("user/changed")) == set(pushed) - {"README.md"}
    assert hub.repositories["user/changed"].messages[-1] == "changed"
    with torch.no_grad():
        for layer in model.fusion:
            layer.gate.mul_(2)
    again = AutoModel.from_pretrained("user/changed", trust_remote_code=True)
    adapter = again.generate_adapter("say yes")
    expected = model.generate(ids, adapter=model.generate_adapter("say yes"), max_new_tokens=5, min_new_tokens=5)
    assert torch.equal(again.generate(ids, adapter=adapter, max_new_tokens=5, min_new_tokens=5), expected)
    assert adapter.provenance[0]["generator_revision"] == hub.revision("user/changed")

    adapter = TagiAdapter.from_pretrained("user/changed-adapter", revision="v1")
    assert adapter.provenance[0]["generator_revision"] == revision  # it was made before the change
    assert adapter.memory is not None and "README.md" not in hub.files("user/changed-adapter")


# Models


@pytest.fixture
def saved(make_model, tokenizer):
    model = make_model("t5")
    model.tokenizer = tokenizer
    return model


def same(one, two):
    states, theirs = one.state_dict(), two.state_dict()
    return states.keys() == theirs.keys() and all(torch.equal(states[key], theirs[key]) for key in states)


def test_save_pretrained_pushes_where_asked(saved, hub, tmp_path):
    saved.save_pretrained(tmp_path / "folder", push_to_hub=True, repo_id="user/other", private=True)
    assert set(hub.files("user/other")) == {
        *(path.name for path in (tmp_path / "folder").iterdir()), ".gitattributes", "README.md"
    }  # fmt: skip
    assert hub.repositories["user/other"].private and hub.repositories["user/other"].messages[1:] == ["Upload model"]


def test_revisions_and_tags_are_loaded_by_name(saved, hub):
    saved.push_to_hub("user/one", tag="v1")
    before = {key: value.clone() for key, value in saved.state_dict().items()}
    with torch.no_grad():
        saved.fusion[0].gate.add_(1)
    saved.push_to_hub("user/one", revision="trial")
    for name in ("main", "v1", hub.revision("user/one", "v1")):
        loaded = TagiModel.from_pretrained("user/one", revision=name)
        assert all(torch.equal(before[key], value) for key, value in loaded.state_dict().items()), name
        assert loaded._revision == hub.revision("user/one", "v1")
    assert same(TagiModel.from_pretrained("user/one", revision="trial"), saved)


def test_shards_take_the_place_of_whole_weights_and_back(saved, hub):
    saved.push_to_hub("user/one")
    with torch.no_grad():
        saved.fusion[0].gate.add_(1)
    saved.push_to_hub("user/one", max_shard_size="50KB")
    names = [name for name in hub.files("user/one") if name.startswith("model") and name.endswith(".safetensors")]
    assert len(names) > 1 and "model.safetensors" not in names  # which transformers would read first
    assert same(TagiModel.from_pretrained("user/one"), saved)
    saved.push_to_hub("user/one")
    assert "model.safetensors.index.json" not in hub.files("user/one")
    assert same(TagiModel.from_pretrained("user/one"), saved)


def test_a_warm_cache_is_enough_offline(saved, hub, monkeypatch):
    saved.push_to_hub("user/one")
    TagiModel.from_pretrained("user/one").tokenizer
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    loaded = TagiModel.from_pretrained("user/one")
    assert same(loaded, saved) and loaded.generate_adapter("say yes").provenance[0]["generator"] == "user/one"
    assert len(hub.requests) == asked


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_a_private_model_needs_a_token_and_says_so_in_one_line(saved, hub, monkeypatch, tmp_path, token):
    saved.push_to_hub("user/one", private=True)
    saved.generate_adapter("say yes").push_to_hub("user/adapter", private=True)
    log_in(hub, monkeypatch, tmp_path, token)
    why = "may not see it" if token is None else "does not know the token"
    for load, name in ((TagiModel.from_pretrained, "user/one"), (TagiAdapter.from_pretrained, "user/adapter")):
        with pytest.raises(HubError, match=f"^cannot load {name}: .*{why}") as error:
            load(name)
        assert "\n" not in str(error.value)
        load(name, token="hf_x")


def test_a_token_that_is_given_reaches_the_tokenizer_and_the_index_and_is_not_kept(saved, hub, monkeypatch, tmp_path):
    saved.instruction_index = InstructionIndex(torch.zeros(1, 32), ["say yes"], 1.0)
    saved.push_to_hub("user/one", private=True)
    log_in(hub, monkeypatch, tmp_path, token=None)
    for load, more in ((TagiModel.from_pretrained, {}), (AutoModel.from_pretrained, {"trust_remote_code": True})):
        loaded = load("user/one", token="hf_x", **more)
        assert loaded.instruction_index.texts == ["say yes"]
        assert loaded.generate_adapter("say yes").provenance[0]["generator"] == "user/one"
        assert "hf_x" not in repr(vars(loaded))


def test_a_cache_that_is_given_has_all_of_it(saved, hub, monkeypatch, tmp_path):
    saved.push_to_hub("user/one")
    TagiModel.from_pretrained("user/one", cache_dir=tmp_path / "mine")
    assert not list((tmp_path / "hub").rglob("tokenizer*"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    TagiModel.from_pretrained("user/one", cache_dir=tmp_path / "mine").generate_adapter("say yes")


@pytest.mark.parametrize(
    "name, revision, why",
    [
        ("user/nowhere", None, "there is no such repository"), ("user/bank", None, "Entry Not Found|config.json"),
        ("user/one", "no-such", "no such revision"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named(saved, hub, name, revision, why):
    saved.push_to_hub("user/one")
    saved.generate_adapter("say yes").push_to_hub("user/adapter")
    hub.repositories["user/bank"] = hub.repositories["user/adapter"]
    hub.repositories["user/bank"].commit("main", {"index.json": b"{}"}, "neither")
    for load in (TagiModel.from_pretrained, TagiAdapter.from_pretrained):
        with pytest.raises(OSError, match=why) as error:
            load(name, revision=revision)
        assert name in str(error.value)


def test_what_is_not_in_the_cache_is_named_offline(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for load in (TagiModel.from_pretrained, TagiAdapter.from_pretrained, lambda name: compare(name, name)):
        with pytest.raises(HubError, match="^cannot load user/one: .*not all of it is in the cache") as error:
            load("user/one")
        assert "HF_HUB_OFFLINE" in str(error.value)
    assert not hub.requests


def test_a_gated_repository_is_not_said_to_be_missing():
    gated = GatedRepoError("gated", response=SimpleNamespace(status_code=403, headers={}, request=None))
    with pytest.raises(HubError, match="^cannot load user/one: only who has agreed .*; do so at .*/user/one"):
        with said_in_one_line("user/one", "load"):
            try:
                raise gated
            except GatedRepoError as error:  # as transformers wraps it
                raise OSError("You are trying to access a gated repo.\nMake sure to have access to it") from error


def test_a_push_that_broke_off_leaves_what_was_there_and_the_next_one_ends_it(saved, hub):
    saved.push_to_hub("user/one")
    before = {key: value.clone() for key, value in saved.state_dict().items()}
    with torch.no_grad():
        saved.fusion[0].gate.add_(1)
    hub.breaks = lambda command, path: command == "PUT"
    with pytest.raises(HubError, match="nothing was changed there"):
        saved.push_to_hub("user/one")
    hub.breaks = lambda command, path: False
    loaded = TagiModel.from_pretrained("user/one")
    assert all(torch.equal(before[key], value) for key, value in loaded.state_dict().items())
    saved.push_to_hub("user/one")
    assert same(TagiModel.from_pretrained("user/one"), saved)


def test_a_download_that_broke_off_is_said_in_one_line_and_the_next_one_goes_on(saved, hub):
    saved.push_to_hub("user/one")
    saved.generate_adapter("say yes").push_to_hub("user/adapter")
    for load, name in ((TagiModel.from_pretrained, "user/one"), (TagiAdapter.from_pretrained, "user/adapter")):
        hub.breaks = lambda command, path: command == "GET" and path.endswith("model.safetensors")
        with pytest.raises(HubError, match=f"^cannot load {name}: the connection broke off .*goes on") as error:
            load(name)
        assert "\n" not in str(error.value)
        hub.breaks = lambda command, path: False
        load(name)
    assert same(TagiModel.from_pretrained("user/one"), saved)


# The card


def test_an_edited_card_outlives_the_next_push_and_one_that_was_written_here_does_not(saved, hub):
    saved.push_to_hub("user/one", tags=["mine"])
    card = hub.files("user/one")["README.md"].decode()
    assert "user/one" in card and "mine" in ModelCard(card).data.tags and not is_edited(card)
    saved.config.fusion = "none"  # for the card to say something else
    saved.push_to_hub("user/one")
    assert '`fusion="none"`' in hub.files("user/one")["README.md"].decode()
    edited = card.replace("# one", "# One of mine")
    repository = hub.repositories["user/one"]
    repository.commit("main", {**hub.files("user/one"), "README.md": edited.encode()}, "by hand")
    saved.push_to_hub("user/one")
    assert hub.files("user/one")["README.md"].decode() == edited


# The backbone


@pytest.fixture
def stock(make_backbone, tokenizer, hub):
    """A backbone on the Hub in two revisions, the first of them tagged."""
    for seed, name in ((0, "v1"), (7, "v2")):
        backbone = make_backbone("t5", seed)
        backbone.push_to_hub("user/stock")
        hub.repositories["user/stock"].tags[name] = hub.revision("user/stock")
    tokenizer.push_to_hub("user/stock")
    return "user/stock"


SMALL = {"r": 4, "lora_alpha": 8, "generator_hidden_size": 16, "generator_index_size": 4}


def test_a_named_backbone_is_loaded_at_its_revision(stock, hub):
    model = TagiModel.from_backbone(stock, revision="v1", **SMALL)
    assert model.config.backbone_revision == hub.revision(stock, "v1") and model.config.backbone_sha256
    model.push_to_hub("user/apart", include_backbone=False)
    assert len(hub.files("user/apart")["model.safetensors"]) < len(hub.files(stock)["model.safetensors"])
    loaded = TagiModel.from_pretrained("user/apart")
    assert same(loaded, model)
    newest = AutoModelForSeq2SeqLM.from_pretrained(stock)
    assert not torch.equal(newest.shared.weight, loaded.backbone.shared.weight)
    base = ModelCard(hub.files("user/apart")["README.md"].decode()).data
    assert base.base_model == stock and base.to_dict()["base_model_relation"] == "adapter"


def test_a_private_backbone_takes_a_token_and_a_cache(stock, hub, monkeypatch, tmp_path):
    hub.repositories[stock].private = True
    log_in(hub, monkeypatch, tmp_path, token=None)
    with pytest.raises(OSError, match=stock):
        TagiModel.from_backbone(stock, **SMALL)
    model = TagiModel.from_backbone(stock, token="hf_x", cache_dir=tmp_path / "mine", **SMALL)
    assert model.config.backbone_revision == hub.revision(stock) and model.config.backbone_sha256
    assert model.generate_adapter("say yes") and "hf_x" not in repr(vars(model))
    assert list((tmp_path / "mine").rglob("*.safetensors")) and not list((tmp_path / "hub").rglob("*.safetensors"))


def test_a_backbone_that_is_another_is_an_error_that_says_which_is_which(stock, hub, tmp_path):
    model = TagiModel.from_backbone(stock, revision="v1", **SMALL)
    model.save_pretrained(tmp_path / "apart", include_backbone=False)
    config = json.loads((tmp_path / "apart" / "config.json").read_text())
    (tmp_path / "apart" / "config.json").write_text(json.dumps({**config, "backbone_revision": "v2"}))
    other = TagiModel.from_backbone(stock, revision="v2", **SMALL).config.backbone_sha256
    with pytest.raises(ValueError) as error:
        TagiModel.from_pretrained(tmp_path / "apart")
    for part in ("apart", stock, "v2", model.config.backbone_sha256, other, "set its backbone_sha256 to null"):
        assert part in str(error.value)
    config = {**config, "backbone_revision": "v2", "backbone_sha256": None}
    (tmp_path / "apart" / "config.json").write_text(json.dumps(config))
    assert TagiModel.from_pretrained(tmp_path / "apart").config.backbone_sha256 is None


def test_a_checkpoint_whose_backbone_is_a_folder_of_ones_own_is_not_pushed_without_it(make_backbone, hub, tmp_path):
    make_backbone("t5").save_pretrained(tmp_path / "backbone")
    model = TagiModel.from_backbone(tmp_path / "backbone", **SMALL)
    with pytest.raises(ValueError, match="is no repository on the Hub: save and push it with include_backbone=True"):
        model.push_to_hub("user/apart", include_backbone=False)
    assert not hub.repositories


# Adapters


@pytest.mark.parametrize("family, fusion", [("llama", "none"), ("t5", "cross_attention")])
def test_an_adapter_is_pushed_and_read_back_equal(make_model, hub, family, fusion):
    adapter = make_model(family, fusion).generate_adapter([5, 6, 7])
    commit = adapter.push_to_hub("user/adapter", private=True, commit_message="an adapter")
    assert commit.oid == hub.revision("user/adapter") and hub.repositories["user/adapter"].private
    read = TagiAdapter.from_pretrained("user/adapter")
    assert read.provenance == adapter.provenance
    for path in adapter.lora_a:
        assert torch.equal(read.lora_a[path], adapter.lora_a[path])
        assert torch.equal(read.lora_b[path], adapter.lora_b[path])
    assert (read.memory is None) == (fusion == "none")


def test_a_memory_of_another_adapter_does_not_stay(make_model, hub):
    make_model("t5").generate_adapter([5, 6]).push_to_hub("user/adapter")
    make_model("t5", "none").generate_adapter([5, 6]).push_to_hub("user/adapter")
    assert TagiAdapter.from_pretrained("user/adapter").memory is None


def test_several_adapters_do_not_go_into_one_repository(make_model, hub):
    several = make_model("t5", "none").generate_adapter([[5, 6], [7, 8]])
    with pytest.raises(ValueError, match="holds 2; push adapter.0., adapter.1., … to repositories of their own"):
        several.push_to_hub("user/adapter")
    assert not hub.repositories


def test_an_adapter_without_a_token_is_not_pushed(make_model, hub, monkeypatch, tmp_path):
    log_in(hub, monkeypatch, tmp_path, token=None)
    with pytest.raises(HubError, match="cannot push to user/adapter: there is no token"):
        make_model("t5", "none").generate_adapter([5, 6]).push_to_hub("user/adapter")
