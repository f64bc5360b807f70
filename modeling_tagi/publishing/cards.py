"""Writes cards (the README.md of a repository), and tells one that was written here from one that a person edited."""

import hashlib
import json
import re
from pathlib import Path
from typing import Optional, Sequence

from huggingface_hub import ModelCard, ModelCardData

from ..adapter_files import CONFIG_FILE, MEMORY_FILE, PROVENANCE_FILE
from ..hub import PACKAGE, is_repository, repository_of
from ..tokens import OUTPUT_HEAD

CARD_FILE = "README.md"
TAGS = ["tagi", "hypernetwork", "lora"]
CODE_LICENCE = "The code in this repository is Apache-2.0."
CITATION = """\
```bibtex
@inproceedings{liao2024tagi,
  title={From Instance Training to Instruction Learning: Task Adapters Generation from Instructions},
  author={Liao, Huanxuan and He, Shizhu and Xu, Yao and Zhang, Yuanzhe and Hao, Yanchao and Liu, Shengping and Liu, Kang and Zhao, Jun},
  booktitle={Advances in Neural Information Processing Systems},
  year={2024}
}
```"""  # noqa: E501
_MARK = "\n<!-- Written by TAGI (sha256 {}). Edit it as you like: an edited card is kept. -->\n"
_MARKED = re.compile(re.escape(_MARK).replace(r"\{\}", "([0-9a-f]{64})") + r"\Z")
_NAMED = re.compile(r'(?<=AutoModel\.from_pretrained\()"[^"\n]*"')
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as max_lora_rank


def written(data: ModelCardData, blocks: Sequence[str]) -> str:
    """Returns a card of these blocks of Markdown, with a mark that tells later whether a person has edited it."""
    text = str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(blocks) + "\n"))
    return text + _MARK.format(hashlib.sha256(text.encode()).hexdigest())


def is_edited(text: Optional[str]) -> bool:
    """Tells whether a person has written something into the card, so that it is not to be replaced."""
    if text is None or not re.sub(r"\A---\n.*?\n---\s*", "", text, flags=re.DOTALL).strip():
        return False
    mark = _MARKED.search(text)
    return mark is None or hashlib.sha256(text[: mark.start()].encode()).hexdigest() != mark.group(1)


def renamed(text: str, name: str) -> str:
    """Returns a card written here, whose snippet loads the checkpoint from `name`."""
    text = _NAMED.sub(lambda _: json.dumps(name), text[: _MARKED.search(text).start()])
    return text + _MARK.format(hashlib.sha256(text.encode()).hexdigest())


def fenced(text: str, language: str = "") -> str:
    """Returns a block of code that nothing in `text` can end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Returns a table of facts by name; those without a value are left out."""
    lines = [f"| {name} | {cell(value)} |" for name, value in rows if value not in (None, "")]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def cell(value) -> str:
    """Returns a text for a table: one line that is nothing but text."""
    return " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def source_of(name: Optional[str], revision: Optional[str] = None) -> Optional[str]:
    """Returns how a card names where weights come from; it does not name a folder of someone's disk."""
    if not name:
        return None
    if not name.startswith(PACKAGE) and not is_repository(repository_of(name)):
        return "a folder that is not on the Hub"
    return f"{name} at {revision}" if revision else name


# Checkpoints


def usage(name: str, instruction: str, inputs: Sequence[str], is_encoder_decoder: bool) -> str:
    """Returns the snippet that works as it is pasted."""
    return fenced(f"""\
from transformers import AutoModel

model = AutoModel.from_pretrained({json.dumps(name, ensure_ascii=False)}, trust_remote_code=True)

adapter = model.generate_adapter({json.dumps(instruction, ensure_ascii=False)})
inputs = model.encode_inputs({json.dumps(list(inputs), ensure_ascii=False)})
outputs = model.generate(**inputs, adapter=adapter, max_new_tokens=32)
print(model.tokenizer.batch_decode({_shown(is_encoder_decoder)}, skip_special_tokens=True))""", "python")


def _shown(is_encoder_decoder: bool) -> str:
    """Returns the code for that part of `outputs` which is not the input."""
    return "outputs" if is_encoder_decoder else 'outputs[:, inputs["input_ids"].shape[1]:]'


