"""Turns texts into the tokens that a model reads and writes, in the same way in training and in use."""

from array import array
from functools import lru_cache
from typing import Any, Optional, Sequence, Union

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Pipeline

from .families import family_of
from .fit import instruction_list, require_known_ids, require_unicode

# What a causal model reads between an input and its output. Begins and ends with a line's end, where any tokenizer
# starts afresh, so that the parts can be tokenized apart.
OUTPUT_HEAD = "\n\nOutput:\n"
# What a checkpoint's config says: pipeline("text-generation", model=…, trust_remote_code=True) makes such a one.
PIPELINES = {
    "text-generation": {"impl": "tokens.TagiPipeline", "pt": ["AutoModel"]},
    "tagi-function": {"impl": "function.TagiFunctionPipeline", "pt": ["AutoModel"]},
}

_REMEMBERED = 200_000  # texts; what a run of the paper's size holds many times over
# Of templates that ask: no day of use (Llama 3), so that a text is the same tokens always, and no thoughts (Qwen 3).
_TEMPLATE = {"date_string": "26 Jul 2024", "enable_thinking": False}
_REPLY = "reply"
_HUGE = 2**20  # characters; a tokenizer takes a hundred bytes and more for each
_UNSETTLED = 64  # tokens at the end of a piece of text that what follows could change
# Tokens that take as long as a further pass does: on a CPU to read T5-base's encoder once, on a GPU to launch it.
_PASS = {"cpu": 64, "gpu": 4096}
_AT_ONCE = 2**15  # tokens of a pass, padding counted: more need memory, and gain nothing


def instruction_text(instruction: str, demonstrations: Optional[Sequence[tuple[str, str]]] = None) -> str:
    """Returns what the hypernetwork reads: the instruction, followed by its worked examples.

    Raises:
        ValueError: if the instruction is empty or a demonstration is no (input, output) pair.
    """
    if isinstance(demonstrations, str):
        raise ValueError(f"the demonstrations are {demonstrations!r}, but must be a list of pairs (input, output)")
    if not isinstance(instruction, str) or not instruction.strip():
        raise ValueError(f"the instruction is {instruction!r}, but must be a text that is not empty")
    require_unicode(instruction, "the instruction")
    parts = [instruction.strip()]
    for number, pair in enumerate(demonstrations or (), start=1):
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise ValueError(f"demonstration {number} is {pair!r}, but must be a pair (input, output) of texts")
        require_unicode("".join(pair), f"demonstration {number}")
        parts.append(f"Example {number}: Input: {pair[0]} Output: {pair[1]}")
    return "\n\n".join(parts)


def prompt_head(text: str) -> str:
    """Returns the part of a prompt before its input; `text` is from `instruction_text`. It ends with a line break,
    where any tokenizer splits a text, so that head and input can be tokenized apart."""
    return f"{text}\n\nInput:\n"


def prompt_text(instruction: str, input: str, demonstrations: Optional[Sequence[tuple[str, str]]] = None) -> str:
    """Returns what a prompted model reads: instruction, demonstrations and input in one text."""
    return f"{prompt_head(instruction_text(instruction, demonstrations))}{input}"


