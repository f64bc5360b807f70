"""Functions: an instruction read once, then called on inputs. Options are scored, and nothing else is answered. Their
core, `score_rows` and `generate_rows`, takes rows with an adapter each, as a server batches them."""

import asyncio
import json
import os
from copy import copy
from dataclasses import asdict, dataclass
from inspect import signature
from typing import Any, Callable, Iterator, Optional, Sequence, Union

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Pipeline
from transformers.modeling_outputs import BaseModelOutput

from .adapter import TagiAdapter
from .adapter_files import CONFIG_FILE
from .fit import input_list, require_unicode
from .hub import STALE, filling, require_folder_for
from .instructions import mean_embeddings
from .lora import applied, cache_name, evaluating
from .tokens import OUTPUT_HEAD, Tokens, alike_in_length, generation_tensors, instruction_text, pad, read_instructions

FUNCTION_FILE = "function.json"
SAVED = ("instruction", "options", "max_new_tokens", "how")
IF_FAR = {"warn": "adapter", "abstain": "abstained", "prompt": "prompt"}  # -> how a far instruction is answered
_MADE_FROM = ("generator", "generator_revision", "backbone", "backbone_revision")


@torch.no_grad()
def score_rows(
    model: Any, tokens: Tokens, inputs: Sequence[list[int]], options: Sequence[Sequence[list[int]]],
    adapter: Optional[TagiAdapter] = None, task_index: Optional[Sequence[int]] = None, at_most: int = 64,
) -> list[list[tuple[float, int]]]:  # fmt: skip
    """Returns each input's options' log-likelihood, in nats and fp32, and number of tokens. An input is read once.

    Args:
        model: A [`TagiModel`]; without an adapter any language model.
        inputs: `tokens.input` or `tokens.prompt` of each row.
        options: `tokens.target` of each option, for each row.
        adapter: One for all rows, or several with `task_index`, which has the number of each row's.
        at_most: Options scored at once, over all rows.
    """
    scores: list[list[tuple[float, int]]] = [[] for _ in inputs]
    read, most = _encoded if tokens.is_encoder_decoder else _cached, max(map(len, options), default=1)
    with evaluating(model):
        for group, batch, given in _batches(model, tokens, inputs, adapter, task_index, at_most // most):
            logits_of = read(model, tokens, batch, given)
            pairs = [(place, target) for place, row in enumerate(group) for target in options[row]]
            for start in range(0, len(pairs), at_most):
                places, targets = zip(*pairs[start: start + at_most])
                labels = pad(targets, -100)[0].to(model.device)  # [pairs, seq]
                logits = logits_of(torch.tensor(places, device=model.device), targets, labels)
                losses = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none").sum(1)
                for place, loss, target in zip(places, losses.tolist(), targets):
                    scores[group[place]].append((-loss, len(target)))
    return scores


@torch.no_grad()
def generate_rows(
    model: Any, tokens: Tokens, inputs: Sequence[list[int]], max_new_tokens: int,
    adapter: Optional[TagiAdapter] = None, task_index: Optional[Sequence[int]] = None, at_most: int = 64,
) -> list[str]:  # fmt: skip
    """Returns a greedy answer to each input, up to where a text ends, stripped. Arguments are as for `score_rows`."""
    answers = [""] * len(inputs)
    with evaluating(model):
        for group, batch, given in _batches(model, tokens, inputs, adapter, task_index, at_most):
            output = model.generate(**batch, **given, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
            output = output if tokens.is_encoder_decoder else output[:, batch["input_ids"].shape[1]:]
            for row, text in zip(group, tokens.tokenizer.batch_decode(output, skip_special_tokens=True)):
                answers[row] = text.strip()
    return answers


def _batches(model, tokens, inputs, adapter, task_index, at_most) -> Iterator[tuple[list[int], dict, dict]]:
    """Yields the numbers of rows of like length, their tensors, and the arguments that give them their adapters."""
    for group in alike_in_length([len(ids) for ids in inputs], max(1, at_most), on_cpu=model.device.type == "cpu"):
        batch = generation_tensors(tokens, [inputs[row] for row in group])
        index = torch.tensor([task_index[row] if task_index is not None else 0 for row in group], device=model.device)
        given = {} if adapter is None else {"adapter": model._resolve(adapter, None, None), "task_index": index}
        yield group, {name: x.to(model.device) for name, x in batch.items()}, given


def _encoded(model, tokens: Tokens, batch: dict[str, Tensor], given: dict[str, Any]) -> Callable[..., Tensor]:
    """Encodes inputs, and returns a function to the logits `[pairs, seq, vocab]` of targets, each behind an input."""
    with applied(model._application(**given) if given else None):
        states = getattr(model, "backbone", model).get_encoder()(**batch)[0]

    def logits_of(places: Tensor, targets, labels: Tensor) -> Tensor:
        chosen = given and {**given, "task_index": given["task_index"][places]}
        encoded, mask = BaseModelOutput(states[places]), batch["attention_mask"][places]
        return model(encoder_outputs=encoded, attention_mask=mask, labels=labels, **chosen).logits

    return logits_of


def _cached(model, tokens: Tokens, batch: dict[str, Tensor], given: dict[str, Any]) -> Callable[..., Tensor]:
    """Reads inputs into a cache, and returns what `_encoded` does. An input's last token predicts the first of a
    target; all but the last of a target are then read behind a copy of the input's cache."""
    name, known = cache_name(model), signature(getattr(model, "backbone", model).forward).parameters

    def read(ids: Tensor, mask: Tensor, cache, given: dict[str, Any], keep: int):
        more = {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1]:], "logits_to_keep": keep}
        given = {**given, name: cache, **{field: x for field, x in more.items() if field in known}}
        return model(input_ids=ids, attention_mask=mask, use_cache=True, **given)

    begun = read(*batch.values(), None, given, 1)

    def logits_of(places: Tensor, targets, labels: Tensor) -> Tensor:
        first = begun.logits[places, -1:]
        if labels.shape[1] == 1:
            return first
        cache = copy(getattr(begun, name))
        cache.layers = [copy(layer) for layer in cache.layers]  # without their tensors: rows are chosen next
        cache.batch_select_indices(places)
        if hasattr(cache, "starts"):  # causal.without_start's
            cache.starts = cache.starts[places]
        ids, mask = (x.to(model.device) for x in pad([target[:-1] for target in targets], tokens.pad))
        mask = torch.cat([batch["attention_mask"][places], mask], 1)
        chosen = given and {**given, "task_index": given["task_index"][places]}
        return torch.cat([first, read(ids, mask, cache, chosen, 0).logits], 1)

    return logits_of


