"""`tagi compare`: two adapters by their updates, or two checkpoints by their configuration and scores."""

import json
from pathlib import Path
from typing import Optional

import torch
from transformers.utils import cached_file

from ..adapter import TagiAdapter
from ..adapter_algebra import same_weights
from ..adapter_files import CONFIG_FILE
from ..common.markdown import markdown_table
from ..common.yaml_files import flat
from ..hub import said_in_one_line
from ..modeling_tagi import TagiModel
from ..training.settings import RunSettings
from .checkpoint_scores import evaluate_checkpoint, shown_notes
from .scores import differences
from .tables import table

# Of a config, what does not tell models apart.
_FOREIGN = ("transformers_version", "architectures", "auto_map", "custom_pipelines", "_name_or_path")


def compare(first: str, second: str, settings: Optional[RunSettings] = None, command: str = "") -> dict:
    """Compares two adapters or two checkpoints, folders or repositories on the Hub.

    Args:
        first, second: Two of the same kind.
        settings: Checkpoints: what both are scored on, see `settings_of`; `None` compares configurations alone.
        command: What was called.

    Returns:
        As `compare_adapters` or `compare_checkpoints`, with `kind`, `first` and `second`.

    Raises:
        ValueError: if one is an adapter and the other is not, or adapters come with data.
        OSError: if one of them is not there.
    """
    kinds = ["an adapter" if is_adapter(name) else "a checkpoint" for name in (first, second)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"{first} is {kinds[0]} and {second} {kinds[1]}; give two of a kind")
    if kinds[0] == "an adapter":
        if settings is not None:
            raise ValueError("adapters have no scores without a checkpoint; leave out --data, or compare checkpoints")
        found = compare_adapters(TagiAdapter.from_pretrained(first), TagiAdapter.from_pretrained(second))
    else:
        found = compare_checkpoints(first, second, settings, command)
    return {"kind": kinds[0].split()[1], "first": first, "second": second, **found}


def is_adapter(name: str) -> bool:
    """Tells whether a folder or repository is an adapter's.

    Raises:
        OSError: if there is no such folder or repository.
    """
    if Path(name).is_dir():
        return (Path(name) / CONFIG_FILE).is_file()
    with said_in_one_line(name, "load"):
        return cached_file(name, CONFIG_FILE, _raise_exceptions_for_missing_entries=False) is not None


@torch.no_grad()
def compare_adapters(first: TagiAdapter, second: TagiAdapter) -> dict:
    """Compares two adapters by their updates.

    Returns:
        `similarity`: the cosine of both updates over all modules, from -1 to 1; `None` if they are for backbones of
        different shapes or weights. `norm`: Frobenius norms of both. `modules`: by path the `similarity` and `norm` of
        those in both; `only_first` and `only_second`. `rank`, `lora_alpha`: of both. `same_backbone`: whether both are
        for the same weights (`None` if one says nothing). `provenance`: of both, by field, where they differ.
    """
    both = sorted(first.lora_a.keys() & second.lora_a.keys())
    try:
        similarity = first.similarity(second).item()
        modules = {path: _module(first, second, path) for path in both}
    except ValueError:  # of another backbone
        similarity, modules = None, {}
    origins = [dict(adapter.provenance[0]) if adapter.provenance else {} for adapter in (first, second)]
    return {
        "similarity": similarity,
        "norm": [_norm(adapter) for adapter in (first, second)],
        "modules": modules,
        "only_first": sorted(first.lora_a.keys() - second.lora_a.keys()),
        "only_second": sorted(second.lora_a.keys() - first.lora_a.keys()),
        "rank": [first.rank, second.rank],
        "lora_alpha": [first.lora_alpha, second.lora_alpha],
        "same_backbone": _same_backbone(first, second),
        "provenance": _different(*origins),
    }


def _module(first: TagiAdapter, second: TagiAdapter, path: str) -> dict:
    alone = [_only(adapter, path) for adapter in (first, second)]
    return {"similarity": alone[0].similarity(alone[1]).item(), "norm": [_norm(adapter) for adapter in alone]}


def _only(adapter: TagiAdapter, path: str) -> TagiAdapter:
    return TagiAdapter({path: adapter.lora_a[path]}, {path: adapter.lora_b[path]}, adapter.lora_alpha)


