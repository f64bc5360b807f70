"""FLOPs of doing a task, counted from the shapes of a model that is built on the meta device.

A product of `[n, d_in]` and `[d_in, d_out]` counts 2 n d_in d_out, as in `torch.utils.flop_counter`; norms, softmax,
embeddings and additions count nothing. A prompted model reads instruction and input n times; with an adapter the
instruction is read once, and the inputs alone n times.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Callable

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..configuration_tagi import TagiConfig
from ..families import FAMILIES
from ..fusion import layers_of
from ..lora import find_targets
from ..modeling_tagi import TagiModel
from ..seq2seq import memory_projections

# What is done once a task (the first two, and of "fusion" and "memory" the instruction's keys and values), and for
# each input.
PARTS = ("instruction", "generator", "input", "output", "lora", "fusion", "memory")


@dataclass(frozen=True)
class Lengths:
    """Holds the lengths of a task's texts in tokens, special ones included; means may be fractions.

    Args:
        instruction: Tokens of the instruction with its demonstrations.
        input: Tokens of an input.
        target: Tokens of an output, generated one at a time with a cache.

    Raises:
        ValueError: if one is less than 1.
    """

    instruction: float
    input: float
    target: float

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value >= 1:
                raise ValueError(f"Lengths: {name} is {value!r}, but must be a number of tokens of at least 1")


class TaskFlops:
    """Counts FLOPs for one configuration. Every token is taken to attend to all before it, even if there is a window.

    Args:
        config: The model; its backbone may be of any size, since nothing is allocated.

    Raises:
        ValueError: for a backbone of a family that the formula does not know.
    """

    def __init__(self, config: TagiConfig):
        family = config.backbone_config.model_type
        if family not in FAMILIES:
            raise ValueError(
                f"FLOPs of a backbone of type {family!r} cannot be counted by formula; use one of "
                f"{', '.join(FAMILIES)}, or torch.utils.flop_counter on a run"
            )
        with torch.device("meta"):
            model = TagiModel(config)
        self.fusion, self.is_encoder_decoder = config.fusion, config.is_encoder_decoder
        self.model = model  # on the meta device, without weights
        self.parameters = sum(p.numel() for p in model.backbone.parameters())
        names = {p.rsplit(".", 1)[-1] for p, m in model.backbone.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
        linears = find_targets(model.backbone, sorted(names))
        targets = model.targets
        works_on = _places(model.backbone, config.is_encoder_decoder)
        # FLOPs for a token, by what the module works on: see _places
        self.linear, self.lora = defaultdict(float), defaultdict(float)
        self.width = defaultdict(int)  # numbers that go into and come out of the modules, for a token
        for path, (d_in, d_out) in linears.items():
            self.linear[works_on(path)] += 2 * d_in * d_out
            self.width[works_on(path)] += d_in + d_out
        for path, (d_in, d_out) in targets.items():
            self.lora[works_on(path)] += 2 * config.r * (d_in + d_out)
        self.merging = sum(2 * config.r * d_in * d_out for d_in, d_out in targets.values())
        self.adapter_size = sum(config.r * (d_in + d_out) for d_in, d_out in targets.values())  # in numbers
        self.generator, self.pooling = model.hypernetwork.flops(), model.hypernetwork.pooling

        text_config = config.backbone_config.get_text_config()
        heads, d_model = text_config.num_attention_heads, text_config.hidden_size
        width = heads * (getattr(text_config, "head_dim", None) or d_model // heads)
        if config.is_encoder_decoder:
            stacks = model.backbone.get_encoder(), model.backbone.get_decoder()
            self.layers, self.decoder_layers = (len(layers_of(stack)) for stack in stacks)
        else:
            self.layers = self.decoder_layers = len(layers_of(model.backbone.base_model))
        self.score = 4 * width  # of one query with one key, Q K and the weighted sum of values
        self.fusion_projection = sum(2 * sum(m.weight.numel() for m in (layer.q, layer.o)) for layer in model.fusion)
        self.fusion_score = sum(4 * layer.heads * layer.d_head for layer in model.fusion)

    def prompted(self, lengths: Lengths, inputs: int) -> dict[str, float]:
        """Returns the FLOPs of `inputs` prompts, instruction and input each; all parts but "input", "output" are 0."""
        return self._parts(**self._backbone(lengths.instruction + lengths.input, lengths.target, inputs))

    def adapted(self, lengths: Lengths, inputs: int, targets_given: bool = False) -> dict[str, float]:
        """Returns the FLOPs of making the adapter once and of `inputs` inputs with it, by part.

        With `targets_given`, as in a forward pass of training, all tokens are read at once, and a causal model's last
        one is read too.

        "instruction": the encoding of the instruction. "generator": the hypernetwork. "input" and "output": the
        backbone. "lora": the low-rank products. "fusion": the cross-attention to the instruction. "memory": what
        the decoder (a causal model: every layer) does with the encoded instruction; its keys and values are made
        once, as they are where the inputs are one batch.
        """
        t, i, o = lengths.instruction, lengths.input, lengths.target
        read = i + o if targets_given else i + o - 1  # by a causal model
        fused = i if self.is_encoder_decoder else read
        memory = 0.0
        if self.fusion != "none":
            queries = o if self.is_encoder_decoder else read
            projection = (self.linear["memory"] + self.lora["memory"]) * t  # a causal model has no such modules
            memory = projection + inputs * self.decoder_layers * self.score * t * queries
        return self._parts(
            instruction=self.linear["read"] * t + self.layers * self.score * t * t,
            generator=self.generator + self.pooling.flops(t),
            lora=inputs * self.low_rank(i, o, targets_given),
            # keys and values of the instruction are as large as queries and outputs of the input
            fusion=self.fusion_projection * (t + inputs * fused) + inputs * self.fusion_score * fused * t,
            memory=memory,
            **self._backbone(i, o, inputs, targets_given),
        )

    def low_rank(self, read: float, written: float, targets_given: bool = False) -> float:
        """Returns the FLOPs of an adapter's low-rank products for one input."""
        if self.is_encoder_decoder:
            reading, writing = self.lora["read"] + self.lora["memory"], self.lora["write"] + self.lora["head"]
            return reading * read + writing * written
        last, heads = (0, read + written) if targets_given else (1, written)
        return self.lora["read"] * (read + written - last) + self.lora["head"] * heads

    def forward(self, read: float, target: float, inputs: int) -> float:
        """Returns the backbone's FLOPs in a forward pass of training, over `inputs` inputs with their targets."""
        return sum(self._backbone(read, target, inputs, targets_given=True).values())

    def _backbone(self, read: float, written: float, inputs: int, targets_given: bool = False) -> dict[str, float]:
        reading = (self.linear["read"] + self.linear["memory"]) * read + self.layers * self.score * read * read
        if self.is_encoder_decoder:
            steps, linear = written, self.linear["write"]
            seen = written * (written + 1) / 2 + written * read  # self-attention and cross-attention
        else:  # the input's last token gives the first one written, and the last one written is not read
            steps, linear = written if targets_given else written - 1, self.linear["read"]
            seen = steps * read + steps * (steps + 1) / 2
        heads = read + written if targets_given and not self.is_encoder_decoder else written
        writing = linear * steps + self.linear["head"] * heads + self.decoder_layers * self.score * seen
        return {"input": inputs * reading, "output": inputs * writing}

    @staticmethod
    def _parts(**parts: float) -> dict[str, float]:
        return {name: float(parts.get(name, 0)) for name in PARTS}


def _places(backbone: nn.Module, is_encoder_decoder: bool) -> Callable[[str], str]:
    """Returns a function from a module's path to what it reads: "read" tokens of the input, "memory" the encoder's
    output, "write" and "head" tokens written. A causal model has only "read" and "head", and reads what it wrote."""
    memory = set(memory_projections(backbone))
    written = set(backbone.get_decoder().modules()) if is_encoder_decoder else set()

    def works_on(path: str) -> str:
        module = backbone.get_submodule(path)
        if module is backbone.get_output_embeddings():
            return "head"
        return "memory" if module in memory else "write" if module in written else "read"

    return works_on