class Tokens:
    """Tokenizes texts, and caches their tokens.

    Args:
        tokenizer: Any Hugging Face tokenizer.
        is_encoder_decoder: Whether inputs and targets are two sequences or one.
        max_input_length: Tokens kept of an input, from its beginning; alike whether or not a prompt stands before it.
            What a causal model reads around it (a template, the line that asks for the output) is not counted. `None`
            keeps all.
        max_target_length: Tokens kept of a target, end of sequence included.
        input_format: As in [`TagiConfig`].
        marks_targets: Whether targets begin with what the tokenizer puts before a text.
        continued: Whether the model sees an instruction's tokens before an input's.

    Raises:
        ValueError: for `"chat"` with a tokenizer that has no chat template.
    """

    def __init__(
        self,
        tokenizer,
        is_encoder_decoder: bool,
        max_input_length: Optional[int] = None,
        max_target_length: Optional[int] = None,
        input_format: str = "plain",
        marks_targets: bool = False,
        continued: bool = False,
    ):
        self.tokenizer, self.is_encoder_decoder = tokenizer, is_encoder_decoder
        self.max_input_length, self.max_target_length = max_input_length, max_target_length
        self.input_format, self.continued = input_format, continued
        self._known = lru_cache(_REMEMBERED)(  # an array: 4 bytes a token, where a list has 36
            lambda text, special: array("i", tokenizer(text, add_special_tokens=special)["input_ids"])
        )
        # what the tokenizer puts before a text, such as a token for its beginning; nothing for T5's
        self.start = _start_of(tokenizer)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._target_start = self.start if marks_targets else []
        self._eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self._target_end = self._turn_end() if input_format == "chat" else self._eos
        self._instruction_start = self.start
        if continued and input_format == "chat" and self._turn(_REPLY)[:1] == [tokenizer.bos_token_id]:
            self._instruction_start = [tokenizer.bos_token_id]  # for some tokenizers the template alone has it

    @classmethod
    def of(
        cls, tokenizer, config, max_input_length=None, max_target_length=None, input_format: Optional[str] = None
    ) -> "Tokens":
        """Returns the `Tokens` that the model of `config` reads and writes: a [`TagiConfig`], or a backbone's config.

        `input_format`: `None` takes the config's, `"plain"` where it has none.

        Raises:
            ValueError: if inputs continue the instruction, but their beginning is not the one that the model hides.
        """
        backbone = getattr(config, "backbone_config", config)
        family, continued = family_of(backbone), getattr(config, "continued", False)
        tokens = cls(
            tokenizer,
            config.is_encoder_decoder,
            max_input_length,
            max_target_length,
            input_format or getattr(config, "input_format", "plain"),
            family is not None and family.marks_targets,
            continued,
        )
        if continued and tokens._instruction_start not in ([], [backbone.bos_token_id]):
            raise ValueError(
                f"this tokenizer begins texts with the tokens {tokens._instruction_start}, but the backbone's config "
                f"has bos_token_id {backbone.bos_token_id}, and only that one is not read again behind an instruction "
                "(continues_instruction=True): set bos_token_id in the backbone's config.json, or make the generator "
                "with continues_instruction=False"
            )
        return tokens

    def plain(self, text: str) -> list[int]:
        """Returns the text's tokens, without special ones."""
        return self._known(text, False).tolist()

    def instruction(self, text: str) -> list[int]:
        """Returns an instruction's tokens as the hypernetwork reads them: never cut, never in a template.

        Where inputs continue the instruction, these are what a prompt has before the input.
        """
        if not self.continued:
            return self._known(text, True).tolist()
        return self._instruction_start + self.plain(text if self.input_format == "chat" else prompt_head(text))

    def input(self, text: str) -> list[int]:
        """Returns an input's tokens as the model reads them, up to where its output begins."""
        if self.input_format == "chat":
            return self._turn(self._cut(text))
        ids = self.start + self._beginning(text)
        if self.is_encoder_decoder:
            return self._ended(ids, self.max_input_length, self._eos)
        return ids[: self.max_input_length] + self.plain(OUTPUT_HEAD)

    def prompt(self, instruction: str, input: str) -> list[int]:
        """Returns a prompt's tokens: the whole instruction (`instruction_text`'s), then the input, cut as it is
        without one."""
        if self.input_format == "chat":
            return self._turn(prompt_head(instruction) + self._cut(input))
        return self.start + self.plain(prompt_head(instruction)) + self.input(input)[len(self.start):]

    def target(self, text: str) -> list[int]:
        """Returns a target's tokens, the end of sequence (in a chat, of the turn) among them."""
        return self._ended(self._target_start + self.plain(text), self.max_target_length, self._target_end)

    def ends(self, known: Union[int, Sequence[int], None]) -> list[int]:
        """Returns the tokens that end an output: `known`, a generation config's, and in a chat what ends the model's
        turn, which training ends targets with and a backbone's generation config need not name.
        """
        known = [known] if isinstance(known, int) else list(known or ())
        return list(dict.fromkeys([*known, *self._target_end]))

    @staticmethod
    def _ended(ids: list[int], length: Optional[int], end: list[int]) -> list[int]:
        return [*(ids if length is None else ids[: length - len(end)]), *end]

    def _beginning(self, text: str) -> list[int]:
        """Returns the text's tokens, or of a huge text, which is not tokenized whole, those that an input keeps."""
        if self.max_input_length is not None and len(text) > _HUGE:
            ids = self.plain(text[:_HUGE])
            if len(ids) > self.max_input_length + _UNSETTLED:
                return ids
        return self.plain(text)

    def _cut(self, text: str) -> str:
        """Returns the text of the tokens that an input keeps, since chat templates take texts."""
        ids = self._beginning(text)
        if self.max_input_length is None or len(ids) <= self.max_input_length:
            return text
        return self.tokenizer.decode(ids[: self.max_input_length], clean_up_tokenization_spaces=False)

    def _turn(self, content: str) -> list[int]:
        """Returns the user's turn, and the beginning of the model's. The template itself has the special tokens."""
        messages = [{"role": "user", "content": content}]
        return self.plain(
            self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **_TEMPLATE)
        )

    def _turn_end(self) -> list[int]:
        """Returns the token that ends the model's turn; in many templates not the tokenizer's end of sequence."""
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise ValueError(
                "input_format is 'chat', but this tokenizer has no chat template; use 'plain', or set "
                "tokenizer.chat_template"
            )
        messages = [{"role": "user", "content": "text"}, {"role": "assistant", "content": _REPLY}]
        rendered = self.tokenizer.apply_chat_template(messages, tokenize=False, **_TEMPLATE)
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        behind = self.plain(rendered.rpartition(_REPLY)[2])
        return next(([token] for token in behind if token in special), self._eos)


