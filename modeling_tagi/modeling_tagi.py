"""TagiModel: a language model, and the hypernetwork that writes LoRA adapters for it from instructions."""

import weakref
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Optional, Sequence, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import ModelOutput

from .adapter import TagiAdapter, instruction_hash
from .adapter_tuning import fresh_adapter
from .causal import Causal
from .checkpoints import CheckpointMixin
from .configuration_tagi import TagiConfig
from .fit import (
    checked_index,
    fingerprint,
    input_list,
    instruction_list,
    require_fit,
    require_known_ids,
    require_one_place,
    require_positions,
    require_room,
    require_rows,
)
from .fusion import InstructionCrossAttention, InstructionMemory
from .hypernetwork import GENERATORS, Standardised, masked_mean
from .instruction_index import mean_embeddings
from .lora import (
    Application,
    applied,
    cache_name,
    carry_through_checkpointing,
    evaluating,
    find_targets,
    fusion_hook,
    hook_once,
    keeping_caches,
    lora_hook,
    needed_index,
)
from .named_backbone import auto_class, is_quantized
from .seq2seq import Seq2Seq
from .tokens import Tokens, alike_in_length, generation_tensors, instruction_text, pad

TRAINABLE = ("generator", "generator_and_norms", "all")

TokenIds = Union[Tensor, Sequence[int], Sequence[Sequence[int]]]


@dataclass
class TagiOutput(ModelOutput):
    """Holds what [`TagiModel`] returns.

    Args:
        loss: Scalar L_pred, if `labels` were given.
        logits: `[batch, target_len, vocab]` (causal: `[batch, seq, vocab]`).
        cache: The backbone's key-value cache, if it was asked for; `past_key_values` is the same.
        adapter: The adapter that was applied.
        hidden_states, …: The backbone's, if they were asked for.
    """

    loss: Optional[Tensor] = None
    logits: Optional[Tensor] = None
    cache: Optional[Any] = None
    adapter: Optional[TagiAdapter] = None
    hidden_states: Optional[tuple[Tensor, ...]] = None
    attentions: Optional[tuple[Tensor, ...]] = None
    encoder_hidden_states: Optional[tuple[Tensor, ...]] = None
    encoder_attentions: Optional[tuple[Tensor, ...]] = None
    decoder_hidden_states: Optional[tuple[Tensor, ...]] = None
    decoder_attentions: Optional[tuple[Tensor, ...]] = None
    cross_attentions: Optional[tuple[Tensor, ...]] = None

    @property
    def past_key_values(self):  # the name up to transformers 5.23
        return self.cache


_ON_REQUEST = [field.name for field in fields(TagiOutput)][4:]


def prediction_loss(logits: Tensor, labels: Tensor, num_items: Optional[Union[int, Tensor]] = None) -> Tensor:
    """Returns L_pred, the cross-entropy of the target tokens.

    Args:
        logits: `[tokens, vocab]` or `[batch, target_len, vocab]`.
        labels: `[tokens]` or `[batch, target_len]`; -100 is left out.
        num_items: What the sum is divided by; `None` takes the number of labels that are not -100.

    Returns:
        Scalar, fp32.
    """
    logits, labels = logits.flatten(0, -2).float(), labels.flatten()
    total = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    return total / ((labels != -100).sum().clamp_min(1) if num_items is None else num_items)


class TagiPreTrainedModel(PreTrainedModel):
    config: TagiConfig
    config_class = TagiConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    @torch.no_grad()
    def _init_weights(self, module):
        # `initialise` takes torch.nn.init's functions, which transformers guards: they pass over what was loaded
        if hasattr(module, "initialise"):
            module.initialise()


