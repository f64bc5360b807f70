"""Answers every row of a data set by an instruction, as a batch job:

    python examples/map_dataset.py examples/sentences.jsonl years.jsonl

The rows are lines of JSON with a field `text`; they come out with a field `answer` beside it.
"""

import argparse

from datasets import Dataset, load_dataset

from modeling_tagi import TagiModel

INSTRUCTION = "Extract the year."


def answered(data: str, checkpoint: str, instruction: str, batch_size: int = 256) -> Dataset:
    """Returns the rows with an `answer` to each `text`, read and written by batches, so that the memory holds one."""
    answer = TagiModel.from_pretrained(checkpoint).function(instruction)
    rows = load_dataset("json", data_files=data, split="train")
    # named here, since else datasets would hash the whole model to know whether it has these answers already
    fresh = {"new_fingerprint": "answered", "load_from_cache_file": False}
    return rows.map(lambda batch: {"answer": answer(batch["text"])}, batched=True, batch_size=batch_size, **fresh)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("output")
    parser.add_argument("--checkpoint", default="checkpoints/smollm2-135m")
    parser.add_argument("--instruction", default=INSTRUCTION)
    options = parser.parse_args()
    answered(options.data, options.checkpoint, options.instruction).to_json(options.output, force_ascii=False)
