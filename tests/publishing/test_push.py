import json
import shutil
from pathlib import Path

import pytest
import torch
from hub_stand_in import log_in
from huggingface_hub import ModelCard, snapshot_download
from peft import PeftModel

from modeling_tagi import TagiAdapter, TagiModel
from modeling_tagi.banks.adapter_bank import AdapterBank
from modeling_tagi.hub import HubError, kind_in
from modeling_tagi.publishing.push import push_folder


@pytest.fixture
def checkpoint(make_model, tmp_path):
    make_model("t5").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def adapter(make_model, tmp_path):
    make_model("llama", "none").generate_adapter([5, 6]).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def bank(make_model, tmp_path):
    adapters = make_model("t5", "none").generate_adapter([[5, 6], [7, 8], [9]])
    details = [{"by": "task", "reads": "input", "records": 6}] * 3
    AdapterBank(tmp_path / "bank").add(["one", "two | <b>", "three"], adapters, details)
    return tmp_path / "bank"


@pytest.fixture
def run(checkpoint, tmp_path):
    """A run's folder, with what is nobody else's business."""
    folder = tmp_path / "run"
    (folder / "stages" / "finetuning" / "checkpoints").mkdir(parents=True)
    (folder / "stages" / "finetuning" / "checkpoints" / "optimizer.pt").write_bytes(b"state")
    (folder / "settings.yaml").write_text("seed: 0\n")
    shutil.copytree(checkpoint, folder / "model")
    return folder


@pytest.mark.parametrize("kind", ["run", "checkpoint", "adapter", "bank"])
def test_every_kind_is_known_and_pushed_with_a_card_that_the_hub_takes(hub, request, kind):
    folder = request.getfixturevalue(kind)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert kind_in(folder) == kind
    assert push_folder(folder, "user/one", tag="v1") == f"{hub.endpoint}/user/one"
    files, inside = hub.files("user/one", "v1"), folder / "model" if kind == "run" else folder
    for path in (path for path in inside.rglob("*") if path.is_file()):
        assert files[path.relative_to(inside).as_posix()] == path.read_bytes()
    card = ModelCard(files["README.md"].decode())
    card.validate()
    assert "one" in card.text and "tagi" in card.data.tags
    assert not any("optimizer" in name for name in files)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before  # nothing is written


def test_what_was_pushed_loads(hub, checkpoint, adapter, bank, make_backbone):
    push_folder(checkpoint, "user/model", revision="trial")
    states = TagiModel.from_pretrained(checkpoint).state_dict()
    loaded = TagiModel.from_pretrained("user/model", revision="trial").state_dict()
    assert all(torch.equal(states[name], tensor) for name, tensor in loaded.items())
    push_folder(adapter, "user/adapter", private=True)
    assert TagiAdapter.from_pretrained("user/adapter").provenance == TagiAdapter.from_pretrained(adapter).provenance
    PeftModel.from_pretrained(make_backbone("llama"), "user/adapter")  # a card does not disturb PEFT
    push_folder(bank, "user/bank")
    pulled = AdapterBank(snapshot_download("user/bank"))
    assert pulled.names == ["one", "two | <b>", "three"] and pulled.reads == "input" and len(pulled.load()) == 3
    assert "| two \\| &lt;b> |" in hub.files("user/bank")["README.md"].decode()


def test_the_address_of_a_branch_is_the_branchs(hub, adapter):
    assert push_folder(adapter, "user/one", revision="trial") == f"{hub.endpoint}/user/one/tree/trial"


def test_a_folders_edited_card_goes_up_and_one_that_was_written_here_names_the_repository(hub, checkpoint):
    push_folder(checkpoint, "user/one")
    written = hub.files("user/one")["README.md"].decode()
    (checkpoint / "README.md").write_text(written)
    push_folder(checkpoint, "user/two")
    assert '"user/two"' in hub.files("user/two")["README.md"].decode()
    (checkpoint / "README.md").write_text(written.replace("# one", "# By hand"))
    push_folder(checkpoint, "user/two")
    assert "# By hand" in hub.files("user/two")["README.md"].decode()


def test_a_pulled_checkpoint_with_a_card_edited_on_the_hub_keeps_it(hub, checkpoint):
    push_folder(checkpoint, "user/one")
    edited = hub.files("user/one")["README.md"].decode().replace("# one", "# Edited there")
    hub.repositories["user/one"].commit("main", {**hub.files("user/one"), "README.md": edited.encode()}, "by hand")
    push_folder(checkpoint, "user/one", message="again")
    assert "# Edited there" in hub.files("user/one")["README.md"].decode()
    pulled = Path(snapshot_download("user/one"))
    push_folder(pulled, "user/two")
    assert "# Edited there" in hub.files("user/two")["README.md"].decode()


# What is not pushed


def test_a_folder_of_no_kind_says_what_the_kinds_have(hub, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="is nothing that can be pushed|there is no folder"):
            push_folder(folder, "user/one")
    assert not hub.requests


@pytest.mark.parametrize(
    "kind, name",
    [
        ("checkpoint", "model.safetensors"), ("checkpoint", "lora.py"), ("adapter", "adapter_model.safetensors"),
        ("bank", "three/adapter_model.safetensors"), ("bank", "one/adapter_config.json"),
    ],
)  # fmt: skip
def test_a_folder_that_lacks_a_file_is_not_pushed(hub, request, kind, name):
    folder = request.getfixturevalue(kind)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {name}"):
        push_folder(folder, "user/one")
    assert not hub.requests


def test_a_shard_that_is_missing_or_cut_off_is_named(hub, make_model, tmp_path):
    make_model("t5").save_pretrained(tmp_path / "model", max_shard_size="50KB")
    second = sorted((tmp_path / "model").glob("model-*.safetensors"))[1]
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{second.name} is broken"):
        push_folder(tmp_path / "model", "user/one")
    second.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {second.name}"):
        push_folder(tmp_path / "model", "user/one")
    assert not hub.requests


def test_a_checkpoint_that_names_a_folder_of_ones_own_is_not_pushed(hub, make_backbone, tmp_path):
    make_backbone("t5").save_pretrained(tmp_path / "backbone")
    model = TagiModel.from_backbone(tmp_path / "backbone", r=2, generator_hidden_size=8)
    model.save_pretrained(tmp_path / "apart", include_backbone=False)
    with pytest.raises(ValueError, match="is no repository on the Hub"):
        push_folder(tmp_path / "apart", "user/one")
    assert not hub.requests


def test_a_wrong_token_is_one_line_and_the_folder_stays(hub, checkpoint, monkeypatch, tmp_path):
    log_in(hub, monkeypatch, tmp_path, "hf_wrong")
    with pytest.raises(HubError) as error:
        push_folder(checkpoint, "user/one")
    assert "\n" not in str(error.value) and "does not know the token" in str(error.value)
    assert json.loads((checkpoint / "config.json").read_text())["model_type"] == "tagi"