def _norm(adapter: TagiAdapter) -> float:
    """Returns the Frobenius norm of the update, from rank × rank products."""
    total = 0.0
    for path, a in adapter.lora_a.items():
        a, b = a[0].double(), adapter.lora_b[path][0].double()
        total += ((b.T @ b) * (a @ a.T)).sum().item()
    return adapter.scaling * max(0.0, total) ** 0.5


def _same_backbone(first: TagiAdapter, second: TagiAdapter) -> Optional[bool]:
    """Tells whether both have one backbone, by its weights or else by its name; `None` if neither is known."""
    same = same_weights(first, second)
    if same is not None:
        return same
    origins = [dict(adapter.provenance[0]) if adapter.provenance else {} for adapter in (first, second)]
    names = [(origin.get("backbone"), origin.get("backbone_revision")) for origin in origins]
    return names[0] == names[1] if all(name for name, _ in names) else None


def _different(first: dict, second: dict) -> dict[str, list]:
    names = dict.fromkeys([*first, *second])
    return {name: [first.get(name), second.get(name)] for name in names if first.get(name) != second.get(name)}


def compare_checkpoints(first: str, second: str, settings: Optional[RunSettings] = None, command: str = "") -> dict:
    """Compares two checkpoints by their configurations, and with `settings` by their scores.

    Returns:
        `config`: the fields that differ, nested ones with dots, with both values. With `settings` also `splits`: for
        each the `methods` `first` and `second` and their `differences` over the tasks paired, as `evaluate_split` has
        them; and `notes`.
    """
    configs = []
    for name in (first, second):
        with said_in_one_line(name, "load"):
            loaded = TagiModel.config_class.from_pretrained(name)
        config = flat(json.loads(loaded.to_json_string(use_diff=False)))
        configs.append({field: x for field, x in config.items() if field.split(".")[-1] not in _FOREIGN})
    found: dict = {"config": _different(*configs)}
    if settings is None:
        return found
    results = [evaluate_checkpoint(name, settings, command=command) for name in (first, second)]
    groups = {task: about["group"] for task, about in results[0]["tasks"].items()}
    found["splits"] = {}
    for split in results[0]["splits"]:
        scores = {
            name: result["splits"][split]["methods"]["tagi"] for name, result in zip(("first", "second"), results)
        }
        differing = differences(scores, [("second", "first")], groups)
        found["splits"][split] = {"methods": scores, "differences": differing}
    found["notes"] = shown_notes(results[0])
    return found


def shown(found: dict) -> str:
    """Returns a comparison in Markdown."""
    lines = [f"first: {found['first']}", f"second: {found['second']}", ""]
    if found["kind"] == "adapter":
        lines += _shown_adapters(found)
    elif found["config"]:
        rows = [[field, *map(_cell, values)] for field, values in found["config"].items()]
        lines += markdown_table(["configuration", "first", "second"], rows, text=3)
    else:
        lines.append("The configurations are the same.")
    if "splits" in found:
        lines += ["", table(found), "", *(f"* {note}" for note in found["notes"])]
    return "\n".join(lines)


def _shown_adapters(found: dict) -> list[str]:
    similarity = found["similarity"]
    same = {True: "yes", False: "no", None: "not known"}[found["same_backbone"]]
    rows = [
        ["rank", *map(str, found["rank"])],
        ["lora_alpha", *(f"{value:g}" for value in found["lora_alpha"])],
        ["norm of the update", *(f"{value:.4g}" for value in found["norm"])],
        *([field, *map(_cell, values)] for field, values in found["provenance"].items()),
    ]
    lines = [
        "similarity of the updates: "
        + (f"{similarity:.4f}" if similarity is not None
           else "none, they are for backbones of different shapes or weights"),  # fmt: skip
        f"same backbone: {same}",
        "",
        *markdown_table(["", "first", "second"], rows, text=3),
    ]
    if found["modules"]:
        rows = [[path, f"{module['similarity']:.4f}", *(f"{value:.4g}" for value in module["norm"])]
                for path, module in found["modules"].items()]  # fmt: skip
        lines += ["", *markdown_table(["module", "similarity", "norm of first", "of second"], rows)]
    for which in ("first", "second"):
        if found[f"only_{which}"]:
            lines += ["", f"only in the {which}: {', '.join(found[f'only_{which}'])}"]
    return lines


def _cell(value) -> str:
    text = "–" if value is None else " ".join(str(value).split()).replace("|", "\\|")
    return text if len(text) <= 60 else text[:59] + "…"
