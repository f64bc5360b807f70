"""TagiConfig: everything that shapes a TAGI model, checked once, saved as JSON."""

import difflib
import inspect
import json
import math
import re
from copy import deepcopy
from typing import Any, Collection, Optional, Union

from transformers import AutoConfig, PretrainedConfig

from .families import FAMILIES, MULTIMODAL, family_of
from .hypernetwork import GENERATORS, POOLINGS

FUSIONS = ("cross_attention", "concat", "none")
INPUT_FORMATS = ("plain", "chat")

# T5 has relative positions and no limit of its own; Table 6 of the paper reads 1024 tokens.
_DEFAULT_MAX_INSTRUCTION_LENGTH = 1024

# Written by transformers into any config.json, or handed over by its loaders.
_FOREIGN_FIELDS = {
    "architectures", "attn_implementation", "auto_map", "bos_token_id", "custom_pipelines", "decoder_start_token_id",
    "dtype", "eos_token_id", "model_type", "name_or_path", "pad_token_id", "quantization_config",
    "tie_word_embeddings", "tokenizer_class", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip


class TagiConfig(PretrainedConfig):
    r"""Holds the configuration of a [`TagiModel`].

    Args:
        backbone_config: Config (object or dict) of the language model that adapters are generated for: any
            `AutoModelForSeq2SeqLM` or `AutoModelForCausalLM`.
        r: Rank of the generated LoRA updates. The paper's is 32.
        lora_alpha: The update is scaled by `lora_alpha / r`, as in PEFT.
        target_modules: Names of the Linear / Conv1D modules that get an update, matched as PEFT does: a name
            matches a module whose path is that name or ends in "." + name. `None` takes the backbone family's default
            (T5: q and v of every attention, as in the paper).
        layers_to_transform: Numbers of the layers whose target modules get an update, as in PEFT; in an
            encoder-decoder those of both stacks. `None` is all. No gradient is computed below the lowest of them.
        fusion: What the language model sees of the instruction beside the adapter. `"cross_attention"`: a
            cross-attention to the encoded instruction in every encoder layer (eq. 1) and the encoded instruction
            before the encoder's output in the decoder's memory (TAGI). `"concat"`: the latter alone (HINT).
            `"none"`: nothing; the adapter is all there is and exports to PEFT without loss. A causal backbone has
            its keys and values of the instruction as a prefix in place of the decoder's memory.
        fusion_heads: Heads of each cross-attention to the instruction, as wide as the backbone's; fewer are cheaper
            for every token of an input. `None`: as many as the backbone has.
        generator: How many two-layer MLPs there are. `"per_layer"`: one for each layer, shared over its target
            modules by an index (eq. 2). `"per_module"`: one for each target module. `"shared"`: one for all.
            `"constant"`: none; every instruction gets the same LoRA, for comparison.
        generator_hidden_size: Width of the generator's hidden layer.
        generator_index_size: Width of the learned index that tells the targets of one MLP apart.
        pooling: What the generator reads of an instruction's states. `"mean"`: their mean (the paper). `"attention"`:
            also what 16 learned heads find in them.
        standardise: Whether the generator reads instructions standardised, feature by feature, by the mean and
            deviation of the training instructions; training takes them before the generator's first step and keeps
            them, also where it changes the backbone. `False`, as before there was this field.
        max_instruction_length: Most tokens of an instruction (with its demonstrations). `None`: what the backbone's
            positions allow, 1024 where they set no limit.
        input_format: How inputs, and prompts, become what the language model reads. `"plain"`: as they are; a causal
            backbone's end with a line that asks for the output. `"chat"`: as a user's turn in the tokenizer's chat
            template, for a causal backbone that was tuned on it.
        continues_instruction: What a causal backbone with fusion reads behind the instruction. `True`: what it reads
            of a prompt, with one beginning of text and the line that announces the input; in a chat the turn, without
            a second beginning of text. `False`: an input as it is without an instruction, as before there was this
            field. `TagiModel.from_backbone` and training take `True` where nothing is said.
        backbone_name_or_path: Where the backbone's weights come from, if they were not made here.
        backbone_revision: Hub revision of these weights.
        backbone_sha256: Hash of these weights as they are stored (`backbone_hash`). A checkpoint without its backbone
            is not loaded onto another one; `None` takes any.
        backbone_in_checkpoint: Whether a saved checkpoint holds the backbone's weights. If not, they are loaded from
            `backbone_name_or_path`.
        backbone_trained: Whether training has changed the backbone, so that exported adapters do not fit the stock
            one.

    Raises:
        ValueError: for an unknown field or a value that is not allowed; the message names both and what is.
    """

    model_type = "tagi"
    sub_configs = {"backbone_config": AutoConfig}
    keys_to_ignore_at_inference = ["cache", "adapter"]

    def __init__(
        self,
        backbone_config: Optional[Union[PretrainedConfig, dict]] = None,
        r: int = 32,
        lora_alpha: float = 64,
        target_modules: Optional[list[str]] = None,
        layers_to_transform: Optional[list[int]] = None,
        fusion: str = "cross_attention",
        fusion_heads: Optional[int] = None,
        generator: str = "per_layer",
        generator_hidden_size: int = 128,
        generator_index_size: int = 32,
        pooling: str = "mean",
        standardise: bool = False,
        max_instruction_length: Optional[int] = None,
        input_format: str = "plain",
        continues_instruction: bool = False,
        backbone_name_or_path: Optional[str] = None,
        backbone_revision: Optional[str] = None,
        backbone_sha256: Optional[str] = None,
        backbone_in_checkpoint: bool = True,
        backbone_trained: bool = False,
        **kwargs: Any,
    ):
        _refuse_unknown(kwargs)
        self.backbone_config = backbone_config = _as_config(backbone_config)
        self.r = _positive_int("r", r)
        self.lora_alpha = _positive("lora_alpha", lora_alpha)
        self.layers_to_transform = _layers(layers_to_transform)
        self.fusion = _one_of("fusion", fusion, FUSIONS)
        self.fusion_heads = None if fusion_heads is None else _positive_int("fusion_heads", fusion_heads)
        self.generator = _one_of("generator", generator, tuple(GENERATORS))
        self.generator_hidden_size = _positive_int("generator_hidden_size", generator_hidden_size)
        self.generator_index_size = _positive_int("generator_index_size", generator_index_size)
        self.pooling = _one_of("pooling", pooling, tuple(POOLINGS))
        self.standardise = _true_or_false("standardise", standardise)
        self.input_format = _one_of("input_format", input_format, INPUT_FORMATS)
        self.continues_instruction = _true_or_false("continues_instruction", continues_instruction)
        self.backbone_name_or_path = backbone_name_or_path
        self.backbone_revision = backbone_revision
        self.backbone_sha256 = backbone_sha256
        self.backbone_in_checkpoint = _true_or_false("backbone_in_checkpoint", backbone_in_checkpoint)
        self.backbone_trained = _true_or_false("backbone_trained", backbone_trained)

        if backbone_config is None:
            # transformers builds a config without arguments when it prints the difference to the defaults.
            self.target_modules, self.max_instruction_length = target_modules, max_instruction_length
            super().__init__(**kwargs)
            return

        if backbone_config.model_type in MULTIMODAL:
            raise ValueError(_multimodal(backbone_config))
        if input_format == "chat" and backbone_config.is_encoder_decoder:
            raise ValueError(
                f"TagiConfig: input_format is 'chat', but a backbone of type {backbone_config.model_type!r} has an "
                "encoder for its inputs and no chat template; use 'plain'"
            )
        if continues_instruction and backbone_config.is_encoder_decoder:
            raise ValueError(
                f"TagiConfig: continues_instruction is True, but a backbone of type {backbone_config.model_type!r} "
                "reads inputs in an encoder, apart from the instruction; leave it out"
            )
        self.target_modules = _target_modules(target_modules, backbone_config)
        positions = getattr(backbone_config, "max_position_embeddings", None)
        limit = max_instruction_length or positions or _DEFAULT_MAX_INSTRUCTION_LENGTH
        self.max_instruction_length = _positive_int("max_instruction_length", limit)
        if positions and self.max_instruction_length > positions:
            raise ValueError(
                f"TagiConfig: max_instruction_length is {max_instruction_length}, but the backbone "
                f"({backbone_config.model_type}) has positions for {positions} tokens"
            )
        # Where transformers (and the Trainer) look for them.
        kwargs["is_encoder_decoder"] = bool(backbone_config.is_encoder_decoder)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "tie_word_embeddings"):
            kwargs[name] = getattr(backbone_config, name, None)
        super().__init__(**kwargs)

    @property
    def scaling(self) -> float:
        """Returns the factor of every low-rank update, `lora_alpha / r`."""
        return self.lora_alpha / self.r

    @property
    def continued(self) -> bool:
        """Tells whether inputs continue the instruction, for which the language model must see it (`fusion`)."""
        return self.continues_instruction and self.fusion != "none"

    def to_json_string(self, use_diff: bool = True) -> str:
        """Returns config.json's text, without the path of the loaded backbone, which may be a private folder."""
        fields = json.loads(super().to_json_string(use_diff))
        if isinstance(fields.get("backbone_config"), dict):
            fields["backbone_config"].pop("_name_or_path", None)
        return json.dumps(fields, indent=2, sort_keys=True) + "\n"

    def get_text_config(self, decoder: Any = None, encoder: Any = None) -> PretrainedConfig:
        """Returns the backbone's config, since caches, vocabulary and lengths are the backbone's."""
        return self.backbone_config if self.backbone_config is not None else self


