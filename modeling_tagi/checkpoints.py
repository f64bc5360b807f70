"""Checkpoints: where a model's weights and tokenizer come from, and where they go."""

import os
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from typing import Optional, Sequence, Union

from huggingface_hub import CommitInfo, try_to_load_from_cache
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from .backbone_hash import backbone_hash
from .checkpoint_checks import (
    broken_weights_named,
    require_dtype,
    require_finite,
    require_name,
    require_no_adapter_beside,
    require_tagi_config,
    require_whole,
)
from .configuration_tagi import TagiConfig, new_model_fields
from .hub import STALE, filling, is_repository, push_saved, require_folder_for, said_in_one_line
from .instruction_index import InstructionIndex
from .named_backbone import (
    NamedBackboneMixin,
    auto_class,
    is_quantized,
    load_named_backbone,
    require_backbone_for_others,
)
from .text_pipeline import PIPELINES

# A tokenizer is saved with at least one of these; where there is none, transformers makes up an empty one.
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")
_UNREAD = object()
# Of save_pretrained's arguments those for push_to_hub alone.
_PUSHING = (
    "repo_id", "private", "revision", "tag", "token", "commit_message", "commit_description", "create_pr", "tags",
)  # fmt: skip


class CheckpointMixin(NamedBackboneMixin):
    """What a [`TagiModel`] does beyond any transformers model to be built, loaded and saved."""

    _tokenizer = None
    _instruction_index = _UNREAD

    @classmethod
    def from_backbone(
        cls,
        name_or_folder: Union[str, os.PathLike],
        *,
        revision: Optional[str] = None,
        dtype=None,
        quantization_config=None,
        token: Union[str, bool, None] = None,
        cache_dir: Union[str, os.PathLike, None] = None,
        local_files_only: bool = False,
        **config_fields,
    ):
        """A fresh generator on a pretrained backbone.

        Args:
            name_or_folder: A repository on the Hub, or a folder.
            revision: The repository's revision.
            dtype: Of the whole model; `None` takes the backbone's.
            quantization_config: Such as a `BitsAndBytesConfig`, for the backbone alone; the generator stays as it is.
                Checkpoints then leave the backbone out.
            token, cache_dir, local_files_only: As for every transformers model.
            config_fields: Fields of [`TagiConfig`]; see `continues_instruction` for what is chosen beside them.
        """
        require_name(name_or_folder, "the backbone")
        require_dtype(dtype)
        name = str(name_or_folder)
        if os.path.isdir(name):
            name = os.path.abspath(name)
        given = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        given = {field: value for field, value in given.items() if value}
        with said_in_one_line(name, "load"):
            fields, _ = PretrainedConfig.get_config_dict(name, revision=revision, **given)
        if fields.get("model_type") == cls.config_class.model_type:
            raise ValueError(
                f"the backbone {name} is a TAGI checkpoint, which has a generator: load it with "
                "TagiModel.from_pretrained, or save its backbone, model.backbone.save_pretrained(folder), for that"
            )
        backbone_config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False, **given)
        revision = _commit(name, revision, cache_dir) or revision
        config_fields = new_model_fields(backbone_config, config_fields)
        config = TagiConfig(
            backbone_config=backbone_config, backbone_name_or_path=name, backbone_revision=revision, **config_fields
        )
        quantization = {} if quantization_config is None else {"quantization_config": quantization_config}
        loading = {"revision": revision, "dtype": dtype or "auto", **quantization, **given}
        backbone = auto_class(config).from_pretrained(name, trust_remote_code=False, **loading)
        if is_quantized(backbone):
            config.backbone_in_checkpoint = False
        config.backbone_sha256 = backbone_hash(name, revision, cache_dir)
        for tensor in (*backbone.parameters(), *backbone.buffers()):
            tensor._is_hf_initialized = True
        model = cls(config, backbone=backbone)
        _generator_beside(model)
        model.generation_config = deepcopy(backbone.generation_config)
        model.config.dtype = backbone.dtype
        model._cache_dir = cache_dir
        if given:  # read now: a token is not kept
            model._read_beside(given)
        return model

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *model_args, config=None, output_loading_info: bool = False, **kwargs
    ):
        """As every transformers model; loads the backbone from where the config says if the checkpoint lacks it, and
        quantizes it if there is a `quantization_config`.

        Raises:
            OSError: if a file is missing or no safetensors, or the backbone is not where the config says.
            ValueError: if it is no TAGI checkpoint, a file is broken, a tensor is missing, of another shape or not
                finite, a backbone in it is to be quantized, or the one that it names is not the one that it was made
                for; or if an adapter was named.
        """
        require_name(pretrained_model_name_or_path, "the checkpoint")
        require_dtype(kwargs.get("dtype", kwargs.get("torch_dtype")))
        require_no_adapter_beside(pretrained_model_name_or_path)
        adapter = (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path")
        if adapter is not None:  # AutoModel was given one, and names here the checkpoint that it is for
            raise _no_model(adapter, f"AutoModel.from_pretrained({str(pretrained_model_name_or_path)!r})")
        if not hasattr(config, "backbone_config"):
            names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
            hub = {name: kwargs[name] for name in names if name in kwargs}
            with said_in_one_line(str(pretrained_model_name_or_path), "load"):
                # not from_pretrained, which loses the token in transformers 5.10
                config_dict, _ = cls.config_class.get_config_dict(config or pretrained_model_name_or_path, **hub)
                require_tagi_config(config_dict, pretrained_model_name_or_path, cls.config_class.model_type)
                config = cls.config_class.from_dict(config_dict)
        if config.backbone_config is None:
            raise OSError(
                f"{pretrained_model_name_or_path} has no config.json of a TAGI model (with a backbone_config); name a "
                "folder or repository that save_pretrained has written, or use TagiModel.from_backbone for a new one"
            )
        loader, buffers = cls, {}
        if config.backbone_in_checkpoint and kwargs.get("quantization_config") is not None:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds its backbone, which could be quantized only together with the "
                "generator; save the model with include_backbone=False, and load that with the quantization_config"
            )
        if not config.backbone_in_checkpoint:
            kwargs["backbone"] = load_named_backbone(pretrained_model_name_or_path, config, kwargs)
            kwargs.pop("quantization_config", None)
            buffers = {name: buffer.clone() for name, buffer in kwargs["backbone"].named_buffers()}
            # transformers reads the source of a class's module
            loader = type(cls.__name__, (cls,), {"__module__": cls.__module__, "state_dict": _generators_state_dict})
        place = {name: kwargs[name] for name in ("revision", "cache_dir", "subfolder") if kwargs.get(name)}
        mismatched = kwargs.pop("ignore_mismatched_sizes", False)
        kwargs["use_safetensors"] = True
        with (
            broken_weights_named(pretrained_model_name_or_path, **place),
            said_in_one_line(str(pretrained_model_name_or_path), "load"),
        ):
            model, info = super(CheckpointMixin, loader).from_pretrained(
                pretrained_model_name_or_path,
                *model_args,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # said below in one line
                **kwargs,
            )
        model.__class__ = cls
        if is_quantized(model.backbone):
            _generator_beside(model)
        model._cache_dir = kwargs.get("cache_dir")
        model._revision = _commit(pretrained_model_name_or_path, kwargs.get("revision"), kwargs.get("cache_dir"))
        for name, buffer in buffers.items():  # what no checkpoint holds is left empty, such as rotary frequencies
            model.backbone.get_buffer(name).copy_(buffer)
        require_whole(pretrained_model_name_or_path, {**info, **({"mismatched_keys": ()} if mismatched else {})})
        require_finite(pretrained_model_name_or_path, model)
        given = {name: kwargs[name] for name in ("cache_dir", "local_files_only", "token") if kwargs.get(name)}
        if given:  # what else is there is read now: a token is not kept
            model._read_beside(given)
        return (model, info) if output_loading_info else model

    def load_adapter(self, peft_model_id=None, *args, **kwargs):
        """Refuses what transformers would do, which is to build an adapter into the model: a [`TagiAdapter`] goes
        with each call.

        Raises:
            ValueError: always.
        """
        raise _no_model(peft_model_id, "it is here already")

    def save_pretrained(self, save_directory, *args, include_backbone: Optional[bool] = None, **kwargs):
        """Writes the checkpoint as it goes to the Hub: weights, config, code and, where it is known, the tokenizer.

        Args:
            include_backbone: Whether the backbone's weights go in; without them the checkpoint names the backbone and
                loads it from there. `None` keeps what the config says (at first: with them), and puts them in if they
                are no longer those of the named backbone.
            kwargs: As for any transformers model; with `push_to_hub=True` those of `push_to_hub` too.

        The files are written beside, then moved into place, the configuration last. Of files that are no checkpoint's,
        those that would be replaced are refused and all others left alone.

        Raises:
            ValueError: if the backbone is to be left out but is not to be had elsewhere, or the folder holds something
                else than a checkpoint.
        """
        folder = require_folder_for("checkpoint", save_directory)
        push = kwargs.pop("push_to_hub", False)
        pushing = {name: kwargs.pop(name) for name in _PUSHING if name in kwargs}
        config, tokenizer, index = self.config, self._find_tokenizer(), self.instruction_index
        include = self._includes_backbone(include_backbone, kwargs.get("state_dict"))
        if include and is_quantized(self.backbone):
            raise ValueError(
                "the backbone is quantized, and its weights cannot go into the checkpoint; use include_backbone=False"
            )
        if not include and (config.backbone_trained or not config.backbone_name_or_path):
            why = "training has changed it" if config.backbone_trained else "no backbone_name_or_path says where it is"
            raise ValueError(f"the backbone cannot be left out of the checkpoint: {why}; use include_backbone=True")
        kept = config.backbone_in_checkpoint, self._keys_to_ignore_on_save
        source = config.backbone_name_or_path, config.backbone_revision
        if include and not is_repository(source[0]):  # a folder of someone's disk, which nobody needs any more
            config.backbone_name_or_path = config.backbone_revision = None
        quantization = vars(config.backbone_config).pop("quantization_config", None)  # a choice of whoever loads it
        config.backbone_in_checkpoint = include
        if not include:
            left_out = {key for key in self.state_dict() if key.startswith("backbone.")}
            self._keys_to_ignore_on_save = left_out | set(kept[1] or ())
        auto_classes = ("AutoModelForSeq2SeqLM" if config.is_encoder_decoder else "AutoModelForCausalLM",)
        config.auto_map = {
            **(getattr(config, "auto_map", None) or {}), **{name: "modeling_tagi.TagiModel" for name in auto_classes}
        }  # fmt: skip
        config.custom_pipelines = deepcopy(PIPELINES)  # `pipeline` writes into it
        # weights of a variant, such as fp16, lie beside the others
        stale = STALE["checkpoint"] if kwargs.get("variant") is None else ()
        in_place = kwargs.get("distributed_checkpoint", False)  # every process writes a part of it
        try:
            with nullcontext(folder) if in_place else filling(folder, last="config.json", stale=stale) as place:
                super().save_pretrained(place, *args, **kwargs)
                if kwargs.get("is_main_process", True):
                    if index is not None:
                        index.save(place)
                    if tokenizer is not None:
                        tokenizer.save_pretrained(place)
        finally:
            config.backbone_in_checkpoint, self._keys_to_ignore_on_save = kept
            config.backbone_name_or_path, config.backbone_revision = source
            if quantization is not None:
                config.backbone_config.quantization_config = quantization
        if push and kwargs.get("is_main_process", True):
            name = pushing.pop("repo_id", None) or os.path.basename(os.path.abspath(save_directory))
            shards = {"max_shard_size": kwargs["max_shard_size"]} if "max_shard_size" in kwargs else {}
            self.push_to_hub(name, include_backbone=include, **shards, **pushing)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: Optional[str] = None,
        tag: Optional[str] = None,
        token: Optional[str] = None,
        commit_message: Optional[str] = None,
        commit_description: Optional[str] = None,
        create_pr: bool = False,
        max_shard_size: Union[int, str] = "50GB",
        tags: Optional[Sequence[str]] = None,
        include_backbone: Optional[bool] = None,
    ) -> CommitInfo:
        """As every transformers model's, in one commit with the tokenizer and a card. What was there before stays as
        it was if the push fails; a card that a person has edited stays in any case.

        Args:
            repo_id: Is made if there is none.
            private: Whether a repository that is made now is private.
            revision: A branch, made if there is none.
            tag: A tag for the commit.
            tags: Further tags of the card.
            include_backbone: As for `save_pretrained`.

        Raises:
            HubError: an OSError that says in one line why it did not come about.
            ValueError: if the backbone is left out but is not to be had elsewhere, or there is such a tag.
        """
        include = self._includes_backbone(include_backbone)
        require_backbone_for_others(self.config, include)
        config = deepcopy(self.config)
        config.backbone_in_checkpoint = include
        save = partial(self.save_pretrained, max_shard_size=max_shard_size, include_backbone=include)
        return push_saved(
            "checkpoint", save, repo_id, private=private, revision=revision, tag=tag, token=token,
            card={"config": config, "tags": tags}, commit_message=commit_message or "Upload model",
            commit_description=commit_description, create_pr=create_pr,
        )  # fmt: skip

    # What finetuning has seen

    def _read_beside(self, given: dict):
        """Reads the index and the tokenizer with the caller's token, cache or wish to stay offline."""
        if self.name_or_path:
            self._instruction_index = InstructionIndex.find(self.name_or_path, self._revision, **given)
        try:
            self._find_tokenizer(**given)
        except ValueError:  # cannot be read: said when it is asked for, since token ids do without
            pass

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

    def _find_tokenizer(self, **given):
        if self._tokenizer is not None:
            return self._tokenizer
        places = [
            (self.name_or_path, self._revision),
            (self.config.backbone_name_or_path, self.config.backbone_revision),
        ]
        for name, revision in places:
            if not name or not _has_tokenizer(name, revision, **given):
                continue
            try:
                # with the backbone's config: a checkpoint's own has code, which a tokenizer does not need
                self._tokenizer = AutoTokenizer.from_pretrained(
                    name, revision=revision, config=self.config.backbone_config, trust_remote_code=False, **given
                )
            except Exception as error:
                raise ValueError(
                    f"the tokenizer at {name!r} cannot be read ({error}); mend its files, or set model.tokenizer"
                ) from error
            return self._tokenizer
        return None


