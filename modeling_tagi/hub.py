"""Where a checkpoint or adapter goes: folders that may take it, the Hub, and the Hub's errors in one line.

Nothing here needs torch, so that a command refuses a folder before it loads anything.
"""

import errno
import json
import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Callable, Iterator, Optional, Sequence, Union

import huggingface_hub
from huggingface_hub import errors

# Kind -> files of an earlier save that would be read in place of the new ones, so they go.
STALE = {
    "checkpoint": ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json",
                   "instruction_index.json", "instruction_index.safetensors"),
    "adapter": ("adapter_model.*", "tagi_adapter.json", "tagi_memory.safetensors", "function.json"),
}  # fmt: skip
# Kind -> what it is called, and the files and folders by which it is known. A later kind's may lie in an earlier one.
KINDS = {
    "adapter": ("an adapter", ("adapter_config.json", *STALE["adapter"])),
    "checkpoint": ("a TAGI checkpoint", ("config.json",)),
    "model": ("another model", ("config.json",)),
    "study": ("a study", ("study.yaml", "cells")),
    "run": ("a training run", ("settings.yaml", "stages", "cell.yaml")),
    "bank": ("a bank of task adapters", ("index.json", "index-added.jsonl")),
    "evaluation": ("an evaluation", ("results.json", "results.md")),
    "report": ("a report", ("index.html", "report.md")),
}
# Kind -> what uploads a saved folder with a card. The installed package fills this in (publishing/); the code that a
# checkpoint carries has no cards, and uploads the files alone.
PUBLISHERS: dict[str, Callable] = {}
# What writes an adapter as a GGUF file. The installed package puts it here (publishing/gguf_adapter.py).
GGUF_WRITER: list[Callable] = []

PACKAGE = "package:"  # begins the name of a backbone whose GGUF file is in an installed package
# What converts a GGUF file to a folder. The installed package puts it here (common/gguf_files.py).
GGUF_READER: list[Callable] = []
# What looks at a model's files before one is made of them; the last counts, the installed package's (given_files.py).
GUARDS: list[Callable] = [lambda name, revision=None, **given: None]

_HARMLESS = ("README*", "LICENSE*", "*.log", "log.txt")  # may lie beside whatever is written
# What the system may say of a write.
_OF_WRITES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES, errno.EPERM,
              errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EISDIR}  # fmt: skip
_GOES_ON = {
    "push to": "nothing was changed there, and the same call goes on where this one stopped",
    "load": "what has arrived is kept, and the same call goes on where this one stopped",
}
# Of two classes that derive from each other the narrower comes first.
_BY_CLASS = (
    (errors.LocalTokenNotFoundError, "there is no token; run `hf auth login`, or set HF_TOKEN"),
    (errors.OfflineModeIsEnabled, "HF_HUB_OFFLINE is set; unset it"),
    (errors.LocalEntryNotFoundError,
     "not all of it is in the cache, and HF_HUB_OFFLINE or local_files_only keeps the Hub from being asked"),
    (errors.GatedRepoError,
     "only who has agreed to its terms may have it; do so at https://huggingface.co/{name}, and log in"),
    (errors.RepositoryNotFoundError,
     "there is no such repository on the Hub, or it is private and the token, if there is one, may not see it"),
    (errors.RevisionNotFoundError, "the repository has no such revision"),
)  # fmt: skip
_BY_STATUS = {
    401: "the Hub does not know the token; make one at https://huggingface.co/settings/tokens and log in anew "
         "(HF_TOKEN, where it is set, comes before `hf auth login`)",
    403: "the token may not do that there; make one with the right to at https://huggingface.co/settings/tokens, or "
         "take a repository of your own",
}  # fmt: skip


# Folders