def new_model_fields(backbone_config: PretrainedConfig, fields: dict) -> dict:
    """Returns the fields of a new model's config: those given, and `continues_instruction` where it is to be true.

    `TagiConfig`'s default, false, is for older checkpoints without the field. New models with fusion get true if the
    backbone is causal and its config names a token that begins a text.
    """
    causal = not backbone_config.is_encoder_decoder and getattr(backbone_config, "bos_token_id", None) is not None
    chosen = "continues_instruction" not in fields and causal and fields.get("fusion") != "none"
    return {**fields, "continues_instruction": True} if chosen else fields


def _refuse_unknown(kwargs: dict) -> None:
    fields = [name for name in inspect.signature(TagiConfig.__init__).parameters if name not in ("self", "kwargs")]
    known = _FOREIGN_FIELDS | set(PretrainedConfig().to_dict())
    for name in kwargs:
        if name in known or name.startswith("_"):
            continue
        close = difflib.get_close_matches(name, fields, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the fields are {', '.join(fields)}"
        raise ValueError(f"TagiConfig: unknown field {name!r} (value {kwargs[name]!r}); {hint}")


def _as_config(backbone_config: Any) -> Any:
    if backbone_config is None or isinstance(backbone_config, PretrainedConfig):
        # transformers resets the attention of a nested config, and with it that of a model whose config it is
        return deepcopy(backbone_config)
    if isinstance(backbone_config, dict) and "model_type" in backbone_config:
        return AutoConfig.for_model(**backbone_config)
    raise ValueError(
        f"TagiConfig: backbone_config is {type(backbone_config).__name__} {backbone_config!r}, but must be a "
        "transformers config or a dict with its 'model_type'; to name a checkpoint, use "
        "TagiModel.from_backbone(name_or_folder)"
    )


def _multimodal(backbone_config: PretrainedConfig) -> str:
    kind = backbone_config.model_type
    return (
        f"TagiConfig: the backbone's config is of type {kind!r}, a model of text and images; take the text model "
        f"inside, of type {MULTIMODAL[kind]!r}: both = AutoModelForImageTextToText.from_pretrained(name); "
        "text = AutoModelForCausalLM.from_config(both.config.text_config); "
        "text.model, text.lm_head = both.model.language_model, both.lm_head; text.save_pretrained(folder); "
        "save the tokenizer there as well, and use TagiModel.from_backbone(folder)"
    )


def _target_modules(names: Any, backbone_config: PretrainedConfig) -> list[str]:
    if isinstance(names, str):
        names = [names]
    if names is None:
        family = family_of(backbone_config)
        if family is None:
            raise ValueError(
                f"TagiConfig: target_modules is None and there is no default for the backbone family "
                f"{backbone_config.model_type!r}; name its modules, for example ['q_proj', 'v_proj'] "
                f"(defaults exist for {', '.join(FAMILIES)})"
            )
        names = family.targets
    names = list(names)
    if not names or not all(isinstance(name, str) and re.fullmatch(r"[\w.]+", name) for name in names):
        raise ValueError(f"TagiConfig: target_modules is {names!r}, but must be a list of module names, at least one")
    return names


def _layers(numbers: Any) -> Optional[list[int]]:
    if numbers is None:
        return None
    numbers = list(numbers) if isinstance(numbers, (list, tuple, range)) else [numbers]
    if not numbers or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(
            f"TagiConfig: layers_to_transform is {numbers!r}, but must be a list of the numbers of layers, from 0 on"
        )
    return sorted(set(numbers))


def _one_of(field: str, value: str, allowed: Collection[str]) -> str:
    if value not in allowed:
        raise ValueError(f"TagiConfig: {field} is {value!r}, but must be one of {', '.join(map(repr, allowed))}")
    return value


def _positive_int(field: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"TagiConfig: {field} is {value!r}, but must be a whole number of at least 1")
    return value


def _positive(field: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"TagiConfig: {field} is {value!r}, but must be a number above 0")
    return value


def _true_or_false(field: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"TagiConfig: {field} is {value!r}, but must be true or false")
    return value
