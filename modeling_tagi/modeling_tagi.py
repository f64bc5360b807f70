"""TagiModel: a language model, and the hypernetwork that writes LoRA adapters for it from instructions."""

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import Any, Optional, Sequence, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from .adapter import TagiAdapter
from .causal import Causal
from .checkpoints import CheckpointMixin
from .configuration_tagi import TagiConfig
from .fit import checked_rows, input_list, require_fit, require_one_place
from .function import FunctionMixin
from .fusion import InstructionCrossAttention, attending
from .hypernetwork import GENERATORS, POOLINGS, Standardised
from .instructions import InstructionsMixin
from .lora import (
    Application,
    applied,
    cache_name,
    carry_through_checkpointing,
    find_targets,
    fusion_hook,
    hook_once,
    keeping_caches,
    lora_hook,
)
from .named_backbone import auto_class, is_quantized
from .seq2seq import Seq2Seq
from .tokens import Tokens, generation_tensors, mask_of

TRAINABLE = ("generator", "generator_and_norms", "all")


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


class TagiModel(FunctionMixin, InstructionsMixin, CheckpointMixin, PreTrainedModel, GenerationMixin):
    """Combines a backbone with a generator of adapters for it.

    Args:
        config: What to build.
        backbone: A language model to use instead of a new one made from `config.backbone_config`.
    """

    config: TagiConfig
    config_class = TagiConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _checkpointing = False  # the user's setting, also while `keeping_caches` has turned it off
    adapter_class = TagiAdapter  # for users who have only the checkpoint's code: model.adapter_class.from_pretrained

    def __init__(self, config: TagiConfig, backbone: Optional[PreTrainedModel] = None):
        super().__init__(config)
        if config.backbone_config is None:
            raise ValueError("TagiModel needs a config with a backbone_config; or use TagiModel.from_backbone(name)")
        self.backbone = backbone if backbone is not None else auto_class(config).from_config(config.backbone_config)
        config.backbone_config = self.backbone.config  # one object, so that a change of the one is saved in the other
        self.targets = targets = find_targets(self.backbone, config.target_modules, config.layers_to_transform)
        text_config = config.backbone_config.get_text_config()
        d_model, heads = text_config.hidden_size, text_config.num_attention_heads
        pooling = POOLINGS[config.pooling](d_model)
        self.hypernetwork = GENERATORS[config.generator](
            targets, pooling.width, config.r, config.generator_hidden_size, config.generator_index_size
        )
        self.hypernetwork.pooling = pooling
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

    @torch.no_grad()
    def _init_weights(self, module):
        # `initialise` takes torch.nn.init's functions, which transformers guards: they pass over what was loaded
        if hasattr(module, "initialise"):
            module.initialise()

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
        given = input_ids if input_ids is not None else kwargs.get("inputs_embeds")
        if given is None and kwargs.get("encoder_outputs") is not None:
            given = kwargs["encoder_outputs"][0]
        if adapter is not None and given is not None:
            task_index = checked_rows(self, adapter, task_index, given, attention_mask)
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
        given = input_ids if input_ids is not None else kwargs.get("inputs_embeds")
        if given is None:
            raise ValueError(
                "generate got an adapter, but no inputs; give input_ids (encode_inputs makes them of texts)"
            )
        mask = kwargs.pop("attention_mask", None)
        if mask is None:
            mask = mask_of(given, config)
        task_index = checked_rows(self, adapter, task_index, given, mask)
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
            application.fusion = attending(
                memory, self.kind.fused_modules(self.backbone), self.fusion, task_index
            )
        return application


TagiConfig.register_for_auto_class("AutoConfig")
TagiModel.register_for_auto_class("AutoModel")