def require_folder_for(kind: str, folder: Union[str, os.PathLike]) -> Path:
    """Returns the folder as a path if something of `kind` may be written there: it is absent or empty, or holds one.

    A checkpoint may be written beside files that are nobody's, such as those of a Trainer, as long as it replaces
    none: a long training must not fail when it is saved.

    Args:
        kind: One of `KINDS`.

    Raises:
        ValueError: if the folder has no name, is a file or lies below one, or holds something else.
    """
    name, (what, _) = os.fspath(folder), KINDS[kind]
    if not name:
        raise ValueError(f"the folder for {what} is '', which names none; give one, '.' for the current one")
    if "\0" in name:
        raise ValueError(f"the folder {name!r} has a NUL in its name, which no file can have; choose another folder")
    place = Path(name)
    if os.path.lexists(place) and not place.is_dir():
        found = "a link to nothing" if place.is_symlink() and not place.exists() else "a file"
        mend = "save_pretrained needs a folder" if kind in STALE else "give a folder"
        raise ValueError(f"{place} is {found}; {mend}")
    above = next((parent for parent in place.parents if os.path.lexists(parent)), None)
    if above is not None and not above.is_dir():
        raise ValueError(f"{place} lies below {above}, which is no folder; choose another folder")
    held = kind_in(place)
    if held is not None and held != kind:
        raise ValueError(
            f"{place} holds {KINDS[held][0]} ({_sign(place, held)}), which {what} written there would break; choose "
            "another folder"
        )
    strangers = _strangers(place, kind) if held is None else []
    if strangers:
        more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
        raise ValueError(
            f"{place} holds {', '.join(strangers[:3])}{more}, which {'are' if len(strangers) > 1 else 'is'} no part "
            f"of {what}; choose another folder"
        )
    return place


def kind_in(folder: Union[str, os.PathLike]) -> Optional[str]:
    """Returns which of `KINDS` lies in a folder; `None` if there is no such folder, or nothing known is in it."""
    folder = Path(folder)
    for kind in KINDS:
        of_another = kind in ("checkpoint", "model") and _model_kind(folder) != kind
        if _sign(folder, kind) is not None and not of_another:
            return kind
    return None


def _sign(folder: Path, kind: str) -> Optional[str]:
    """Returns the name of the file or folder by which `kind` is known to be there."""
    names = _names(folder)
    return next((name for sign in KINDS[kind][1] for name in names if fnmatch(name, sign)), None)