def checkpoint_blocks(config, name: str, instruction: str, inputs: Sequence[str]) -> list[str]:
    """Returns what a card says of any checkpoint: what it is, how it is used, what it is made of."""
    backbone = config.backbone_config
    source = source_of(config.backbone_name_or_path, config.backbone_revision)
    where = "in this repository" if config.backbone_in_checkpoint else f"loaded from {source}"
    export = (
        "With `fusion=\"none\"` the exported adapter is all there is: PEFT answers as this model does."
        if config.fusion == "none" else
        f"With `fusion=\"{config.fusion}\"` the language model also attends to the encoded instruction, which PEFT "
        f"does not know: it is saved beside the adapter (`{MEMORY_FILE}`), and this model reads it back."
    )  # fmt: skip
    base = "this checkpoint's own backbone" if config.backbone_trained else "the stock backbone"
    return [
        f"# {name.rstrip('/').rpartition('/')[2]}",
        "Adapters for a language model, **generated from instructions**: a hypernetwork reads a task's instruction "
        "once and writes LoRA weights, and the language model then does the task on inputs that do not contain the "
        "instruction. The method is TAGI (*Task Adapters Generation from Instructions*).",
        "## Use",
        usage(name, instruction, inputs, config.is_encoder_decoder),
        "This needs transformers and PyTorch; the code comes with the checkpoint. `adapter.save_pretrained(folder)` "
        f"writes a PEFT folder (with PEFT installed), which fits {base}. {export}",
        "## What it is",
        facts([
            ("backbone", f"{backbone.model_type}, {where}"),
            ("made from", source),
            ("backbone changed by training", "yes" if config.backbone_trained else "no"),
            ("LoRA", f"rank {config.r}, alpha {config.lora_alpha:g}, on {_targets(config)}"),
            ("fusion", config.fusion),
            ("generator", f"{config.generator}, hidden size {config.generator_hidden_size}, pooling {config.pooling}"),
            ("longest instruction", f"{config.max_instruction_length} tokens"),
        ]),
    ]  # fmt: skip


def _targets(config) -> str:
    layers, names = config.layers_to_transform, ", ".join(config.target_modules)
    return names if layers is None else f"{names} of layers {', '.join(map(str, layers))}"


def checkpoint_data(config, **fields) -> ModelCardData:
    """Returns the metadata of a checkpoint's card."""
    tags = [*TAGS, *(fields.pop("tags", None) or [])]
    name = config.backbone_name_or_path
    base = {"base_model": name} if is_repository(name) else {}
    if base and not config.backbone_trained:
        base["base_model_relation"] = "adapter"
    return ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=tags, **base, **fields)


def checkpoint_card(config, name: str, tags: Optional[Sequence[str]] = None) -> str:
    """Returns the card of a model of which nothing but its configuration is known."""
    blocks = checkpoint_blocks(config, name, "say whether the review is good or bad", ["what a film"])
    blocks += [
        "## Limits",
        "Nothing is recorded here of how this checkpoint was trained or how well it does: evaluate it on tasks like "
        "yours. An adapter for an instruction unlike those of training may be of no use.",
        "## Licence",
        f"{CODE_LICENCE} The weights are under the terms of the backbone and of the data that they were trained on.",
        "## Citation",
        CITATION,
    ]
    return written(checkpoint_data(config, tags=tags), blocks)


# Adapters


def adapter_card(folder, name: str) -> str:
    """Returns the card of a saved adapter: what it is to do, where it comes from, how it is loaded."""
    folder = Path(folder)
    config = json.loads((folder / CONFIG_FILE).read_text())
    file = folder / PROVENANCE_FILE
    described = json.loads(file.read_text()) if file.is_file() else {}
    source, base = described.get("provenance") or {}, config.get("base_model_name_or_path")
    own_backbone = bool(source.get("generator")) and base == source["generator"]
    data = ModelCardData(
        library_name="peft",
        tags=[*TAGS, "peft"],
        **({"base_model": base, "base_model_relation": "adapter"} if is_repository(base) else {}),
    )
    return written(data, [
        f"# {name.rpartition('/')[2]}",
        _made_how(source),
        *_instructions(source),
        "## Where it comes from",
        _origin(config, source, own_backbone),
        "## Use",
        *([_NOT_ALL] if described.get("needs_memory") else []),
        *_own_use(config, name, source),
        *_peft_use(config, name, own_backbone),
        *_vllm_use(config, name, own_backbone, source.get("input_format")),
        "## Licence and limits",
        "The terms of the backbone and of the generator apply. Nobody has checked this adapter unless it says so.",
    ])  # fmt: skip


_NOT_ALL = (
    "**This adapter is not all there is.** Its generator also lets the language model attend to the encoded "
    f"instruction (`{MEMORY_FILE}` here, which PEFT and vLLM ignore): loaded by them alone, it answers differently, "
    "and as a rule worse."
)


