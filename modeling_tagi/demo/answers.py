"""What the page shows of an instruction: answers with its adapter, with a prompt, and with neither."""

from dataclasses import dataclass, replace
from typing import Optional, Sequence

from ..adapter import TagiAdapter
from ..function import Answer
from ..instructions import mean_embeddings
from ..modeling_tagi import TagiModel
from ..tokens import read_instructions

MOST_INPUTS = 32
MOST_CHARACTERS = 4_000  # of an input
WAYS = ("adapter", "prompt", "neither")


@dataclass(frozen=True)
class Shown:
    """Holds what was computed for an instruction.

    Args:
        instruction, inputs: As they were given, without empty lines.
        answers: Of each of `WAYS`, an answer to each input.
        adapter: What the generator wrote.
        far: How far the instruction is from those of training, in words; `None` for a model without an index.
        nearest: The nearest training instructions, where the checkpoint publishes them.
    """

    instruction: str
    inputs: list[str]
    answers: dict[str, list[Answer]]
    adapter: TagiAdapter
    far: Optional[str]
    nearest: list[str]


def lines_of(text: str) -> list[str]:
    """Returns the lines of a text box that are not empty, stripped."""
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def shown(
    model: TagiModel, instruction: str, inputs: Sequence[str], options: Sequence[str] = (), max_new_tokens: int = 32
) -> Shown:
    """Computes what the page shows.

    Args:
        model: Whose generator writes the adapter.
        instruction: Read once.
        inputs: Up to `MOST_INPUTS`, of up to `MOST_CHARACTERS`.
        options: What may be answered; none lets the model write up to `max_new_tokens` tokens.

    Raises:
        ValueError: for what cannot be answered, with what to change.
    """
    inputs, options = list(inputs), list(options) or None
    if not instruction or not instruction.strip():
        raise ValueError("There is no instruction: say what is to be done with each input.")
    if not inputs:
        raise ValueError("There is no input: write one a line.")
    if len(inputs) > MOST_INPUTS:
        raise ValueError(f"There are {len(inputs)} inputs; this page answers {MOST_INPUTS} at once: leave some out.")
    long = max(inputs, key=len)
    if len(long) > MOST_CHARACTERS:
        raise ValueError(f"An input has {len(long):,} characters; this page reads {MOST_CHARACTERS:,}: cut it.")
    own = model.function(instruction.strip(), options, max_new_tokens=max_new_tokens)
    ways = {"adapter": own, "prompt": replace(own, how="prompt"), "neither": replace(own, adapter=None)}
    answers = {name: function.detailed(inputs) for name, function in ways.items()}
    far, nearest = _distance(model, own.instruction)
    return Shown(instruction.strip(), inputs, answers, own.adapter, far, nearest)


def _distance(model: TagiModel, instruction: str) -> tuple[Optional[str], list[str]]:
    """Returns how far an instruction is from training's, in words, and the texts of the nearest that are published."""
    index = model.instruction_index
    if index is None:
        return None, []
    vectors = mean_embeddings(model.get_input_embeddings(), read_instructions(model, instruction)[1])
    found = index.nearest(vectors, 3)[0]
    share = found[0][0] / index.threshold
    doubt = ": its adapter may be of no use" if share > 1 else ""
    said = f"{share:.2f} times as far from those of training as new ones usually are{doubt}"
    return said, [text for _, text in found if text]