def _model_kind(folder: Path) -> Optional[str]:
    """Returns what a config.json belongs to: a checkpoint, another model, or (`None`) no model."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except OSError:
        return None
    except (ValueError, AttributeError):  # damaged, or none of ours: a checkpoint is mended by saving it again
        return "checkpoint" if (folder / "modeling_tagi.py").is_file() else None
    return {"tagi": "checkpoint", None: None}.get(kind, "model")


def _strangers(folder: Path, kind: str) -> list[str]:
    """Returns the names in a folder of no known kind that writing `kind` there could damage."""
    names = [name for name in _names(folder) if not any(fnmatch(name, pattern) for pattern in _HARMLESS)]
    if kind == "checkpoint":  # what it would replace
        return [name for name in names if name == "config.json" or name.endswith((".py", ".safetensors"))]
    if kind == "bank":  # one that was cut off before its first index was written, or in a folder's first moment
        names = [name for name in names if _names(folder / name) or not (folder / name).is_dir()]
        return [name for name in names if kind_in(folder / name) != "adapter" and name not in KINDS[kind][1]]
    return names


def _names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextmanager
def filling(target: Union[str, os.PathLike], last: str, stale: Sequence[str] = ()) -> Iterator[Path]:
    """Yields a temporary folder to write to, whose files are moved into `target` if the block ends without an error.

    Other files in `target` are left alone. `last` is deleted first and moved last: an interruption in between leaves
    a folder without it, which does not load, rather than a mixture.

    Args:
        target: Where the files go; made if there is none.
        last: The file without which nobody reads the others. Where it is not written, as by all but the main one of
            several processes, nothing is taken away.
        stale: Patterns of files that go if nothing of their name was written.
    """
    target = Path(target)
    whole = Path(os.path.abspath(target))  # of "." too
    whole.parent.mkdir(parents=True, exist_ok=True)
    place = whole.parent
    if target.is_dir() and (not os.access(place, os.W_OK) or os.stat(place).st_dev != os.stat(target).st_dev):
        place = whole  # a volume of its own: no file can be moved into it from outside
    beside = Path(tempfile.mkdtemp(prefix=f".{whole.name[:60]}-", dir=place))
    try:
        with naming(target):
            yield beside
        written = sorted(os.listdir(beside), key=lambda name: (name == last, name))
        target.mkdir(exist_ok=True)
        if last in written:
            (target / last).unlink(missing_ok=True)
            for name in _names(target):
                if name not in written and any(fnmatch(name, pattern) for pattern in stale):
                    (target / name).unlink(missing_ok=True)
        for name in written:
            os.replace(beside / name, target / name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def naming(place: Union[str, os.PathLike]) -> Iterator[None]:
    """Adds the name of `place` to the system's errors of writing inside the block, such as that the disk is full.

    Python names no file when a write fails, and safetensors raises an error of its own.

    Raises:
        OSError: of the same kind, with `place` as its file.
    """
    try:
        yield
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = int(found[1]) if found else getattr(error, "errno", None)
        if number not in _OF_WRITES or getattr(error, "filename", None) is not None:
            raise
        raise OSError(number, os.strerror(number), os.fspath(place)) from error


# The Hub


def is_repository(name: Optional[str]) -> bool:
    """Tells whether a name can be a repository's on the Hub, and is no path that exists."""
    fits = bool(name) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None
    return fits and not os.path.exists(name) and not is_gguf(name)


def named_with_file(name: Union[str, os.PathLike], gguf_file: Optional[str]) -> str:
    """Returns the one name of a backbone and its GGUF file.

    Raises:
        ValueError: if either names no GGUF file, or a package no file.
    """
    name = str(name)
    if gguf_file is None:
        if name.startswith(PACKAGE) and not is_gguf(name):
            raise ValueError(f"the backbone is named {name!r}, a package; say which of its files as gguf_file")
        return name
    if not isinstance(gguf_file, str) or not gguf_file.endswith(".gguf"):
        raise ValueError(f"gguf_file is {gguf_file!r}, but must be the name of a file that ends in .gguf")
    if is_gguf(name):
        raise ValueError(f"gguf_file is {gguf_file!r}, but the backbone's name has a GGUF file already: {name!r}")
    return f"{name.rstrip('/')}/{gguf_file}"


def is_gguf(name: Optional[Union[str, os.PathLike]]) -> bool:
    return str(name or "").endswith(".gguf") and not os.path.isdir(str(name))


def repository_of(name: str) -> str:
    """Returns the name of a backbone's repository, without a GGUF file."""
    return "/".join(name.split("/")[:2]) if is_gguf(name) and name.count("/") > 1 else name


def readable(name: Union[str, os.PathLike], revision: Optional[str] = None, **access) -> str:
    """Returns the folder or repository that transformers reads: the name, or a folder converted from a GGUF file."""
    if not is_gguf(name):
        return str(name)
    if not GGUF_READER:
        raise ImportError(f"the backbone {name} is a GGUF file, which only an installed modeling_tagi reads")
    return GGUF_READER[0](str(name), revision, **access)


