import json
from pathlib import Path

import pytest
import torch
from hub_stand_in import log_in
from huggingface_hub import constants, snapshot_download

from modeling_tagi.hub import HubError
from modeling_tagi.publishing.cards import CARD_FILE
from modeling_tagi.publishing.uploads import require_right_to_push, upload

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    """What a checkpoint looks like to an upload."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(b"weights of one")
    (folder / "config.json").write_text("{}")
    return folder


def one_line(error, *words):
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text


def test_a_folder_goes_up_in_one_commit_without_what_is_hidden(hub, folder):
    for name in (".cache/secret", "__pycache__/code.pyc"):
        (folder / name).parent.mkdir()
        (folder / name).write_text("no")
    commit = upload(folder, "user/one", commit_message="the first")
    repository = hub.repositories["user/one"]
    assert repository.messages == ["initial commit", "the first"] and not repository.private
    assert set(hub.files("user/one")) == {".gitattributes", WEIGHTS, "config.json"}
    assert hub.files("user/one")[WEIGHTS] == b"weights of one"
    assert str(commit) == f"{hub.endpoint}/user/one/commit/{hub.revision('user/one')}"


def test_a_name_without_an_owner_is_ones_own(hub, folder):
    upload(folder, "mine")
    assert list(hub.repositories) == ["user/mine"]


@pytest.mark.parametrize(
    "token, repository, words",
    [
        (None, "user/one", ["there is no token", "hf auth login"]),
        ("hf_wrong", "user/one", ["does not know the token", "HF_TOKEN"]),
        ("hf_reader", "user/one", ["may not do that there"]),
        ("hf_x", "org/theirs", ["org/theirs", "may not do that there"]),
    ],
)
def test_who_may_not_push_is_told_before_anything_happens(
    hub, folder, monkeypatch, tmp_path, token, repository, words
):
    log_in(hub, monkeypatch, tmp_path, token)
    for act in (lambda: require_right_to_push(repository), lambda: upload(folder, repository)):
        with pytest.raises(HubError) as error:
            act()
        one_line(error, "cannot push to", *words)
        assert token is None or token not in str(error.value)
    assert not hub.repositories and not hub.large


def test_a_token_can_be_given(hub, folder, monkeypatch, tmp_path):
    log_in(hub, monkeypatch, tmp_path, "hf_wrong")
    upload(folder, "user/one", token="hf_x")
    assert WEIGHTS in hub.files("user/one")


def test_a_repository_of_others_that_exists_is_not_written_to(hub, folder):
    upload(folder, "user/one")
    hub.repositories["org/theirs"] = hub.repositories.pop("user/one")
    with pytest.raises(HubError) as error:
        require_right_to_push("org/theirs")
    one_line(error, "may not do that there")


def test_what_is_no_name_and_being_offline_are_said(hub, folder, monkeypatch):
    with pytest.raises(ValueError, match="'a/b/c' is no name of a repository, such as user/name") as error:
        upload(folder, "a/b/c")
    one_line(error)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set") as error:
        upload(folder, "user/one")
    one_line(error)


def test_a_private_repository_is_only_for_who_has_a_token(hub, folder, tmp_path):
    upload(folder, "user/one", private=True)
    assert hub.repositories["user/one"].private
    with pytest.raises(Exception, match="404|not found|Not Found"):
        snapshot_download("user/one", token=False)
    assert not list((tmp_path / "hub").rglob(WEIGHTS))
    assert (Path(snapshot_download("user/one")) / WEIGHTS).read_bytes() == b"weights of one"


# Branches and tags


def test_a_branch_and_a_tag_keep_what_they_name(hub, folder):
    upload(folder, "user/one", tag="v1")
    (folder / WEIGHTS).write_bytes(b"weights of two")
    upload(folder, "user/one", revision="trial", tag="v2")
    for name, content in (("main", b"weights of one"), ("v1", b"weights of one"), ("trial", b"weights of two"),
                          ("v2", b"weights of two")):  # fmt: skip
        assert hub.files("user/one", name)[WEIGHTS] == content, name


def test_a_tag_that_exists_is_refused_before_the_upload(hub, folder):
    upload(folder, "user/one", tag="v1")
    (folder / WEIGHTS).write_bytes(b"weights of two")
    with pytest.raises(ValueError, match="has a tag 'v1' already; choose another"):
        upload(folder, "user/one", tag="v1")
    assert hub.files("user/one")[WEIGHTS] == b"weights of one"


def test_weights_of_another_save_do_not_stay(hub, folder):
    upload(folder, "user/one")
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    upload(folder, "user/one", stale=("model.safetensors",))
    assert WEIGHTS not in hub.files("user/one") and "config.json" in hub.files("user/one")


# Connections that break off


@pytest.mark.parametrize("at", ["PUT /upload", "POST /api/models/user/one/commit", "POST /user/one.git/info/lfs"])
def test_an_upload_that_broke_off_has_changed_nothing_and_goes_on(hub, folder, at):
    upload(folder, "user/one")
    before = hub.revision("user/one")
    for name in ("a", "b"):
        (folder / f"{name}.safetensors").write_bytes(name.encode() * 100)
    begun = []

    def breaks(command, path):
        """From the second large file on, or at once."""
        begun.append(f"{command} {path}")
        return f"{command} {path}".startswith(at) and (at != "PUT /upload" or sum("upload/" in x for x in begun) > 1)

    hub.breaks = breaks
    with pytest.raises(HubError) as error:
        upload(folder, "user/one")
    one_line(error, "cannot push to user/one", "nothing was changed there", "the same call goes on")
    assert hub.revision("user/one") == before
    hub.breaks = lambda command, path: False
    there, hub.requests[:] = len(hub.large), []
    upload(folder, "user/one")
    assert sum(request.startswith("PUT /upload") for request in hub.requests) == 3 - there
    assert hub.files("user/one")["a.safetensors"] == b"a" * 100 and len(hub.large) == 3


def test_the_same_folder_again_makes_no_commit(hub, folder):
    upload(folder, "user/one")
    before = hub.revision("user/one")
    upload(folder, "user/one")
    assert hub.files("user/one", before) == hub.files("user/one")


# What must not go up


@pytest.mark.parametrize(
    "name, content, why",
    [
        ("pytorch_model.bin", b"anything", "pickles"),
        ("notes.dat", b"\x80\x04\x95\x00", "pickles"),
        ("sub/optimizer.safetensors", b"anything", "a state of training"),
        ("trainer_state.json", b"{}", "a state of training"),
        ("settings.yaml", b"token: hf_" + b"a1B2" * 9, "an access token"),
        ("run.log", b"started by hf_x", "an access token"),
    ],
)
def test_files_that_must_not_go_up_are_named(hub, folder, name, content, why):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        upload(folder, "user/one")
    one_line(error, name, why, "take them out of the folder")
    assert "a1B2" not in str(error.value) and not hub.requests


def test_a_torch_file_by_another_name_is_a_pickle_too(hub, folder):
    torch.save({"a": torch.zeros(1)}, folder / "weights")
    with pytest.raises(ValueError, match="weights are pickles or archives"):
        upload(folder, "user/one")


@pytest.mark.parametrize("make", [lambda folder: folder / "nowhere", lambda folder: folder / "empty"])
def test_nothing_to_push_is_said(hub, folder, make):
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no folder|has no files"):
        upload(make(folder), "user/one")


def test_a_card_that_the_hub_does_not_take_stops_the_push_in_one_line(hub, folder):
    (folder / CARD_FILE).write_text("---\nlicense: no-such\n---\n# Mine\n")
    with pytest.raises(ValueError) as error:
        upload(folder, "user/one")
    one_line(error, "license", "no-such")
    assert WEIGHTS not in hub.files("user/one")
    assert json.loads((folder / "config.json").read_text()) == {}
