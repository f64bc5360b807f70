"""Writes a checkpoint's folder anew: as it goes to the Hub, or bare, as it is kept in a repository of code."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Optional, Union

import torch
from safetensors.torch import load_file, save_file

from ..common.writing import replacing
from ..configuration_tagi import TagiConfig
from ..hub import kind_in, require_folder_for
from ..instructions import TEXTS_FILE, VECTORS_FILE
from ..modeling_tagi import TagiModel
from .cards import CARD_FILE, checkpoint_card

RESULTS_FILE = "results.json"
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_OF_CODE = ("auto_map", "custom_pipelines")  # fields of config.json that name files of code


def release(
    checkpoint: Union[str, os.PathLike],
    folder: Union[str, os.PathLike],
    *,
    backbone: Optional[str] = None,
    bare: bool = False,
):
    """Writes a checkpoint as it goes to the Hub: weights, config, code, tokenizer and card.

    The card and the results come from the checkpoint's folder, or from the run's that it lies in; a checkpoint
    without a card gets one that says what its configuration does.

    Args:
        checkpoint: A folder, or a repository.
        folder: Is made, or replaced if it holds a checkpoint.
        backbone: A repository or folder that is named as the backbone from now on, in place of the one that the
            checkpoint names; its weights are not compared with those.
        bare: Leaves out code and tokenizer, which the package and the backbone have, and writes the generator in
            bfloat16. It is loaded by an installed package alone. Results have no texts of data then, which may be
            others' property, and no name of the run's folder.

    Raises:
        ValueError: for a bare checkpoint that would hold its backbone, or a folder with something else in it.
        FileNotFoundError, OSError: for a checkpoint that cannot be read, or a folder that cannot be written.
    """
    target = Path(require_folder_for("checkpoint", folder))
    if target.is_dir() and any(target.iterdir()) and kind_in(target) != "checkpoint":
        raise ValueError(f"{target} holds something else than a checkpoint, which would be lost; give another one")
    config = TagiConfig.from_pretrained(checkpoint)
    if bare and config.backbone_in_checkpoint:
        raise ValueError(
            f"{checkpoint} holds its backbone, and a bare checkpoint is a generator alone: train with "
            "--tagi.backbone_in_checkpoint false, or leave out --bare"
        )
    if backbone is not None:
        config.backbone_name_or_path, config.backbone_revision, config.backbone_sha256 = backbone, None, None
    model = TagiModel.from_pretrained(checkpoint, config=config)
    with replacing(target) as beside:
        model.save_pretrained(beside)
        for name in (CARD_FILE, RESULTS_FILE):
            for place in (Path(checkpoint), Path(checkpoint).parent):
                if (place / name).is_file() and not (beside / name).is_file():
                    shutil.copyfile(place / name, beside / name)
        if not (beside / CARD_FILE).is_file():
            (beside / CARD_FILE).write_text(checkpoint_card(config, target.name), encoding="utf-8")
        if bare:
            _strip(beside)


def _strip(folder: Path):
    """Removes code and tokenizer from a checkpoint, and writes its generator in bfloat16."""
    kept = {_WEIGHTS, _CONFIG, CARD_FILE, RESULTS_FILE, "generation_config.json", VECTORS_FILE, TEXTS_FILE}
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    fields = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    fields = {name: value for name, value in fields.items() if name not in _OF_CODE}
    (folder / _CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    states = {
        name: x.to(torch.bfloat16) if x.is_floating_point() and "standardised" not in name else x
        for name, x in load_file(folder / _WEIGHTS).items()
    }
    save_file(states, folder / _WEIGHTS, {"format": "pt"})
    if (folder / RESULTS_FILE).is_file():
        results = _without_texts(json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8")))
        (folder / RESULTS_FILE).write_text(json.dumps(results, ensure_ascii=False) + "\n", encoding="utf-8")


def _without_texts(results: dict) -> dict:
    """Returns a run's results with scores and settings alone."""
    results.pop("example", None)
    for split in results.get("splits", {}).values():
        split["examples"] = []
    for split in results.get("leaks", {}).get("splits", {}).values():
        split["examples"] = {kind: [] for kind in split["examples"]}
    if "command" in results.get("run", {}):
        results["run"]["command"] = re.sub(r" --output_dir[ =]('[^']*'|\S+)", "", results["run"]["command"])
    return results
