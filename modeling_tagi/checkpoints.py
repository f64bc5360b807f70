"""Checkpoints: where a model's weights and tokenizer come from, and where they go."""

import os
from copy import deepcopy
from typing import Optional, Union

from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel
from transformers.utils import cached_file

from .configuration_tagi import TagiConfig
from .instruction_index import InstructionIndex

# A tokenizer is saved with at least one of these; where there is none, transformers makes up an empty one.
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")
_UNREAD = object()


class CheckpointMixin:
    """What a [`TagiModel`] does beyond any transformers model to be built, loaded and saved."""

    _tokenizer = None
    _instruction_index = _UNREAD
    _revision: Optional[str] = None  # the commit that the model was loaded from

    @classmethod
    def from_backbone(
        cls, name_or_folder: Union[str, os.PathLike], *, revision: Optional[str] = None, dtype=None, **config_fields
    ):
        """A fresh generator on a pretrained backbone.

        Args:
            name_or_folder: A repository on the Hub, or a folder.
            revision: The repository's revision.
            dtype: Of the whole model; `None` takes the backbone's.
            config_fields: Fields of [`TagiConfig`].
        """
        name = str(name_or_folder)
        if os.path.isdir(name):
            name = os.path.abspath(name)
        backbone_config = AutoConfig.from_pretrained(name, revision=revision)
        revision = _commit(name, revision) or revision
        config = TagiConfig(
            backbone_config=backbone_config, backbone_name_or_path=name, backbone_revision=revision, **config_fields
        )
        backbone = auto_class(config).from_pretrained(name, revision=revision, dtype=dtype or "auto")
        for tensor in (*backbone.parameters(), *backbone.buffers()):
            tensor._is_hf_initialized = True
        model = cls(config, backbone=backbone).to(backbone.dtype)
        model.generation_config = deepcopy(backbone.generation_config)
        model.config.dtype = backbone.dtype
        return model

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *model_args, config=None, output_loading_info: bool = False, **kwargs
    ):
        """As every transformers model; loads the backbone from where the config says if the checkpoint lacks it.

        Raises:
            OSError: if a file is missing, or the backbone is not where the config says.
            ValueError: if the checkpoint lacks a tensor of the model.
        """
        if not hasattr(config, "backbone_config"):
            names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
            hub = {name: kwargs[name] for name in names if name in kwargs}
            config = cls.config_class.from_pretrained(config or pretrained_model_name_or_path, **hub)
        if config.backbone_config is None:
            raise OSError(
                f"{pretrained_model_name_or_path} has no config.json of a TAGI model (with a backbone_config); name a "
                "folder or repository that save_pretrained has written, or use TagiModel.from_backbone for a new one"
            )
        loader, buffers = cls, {}
        if not config.backbone_in_checkpoint:
            kwargs["backbone"] = _named_backbone(pretrained_model_name_or_path, config, kwargs)
            buffers = {name: buffer.clone() for name, buffer in kwargs["backbone"].named_buffers()}
            ignored = [*(cls._keys_to_ignore_on_load_missing or ()), r"^backbone\."]
            # transformers reads the source of a class's module
            fields = {"__module__": cls.__module__, "_keys_to_ignore_on_load_missing": ignored}
            loader = type(cls.__name__, (cls,), fields)
        model, info = super(CheckpointMixin, loader).from_pretrained(
            pretrained_model_name_or_path, *model_args, config=config, output_loading_info=True, **kwargs
        )
        model.__class__ = cls
        model._revision = _commit(pretrained_model_name_or_path, kwargs.get("revision"), kwargs.get("cache_dir"))
        for name, buffer in buffers.items():  # what no checkpoint holds is left empty, such as rotary frequencies
            model.backbone.get_buffer(name).copy_(buffer)
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            named = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
            raise ValueError(
                f"{pretrained_model_name_or_path} lacks {len(missing)} of the model's tensors: {named}; save the "
                "whole model with save_pretrained, or take the config that its weights were saved with"
            )
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory, *args, include_backbone: Optional[bool] = None, **kwargs):
        """Writes the checkpoint as it goes to the Hub: weights, config, code and, where it is known, the tokenizer.

        Args:
            include_backbone: Whether the backbone's weights go in; without them the checkpoint names the backbone and
                loads it from there. `None` keeps what the config says (at first: with them).

        Raises:
            ValueError: if the backbone is to be left out but is not to be had elsewhere.
        """
        config, tokenizer, index = self.config, self._find_tokenizer(), self.instruction_index
        include = config.backbone_in_checkpoint if include_backbone is None else include_backbone
        if not include and (config.backbone_trained or not config.backbone_name_or_path):
            why = "training has changed it" if config.backbone_trained else "no backbone_name_or_path says where it is"
            raise ValueError(f"the backbone cannot be left out of the checkpoint: {why}; use include_backbone=True")
        kept = config.backbone_in_checkpoint, self._keys_to_ignore_on_save
        config.backbone_in_checkpoint = include
        if not include:
            left_out = {key for key in self.state_dict() if key.startswith("backbone.")}
            self._keys_to_ignore_on_save = left_out | set(kept[1] or ())
        auto_classes = ("AutoModelForSeq2SeqLM" if config.is_encoder_decoder else "AutoModelForCausalLM",)
        config.auto_map = {
            **(getattr(config, "auto_map", None) or {}), **{name: "modeling_tagi.TagiModel" for name in auto_classes}
        }  # fmt: skip
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            config.backbone_in_checkpoint, self._keys_to_ignore_on_save = kept
        if index is not None and kwargs.get("is_main_process", True):
            index.save(save_directory)
        if tokenizer is not None and kwargs.get("is_main_process", True):
            hub = {name: kwargs[name] for name in ("push_to_hub", "repo_id", "token", "private") if name in kwargs}
            tokenizer.save_pretrained(save_directory, **hub)

    # What finetuning has seen

    @property
    def instruction_index(self) -> Optional[InstructionIndex]:
        """Instructions of finetuning, against which new ones are held; `None` if the checkpoint has none. It is of the
        weights as they were then: set it to `None`, or to a new one, after further training."""
        if self._instruction_index is _UNREAD:
            self._instruction_index = None
            if self.name_or_path:
                self._instruction_index = InstructionIndex.find(self.name_or_path, self._revision)
        return self._instruction_index

    @instruction_index.setter
    def instruction_index(self, index: Optional[InstructionIndex]):
        self._instruction_index = index

    # The tokenizer

    @property
    def tokenizer(self):
        """The checkpoint's own tokenizer, else the backbone's.

        Raises:
            ValueError: if neither has one, or it cannot be read.
        """
        tokenizer = self._find_tokenizer()
        if tokenizer is None:
            raise ValueError(
                f"no tokenizer at {self.name_or_path or self.config.backbone_name_or_path!r}; set model.tokenizer, or "
                "pass token ids instead of text"
            )
        return tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer):
        self._tokenizer = tokenizer

    def _find_tokenizer(self):
        if self._tokenizer is not None:
            return self._tokenizer
        places = [
            (self.name_or_path, self._revision),
            (self.config.backbone_name_or_path, self.config.backbone_revision),
        ]
        for name, revision in places:
            if not name or not _has_tokenizer(name, revision):
                continue
            try:
                # with the backbone's config: a checkpoint's own has code, which a tokenizer does not need
                self._tokenizer = AutoTokenizer.from_pretrained(
                    name, revision=revision, config=self.config.backbone_config
                )
            except Exception as error:
                raise ValueError(
                    f"the tokenizer at {name!r} cannot be read ({error}); mend its files, or set model.tokenizer"
                ) from error
            return self._tokenizer
        return None


