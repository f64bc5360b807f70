"""What `results.json` holds beside scores: its version, a headline, and examples of what was answered.

`results.schema.json` says what every field is.
"""

from pathlib import Path
from typing import Optional, Sequence

from ..data.records import Record
from ..instructions import instruction_text

RESULTS_VERSION = 1  # rises when a field changes its meaning or goes
SCHEMA = Path(__file__).with_name("results.schema.json")
EXAMPLES = 10


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
