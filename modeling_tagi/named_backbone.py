"""The backbone that a generator names: loading it where a checkpoint leaves it out, and telling whether it changed."""

import os
from typing import Optional, Union

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.utils import logging

from .backbone_hash import backbone_hash, differs_from_stored
from .configuration_tagi import TagiConfig
from .hub import is_repository

logger = logging.get_logger(__name__)


class NamedBackboneMixin:
    """What a [`TagiModel`] knows of where its backbone's weights came from."""

    _revision: Optional[str] = None  # the commit that the model was loaded from
    _cache_dir: Union[str, os.PathLike, None] = None  # where it was loaded from, if not from the usual cache
    _backbone_may_differ = False  # from what it was loaded with: a training step may have reached it
    _backbone_is_only_here = False  # and no name or folder stands for it

    def _expect_training(self):
        """Notes that this call may be a training step's, which reaches the backbone."""
        known = self._backbone_may_differ or self._backbone_is_only_here
        if self.training and not known and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._backbone_may_differ = any(parameter.requires_grad for parameter in self.backbone.parameters())

    def note_training_of_backbone(self, state_dict: Optional[dict] = None, always: bool = False):
        """Sets `config.backbone_trained` if the backbone's weights are no longer those that it was loaded with.

        They are compared with the stored ones if a training step may have changed them, or `always`.

        Args:
            state_dict: The model's weights, where they are not its own to give: gathered from several devices.
        """
        config = self.config
        in_checkpoint = bool(self.name_or_path) and config.backbone_in_checkpoint
        if in_checkpoint:
            place, prefix = (self.name_or_path, self._revision, self._cache_dir), "backbone."
        else:
            place, prefix = (config.backbone_name_or_path, config.backbone_revision, self._cache_dir), ""
        known = self._backbone_is_only_here or is_quantized(self.backbone) or not place[0]
        if known or (config.backbone_trained and not (in_checkpoint and self._backbone_may_differ)):
            return
        if always or self._backbone_may_differ:
            states = state_dict or self.state_dict()
            states = {key[len("backbone."):]: x for key, x in states.items() if key.startswith("backbone.")}
            differs = differs_from_stored(states, *place, prefix, self.backbone.base_model_prefix)
            self._backbone_is_only_here = self._backbone_may_differ if differs is None else differs
            self._backbone_may_differ = False
            config.backbone_trained = config.backbone_trained or self._backbone_is_only_here

    def _includes_backbone(self, wanted: Optional[bool], state_dict: Optional[dict] = None) -> bool:
        """Whether a checkpoint that is written now holds the backbone."""
        self.note_training_of_backbone(state_dict, always=True)
        if wanted is not None:
            return wanted
        if not self.config.backbone_in_checkpoint and self.config.backbone_trained and not is_quantized(self.backbone):
            logger.warning_once(
                "training has changed the backbone, so checkpoints hold it from now on: it is no longer that of "
                f"{self.config.backbone_name_or_path}, which the checkpoint that was loaded names"
            )
            return True
        return self.config.backbone_in_checkpoint


def load_named_backbone(checkpoint, config: TagiConfig, kwargs: dict) -> PreTrainedModel:
    """The backbone that a checkpoint leaves out, from where its config says."""
    shared = ("cache_dir", "local_files_only", "token", "device_map", "attn_implementation", "quantization_config")
    loading = {name: kwargs[name] for name in shared if name in kwargs}
    dtype = kwargs.get("dtype") or kwargs.get("torch_dtype") or "auto"
    loading["trust_remote_code"] = False  # nobody has allowed the backbone's
    loading["dtype"] = config.dtype if dtype == "auto" and config.dtype is not None else dtype
    source = config.backbone_name_or_path
    try:
        backbone = auto_class(config).from_pretrained(source, revision=config.backbone_revision, **loading)
    except (OSError, ValueError) as error:
        raise OSError(
            f"{checkpoint} holds a generator without its backbone, which should be at {source!r} (revision "
            f"{config.backbone_revision or 'main'}) and could not be loaded from there: {error}"
        ) from error
    wanted = config.backbone_sha256
    found = backbone_hash(source, config.backbone_revision, kwargs.get("cache_dir")) if wanted else None
    if found is not None and found != wanted:
        raise ValueError(
            f"{checkpoint} was made for a backbone whose weights have the SHA-256 {wanted}; those at {source!r} "
            f"(revision {config.backbone_revision or 'main'}) have {found}, so they are another model's, or were "
            "changed since: name the right one as backbone_name_or_path and backbone_revision in the checkpoint's "
            "config.json, or set its backbone_sha256 to null to take this one all the same"
        )
    for tensor in (*backbone.parameters(), *backbone.buffers()):
        tensor._is_hf_initialized = True  # else transformers would initialise what the checkpoint does not hold
    return backbone


def require_backbone_for_others(config: TagiConfig, included: bool):
    """Refuses to publish a checkpoint without its backbone, where that is a folder of one's own."""
    if not included and not is_repository(config.backbone_name_or_path):
        raise ValueError(
            f"the checkpoint leaves out its backbone and names {config.backbone_name_or_path!r} for it, which is no "
            "repository on the Hub: save and push it with include_backbone=True, or push the backbone first and set "
            "config.backbone_name_or_path to its repository"
        )


def is_quantized(backbone: PreTrainedModel) -> bool:
    return getattr(backbone, "is_quantized", False)


def auto_class(config: TagiConfig):
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