class TagiModel(CheckpointMixin, TagiPreTrainedModel, GenerationMixin):
    """Combines a backbone with a generator of adapters for it.

    Args:
        config: What to build.
        backbone: A language model to use instead of a new one made from `config.backbone_config`.
    """

    _checkpointing = False  # the user's setting, also while `keeping_caches` has turned it off
    adapter_class = TagiAdapter  # for users who have only the checkpoint's code: model.adapter_class.from_pretrained

    def __init__(self, config: TagiConfig, backbone: Optional[PreTrainedModel] = None):
        super().__init__(config)
        if config.backbone_config is None:
            raise ValueError("TagiModel needs a config with a backbone_config; or use TagiModel.from_backbone(name)")
        self.backbone = backbone if backbone is not None else auto_class(config).from_config(config.backbone_config)
        config.backbone_config = self.backbone.config  # one object, so that a change of the one is saved in the other
        targets = find_targets(self.backbone, config.target_modules)
        text_config = config.backbone_config.get_text_config()
        d_model, heads = text_config.hidden_size, text_config.num_attention_heads
        self.hypernetwork = GENERATORS[config.generator](
            targets, d_model, config.r, config.generator_hidden_size, config.generator_index_size
        )
        self.standardised = Standardised(d_model) if config.standardise else None
        self.kind = Seq2Seq() if config.is_encoder_decoder else Causal()
        fused = self.kind.fused_modules(self.backbone) if config.fusion == "cross_attention" else []
        d_head = getattr(text_config, "head_dim", None) or d_model // heads
        fusion_heads = config.fusion_heads or heads
        self.fusion = nn.ModuleList(InstructionCrossAttention(d_model, fusion_heads, d_head) for _ in fused)

        for path in targets:
            hook_once(self.backbone.get_submodule(path), lora_hook)
        for module in fused:
            hook_once(module, fusion_hook)
        self.kind.hook(self.backbone)
        self.cache_name = cache_name(self.backbone)
        self.post_init()
        # the backbone's own lists, as regular expressions, so that T5's "wo" does not match "hypernetwork" as well
        for kept in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
            own = getattr(self.backbone, kept, None) or ()
            setattr(self, kept, {rf"^backbone\..*{name}" for name in own})

    @property
    def device(self) -> torch.device:
        """Returns the device that inputs go to, also if weights are offloaded and are on `meta` between calls."""
        device = next(self.parameters()).device
        placed = (getattr(self, "hf_device_map", None) or {}).values()
        if device.type != "meta" or not placed:
            return device
        return torch.device(next((place for place in placed if place not in ("cpu", "disk")), "cpu"))

    def set_trainable(self, scope: str) -> None:
        """Sets what training changes: `"generator"` (with its fusion), `"generator_and_norms"` (and the backbone's
        norms and embeddings), or `"all"`."""
        if scope not in TRAINABLE:
            raise ValueError(f"set_trainable got {scope!r}, but takes one of {', '.join(map(repr, TRAINABLE))}")
        if scope != "generator" and is_quantized(self.backbone):
            raise ValueError(f"set_trainable got {scope!r}, but this backbone is quantized; use 'generator'")
        for part in (self.hypernetwork, self.fusion):
            part.requires_grad_(True)
        self.backbone.requires_grad_(scope == "all")
        self._backbone_may_differ = self._backbone_may_differ or scope != "generator"
        if scope == "generator_and_norms":
            for module in self.backbone.modules():
                if isinstance(module, nn.Embedding) or "norm" in type(module).__name__.lower():
                    module.requires_grad_(True)

    def _set_gradient_checkpointing(self, enable=True, gradient_checkpointing_func=checkpoint, **kwargs):
        if getattr(gradient_checkpointing_func, "keywords", {}).get("use_reentrant"):
            raise ValueError(
                "gradient checkpointing with use_reentrant=True has no gradient for a generated adapter; use "
                "gradient_checkpointing_kwargs={'use_reentrant': False}"
            )
        function = carry_through_checkpointing(gradient_checkpointing_func)
        super()._set_gradient_checkpointing(enable=enable, gradient_checkpointing_func=function, **kwargs)
        self._checkpointing = enable

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.backbone.get_output_embeddings()

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        return self.backbone.resize_token_embeddings(*args, **kwargs)

    # Instructions to adapters

    def generate_adapter(
        self,
        instruction: Union[str, Sequence[str], TokenIds],
        demonstrations: Optional[Sequence] = None,
    ) -> TagiAdapter:
        """Reads instructions once and writes an adapter for each.

        The model does not keep the adapter: hold on to it, in memory or with `save_pretrained`, to use it again.

        Args:
            instruction: A text, a list of texts, or token ids (`[seq]`, `[tasks, seq]` or a list of lists). A tensor's
                padding, on the right, is left out.
            demonstrations: Worked examples `[(input, output), …]` of the instruction; for several instructions a list
                of such lists.

        Returns:
            As many adapters as instructions.

        Raises:
            TypeError: if it is none of these.
            ValueError: if an instruction is empty or longer than `config.max_instruction_length` tokens, or has tokens
                that are not in the vocabulary.
        """
        texts, ids = self._read_instructions(instruction, demonstrations)
        limit = self.config.max_instruction_length
        for number, tokens in enumerate(ids):
            if not 0 < len(tokens) <= limit:
                mend = "shorten it or leave out demonstrations" if tokens else "give at least one token"
                length = len(tokens)
                raise ValueError(f"instruction {number} has {length} tokens, but 1 to {limit} can be read; {mend}")
        require_known_ids(ids, getattr(self.get_input_embeddings(), "num_embeddings", None))
        adapter = self.adapter_from_rows(ids)
        if self.instruction_index is not None:
            names = [text if text is not None else f"of tokens {tuple(row)}" for text, row in zip(texts, ids)]
            self.instruction_index.warn_of_far(mean_embeddings(self.get_input_embeddings(), ids), names)
        self.note_training_of_backbone()
        source = {
            "generator": self.name_or_path or None,
            "generator_revision": self._revision,
            **self.adapter_base(),
            "input_format": self.config.input_format,
            "backbone_fingerprint": fingerprint(adapter, self.backbone),
        }
        provenance = []
        for text, tokens in zip(texts, ids):
            hashed = text if text is not None else " ".join(map(str, tokens))
            provenance.append({"instruction": text, "instruction_sha256": instruction_hash(hashed), **source})
        return replace(adapter.described(provenance, self.peft_config()), origin=weakref.ref(self))

    def fresh_adapter(self, tasks: int = 1, seed: int = 0) -> TagiAdapter:
        """Returns adapters that change nothing, to tune from scratch; see [`adapter_tuning.fresh_adapter`]."""
        self.note_training_of_backbone()
        return fresh_adapter(self, tasks, seed)

    def peft_config(self) -> dict:
        """Returns what an exported adapter_config.json says of the backbone."""
        fan = any(isinstance(self.backbone.get_submodule(path), Conv1D) for path in self._target_paths())
        return {"task_type": self.kind.task_type, "fan_in_fan_out": fan}

    def adapter_base(self) -> dict[str, Optional[str]]:
        """Returns which model an exported adapter fits: the stock backbone, or a trained one in the checkpoint. Both
        values are `None` if it was trained since the checkpoint was loaded."""
        if self._backbone_is_only_here:
            return {"backbone": None, "backbone_revision": None}
        if self.config.backbone_trained or self.config.backbone_name_or_path is None:
            return {"backbone": self.name_or_path or None, "backbone_revision": self._revision}
        return {"backbone": self.config.backbone_name_or_path, "backbone_revision": self.config.backbone_revision}

    def adapter_from_ids(self, input_ids: Tensor, attention_mask: Optional[Tensor] = None) -> TagiAdapter:
        """Returns the adapters of instructions, with gradients: the differentiable core of `generate_adapter`.

        Args:
            input_ids: `[tasks, instruction_len]`, padded on the right.
            attention_mask: `[tasks, instruction_len]`; `None` if nothing is padding.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        return self._written(*self._read(input_ids, attention_mask))

    @torch.no_grad()
    def adapter_from_rows(self, rows: Sequence[Sequence[int]], at_most: Optional[int] = None) -> TagiAdapter:
        """Returns the adapters of instructions given as token ids of any lengths, without gradients. The encoder reads
        those of similar length together, for little padding; the hypernetwork writes all adapters at once.

        Args:
            rows: Token ids of each instruction.
            at_most: How many the encoder may read at once.

        Raises:
            ValueError: if there are none.
        """
        if not rows:
            raise ValueError("adapter_from_rows got no instructions; give at least one")
        lengths, pooled, memory = [len(row) for row in rows], None, None
        groups = alike_in_length(lengths, at_most, on_cpu=self.device.type == "cpu")
        with evaluating(self):
            for group in groups:
                padded, mask = pad([list(rows[number]) for number in group], 0)
                of_group, read = self._read(padded.to(self.device), mask.to(self.device))
                read = read.clear_padding_() if read is not None else None
                if len(groups) == 1:
                    return self._written(of_group, read)
                if pooled is None:
                    pooled = of_group.new_empty(len(rows), of_group.shape[1])
                    memory = read.blank(len(rows), max(lengths)) if read is not None else None
                pooled[group] = of_group
                if memory is not None:
                    memory.put_(group, read)
            return self._written(pooled, memory)

    @torch.no_grad()
    def pooled_from_rows(self, rows: Sequence[Sequence[int]], at_most: int = 32) -> Tensor:
        """Returns what the encoder makes of instructions given as token ids, `[instructions, d_model]`, pooled but not
        standardised, without gradients; it reads `at_most` at once."""
        pooled: list[Any] = [None] * len(rows)
        with evaluating(self):
            for group in alike_in_length([len(row) for row in rows], at_most, on_cpu=self.device.type == "cpu"):
                padded, mask = pad([list(rows[number]) for number in group], 0)
                for number, one in zip(group, self._read(padded.to(self.device), mask.to(self.device))[0]):
                    pooled[number] = one
        return torch.stack(pooled)

    def _read(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Optional[InstructionMemory]]:
        """Encodes instructions: returns their mean state `[tasks, d_model]`, and the memory that fusion attends to."""
        require_one_place(self)
        with self._keeping_caches():  # an instruction's prefix is read from one
            states, read = self.kind.read(self, input_ids, attention_mask)
        memory = None
        if self.config.fusion != "none":
            if len(self.fusion):
                projected = [layer.project(states) for layer in self.fusion]
                read["keys"], read["values"] = (torch.stack(tensors, 1) for tensors in zip(*projected))
            memory = InstructionMemory(attention_mask, **read)
        return masked_mean(states, attention_mask), memory

    def _written(self, pooled: Tensor, memory: Optional[InstructionMemory]) -> TagiAdapter:
        if self.standardised is not None:
            pooled = self.standardised(pooled)
        a, b = self.hypernetwork(pooled)
        return TagiAdapter(lora_a=a, lora_b=b, lora_alpha=self.config.lora_alpha, memory=memory)

    def _read_instructions(self, instruction, demonstrations) -> tuple[list[Optional[str]], list[list[int]]]:
        if isinstance(instruction, str):
            demonstrations = [demonstrations]
        padded, instruction = isinstance(instruction, Tensor), instruction_list(instruction)
        if padded:
            instruction = [self._without_padding(row) for row in instruction]
        if not isinstance(instruction[0], str):
            if demonstrations is not None:
                raise ValueError("demonstrations go with instruction texts; put their tokens among the token ids")
            return [None] * len(instruction), instruction
        demonstrations = list(demonstrations) if demonstrations is not None else [None] * len(instruction)
        if len(demonstrations) != len(instruction):
            raise ValueError(
                f"{len(instruction)} instructions came with {len(demonstrations)} lists of demonstrations; give one "
                "list of (input, output) pairs for each instruction"
            )
        texts = [instruction_text(text, pairs) for text, pairs in zip(instruction, demonstrations)]
        tokens = Tokens.of(self.tokenizer, self.config)
        return texts, [tokens.instruction(text) for text in texts]

    def _without_padding(self, tokens: list[int]) -> list[int]:
        pad, eos = self.config.pad_token_id, self.config.eos_token_id
        if pad is None or pad in (eos if isinstance(eos, list) else [eos]):
            return tokens
        while tokens and tokens[-1] == pad:
            tokens = tokens[:-1]
        return tokens

    def _target_paths(self) -> list[str]:
        return list(self.hypernetwork.shared_factors())

    # Adapters in use

    def encode_inputs(self, inputs: Union[str, Sequence[str]], max_length: Optional[int] = None) -> dict[str, Any]:
        """Tokenizes inputs as the model was trained to read them, ready for `generate`.

        Args:
            inputs: A text, or a list of texts; without the instruction.
            max_length: Tokens kept of each, from its beginning; `None` keeps all.

        Returns:
            `input_ids [batch, seq]` and `attention_mask [batch, seq]`, padded on the left for a causal backbone.

        Raises:
            TypeError: if an input is no text.
            ValueError: if there is no input.
        """
        inputs = input_list(inputs)
        tokens = Tokens.of(self.tokenizer, self.config, max_length)
        batch = generation_tensors(tokens, [tokens.input(text) for text in inputs])
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def forward(
        self,
        input_ids: Optional[Tensor] = None,
        attention_mask: Optional[Tensor] = None,
        labels: Optional[Tensor] = None,
        adapter: Optional[TagiAdapter] = None,
        task_index: Optional[Tensor] = None,
        instruction_input_ids: Optional[Tensor] = None,
        instruction_attention_mask: Optional[Tensor] = None,
        decoder_input_ids: Optional[Tensor] = None,
        past_key_values: Optional[Any] = None,
        num_items_in_batch: Optional[Union[int, Tensor]] = None,
        cache: Optional[Any] = None,
        **kwargs: Any,
    ) -> TagiOutput:
        """Runs the backbone with an adapter, given or made from `instruction_input_ids`; without either, as it is.

        Args:
            input_ids: `[batch, seq]`. With `continues_instruction` a causal backbone does not see the token that
                begins a text in them, unless they are given as `inputs_embeds`.
            attention_mask: `[batch, seq]`.
            labels: `[batch, target_len]` (causal: `[batch, seq]`); -100 is left out of the loss.
            adapter: One adapter for all rows, one a row, or several with `task_index`.
            task_index: `[batch]`, the adapter of each row.
            instruction_input_ids: `[tasks, instruction_len]`, unique instructions to make the adapters from, padded on
                the right.
            instruction_attention_mask: `[tasks, instruction_len]`.
            decoder_input_ids: `[batch, target_len]`; made from `labels` where absent.
            past_key_values: The cache that an earlier call with the same adapter returned, to continue it.
            num_items_in_batch: What the summed loss is divided by; by default the batch's own number of targets.
            cache: Another name of `past_key_values`: that of transformers 5.24 and later.
            kwargs: Go to the backbone.

        Raises:
            ValueError: if the adapters are another backbone's, or not as many as the batch has rows.
        """
        if cache is not None and past_key_values is not None:
            raise ValueError("forward got both cache and past_key_values, two names of one thing; give one of them")
        cache = cache if cache is not None else past_key_values
        self._expect_training()
        adapter = self._resolve(adapter, instruction_input_ids, instruction_attention_mask)
        return_dict = kwargs.pop("return_dict", None)
        encoded = kwargs.get("encoder_outputs")
        given = _first(input_ids, kwargs.get("inputs_embeds"), None if encoded is None else encoded[0])
        if adapter is not None and given is not None:
            task_index = self._checked(adapter, task_index, given, attention_mask)
        application = self._application(adapter, task_index)
        kwargs.update(input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids)
        kwargs[self.cache_name] = cache
        with applied(application), self._keeping_caches():
            output = self.backbone(**self.kind.arguments(self, application, adapter, task_index, labels, kwargs))
        loss = None
        if labels is not None:
            loss = prediction_loss(*self.kind.predicted(output.logits, labels), num_items_in_batch)
        more = {name: getattr(output, name, None) for name in _ON_REQUEST}
        output = TagiOutput(loss, output.logits, getattr(output, self.cache_name, None), adapter, **more)
        return output.to_tuple() if return_dict is False else output

    @torch.no_grad()
    def generate(
        self,
        inputs: Optional[Tensor] = None,
        generation_config: Optional[GenerationConfig] = None,
        *,
        adapter: Optional[TagiAdapter] = None,
        task_index: Optional[Tensor] = None,
        instruction_input_ids: Optional[Tensor] = None,
        instruction_attention_mask: Optional[Tensor] = None,
        **kwargs: Any,
    ) -> Any:
        """Generates as the backbone's `generate` does, with the adapters of `forward`, made and fused once per call.

        With `input_format="chat"` an output also ends with the model's turn, unless `eos_token_id` says what ends it.
        """
        input_ids = inputs if inputs is not None else kwargs.pop("input_ids", None)
        config = deepcopy(generation_config if generation_config is not None else self.generation_config)
        if self.config.input_format == "chat" and "eos_token_id" not in kwargs and self._find_tokenizer() is not None:
            config.eos_token_id = Tokens.of(self.tokenizer, self.config).ends(config.eos_token_id)
        kwargs = config.update(**kwargs)
        adapter = self._resolve(adapter, instruction_input_ids, instruction_attention_mask)
        if adapter is None:
            with self._keeping_caches():
                return self.backbone.generate(input_ids, generation_config=config, **kwargs)
        given = _first(input_ids, kwargs.get("inputs_embeds"))
        if given is None:
            raise ValueError(
                "generate got an adapter, but no inputs; give input_ids (encode_inputs makes them of texts)"
            )
        mask = kwargs.pop("attention_mask", None)
        if mask is None:
            mask = _mask_of(given, config)
        task_index = self._checked(adapter, task_index, given, mask)
        if task_index is not None and self.kind.one_adapter_a_row:  # one gather now, not in every step
            adapter, task_index = adapter[task_index], None
        application = self._application(adapter, task_index).cast(self.dtype).by_row()
        with applied(application), self._keeping_caches():
            return self.kind.generate(self, input_ids, mask, adapter, task_index, config, **kwargs)

    def _keeping_caches(self):
        """Turns gradient checkpointing off inside the block for calls without gradients, which need their caches."""
        if torch.is_grad_enabled() or not self.backbone.training or not self._checkpointing:
            return nullcontext()
        return keeping_caches(self.backbone)

    def _checked(self, adapter: TagiAdapter, task_index: Any, given: Tensor, mask: Optional[Tensor]):
        """Returns the needed `task_index [batch]`, if any; refuses adapters and inputs that do not go together."""
        task_index = checked_index(task_index, len(adapter), self.device)
        require_rows(adapter, task_index, len(given))
        require_positions(self, given, mask, adapter)
        require_room(self, *given.shape[:2])
        return needed_index(task_index, len(adapter))

    def _resolve(self, adapter, instruction_input_ids, instruction_attention_mask) -> Optional[TagiAdapter]:
        if instruction_input_ids is not None:
            if adapter is not None:
                raise ValueError("got both an adapter and instruction_input_ids; give one of them")
            return self.adapter_from_ids(instruction_input_ids, instruction_attention_mask)
        if adapter is None:
            return None
        if not hasattr(adapter, "lora_a"):
            raise TypeError(f"adapter is a {type(adapter).__name__}, but must be a TagiAdapter (generate_adapter's)")
        require_fit(adapter, self)
        require_one_place(self)
        return adapter if adapter.device == self.device else adapter.to(self.device)

    def _application(self, adapter: Optional[TagiAdapter], task_index: Optional[Tensor]) -> Optional[Application]:
        if adapter is None:
            return None
        application = Application.of(adapter, self.backbone, task_index)
        memory = adapter.memory
        if memory is None:
            return application
        self.kind.apply_memory(self.backbone, application, memory)
        if memory.keys is not None and len(self.fusion):
            fused = self.kind.fused_modules(self.backbone)
            projected = memory.keys.unbind(1), memory.values.unbind(1)
            for target, cross_attention, keys, values in zip(fused, self.fusion, *projected):
                application.fusion[target] = partial(
                    cross_attention, keys=keys, values=values, mask=memory.mask, task_index=task_index
                )
        return application


def _first(*tensors: Optional[Tensor]) -> Optional[Tensor]:
    for tensor in tensors:  # `next` with a default is beyond torch 2.8's compiler
        if tensor is not None:
            return tensor
    return None


def _mask_of(input_ids: Tensor, config: GenerationConfig) -> Tensor:
    """Returns the mask that transformers' `generate` infers: 0 at padding, unless its token also ends a text."""
    pad, eos = config.pad_token_id, config.eos_token_id
    if input_ids.is_floating_point():  # embeddings
        return input_ids.new_ones(input_ids.shape[:2], dtype=torch.long)
    if pad is None or pad in (eos if isinstance(eos, list) else [eos]):
        return torch.ones_like(input_ids)
    return (input_ids != pad).long()


TagiConfig.register_for_auto_class("AutoConfig")
TagiModel.register_for_auto_class("AutoModel")