def push_saved(
    kind: str,
    save: Callable,
    repo_id: str,
    *,
    private: bool = False,
    revision: Optional[str] = None,
    tag: Optional[str] = None,
    token: Optional[str] = None,
    card: Optional[dict] = None,
    **commit,
):
    """Uploads what `save` writes into a folder that it is given, with a card if `PUBLISHERS` has the kind.

    Args:
        kind: `"checkpoint"` or `"adapter"`.
        repo_id, private: The repository, which is made if there is none, and whether it is then private.
        revision, tag: A branch, which is made if there is none, and a tag for the commit.
        card: What the card is made from beside the folder.
        commit: `commit_message`, `commit_description` and `create_pr`, as for `HfApi.upload_folder`.

    Returns:
        The `CommitInfo`.
    """
    options = {"revision": revision, **commit}
    if kind in PUBLISHERS:
        return PUBLISHERS[kind](save, repo_id, private=private, tag=tag, token=token, **(card or {}), **options)
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        with said_in_one_line(repo_id, "push to"):
            api = huggingface_hub.HfApi(token=token)
            api.whoami()  # else a missing token would be said to be one without rights
            repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            stale = list(STALE[kind])
            done = api.upload_folder(repo_id=repo_id, folder_path=folder, delete_patterns=stale, **options)
            if tag is not None:
                api.create_tag(repo_id, tag=tag, revision=done.oid)
    return done


class HubError(OSError):
    """Says in one line why a push to the Hub or a download failed."""


@contextmanager
def said_in_one_line(name: str, act: str):
    """Turns errors of the Hub's client, or of transformers on top of it, into one line that says what to do.

    Args:
        name: The repository's name.
        act: What is done with it: `"push to"` or `"load"`.

    Raises:
        FileNotFoundError: if something is loaded that is neither a folder nor a name.
        HubError: for anything about rights and connections.
        ValueError: for what the caller can mend.
    """
    looks_like_a_folder = os.path.isabs(name) or name.count("/") > 1
    if act == "load" and looks_like_a_folder and not os.path.isdir(name):  # before the Hub is asked for it
        raise FileNotFoundError(f"there is no folder {name}, and it is no repository name (user/name) either")
    try:
        yield
    except Exception as error:
        plain = _plain(error, name, act)
        if plain is error:
            raise
        raise plain from error


def _plain(error: Exception, name: str, act: str) -> Exception:
    """Returns an error that says the same in one line; `error` itself if it is not about the Hub."""
    origin = _origin(error)
    text = " ".join(str(origin).split()) or type(origin).__name__
    status = getattr(getattr(origin, "response", None), "status_code", None)
    if isinstance(error, HubError):
        return error
    if isinstance(origin, errors.HFValidationError):
        return ValueError(f"{name!r} is no name of a repository, such as user/name")
    why = next((why for kind, why in _BY_CLASS if isinstance(origin, kind)), None)
    if why is not None:
        why = why.replace("{name}", name)
        if isinstance(origin, errors.OfflineModeIsEnabled) and act == "load":
            why += ", since not all of it is in the cache"
    elif isinstance(origin, errors.EntryNotFoundError):
        why = text.removeprefix("404 Client Error. ")
    elif status in _BY_STATUS:
        why = _BY_STATUS[status]
    elif isinstance(origin, ValueError) and act == "push to":  # something that the caller can mend
        return ValueError(text)
    elif status is not None:
        why = f"{text}; {_GOES_ON[act]}"
    elif _of_transport(origin):
        why = f"the connection broke off ({text}); {_GOES_ON[act]}"
    else:
        return error
    return HubError(f"cannot {act} {name}: {why}")


def _origin(error: Exception) -> Exception:
    """Returns the client's original error about a connection or a right, which other errors may wrap."""
    found = error if isinstance(error, (OSError, RuntimeError)) or _of_transport(error) else None
    missing = None
    while found is not None:
        if getattr(found, "response", None) is not None or _of_transport(found):
            return found
        missing = found if isinstance(found, errors.LocalEntryNotFoundError) else missing
        found = found.__cause__ or found.__context__
    return missing or error


def _of_transport(error: Exception) -> bool:
    # of httpx or a successor, whose errors are no OSError
    return type(error).__module__.startswith("httpx") or isinstance(error, ConnectionError)