def _no_model(adapter, model: str) -> ValueError:
    return ValueError(
        f"{adapter} is an adapter, which is not built into a model: load the model ({model}), then "
        f"model.adapter_class.from_pretrained({str(adapter)!r}), and give that to each call as adapter=…"
    )


def _commit(name, revision: Optional[str], cache_dir: Optional[str] = None) -> Optional[str]:
    """The commit that a repository was just loaded from; `None` for a folder."""
    if name is None or os.path.isdir(name):
        return None
    found = try_to_load_from_cache(str(name), "config.json", cache_dir=cache_dir, revision=revision)
    return os.path.basename(os.path.dirname(found)) if isinstance(found, str) else None


def _has_tokenizer(name: str, revision: Optional[str], **given) -> bool:
    quiet = ("missing_entries", "connection_errors", "gated_repo")
    options = {"revision": revision, **given, **{f"_raise_exceptions_for_{what}": False for what in quiet}}
    try:
        return any(cached_file(name, file, **options) is not None for file in _TOKENIZER_FILES)
    except OSError:  # no such repository
        return False


def _generators_state_dict(model, *args, **kwargs) -> dict:
    """What a checkpoint without a backbone holds. transformers makes room for what it finds missing, which quantized
    weights have none for."""
    states = PreTrainedModel.state_dict(model, *args, **kwargs)
    return {key: value for key, value in states.items() if not key.startswith("backbone.")}


def _generator_beside(model):
    """The generator on the device of its backbone, in the type that this computes in."""
    for part in (model.hypernetwork, model.fusion):
        part.to(device=model.backbone.device, dtype=model.backbone.dtype)