@dataclass(frozen=True)
class Answer:
    """Holds what a function answers: a text, `None` if it abstains; each option's score, its log-likelihood in nats as
    the mean over its tokens and the end of the text; and how: by `"adapter"`, by `"prompt"`, or `"abstained"`."""

    text: Optional[str]
    scores: Optional[dict[str, float]]
    how: str


@dataclass(eq=False)
class TagiFunction:
    """Answers inputs by an instruction (its worked examples in it) that was read once: what `model.function` and
    `load_function` return. It never goes to the network, keeps no state, and may be called from many threads."""

    model: Any
    adapter: TagiAdapter
    instruction: str
    options: Optional[Sequence[str]] = None
    max_new_tokens: int = 64
    how: str = "adapter"
    batch_size: int = 64

    def __post_init__(self):
        self.tokens = Tokens.of(self.model.tokenizer, self.model.config)

    def __call__(self, inputs: Union[str, Sequence[str]]) -> Any:
        """Returns the answer to a text, or a list of those to several; `None` for each if the function abstains."""
        found = self.detailed(inputs)
        return [answer.text for answer in found] if isinstance(found, list) else found.text

    async def call_async(self, inputs: Union[str, Sequence[str]]) -> Any:
        """Returns the same, computed in a thread: the event loop goes on meanwhile."""
        return await asyncio.to_thread(self, inputs)

    def scores(self, inputs: Union[str, Sequence[str]]) -> Any:
        """Returns a dict of the options' scores for each input; see [`Answer`]."""
        if self.options is None:
            raise ValueError("this function has no options to score; make it with options=['…', '…']")
        found = self.detailed(inputs)
        return [answer.scores for answer in found] if isinstance(found, list) else found.scores

    def detailed(self, inputs: Union[str, Sequence[str]]) -> Any:
        """Returns an [`Answer`] to each input."""
        answers = self._answers(input_list(inputs))
        return answers[0] if isinstance(inputs, str) else answers

    def _answers(self, texts: list[str]) -> list[Answer]:
        adapter, rows, how = self.adapter, [self.tokens.input(text) for text in texts], self.how
        if how == "abstained":
            return [Answer(None, None, how)] * len(texts)
        if how == "prompt":
            adapter, rows = None, [self.tokens.prompt(self.instruction, text) for text in texts]
        common, given = (self.model, self.tokens, rows), {"adapter": adapter, "at_most": self.batch_size}
        if self.options is None:
            return [Answer(text, None, how) for text in generate_rows(*common, self.max_new_tokens, **given)]
        found = score_rows(*common, [[self.tokens.target(option) for option in self.options]] * len(rows), **given)
        means = [{x: total / n for x, (total, n) in zip(self.options, scores)} for scores in found]
        return [Answer(max(scores, key=scores.__getitem__), scores, how) for scores in means]

    def save(self, folder: Union[str, os.PathLike], base_model: Union[str, os.PathLike, None] = None) -> None:
        """Writes the adapter's PEFT folder (`base_model` as in `TagiAdapter.save_pretrained`) and function.json."""
        source, tokens = self.adapter.provenance[0], self.tokens
        described = {name: getattr(self, name) for name in SAVED} | {"input_format": tokens.input_format}
        plain = tokens.input_format == "plain" and not tokens.is_encoder_decoder
        described |= {"after_input": OUTPUT_HEAD * plain, "made_from": {name: source.get(name) for name in _MADE_FROM}}
        with filling(require_folder_for("adapter", folder), CONFIG_FILE, STALE["adapter"]) as beside:
            self.adapter.save_pretrained(beside, base_model)
            (beside / FUNCTION_FILE).write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", "utf-8")


