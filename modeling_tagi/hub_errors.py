"""What goes wrong with the Hub, said in one line: why, and how to go on."""

import os
from contextlib import contextmanager

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_GOES_ON = {
    "push to": "nothing was changed there, and the same call goes on where this one stopped",
    "load": "what has arrived is kept, and the same call goes on where this one stopped",
}
_BY_STATUS = {
    401: "the Hub does not know the token; make one at https://huggingface.co/settings/tokens and log in anew "
         "(HF_TOKEN, where it is set, comes before `hf auth login`)",
    403: "the token may not do that there; make one with the right to at https://huggingface.co/settings/tokens, or "
         "take a repository of your own",
}  # fmt: skip


class HubError(OSError):
    """Something did not come about with the Hub."""


@contextmanager
def said_in_one_line(name: str, act: str):
    """Turns what the client, or transformers on top of it, raises into one line that says what to do.

    Args:
        name: Of the repository.
        act: What is done with it: `"push to"` or `"load"`.

    Raises:
        FileNotFoundError: if something is loaded that is neither a folder nor a name.
        HubError: for anything about rights and connections.
        ValueError: for what the caller can mend.
    """
    if act == "load":
        require_place(name)
    try:
        yield
    except Exception as error:
        plain = _plain(error, name, act)
        if plain is error:
            raise
        raise plain from error


def require_place(name: str):
    """Refuses what looks like a folder and is none, before the Hub is asked for it."""
    if not os.path.isdir(name) and (os.path.isabs(name) or name.count("/") > 1):
        raise FileNotFoundError(f"there is no folder {name}, and it is no repository name (user/name) either")


def _plain(error: Exception, name: str, act: str) -> Exception:
    """The error that says it in one line; `error` itself if it is none of the Hub's."""
    origin = _origin(error)
    text = " ".join(str(origin).split()) or type(origin).__name__
    status = getattr(getattr(origin, "response", None), "status_code", None)
    if isinstance(error, HubError):
        return error
    if isinstance(origin, HFValidationError):
        return ValueError(f"{name!r} is no name of a repository, such as user/name")
    if isinstance(origin, LocalTokenNotFoundError):
        why = "there is no token; run `hf auth login`, or set HF_TOKEN"
    elif isinstance(origin, OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set; unset it" + (", since not all of it is in the cache" if act == "load" else "")
    elif isinstance(origin, LocalEntryNotFoundError):
        why = "not all of it is in the cache, and HF_HUB_OFFLINE or local_files_only keeps the Hub from being asked"
    elif isinstance(origin, GatedRepoError):  # before what it derives from
        why = f"only who has agreed to its terms may have it; do so at https://huggingface.co/{name}, and log in"
    elif isinstance(origin, RepositoryNotFoundError):
        why = "there is no such repository on the Hub, or it is private and the token, if there is one, may not see it"
    elif isinstance(origin, RevisionNotFoundError):
        why = "the repository has no such revision"
    elif isinstance(origin, EntryNotFoundError):
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
    """What the client raised first about a connection or a right; others have wrapped it in errors of their own."""
    found = error if isinstance(error, (OSError, RuntimeError)) or _of_transport(error) else None
    missing = None
    while found is not None:
        if getattr(found, "response", None) is not None or _of_transport(found):
            return found
        missing = found if isinstance(found, LocalEntryNotFoundError) else missing
        found = found.__cause__ or found.__context__
    return missing or error


def _of_transport(error: Exception) -> bool:
    # of httpx or a successor, whose errors are no OSError
    return type(error).__module__.startswith("httpx") or isinstance(error, ConnectionError)