def _start_of(tokenizer) -> list[int]:
    """Returns the special tokens before a text, without those after it, even if one token does both (OPT's)."""
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    for place in range(len(whole) - len(bare) + 1):
        if whole[place: place + len(bare)] == bare:
            return list(whole[:place])
    return [token for token in tokenizer("")["input_ids"] if token != tokenizer.eos_token_id]


def pad(rows: Sequence[list[int]], value: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """Returns token ids and their mask, both `[rows, longest]`."""
    tensors, side = [torch.tensor(row, dtype=torch.long) for row in rows], "left" if left else "right"
    mask = pad_sequence([torch.ones_like(x) for x in tensors], True, 0, side)
    return pad_sequence(tensors, True, value, side), mask


def alike_in_length(lengths: Sequence[int], at_most: Optional[int] = None, on_cpu: bool = True) -> list[list[int]]:
    """Returns row numbers in groups that are best padded and read together, short rows first; a group's are in
    ascending order, at most `at_most`.

    A group ends where the next longer row would add more padding to it than a further pass costs.
    """
    groups, price = [], _PASS["cpu" if on_cpu else "gpu"]
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        length, group = lengths[number], groups[-1] if groups else []
        longer = length - lengths[group[-1]] if group else 0
        full = len(group) == at_most or (len(group) + 1) * length > _AT_ONCE
        if not group or full or len(group) * longer > price:
            groups.append([])
        groups[-1].append(number)
    return [sorted(group) for group in groups]


def training_tensors(tokens: Tokens, inputs: Sequence[list[int]], targets: Sequence[list[int]]) -> dict[str, Tensor]:
    """Returns `input_ids`, `attention_mask` and `labels` for a forward pass.

    Encoder-decoder: `[batch, seq]` and labels `[batch, target_len]`. Causal: input and target in one sequence, labels
    `[batch, seq]` with -100 on the input.
    """
    if tokens.is_encoder_decoder:
        input_ids, mask = pad(inputs, tokens.pad)
        labels, _ = pad(targets, -100)
    else:
        input_ids, mask = pad([i + t for i, t in zip(inputs, targets)], tokens.pad)
        labels, _ = pad([[-100] * len(i) + t for i, t in zip(inputs, targets)], -100)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def generation_tensors(tokens: Tokens, inputs: Sequence[list[int]]) -> dict[str, Tensor]:
    """Returns `input_ids` and `attention_mask` for `generate`; a causal model's are padded on the left."""
    input_ids, mask = pad(inputs, tokens.pad, left=not tokens.is_encoder_decoder)
    return {"input_ids": input_ids, "attention_mask": mask}


def mask_of(input_ids: Tensor, config) -> Tensor:
    """Returns the mask that transformers' `generate` infers: 0 at padding, unless its token also ends a text."""
    if input_ids.is_floating_point():  # embeddings
        return input_ids.new_ones(input_ids.shape[:2], dtype=torch.long)
    padding = _padding_of(config)
    return torch.ones_like(input_ids) if padding is None else (input_ids != padding).long()


def _padding_of(config) -> Optional[int]:
    """Returns the token that is always padding; `None` if there is none, or it also ends a text."""
    pad, eos = config.pad_token_id, config.eos_token_id
    return None if pad in (eos if isinstance(eos, list) else [eos]) else pad


def read_instructions(
    model, instruction: Any, demonstrations: Optional[Sequence] = None
) -> tuple[list[Optional[str]], list[list[int]]]:
    """Returns the text (`None` for token ids) and the tokens of each instruction that `generate_adapter` is given.

    Raises:
        TypeError, ValueError: as `generate_adapter`, whose arguments these are.
    """
    if isinstance(instruction, str):
        demonstrations = [demonstrations]
    padding = _padding_of(model.config) if isinstance(instruction, Tensor) else None
    instruction = instruction_list(instruction)
    if isinstance(instruction[0], str):
        texts = _with_demonstrations(instruction, demonstrations)
        tokens = Tokens.of(model.tokenizer, model.config)
        rows = [tokens.instruction(text) for text in texts]
    elif demonstrations is not None:
        raise ValueError("demonstrations go with instruction texts; put their tokens among the token ids")
    else:
        texts, rows = [None] * len(instruction), [_without_end(row, padding) for row in instruction]
    limit = model.config.max_instruction_length
    for number, row in enumerate(rows):
        if not 0 < len(row) <= limit:
            mend = "shorten it or leave out demonstrations" if row else "give at least one token"
            raise ValueError(f"instruction {number} has {len(row)} tokens, but 1 to {limit} can be read; {mend}")
    require_known_ids(rows, getattr(model.get_input_embeddings(), "num_embeddings", None))
    return texts, rows


def _with_demonstrations(instructions: list[str], demonstrations: Optional[Sequence]) -> list[str]:
    demonstrations = list(demonstrations) if demonstrations is not None else [None] * len(instructions)
    if len(demonstrations) != len(instructions):
        raise ValueError(
            f"{len(instructions)} instructions came with {len(demonstrations)} lists of demonstrations; give one "
            "list of (input, output) pairs for each instruction"
        )
    return [instruction_text(text, pairs) for text, pairs in zip(instructions, demonstrations)]


def _without_end(row: list[int], token: Optional[int]) -> list[int]:
    while token is not None and row and row[-1] == token:
        row = row[:-1]
    return row


class TagiPipeline(Pipeline):
    """Generates outputs for inputs, formatted as the [`TagiModel`] was trained to read them.

    Call `pipe(inputs, instruction="…")` or `pipe(inputs, adapter=…)`; either may also be given to `pipeline`. Further
    arguments go to `generate`. Each input gives `[{"generated_text": …}]`, the output alone.
    """

    _load_tokenizer = False  # the model has it
    _load_feature_extractor = _load_image_processor = _load_processor = False

    def _sanitize_parameters(
        self,
        instruction: Optional[str] = None,
        demonstrations: Optional[Sequence] = None,
        adapter: Any = None,
        **generate_kwargs,
    ):
        if adapter is not None and instruction is not None:
            raise ValueError("the pipeline got both an instruction and an adapter; give one of them")
        if instruction is not None:
            adapter = self.model.generate_adapter(instruction, demonstrations)
        forward = generate_kwargs if adapter is None else {**generate_kwargs, "adapter": adapter}
        return {}, forward, {}

    def preprocess(self, input_: str) -> dict:
        return self.model.encode_inputs(input_)

    def _forward(self, input_tensors: dict, adapter: Any = None, **generate_kwargs) -> dict:
        if adapter is None:
            raise ValueError(
                "the pipeline got no instruction; call it with instruction='what to do with an input', or with "
                "adapter=pipe.model.generate_adapter(…)"
            )
        output = self.model.generate(**input_tensors, adapter=adapter, **generate_kwargs)
        written = 0 if self.model.config.is_encoder_decoder else input_tensors["input_ids"].shape[1]
        return {"output": output[:, written:]}

    def postprocess(self, model_outputs: dict) -> list[dict[str, str]]:
        texts = self.model.tokenizer.batch_decode(model_outputs["output"], skip_special_tokens=True)
        return [{"generated_text": text.strip()} for text in texts]