def _commit(name, revision: Optional[str], cache_dir: Optional[str] = None) -> Optional[str]:
    """The commit that a repository was just loaded from; `None` for a folder."""
    if name is None or os.path.isdir(name):
        return None
    found = try_to_load_from_cache(str(name), "config.json", cache_dir=cache_dir, revision=revision)
    return os.path.basename(os.path.dirname(found)) if isinstance(found, str) else None


def _has_tokenizer(name: str, revision: Optional[str]) -> bool:
    quiet = ("missing_entries", "connection_errors", "gated_repo")
    options = {f"_raise_exceptions_for_{what}": False for what in quiet}
    try:
        return any(cached_file(name, file, revision=revision, **options) is not None for file in _TOKENIZER_FILES)
    except OSError:  # no such repository
        return False


def _named_backbone(checkpoint, config: TagiConfig, kwargs: dict) -> PreTrainedModel:
    """The backbone that a checkpoint leaves out, from where its config says."""
    shared = ("cache_dir", "local_files_only", "token", "device_map", "attn_implementation")
    loading = {name: kwargs[name] for name in shared if name in kwargs}
    dtype = kwargs.get("dtype") or kwargs.get("torch_dtype") or "auto"
    loading["dtype"] = config.dtype if dtype == "auto" and config.dtype is not None else dtype
    source = config.backbone_name_or_path
    try:
        backbone = auto_class(config).from_pretrained(source, revision=config.backbone_revision, **loading)
    except (OSError, ValueError) as error:
        raise OSError(
            f"{checkpoint} holds a generator without its backbone, which should be at {source!r} (revision "
            f"{config.backbone_revision or 'main'}) and could not be loaded from there: {error}"
        ) from error
    for tensor in (*backbone.parameters(), *backbone.buffers()):
        tensor._is_hf_initialized = True  # else transformers would initialise what the checkpoint does not hold
    return backbone


def auto_class(config: TagiConfig):
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
