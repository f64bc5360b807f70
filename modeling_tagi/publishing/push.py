"""Pushes what training leaves to the Hub: a checkpoint, an adapter, a bank of task adapters, a whole run."""

import json
import os
import tempfile
from pathlib import Path
from typing import Callable, Optional, Sequence, Union

from huggingface_hub import CommitInfo, ModelCardData
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_import_files

from ..adapter_files import CONFIG_FILE, MEMORY_FILE, PROVENANCE_FILE, WEIGHTS_FILE
from ..banks.index import ADDED_FILE, INDEX_FILE, BankIndex
from ..common.given_files import require_shards
from ..configuration_tagi import TagiConfig
from ..hub import STALE, is_repository, kind_in
from ..named_backbone import require_backbone_for_others
from .cards import CARD_FILE, TAGS, adapter_card, cell, checkpoint_card, is_edited, renamed, written
from .uploads import require_right_to_push, upload

_TASKS_NAMED = 100  # on a bank's card


def push_folder(
    folder: Union[str, os.PathLike],
    repo_id: str,
    *,
    private: bool = False,
    revision: Optional[str] = None,
    tag: Optional[str] = None,
    message: Optional[str] = None,
    token: Optional[str] = None,
) -> str:
    """Uploads a folder to a repository, in one commit and with a card.

    Args:
        folder: The folder of a run (its `model/` goes up), a checkpoint, an adapter, or a bank of task adapters.
        repo_id: Is made if there is none.
        private: Whether a repository that is made now is private.
        revision: A branch, made if there is none; the main one by default.
        tag: A tag for the commit.
        message: What the commit says.
        token: An access token; by default that of the login.

    Returns:
        The web address of what was uploaded.

    Raises:
        FileNotFoundError: if the folder is not there, is none of these, or lacks a file.
        ValueError: for a broken or unfit folder, files that must not go up, or a tag that exists.
        HubError: an OSError; if the upload failed. Nothing has changed on the Hub then.
    """
    folder = Path(folder)
    kind = _kind_of(folder)
    if kind == "run":
        folder, kind = folder / "model", "checkpoint"
    card, stale = {
        "checkpoint": (_checkpoint, STALE["checkpoint"]), "adapter": (_adapter, STALE["adapter"]),
        "bank": (_bank, (ADDED_FILE,)),
    }[kind]  # fmt: skip
    commit = upload(
        folder,
        repo_id,
        card=card(folder),
        stale=stale,
        private=private,
        revision=revision,
        tag=tag,
        commit_message=message or f"Upload {kind}",
        token=token,
    )
    page = str(commit.repo_url)
    return page if revision in (None, "main") else f"{page}/tree/{revision}"


def push_made(
    kind: str,
    save: Callable[[Path], None],
    repo_id: str,
    *,
    config: Optional[TagiConfig] = None,
    tags: Optional[Sequence[str]] = None,
    private: bool = False,
    token: Optional[str] = None,
    **options,
) -> CommitInfo:
    """Uploads the checkpoint or adapter that `save` writes to a folder, with a card; see `hub.PUBLISHERS`.

    Args:
        kind: `"checkpoint"` or `"adapter"`.
        config, tags: What a checkpoint's card is to say.
        options: Those of [`uploads.upload`].
    """
    repo_id = require_right_to_push(repo_id, private, token)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / repo_id.rpartition("/")[2]
        save(folder)
        card = adapter_card(folder, repo_id) if config is None else checkpoint_card(config, repo_id, tags)
        return upload(folder, repo_id, card=card, stale=STALE[kind], private=private, token=token, **options)


