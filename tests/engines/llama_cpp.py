"""Compares the answers of adapters in PEFT and in llama.cpp with `model.generate`'s, token by token, and the scores of
options, all in float32 on one backbone.

    python tests/engines/llama_cpp.py FOLDER [--checkpoint …] [--instructions 20] [--inputs 10] [--scored 20]

The checkpoint's backbone is a GGUF file; its weights are dequantised and written again, with the same metadata, for
llama.cpp. It takes an hour or so on a core. FOLDER keeps what was found, part by part, so that the same command goes
on; result.json in it has it all.
"""

import argparse
import json
import sys
from functools import cached_property, partial
from pathlib import Path
from typing import Optional

import gguf
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "engines")]

from asked import INPUTS, INSTRUCTIONS  # noqa: E402
from llama_cpp_server import Server  # noqa: E402

from modeling_tagi import TagiModel  # noqa: E402
from modeling_tagi.common.gguf_files import gguf_path  # noqa: E402
from modeling_tagi.function import score_rows  # noqa: E402
from modeling_tagi.hub import readable  # noqa: E402
from modeling_tagi.tokens import Tokens  # noqa: E402

TOKENS = 16
OPTIONS = ["positive", "negative"]
ENDS = ("<|im_end|>", "<|endoftext|>")  # llama.cpp ends at either, transformers at the first


def dequantised(source: str, target: Path):
    """Writes a GGUF model again in float32, with the same metadata."""
    if target.exists():
        return
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target.with_suffix(".part"), reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name == "general.file_type":
            writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        elif not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    target.with_suffix(".part").rename(target)


class Compared:
    """Holds the model, the folder of what was found, and what is asked."""

    def __init__(self, folder: Path, checkpoint: str, instructions: list[str], inputs: list[str]):
        self.folder, self.instructions = folder, instructions
        self.model = TagiModel.from_pretrained(checkpoint).eval()
        self.batch = self.model.encode_inputs(inputs)
        self.rows = [ids[mask.bool()].tolist() for ids, mask in zip(*self.batch.values())]
        self.tokens = Tokens.of(self.model.tokenizer, self.model.config)
        self.targets = [self.tokens.target(option) for option in OPTIONS]
        self.ends = self.model.tokenizer.convert_tokens_to_ids(list(ENDS))
        self.adapters = [self.model.generate_adapter(text) for text in instructions]
        for number, adapter in enumerate(self.adapters):
            if not self.place(number, ".gguf").exists():
                adapter.save_pretrained(self.place(number))
                adapter.save_gguf(self.place(number, ".gguf"))

    @cached_property
    def server(self) -> Server:
        # started when it is asked: one that ends before its first request may wait for itself for ever
        return Server(self.folder / "base.gguf", [self.place(number, ".gguf") for number in range(len(self.adapters))])

    def place(self, number: int, ending: str = "") -> Path:
        return self.folder / f"adapter-{number}{ending}"

    def part(self, name: str, of_one, adapters: Optional[int] = None) -> list:
        """Returns `of_one(number)` for each adapter, of which it computes what no earlier call has."""
        adapters = len(self.instructions) if adapters is None else adapters
        file = self.folder / f"{name}.json"
        found = json.loads(file.read_text()) if file.exists() else []
        for number in range(len(found), adapters):
            found.append(of_one(number))
            file.write_text(json.dumps(found))
            print(f"{name}: {number + 1} of {adapters}", file=sys.stderr)
        return found[:adapters]

    def until_the_end(self, rows: list[list[int]]) -> list[list[int]]:
        return [row[: min([row.index(end) for end in self.ends if end in row], default=len(row))] for row in rows]

    def generated(self, model, number: int, **given) -> list[list[int]]:
        output = model.generate(**self.batch, **given, max_new_tokens=TOKENS, do_sample=False,
                                pad_token_id=self.tokens.pad, eos_token_id=self.ends[0])  # fmt: skip
        return self.until_the_end(output[:, self.batch["input_ids"].shape[1]:].tolist())

    def ours(self, number: int) -> list[list[int]]:
        return self.generated(self.model, number, adapter=self.adapters[number])

    def in_peft(self, peft, number: int) -> list[list[int]]:
        peft.set_adapter(str(number))
        return self.generated(peft, number)

    def in_llama_cpp(self, number: int) -> list[list[int]]:
        return self.until_the_end([self.server.tokens(row, TOKENS, number) for row in self.rows])

    def scores(self, number: int) -> list[list[float]]:
        """Each option's mean log-likelihood over its tokens, for each input."""
        targets = [self.targets] * len(self.rows)
        found = score_rows(self.model, self.tokens, self.rows, targets, self.adapters[number])
        return [[total / count for total, count in row] for row in found]

    def scores_in_llama_cpp(self, number: int) -> list[list[float]]:
        return [[self.score_in_llama_cpp(number, row, target) for target in self.targets] for row in self.rows]

    def score_in_llama_cpp(self, number: int, row: list[int], target: list[int]) -> float:
        size, total = self.model.config.backbone_config.vocab_size, 0.0
        for place, token in enumerate(target):
            total += self.server.log_probabilities(row + target[:place], size, number)[token]
        return total / len(target)

    def gap(self, number: int, row: int, one: list[int], other: list[int]) -> dict:
        """The difference between the logits of two tokens, ours, at the first place where two answers differ."""
        place = next((i for i, pair in enumerate(zip(one, other)) if pair[0] != pair[1]), min(len(one), len(other)))
        first, second = (answer[place] if place < len(answer) else self.ends[0] for answer in (one, other))
        ids = torch.tensor([self.rows[row] + one[:place]])
        with torch.no_grad():
            logits = self.model(ids, adapter=self.adapters[number]).logits[0, -1]
        return {"adapter": number, "input": row, "token": place, "gap": float(logits[first] - logits[second])}


