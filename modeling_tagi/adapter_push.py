"""Adapters to the Hub: a repository for each."""

import tempfile
from pathlib import Path

from huggingface_hub import CommitInfo

from .adapter_files import write_adapter
from .cards import adapter_card
from .uploads import STALE_ADAPTER, require_right_to_push, upload


def push_adapter(adapter, repo_id: str, *, private: bool = False, token=None, **options) -> CommitInfo:
    """Pushes the one task of a [`TagiAdapter`]. See its `push_to_hub`; `options` are those of `upload`."""
    repo_id = require_right_to_push(repo_id, private, token)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / repo_id.rpartition("/")[2]
        write_adapter(adapter, folder)
        return upload(folder, repo_id, card=adapter_card(folder, repo_id), stale=STALE_ADAPTER, token=token, **options)
