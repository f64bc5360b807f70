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
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    StaticCache,
)
from transformers.generation import GenerationMode
from transformers.modeling_outputs import BaseModelOutput
from transformers.pytorch_utils import Conv1D
from transformers.utils import ModelOutput, is_accelerate_available

from .adapter import InstructionMemory, TagiAdapter, instruction_hash
from .adapter_tuning import fresh_adapter
from .checkpoints import CheckpointMixin
from .configuration_tagi import TagiConfig
from .families import window_of
from .fit import (
    checked_index,
    fingerprint,
    input_list,
    instruction_list,
    require_fit,
    require_known_ids,
    require_one_rotation,
    require_positions,
    require_room,
    require_rows,
)
from .fusion import (
    InstructionCrossAttention,
    concat_memory,
    fused_modules,
    memory_projections,
    prefix_cache,
    windowed_masks,
    without_start,
)
from .hypernetwork import GENERATORS, masked_mean
from .instruction_index import mean_embeddings
from .lora import (
    Application,
    applied,
    arguments_pre_hook,
    cache_name,
    carry_through_checkpointing,
    find_targets,
    fusion_hook,
    hook_once,
    lora_hook,
    memory_hook,
    needed_index,
    pre_hook_once,
    take_rows,
)
from .modes import evaluating, keeping_caches
from .named_backbone import auto_class, is_quantized
from .tokens import Tokens, alike_in_length, generation_tensors, instruction_text, pad

TRAINABLE = ("generator", "generator_and_norms", "all")

TokenIds = Union[Tensor, Sequence[int], Sequence[Sequence[int]]]