def differences(compared: Compared, expected: list, found: list) -> list[dict]:
    return [
        compared.gap(number, row, one, other)
        for number, answers in enumerate(zip(expected, found))
        for row, (one, other) in enumerate(zip(*answers)) if one != other
    ]  # fmt: skip


def largest(expected: list, found: list) -> float:
    return float((torch.tensor(expected) - torch.tensor(found)).abs().max())


def compare(folder: Path, checkpoint: str, instructions: list[str], inputs: list[str], scored: int) -> dict:
    """Returns how many answers differ, the gaps of these, and how far the scores of the first `scored` adapters are
    apart."""
    folder.mkdir(parents=True, exist_ok=True)
    compared = Compared(folder, checkpoint, instructions, inputs)
    name = compared.model.config.backbone_name_or_path
    dequantised(gguf_path(name), folder / "base.gguf")
    ours = compared.part("ours", compared.ours)
    by_llama_cpp = compared.part("llama-cpp", compared.in_llama_cpp)
    scores = compared.part("scores", compared.scores, scored)
    scores_there = compared.part("scores-llama-cpp", compared.scores_in_llama_cpp, scored)
    stock = AutoModelForCausalLM.from_pretrained(readable(name)).eval()
    peft = PeftModel.from_pretrained(stock, compared.place(0), adapter_name="0")
    for number in range(1, len(instructions)):
        peft.load_adapter(compared.place(number), adapter_name=str(number))
    in_peft = compared.part("peft", partial(compared.in_peft, peft))
    of_peft, of_llama_cpp = (differences(compared, ours, found) for found in (in_peft, by_llama_cpp))
    return {
        "answers": sum(map(len, ours)),
        "different_texts": len({tuple(row) for rows in ours for row in rows}),
        "tokens": sum(len(row) for rows in ours for row in rows),
        "peft": {"different": len(of_peft), "where": of_peft},
        "llama.cpp": {"different": len(of_llama_cpp), "where": of_llama_cpp},
        "scores": sum(len(row) for rows in scores for row in rows),
        "largest_difference_of_scores": largest(scores, scores_there),
        "chosen_alike": sum(
            (one[0] > one[1]) == (other[0] > other[1])
            for pair in zip(scores, scores_there) for one, other in zip(*pair)
        ),
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", default=str(ROOT / "checkpoints" / "smollm2-135m"))
    parser.add_argument("--instructions", type=int, default=len(INSTRUCTIONS))
    parser.add_argument("--inputs", type=int, default=len(INPUTS))
    parser.add_argument("--scored", type=int, default=len(INSTRUCTIONS), help="adapters whose options are scored")
    options = parser.parse_args()
    asked = INSTRUCTIONS[: options.instructions], INPUTS[: options.inputs]
    result = compare(options.folder, options.checkpoint, *asked, min(options.scored, len(asked[0])))
    (options.folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