def _kind_of(folder: Path) -> str:
    """Returns what is to be pushed: a run (with a model in it), a checkpoint, an adapter or a bank.

    Raises:
        FileNotFoundError: if it is none of them.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    kind = kind_in(folder)
    if kind in ("checkpoint", "adapter", "bank") or kind == "run" and kind_in(folder / "model") == "checkpoint":
        return kind
    raise FileNotFoundError(
        f"{folder} is nothing that can be pushed: a checkpoint has a config.json of model_type 'tagi', an adapter an "
        f"{CONFIG_FILE}, a bank of task adapters an {INDEX_FILE}, a run settings.yaml and model/"
    )


# What each kind must have, and its card


def _checkpoint(folder: Path) -> Callable[[str], str]:
    config = TagiConfig.from_pretrained(folder)
    require_backbone_for_others(config, config.backbone_in_checkpoint)
    index = _json(folder / "model.safetensors.index.json")
    weights = require_shards(folder / "model.safetensors.index.json") if index else ["model.safetensors"]
    code = {f"{name.rpartition('.')[0]}.py" for name in (getattr(config, "auto_map", None) or {}).values()}
    if not code:
        raise ValueError(f"{folder}/config.json has no auto_map, so nobody could load it; use save_pretrained")
    _require_files(folder, [*weights, *sorted(code)])
    for name in code:
        _require_files(folder, [Path(file).name for file in _imported(folder / name)])
    own = folder / CARD_FILE
    text = own.read_text(encoding="utf-8") if own.is_file() else None
    if text is None or is_edited(text):
        return lambda name: checkpoint_card(config, name)
    return lambda name: renamed(text, name)


def _imported(module: Path) -> list[str]:
    """Returns all files that a file of code imports, over any number of steps."""
    try:
        return get_relative_import_files(module)
    except FileNotFoundError as error:
        return [error.filename]


def _adapter(folder: Path) -> Callable[[str], str]:
    memory = [MEMORY_FILE] if _json(folder / PROVENANCE_FILE).get("needs_memory") else []
    _require_files(folder, [WEIGHTS_FILE, *memory])
    return lambda name: adapter_card(folder, name)


def _bank(folder: Path) -> Callable[[str], str]:
    entries = BankIndex(folder)
    for entry in entries.values():
        _require_files(folder, [f"{entry['folder']}/{name}" for name in (CONFIG_FILE, WEIGHTS_FILE)])
    return lambda name: _bank_card(folder, entries, name)


def _require_files(folder: Path, names: list[str]):
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} lacks {name}, without which nobody could load it; save it again")
        if name.endswith(".safetensors"):
            try:
                safe_open(folder / name, framework="pt").__exit__(None, None, None)
            except SafetensorError as error:
                raise ValueError(f"{folder / name} is broken ({error}); save it again") from error


def _bank_card(folder: Path, entries: dict[str, dict], name: str) -> str:
    config = _json(folder / next(iter(entries.values()))["folder"] / CONFIG_FILE)
    base = config.get("base_model_name_or_path")
    base = {"base_model": base, "base_model_relation": "adapter"} if is_repository(base) else {}
    rows = [
        f"| {cell(task)} | `{entry['folder']}` | {entry.get('reads', 'prompt')} | {entry.get('records', '')} |"
        for task, entry in list(entries.items())[:_TASKS_NAMED]
    ]
    more = len(entries) - len(rows)
    return written(ModelCardData(library_name="peft", tags=[*TAGS, "peft"], **base), [
        f"# {name.rpartition('/')[2]}",
        f"{len(entries)} LoRA adapters (rank {config['r']}), one for each task or group of tasks, each tuned on "
        "examples. They teach a generator of adapters (TAGI) what an adapter for an instruction should be like.",
        "## Use",
        f"`{INDEX_FILE}` says which folder is whose; each is a PEFT folder. To train a generator with them: "
        f"`python train.py CONFIG.yaml --task_adapters.given {name}`.",
        "## Tasks",
        "\n".join(["| task | folder | reads | examples |", "| --- | --- | --- | ---: |", *rows]),
        *([f"And {more} more; see `{INDEX_FILE}`."] if more else []),
        "## Licence",
        "The adapters are under the terms of the backbone and of the data that they were tuned on.",
    ])  # fmt: skip


def _json(path: Path) -> dict:
    """Returns what a JSON file holds; nothing if there is none."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