def _instructions(source: dict) -> list[str]:
    blocks = []
    if source.get("instruction"):
        blocks += ["## Instruction", fenced(source["instruction"], "text")]
    if source.get("combined"):
        blocks.append("## Instructions")
    for part in source.get("combined") or []:
        blocks += [f"With the weight {part['weight']:g}:", fenced(part.get("instruction") or "(not recorded)", "text")]
    return blocks


def _origin(config: dict, source: dict, own_backbone: bool) -> str:
    targets = config["target_modules"] if isinstance(config["target_modules"], list) else [config["target_modules"]]
    base = config.get("base_model_name_or_path")
    return facts([
        ("SHA-256 of the instruction", source.get("instruction_sha256")),
        ("generator", source_of(source.get("generator"))),
        ("generator's revision", source.get("generator_revision")),
        ("backbone", "the generator's own" if own_backbone else source_of(base)),
        ("backbone's revision", config.get("revision")),
        ("LoRA", f"rank {config['r']}, alpha {config['lora_alpha']}, {len(targets)} modules"),
    ])  # fmt: skip


def _made_how(source: dict) -> str:
    tuned = source.get("tuned")
    if source.get("combined"):
        made = f"A LoRA adapter that is a **weighted sum** of {len(source['combined'])} others"
    elif source.get("generator") or source.get("instruction"):
        made = "A LoRA adapter that was **generated from an instruction** in one pass"
        if not tuned:
            return f"{made}, not tuned on examples."
    elif tuned:
        return f"A LoRA adapter that was **tuned on {tuned['examples']} examples** ({tuned['steps']} steps)."
    else:
        return "A LoRA adapter for one task."
    return f"{made}, then **tuned on {tuned['examples']} examples** ({tuned['steps']} steps)." if tuned else f"{made}."


def _own_use(config: dict, name: str, source: dict) -> list[str]:
    generator, revision = source.get("generator"), source.get("generator_revision")
    if not is_repository(generator):
        return []
    at = f", revision={json.dumps(revision)}" if revision else ""
    return ["With its generator's code:", fenced(f"""\
from transformers import AutoModel

model = AutoModel.from_pretrained({json.dumps(generator)}{at}, trust_remote_code=True)
adapter = model.adapter_class.from_pretrained({json.dumps(name)})
inputs = model.encode_inputs(["an input of the task"])
outputs = model.generate(**inputs, adapter=adapter, max_new_tokens=32)
print(model.tokenizer.batch_decode({_shown(config.get("task_type") != "CAUSAL_LM")}, skip_special_tokens=True))""",
            "python")]  # fmt: skip


def _peft_use(config: dict, name: str, own_backbone: bool) -> list[str]:
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    at = f", revision={json.dumps(revision)}" if revision else ""
    auto = "AutoModelForCausalLM" if config.get("task_type") == "CAUSAL_LM" else "AutoModelForSeq2SeqLM"
    if not is_repository(base):
        base, at = "the/backbone", ""
    load = f"{auto}.from_pretrained({json.dumps(base)}{at})"
    if own_backbone:
        auto, load = "AutoModel", f"AutoModel.from_pretrained({json.dumps(base)}{at}, trust_remote_code=True).backbone"
    return ["With PEFT:", fenced(f"""\
from peft import PeftModel
from transformers import {auto}

backbone = {load}
model = PeftModel.from_pretrained(backbone, {json.dumps(name)})""", "python")]


def _vllm_use(config: dict, name: str, own_backbone: bool, input_format: Optional[str]) -> list[str]:
    if config.get("task_type") != "CAUSAL_LM":
        return ["vLLM's LoRA does not cover encoder-decoder models: merge the adapter, or use PEFT."]
    base = config.get("base_model_name_or_path")
    if own_backbone or not is_repository(base):
        return ["For vLLM, save the backbone that this adapter fits to a folder of its own, and serve that."]
    rank = next((rank for rank in VLLM_RANKS if rank >= config["r"]), config["r"])
    text = "an input of the task"  # in the form that the adapter was made for
    if input_format == "chat":
        call = f'llm.chat([{{"role": "user", "content": {json.dumps(text)}}}]'
    else:
        call = f"llm.generate([{json.dumps(text + OUTPUT_HEAD if input_format == 'plain' else text)}]"
    return ["With vLLM:", fenced(f"""\
from huggingface_hub import snapshot_download
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

llm = LLM({json.dumps(base)}, enable_lora=True, max_lora_rank={rank})
adapter = LoRARequest({json.dumps(name.rpartition("/")[2])}, 1, snapshot_download({json.dumps(name)}))
outputs = {call}, SamplingParams(max_tokens=32), lora_request=adapter)
print(outputs[0].outputs[0].text)""", "python")]