def require_choices(options: Any, **numbers: Any):
    """Refuses what a function cannot be made with."""
    texts = isinstance(options, (list, tuple)) and all(isinstance(option, str) for option in options)
    if options is not None and not (texts and len(options) == len({text.strip() for text in options} - {""}) > 1):
        raise ValueError(f"the options are {options!r:.80}, but must be a list of at least two texts, none of them "
                         "empty and no two alike, or None for free text")  # fmt: skip
    require_unicode("".join(options or ()), "the options' text")
    for name, number in numbers.items():
        if type(number) is not int or number < 1:
            raise ValueError(f"{name} is {number!r}, but must be a whole number of at least 1")


class FunctionMixin:
    """Makes a [`TagiModel`]'s functions."""

    def function(
        self, instruction: str, options: Optional[Sequence[str]] = None, *, demonstrations: Optional[Sequence] = None,
        max_new_tokens: int = 64, if_far: str = "warn", batch_size: int = 64,
    ) -> TagiFunction:  # fmt: skip
        """Reads an instruction once and returns a function of texts that follows it.

        Args:
            options: What it may answer; `None` lets it write up to `max_new_tokens` tokens.
            demonstrations: Worked examples `[(input, output), …]`.
            if_far: What becomes of an instruction that is far from all of training's: `"warn"`, and no more;
                `"abstain"` answers `None`; `"prompt"` has the bare backbone read it with each input.
            batch_size: Inputs (with options, these) at once.

        Raises:
            TypeError, ValueError: for an instruction that `generate_adapter` refuses, options that are not at least
                two different texts, or an `if_far` that is unknown or needs an index which the model lacks.
        """
        require_choices(options, max_new_tokens=max_new_tokens, batch_size=batch_size)
        how, index, instruction = "adapter", self.instruction_index, instruction_text(instruction, demonstrations)
        if if_far not in (IF_FAR if index is not None else ["warn"]):
            raise ValueError(f"if_far is {if_far!r}, but must be 'warn', or, for a model with an index of training's "
                             "instructions (model.instruction_index), 'abstain' or 'prompt'")  # fmt: skip
        if if_far != "warn":
            vectors = mean_embeddings(self.get_input_embeddings(), read_instructions(self, instruction)[1])
            how = IF_FAR[if_far] if index.nearest(vectors, 1)[0][0][0] > index.threshold else how
        adapter = self.generate_adapter(instruction)
        return TagiFunction(self, adapter, instruction, options, max_new_tokens, how, batch_size)


class TagiFunctionPipeline(Pipeline):
    """Answers by a function: `pipeline("tagi-function", model=…, instruction=…, options=…)`. Its arguments may go to
    the call too. Each input gives a dict, the fields of an [`Answer`]."""

    _load_tokenizer = _load_feature_extractor = _load_image_processor = _load_processor = False  # the model has it
    preprocess = _forward = postprocess = None  # of single inputs; the function batches them itself

    def _sanitize_parameters(self, **options):
        return {}, {"function": self.model.function(**options)} if options else {}, {}

    def __call__(self, inputs: Union[str, Sequence[str]], **options: Any) -> Any:
        given = {**self._forward_params, **self._sanitize_parameters(**options)[1]}
        if not given:
            raise ValueError("the pipeline got no instruction; give it instruction='what to do with an input'")
        found = given["function"].detailed(inputs)
        return [asdict(answer) for answer in found] if isinstance(found, list) else asdict(found)
