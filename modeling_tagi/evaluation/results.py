"""`results.json`: its version, how it is read, and what it holds beside scores.

`results.schema.json` says what every field is.
"""

import json
from pathlib import Path
from typing import Optional, Sequence

from ..data.records import Record
from ..tokens import instruction_text

RESULTS_FILE = "results.json"
RESULTS_VERSION = 2  # rises when a field changes its meaning or goes; the schema says what each version changed
SCHEMA = Path(__file__).with_name("results.schema.json")
EXAMPLES = 10


def read_results(folder: Path) -> Optional[dict]:
    """Returns the results of a run or an evaluation, in the names of today; `None` if there are none."""
    file = folder / RESULTS_FILE
    if not file.is_file():
        return None
    results = json.loads(file.read_text())
    if results.get("schema_version", 1) < 2:
        old = {"prompted_start"}
        if "baseline" in results and results.get("run", {}).get("label") != "prompted":
            old.add("prompted")  # an evaluation, where it was not a trained method's name
        _rename(results, {name: "start_prompted" for name in old})
    return results


def _rename(results: dict, names: dict[str, str]):
    """Renames methods wherever results name them."""
    def renamed(found: dict) -> dict:
        return {names.get(name, name): value for name, value in found.items()}

    for found in results.get("splits", {}).values():
        found["methods"] = renamed(found["methods"])
        if "differences" in found:
            found["differences"] = {
                " - ".join(names.get(name, name) for name in pair.split(" - ")): scores
                for pair, scores in found["differences"].items()
            }
        for one in found.get("examples") or ():
            one["outputs"] = renamed(one["outputs"])
    run = results.get("run", {})
    if run.get("label") in names:
        run["label"] = names[run["label"]]


def headline(results: dict, label: str) -> str:
    """Returns the first split's first score of what was trained, or else of the first method, in one line."""
    split, found = next(iter(results["splits"].items()))
    method = label if label in found["methods"] else next(iter(found["methods"]), None)
    scores = found["methods"].get(method, {})
    for column in ("exact_match", "rank_accuracy"):
        if scores.get(column) is not None:
            low, high = scores[f"{column}_interval"]
            value = f"{scores[column]:.1f} [{low:.1f}, {high:.1f}]"
            return f"{method.replace('_', ' ')} on {split}: {column.replace('_', ' ')} {value}"
    return ""


def chosen_examples(records: Sequence[Record]) -> list[int]:
    """Returns the places of up to `EXAMPLES` records, evenly over the tasks; more of a task if need be."""
    by_task: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        by_task.setdefault(record.task, []).append(number)
    step = max(1, len(by_task) // EXAMPLES)
    order = [(turn, task % step, task, number)
             for task, own in enumerate(by_task.values()) for turn, number in enumerate(own)]  # fmt: skip
    return sorted(number for *_, number in sorted(order)[:EXAMPLES])


def example(record: Record, outputs: dict[str, str]) -> dict:
    """Returns a record with what each method answered, as `results.json` has it."""
    return {
        "task": record.task,
        "instruction": instruction_text(record.instruction, record.demonstrations),
        "input": record.input,
        "targets": list(record.targets),
        "outputs": outputs,
    }


def best_option(record: Record, scores: Sequence[tuple[float, int]]) -> Optional[str]:
    """Returns the option with the highest log-likelihood."""
    return max(zip(record.options, scores), key=lambda pair: pair[1][0])[0]