@dataclass
class TagiOutput(ModelOutput):
    """
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


_ASKED = ("output_hidden_states", "output_attentions")
_ON_REQUEST = [field.name for field in fields(TagiOutput)][4:]


def prediction_loss(logits: Tensor, labels: Tensor, num_items: Optional[Union[int, Tensor]] = None) -> Tensor:
    """L_pred: cross-entropy of the target tokens.

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
    """A backbone with a generator of adapters for it.

    Args:
        config: What to build.
        backbone: A language model to use instead of a new one made from `config.backbone_config`.
    """

    _checkpointing = False  # also while a thread has put it aside
    adapter_class = TagiAdapter  # at hand where only the checkpoint's code is: model.adapter_class.from_pretrained

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
        fused = []
        if config.fusion == "cross_attention":
            fused = fused_modules(self.backbone, config.is_encoder_decoder)
        d_head = getattr(text_config, "head_dim", None) or d_model // heads
        fusion_heads = config.fusion_heads or heads
        self.fusion = nn.ModuleList(InstructionCrossAttention(d_model, fusion_heads, d_head) for _ in fused)

        for path in targets:
            hook_once(self.backbone.get_submodule(path), lora_hook)
        for module in fused:
            hook_once(module, fusion_hook)
        for module in memory_projections(self.backbone):
            hook_once(module, memory_hook)
        if window_of(self.backbone.config) is not None:
            pre_hook_once(self.backbone.base_model, arguments_pre_hook)
        self._cache_name = cache_name(self.backbone)
        self.post_init()
        # the backbone's own, by regular expressions, so that T5's "wo" is not found in "hypernetwork" as well
        for kept in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
            own = getattr(self.backbone, kept, None) or ()
            setattr(self, kept, {rf"^backbone\..*{name}" for name in own})

    @property
    def device(self) -> torch.device:
        """Where inputs go; also where weights are offloaded, which between calls lie nowhere (on `meta`)."""
        device, placed = next(self.parameters()).device, self._placed_on()
        if device.type != "meta" or not placed:
            return device
        return torch.device(next((place for place in placed if place not in ("cpu", "disk")), "cpu"))

    def _placed_on(self) -> list:
        """The places that a `device_map` gave to parts of the model."""
        return list((getattr(self, "hf_device_map", None) or {}).values())

    def _require_one_place(self):
        """Refuses a model that lies on several devices, between which adapters and instructions are not moved."""
        devices = sorted({str(place) for place in self._placed_on()} - {"cpu", "disk"})
        away = next(self.hypernetwork.parameters()).device.type == "meta" if self._placed_on() else False
        if len(devices) > 1 or away:
            what = f"lies on devices {', '.join(devices)}" if len(devices) > 1 else "has its hypernetwork offloaded"
            raise ValueError(
                f"this model {what}, but adapters are made and used on one device; load it with device_map={{'': 0}}, "
                "or offload the backbone alone: device_map={'backbone': 'disk', 'hypernetwork': 0, 'fusion': 0}"
            )
        offloaded = "disk" in self._placed_on() or devices and "cpu" in self._placed_on()
        if offloaded and not is_accelerate_available("1.15.0"):  # whose hooks lost tied weights before
            raise ValueError("this model is offloaded, which takes accelerate 1.15: pip install -U accelerate")

    def set_trainable(self, scope: str) -> None:
        """Says what training changes: `"generator"` (with its fusion), `"generator_and_norms"` (and the backbone's
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

        The model keeps nothing of it: hold on to the adapter, in memory or with `save_pretrained`, to use it again.

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
        """Adapters that change nothing, to tune from nothing; see [`adapter_tuning.fresh_adapter`]."""
        self.note_training_of_backbone()
        return fresh_adapter(self, tasks, seed)

    def peft_config(self) -> dict:
        """What an exported adapter_config.json says of the backbone."""
        fan = any(isinstance(self.backbone.get_submodule(path), Conv1D) for path in self._target_paths())
        task_type = "SEQ_2_SEQ_LM" if self.config.is_encoder_decoder else "CAUSAL_LM"
        return {"task_type": task_type, "fan_in_fan_out": fan}

    def adapter_base(self) -> dict[str, Optional[str]]:
        """Which model an exported adapter fits: the stock backbone, or if training changed it the checkpoint's own.
        None that has a name, if training changed it since the checkpoint was loaded."""
        if self._backbone_is_only_here:
            return {"backbone": None, "backbone_revision": None}
        if self.config.backbone_trained or self.config.backbone_name_or_path is None:
            return {"backbone": self.name_or_path or None, "backbone_revision": self._revision}
        return {"backbone": self.config.backbone_name_or_path, "backbone_revision": self.config.backbone_revision}

    def adapter_from_ids(self, input_ids: Tensor, attention_mask: Optional[Tensor] = None) -> TagiAdapter:
        """The differentiable core of `generate_adapter`.

        Args:
            input_ids: `[tasks, instruction_len]`, padded on the right.
            attention_mask: `[tasks, instruction_len]`; `None` if nothing is padding.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        return self._written(*self._read(input_ids, attention_mask))

    @torch.no_grad()
    def adapter_from_rows(self, rows: Sequence[Sequence[int]], at_most: Optional[int] = None) -> TagiAdapter:
        """As `adapter_from_ids`, for the token ids of any number of instructions of any lengths: the encoder reads
        those of like length together, so that little is padding, and the hypernetwork writes all adapters at once.

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

    def _read(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Optional[InstructionMemory]]:
        """What there is to know of instructions: pooled `[tasks, d_model]`, and what fusion attends to."""
        self._require_one_place()
        prefix = None
        if self.config.is_encoder_decoder:
            with applied(None):
                states = self.backbone.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)[0]
        else:
            cache = DynamicCache() if self.config.fusion != "none" else None
            # tokens are counted and not places, as in `forward`: some that are masked may lie between others
            places = {} if cache is None else {"position_ids": (attention_mask.cumsum(1) - 1).clamp_min(0)}
            reading = Application(new_cache=lambda: cache, checkpointing=False) if cache is not None else None
            with applied(reading), self._keeping_caches():
                states = self.backbone.base_model(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    use_cache=cache is not None,
                    **{self._cache_name: cache},
                    **places,
                )[0]
            if cache is not None:
                prefix = [torch.stack([getattr(layer, x) for layer in cache.layers], 1) for x in ("keys", "values")]
        memory = None
        if self.config.fusion != "none":
            memory = self._memory(states, attention_mask, prefix)
        return masked_mean(states, attention_mask), memory

    def _written(self, pooled: Tensor, memory: Optional[InstructionMemory]) -> TagiAdapter:
        a, b = self.hypernetwork(pooled)
        return TagiAdapter(lora_a=a, lora_b=b, lora_alpha=self.config.lora_alpha, memory=memory)

    def _memory(self, states: Tensor, mask: Tensor, prefix: Optional[list[Tensor]]) -> InstructionMemory:
        fields = {"mask": mask}
        if prefix is None:
            fields["states"] = states
        else:
            fields["prefix_keys"], fields["prefix_values"] = prefix
        if len(self.fusion):
            projected = [layer.project(states) for layer in self.fusion]
            fields["keys"], fields["values"] = (torch.stack(tensors, 1) for tensors in zip(*projected))
        return InstructionMemory(**fields)

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
        """Inputs as the model was trained to read them, ready for `generate`.

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
        """The backbone with an adapter, given or made on the spot; without either, the bare backbone.

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
        if self.config.is_encoder_decoder:
            if decoder_input_ids is None and labels is not None:
                decoder_input_ids = self.backbone.prepare_decoder_input_ids_from_labels(labels=labels)
            kwargs["decoder_input_ids"] = decoder_input_ids
        application = self._application(adapter, task_index)
        with applied(application), self._keeping_caches():
            if adapter is None or adapter.memory is None:
                kwargs.update(input_ids=input_ids, attention_mask=attention_mask)
            elif self.config.is_encoder_decoder:
                asked = {name: kwargs[name] for name in _ASKED if name in kwargs}
                read = {name: kwargs.pop(name, None) for name in ("inputs_embeds", "encoder_outputs")}
                states, mask = self._encode_input(input_ids, attention_mask, adapter, task_index, **read, **asked)
                kwargs.update(encoder_outputs=states, attention_mask=mask)
            else:
                if given is None:
                    raise ValueError("forward got an adapter, but no inputs; give input_ids or inputs_embeds")
                rows, length = given.shape[:2]
                application.new_cache = lambda: prefix_cache(adapter.memory, rows, self.dtype, task_index)
                if cache is None or not cache.get_seq_length():
                    cache = application.new_cache()
                prefix_mask = take_rows(adapter.memory.mask, rows, task_index)
                mask = attention_mask
                if mask is None:
                    seen = cache.get_seq_length() - prefix_mask.shape[1]
                    mask = prefix_mask.new_ones(rows, seen + length)
                if input_ids is not None:
                    mask = without_start(mask, input_ids, self._hidden_start, cache)
                mask = torch.cat([prefix_mask.to(mask.dtype), mask], 1)
                require_one_rotation(self, mask.shape[1])
                positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -length:]
                kwargs.update(input_ids=input_ids, attention_mask=mask, position_ids=positions)
            output = self.backbone(**kwargs, **{self._cache_name: cache})
        loss = None
        if labels is not None:
            logits = output.logits if self.config.is_encoder_decoder else output.logits[:, :-1]
            targets = labels if self.config.is_encoder_decoder else labels[:, 1:]
            loss = prediction_loss(logits, targets, num_items_in_batch)
        more = {name: getattr(output, name, None) for name in _ON_REQUEST}
        output = TagiOutput(loss, output.logits, getattr(output, self._cache_name, None), adapter, **more)
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
        """As the backbone's `generate`, with the adapters of `forward`. They are made, and fused, once per call.

        With `input_format="chat"` an output also ends with the model's turn, unless `eos_token_id` says what ends it.
        """
        input_ids = inputs if inputs is not None else kwargs.pop("input_ids", None)
        config = deepcopy(generation_config if generation_config is not None else self.generation_config)
        if self.config.input_format == "chat" and "eos_token_id" not in kwargs and self._find_tokenizer() is not None:
            config.eos_token_id = Tokens.of(self.tokenizer, self.config).ends(config.eos_token_id)
        kwargs = {**config.update(**kwargs), "generation_config": config}
        adapter = self._resolve(adapter, instruction_input_ids, instruction_attention_mask)
        if adapter is None:
            with self._keeping_caches():
                return self.backbone.generate(input_ids, **kwargs)
        given = _first(input_ids, kwargs.get("inputs_embeds"))
        if given is None:
            raise ValueError(
                "generate got an adapter, but no inputs; give input_ids (encode_inputs makes them of texts)"
            )
        mask = kwargs.pop("attention_mask", None)
        if mask is None:
            mask = _mask_of(given, config)
        task_index = self._checked(adapter, task_index, given, mask)
        if task_index is not None and not self.config.is_encoder_decoder:  # one gather now, not in every step
            adapter, task_index = adapter[task_index], None
        _require_drafts_that_fit(self, adapter, config, kwargs.get("assistant_model"))
        application = self._application(adapter, task_index).cast(self.dtype).by_row()
        with applied(application), self._keeping_caches():
            if self.config.is_encoder_decoder:
                asked = {name: True for name in _ASKED if getattr(config, name)}
                embeds = kwargs.pop("inputs_embeds", None)
                states, mask = self._encode_input(input_ids, mask, adapter, task_index, embeds, **asked)
                # the ids beside what they were encoded to: penalties and an assistant model read them
                return self.backbone.generate(input_ids, encoder_outputs=states, attention_mask=mask, **kwargs)
            if adapter.memory is None:
                return self.backbone.generate(input_ids, attention_mask=mask, **kwargs)
            return self._generate_behind_prefix(input_ids, mask, adapter, **kwargs)

    def _generate_behind_prefix(self, input_ids, mask, adapter, generation_config, **kwargs):
        """Continues a cache of the instruction, of which `generate` knows the length alone: its mask covers both."""
        for name in ("inputs_embeds", "cache", "past_key_values"):
            if kwargs.pop(name, None) is not None:
                raise ValueError(
                    f"generate got {name}, which it cannot read behind an instruction (fusion={self.config.fusion!r})"
                    "; give input_ids of the whole input"
                )
        length = adapter.memory.mask.shape[1]
        copies = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        prefix_mask = take_rows(adapter.memory.mask, len(input_ids)).to(mask.dtype)
        kind, generation_config.cache_implementation = generation_config.cache_implementation, None
        if kind not in (None, "dynamic", "static", "hybrid"):  # the last, of old files of Gemma's, is now the first
            raise ValueError(
                f"cache_implementation is {kind!r}, but with the instruction as a prefix (fusion="
                f"{self.config.fusion!r}) it must be 'dynamic' or 'static'"
            )
        new = generation_config.max_new_tokens
        longest = generation_config.max_length or input_ids.shape[1] + 20  # transformers' default
        longest = length + (longest if new is None else input_ids.shape[1] + new)
        require_one_rotation(self, longest - 1)  # the last token that is written is not read
        cache = None
        if kind == "static":
            window = window_of(self.config.backbone_config)
            if window is not None and longest > window:
                raise ValueError(
                    f"instruction, input and output together may be {longest} tokens, but layers of this backbone see "
                    f"{window} at a time, which a static cache does not count beside padding; use "
                    "cache_implementation='dynamic', or fewer tokens"
                )
            cache = StaticCache(self.config.backbone_config, max_cache_len=longest)
        cache = prefix_cache(adapter.memory, len(input_ids) * copies, self.dtype, cache=cache)
        mask = without_start(mask, input_ids, self._hidden_start, cache)
        if copies > 1 and self._hidden_start is not None:
            cache.starts = cache.starts.repeat_interleave(copies, 0)
        generation_config.use_cache = True  # the prefix has no other place
        generation_config.prefill_chunk_size = None  # transformers 5.17 would read chunks as if there were no prefix
        return self.backbone.generate(
            input_ids,
            attention_mask=torch.cat([prefix_mask, mask], 1),
            generation_config=generation_config,
            **{self._cache_name: cache},
            **kwargs,
        )

    @property
    def _hidden_start(self) -> Optional[int]:
        """The token that begins a text, where it is not seen a second time behind an instruction."""
        return self.config.backbone_config.bos_token_id if self.config.continued else None

    def _keeping_caches(self):
        """The block in which a call without gradients is no different where gradient checkpointing is on."""
        if torch.is_grad_enabled() or not self.backbone.training or not self._checkpointing:
            return nullcontext()
        return keeping_caches(self.backbone)

    def _checked(self, adapter: TagiAdapter, task_index: Any, given: Tensor, mask: Optional[Tensor]):
        """Returns the needed `task_index [batch]`, if any, after a look at whether adapters and inputs go together."""
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
        self._require_one_place()
        return adapter if adapter.device == self.device else adapter.to(self.device)

    def _application(self, adapter: Optional[TagiAdapter], task_index: Optional[Tensor]) -> Optional[Application]:
        if adapter is None:
            return None
        application = Application.of(adapter, self.backbone, task_index)
        memory = adapter.memory
        if memory is None:
            return application
        if memory.states is not None:
            application.share(memory.states, memory_projections(self.backbone))
        if memory.prefix_keys is not None and window_of(self.backbone.config) is not None:
            stack = self.backbone.base_model
            application.arguments[stack] = partial(windowed_masks, stack)
        if memory.keys is not None and len(self.fusion):
            fused = fused_modules(self.backbone, self.config.is_encoder_decoder)
            projected = memory.keys.unbind(1), memory.values.unbind(1)
            for target, cross_attention, keys, values in zip(fused, self.fusion, *projected):
                application.fusion[target] = partial(
                    cross_attention, keys=keys, values=values, mask=memory.mask, task_index=task_index
                )
        return application

    def _encode_input(
        self, input_ids, attention_mask, adapter, task_index, inputs_embeds=None, encoder_outputs=None, **asked
    ) -> tuple[BaseModelOutput, Tensor]:
        """The decoder's memory, `(I_x ; F)` where there is an I_x, and its mask."""
        if encoder_outputs is None:
            embedded = {} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
            encoder_outputs = self.backbone.get_encoder()(
                input_ids=input_ids, attention_mask=attention_mask, **embedded, **asked
            )
        states, mask, memory = encoder_outputs[0], attention_mask, adapter.memory
        if memory is not None:
            states, mask = concat_memory(memory.states, memory.mask, states, attention_mask, task_index)
        more = {name: getattr(encoder_outputs, name, None) for name in ("hidden_states", "attentions")}
        return BaseModelOutput(states, **more), mask


