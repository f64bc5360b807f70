"""How a model comes to know the instruction. Nothing here needs torch."""

from typing import NamedTuple


class Reading(NamedTuple):
    """Says where an instruction goes: into an adapter, and into the model's input."""

    adapter: bool
    prompt: bool


# By the name that `finetuning.reads` takes.
READS = {
    "adapter": Reading(True, False),
    "prompt": Reading(False, True),
    "input": Reading(False, False),
    "adapter_and_prompt": Reading(True, True),
}
