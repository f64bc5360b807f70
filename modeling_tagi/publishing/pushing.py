"""A run on the Hub: what is checked before it, pushed on its way, and pushed when it is done."""

import tempfile
from pathlib import Path
from typing import Callable, Optional

from ..common.processes import say
from ..modeling_tagi import TagiModel
from ..training.settings import RunSettings
from .push import push_folder
from .uploads import require_right_to_push


def repository_of(settings: RunSettings) -> Optional[str]:
    """Returns the repository that a run is pushed to, and makes sure that it exists and may be written to.

    Raises:
        HubError: if it may not, before any long work.
    """
    if settings.push_to_hub is None:
        return None
    repo_id = require_right_to_push(settings.push_to_hub, settings.push_private)
    say(f"push: to {repo_id}, which may be written to")
    return repo_id


def push_on_the_way(
    repo_id: str, folder: Path, settings: RunSettings, save: Callable[[TagiModel, Path], None]
) -> Callable[[TagiModel, int], None]:
    """Returns a function that pushes a model while it is trained; if a push fails, training goes on.

    Args:
        repo_id: Where to.
        folder: Has room for a checkpoint.
        settings: The run's settings.
        save: Writes the model as it is to be published.
    """

    def push(model: TagiModel, step: int):
        try:
            with tempfile.TemporaryDirectory(dir=folder, prefix=".push-") as beside:
                save(model, Path(beside))
                message = f"Finetuning, step {step} of {settings.finetuning.steps}"
                push_folder(beside, repo_id, private=settings.push_private, message=message)
        except (OSError, ValueError) as error:
            print(f"push: step {step} is not on the Hub, training goes on: {error}", flush=True)

    return push


def push_at_the_end(folder: Path, repo_id: str, settings: RunSettings) -> dict:
    """Uploads a checkpoint that is already saved on disk, and reports a failure instead of raising it.

    Returns:
        `repository`, and its `url`, or the `error` with what to do about it.
    """
    try:
        url = push_folder(folder, repo_id, private=settings.push_private, message=f"Upload {settings.label}")
        return {"repository": repo_id, "url": url}
    except (OSError, ValueError) as error:
        later = f"tagi push {folder} {repo_id}"
        return {"repository": repo_id, "error": f"{error}. Nothing of the run is lost; push it with: {later}"}