def _first(*tensors: Optional[Tensor]) -> Optional[Tensor]:
    for tensor in tensors:  # `next` with a default is beyond torch 2.8's compiler
        if tensor is not None:
            return tensor
    return None


def _require_drafts_that_fit(
    model: TagiModel, adapter: TagiAdapter, config: GenerationConfig, assistant_model: Optional[PreTrainedModel]
):
    """Refuses assisted decoding where transformers would not count the instruction that lies before the input."""
    if adapter.memory is None or config.get_generation_mode(assistant_model) != GenerationMode.ASSISTED_GENERATION:
        return
    if assistant_model is None and model.config.is_encoder_decoder:  # what is looked up lies in the output alone
        return
    raise ValueError(
        f"{'an assistant_model' if assistant_model is not None else 'assisted decoding (prompt_lookup_num_tokens)'} "
        f"cannot draft behind an adapter with an instruction memory (fusion={model.config.fusion!r}); leave it out, "
        "or use a generator with fusion='none'"
    )


def _mask_of(input_ids: Tensor, config: GenerationConfig) -> Tensor:
    """As transformers' own `generate`: padding is left out, unless its token also ends a text."""
    pad, eos = config.pad_token_id, config.eos_token_id
    if input_ids.is_floating_point():  # embeddings
        return input_ids.new_ones(input_ids.shape[:2], dtype=torch.long)
    if pad is None or pad in (eos if isinstance(eos, list) else [eos]):
        return torch.ones_like(input_ids)
    return (input_ids != pad).long()


TagiConfig.register_for_auto_class("AutoConfig")
TagiModel.register_for_auto_class("AutoModel")
