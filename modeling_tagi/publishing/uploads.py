"""Uploads of folders: in one commit, which is there whole or not at all, and without what must not go there."""

import fnmatch
import os
import re
from pathlib import Path
from typing import Callable, Optional, Sequence, Union

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import EntryNotFoundError

from ..common.given_files import require_own_files
from ..hub import said_in_one_line
from .cards import CARD_FILE, is_edited

_PICKLES = (".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
_TRAINING_STATES = ("optimizer*", "scheduler*", "rng_state*", "trainer_state.json", "scaler*", "global_step*")
_TOKENS = re.compile(rb"\b(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36,}|AKIA[0-9A-Z]{16}|sk-[A-Za-z0-9_-]{32,})\b")
_READ_FOR_TOKENS = 10_000_000  # bytes; texts are smaller


def require_right_to_push(repo_id: str, private: bool = False, token: Optional[str] = None) -> str:
    """Makes sure, before any long work, that a push will be accepted; makes the repository if there is none.

    Returns:
        The repository's whole name, with its owner.

    Raises:
        HubError: if there is no token, or it is wrong, or may not write there.
        ValueError: if `repo_id` is no name of a repository.
    """
    with said_in_one_line(repo_id, "push to"):
        api = HfApi(token=token)
        api.whoami()  # else a wrong token would be said to be a repository that is not there
        repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        api.auth_check(repo_id, write=True)
    return repo_id


def upload(
    folder: Union[str, os.PathLike],
    repo_id: str,
    *,
    card: Union[str, Callable[[str], str], None] = None,
    stale: Sequence[str] = (),
    private: bool = False,
    revision: Optional[str] = None,
    tag: Optional[str] = None,
    commit_message: Optional[str] = None,
    commit_description: Optional[str] = None,
    create_pr: bool = False,
    token: Optional[str] = None,
) -> CommitInfo:
    """Uploads a folder's files in one commit. An upload that is cut off leaves the repository as it was, and the same
    call again sends only what had not arrived.

    Args:
        folder: Hidden files and caches of Python in it are left out.
        repo_id: Is made if there is none.
        card: The card, or a function from the repository's name to it; `None` takes the folder's. A card that a
            person has edited, in the folder or on the Hub, comes before it.
        stale: Patterns of files to delete from the repository where the folder has none of their name.
        private: Whether a repository that is made now is private.
        revision: A branch, made if there is none; the main one by default.
        tag: A tag for the commit.
        commit_message, commit_description: What the commit says.
        create_pr: Whether to open a pull request instead.
        token: An access token; by default that of the login.

    Returns:
        The commit, which is its address as a text.

    Raises:
        HubError: if the upload failed; nothing has changed on the Hub.
        ValueError: for files that must not go up, a card that the Hub does not take, a tag that exists.
    """
    folder = Path(folder)
    files = files_to_publish(folder, token)
    repo_id = require_right_to_push(repo_id, private, token)
    with said_in_one_line(repo_id, "push to"):
        api = HfApi(token=token)
        if tag is not None and tag in {ref.name for ref in api.list_repo_refs(repo_id).tags}:
            raise ValueError(f"{repo_id} has a tag {tag!r} already; choose another, or delete that one first")
        if revision is not None and not revision.startswith("refs/pr/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo_id, revision=revision)
        chosen = _card(files.get(CARD_FILE), card(repo_id) if callable(card) else card,
                       _card_on_the_hub(api, repo_id, revision) if CARD_FILE in there else None)  # fmt: skip
        commit = api.create_commit(
            repo_id,
            _operations(files, chosen, there, stale),
            commit_message=commit_message or f"Upload {folder.resolve().name}",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
        if tag is not None:
            api.create_tag(repo_id, tag=tag, revision=commit.oid)
    return commit


def _operations(
    files: dict[str, Path], card: Optional[str], there: Sequence[str], stale: Sequence[str]
) -> list[Union[CommitOperationAdd, CommitOperationDelete]]:
    """Returns what the commit does: adds the files and the card, if there is one, and deletes stale files."""
    added: dict[str, Union[Path, bytes]] = {name: path for name, path in files.items() if name != CARD_FILE}
    if card is not None:
        added[CARD_FILE] = card.encode()
    gone = [name for name in there
            if name not in files and any(fnmatch.fnmatch(name, pattern) for pattern in stale)]  # fmt: skip
    return [
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in added.items()),
        *(CommitOperationDelete(path_in_repo=name) for name in gone),
    ]


def files_to_publish(folder: Path, token: Optional[str] = None) -> dict[str, Path]:
    """Returns the files of a folder that are uploaded, by name in the repository.

    Raises:
        FileNotFoundError: if there is no such folder, or nothing in it.
        ValueError: naming links out of the folder, pickles (they can run anything when they are read), states of
            training, or files with an access token in them.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} to push")
    for place in (folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())):
        require_own_files(place, folder)
    files, refused = {}, {}
    secrets = [secret.encode() for secret in (token, get_token()) if isinstance(secret, str) and secret]
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if not path.is_file() or any(part.startswith(".") or part == "__pycache__" for part in inside.parts):
            continue
        name = inside.as_posix()
        files[name] = path
        if (why := _not_to_go_up(path, secrets)) is not None:
            refused.setdefault(why, []).append(name)
    for why, names in refused.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(f"{folder} is not pushed: {', '.join(names[:3])}{more} {why}; take them out of the folder")
    if not files:
        raise FileNotFoundError(f"{folder} has no files to push")
    return files


def _not_to_go_up(path: Path, secrets: Sequence[bytes]) -> Optional[str]:
    if any(fnmatch.fnmatch(part, pattern) for part in path.parts[-1:] for pattern in _TRAINING_STATES):
        return "hold a state of training, which nobody else can use"
    if path.suffix.lower() == ".safetensors":
        return None
    with path.open("rb") as file:
        beginning = file.read(4)
        pickled = beginning[:1] == b"\x80" and beginning[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
        if path.suffix.lower() in _PICKLES or pickled or beginning == b"PK\x03\x04":  # torch's are zip archives
            return "are pickles or archives, which can run anything on the machine of whoever reads them"
        if path.stat().st_size > _READ_FOR_TOKENS:
            return None
        content = beginning + file.read()
    if _TOKENS.search(content) or any(secret in content for secret in secrets):
        return "hold an access token, or what looks like one"
    return None


def _card(own: Optional[Path], made: Optional[str], on_the_hub: Optional[str]) -> Optional[str]:
    """Returns the card to upload; `None` leaves the one that is there. An edited card comes first, the folder's before
    the Hub's."""
    own_text = own.read_text(encoding="utf-8") if own is not None else None
    if is_edited(own_text):
        return own_text
    if is_edited(on_the_hub):
        return None
    return made or own_text


def _card_on_the_hub(api: HfApi, repo_id: str, revision: Optional[str]) -> Optional[str]:
    try:
        return Path(api.hf_hub_download(repo_id, CARD_FILE, revision=revision)).read_text(encoding="utf-8")
    except EntryNotFoundError:
        return None
