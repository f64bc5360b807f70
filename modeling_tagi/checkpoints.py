"""Checkpoints: loads, saves and pushes a model's weights and tokenizer, and refuses broken ones."""

import os
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Iterator, NoReturn, Optional, Self, Sequence, Union

import torch
from huggingface_hub import CommitInfo
from transformers import AutoTokenizer, PreTrainedModel

from .configuration_tagi import TagiConfig
from .hub import GUARDS, STALE, filling, is_repository, push_saved, readable, require_folder_for, said_in_one_line
from .instructions import InstructionIndex
from .named_backbone import (
    ACCESS,
    NamedBackboneMixin,
    at_hand,
    commit_of,
    file_of,
    generators_state_dict,
    given_access,
    is_quantized,
    load_named_backbone,
    put_generator_beside,
    require_backbone_for_others,
    require_dtype,
    require_name,
    weight_files,
)
from .tokens import PIPELINES

# A tokenizer is saved with at least one of these; where there is none, transformers makes up an empty one.
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")
# Of save_pretrained's arguments those for push_to_hub alone.
_PUSHING = ("repo_id", "private", "revision", "tag", "token", "commit_message", "commit_description", "create_pr",
            "tags")  # fmt: skip


class CheckpointMixin(NamedBackboneMixin):
    """Builds, loads, saves and pushes a [`TagiModel`], beyond what any transformers model does."""

    _tokenizer = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Union[str, os.PathLike],
        *model_args: Any,
        config: Any = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Loads a checkpoint as transformers does. A backbone that it lacks is loaded from where its config says,
        quantized if there is a `quantization_config`.

        Raises:
            OSError: if a file is missing or no safetensors, or the backbone is not where the config says.
            ValueError: if it is no TAGI checkpoint, a file is broken, a tensor is missing, of another shape or not
                finite, a backbone in it is to be quantized, or the one that it names is not the one that it was made
                for; or if an adapter was named.
        """
        name = pretrained_model_name_or_path
        require_name(name, "the checkpoint")
        require_dtype(kwargs.get("dtype", kwargs.get("torch_dtype")))
        _require_no_adapter(name, kwargs)
        with said_in_one_line(str(name), "load"):
            GUARDS[-1](name, **{key: kwargs[key] for key in (*ACCESS, "revision", "subfolder") if kwargs.get(key)})
        config = cls._config_of(name, config, kwargs)
        loader, buffers = cls, {}
        if config.backbone_in_checkpoint and kwargs.get("quantization_config") is not None:
            raise ValueError(
                f"{name} holds its backbone, which could be quantized only together with the generator; save the "
                "model with include_backbone=False, and load that with the quantization_config"
            )
        if not config.backbone_in_checkpoint:
            kwargs["backbone"] = load_named_backbone(name, config, kwargs)
            kwargs.pop("quantization_config", None)
            buffers = {key: buffer.clone() for key, buffer in kwargs["backbone"].named_buffers()}
            # transformers reads the source of a class's module
            loader = type(cls.__name__, (cls,), {"__module__": cls.__module__, "state_dict": generators_state_dict})
        mismatched = kwargs.pop("ignore_mismatched_sizes", False)
        kwargs["use_safetensors"] = True
        with _pickles_refused(name, kwargs), said_in_one_line(str(name), "load"):
            model, info = super(CheckpointMixin, loader).from_pretrained(
                name,
                *model_args,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # said below in one line
                **kwargs,
            )
        model.__class__ = cls
        if is_quantized(model.backbone):
            put_generator_beside(model)
        model._cache_dir = kwargs.get("cache_dir")
        model._revision = commit_of(name, kwargs.get("revision"), kwargs.get("cache_dir"))
        for key, buffer in buffers.items():  # what no checkpoint holds is left empty, such as rotary frequencies
            model.backbone.get_buffer(key).copy_(buffer)
        _require_whole(name, {**info, **({"mismatched_keys": ()} if mismatched else {})})
        _require_finite(name, model)
        model._read_beside(given_access(kwargs))
        return (model, info) if output_loading_info else model

    @classmethod
    def _config_of(cls, name, config, kwargs: dict) -> TagiConfig:
        if not hasattr(config, "backbone_config"):
            names = (*ACCESS, "force_download", "revision", "subfolder")
            hub = {key: kwargs[key] for key in names if key in kwargs}
            with said_in_one_line(str(name), "load"):
                # not from_pretrained, which loses the token in transformers 5.10
                fields, _ = cls.config_class.get_config_dict(config or name, **hub)
                kind = fields.get("model_type")
                if kind not in (None, cls.config_class.model_type):
                    raise ValueError(
                        f"{name} is no TAGI checkpoint but a model of type {kind!r}; make a new generator on it with "
                        f"TagiModel.from_backbone({str(name)!r}), or name a checkpoint that a TagiModel's "
                        "save_pretrained has written"
                    )
                config = cls.config_class.from_dict(fields)
        if config.backbone_config is None:
            raise OSError(
                f"{name} has no config.json of a TAGI model (with a backbone_config); name a folder or repository "
                "that save_pretrained has written, or use TagiModel.from_backbone for a new one"
            )
        return config

    def load_adapter(self, peft_model_id: Any = None, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises a ValueError: an adapter is given to each call, and not built into the model as in transformers."""
        raise _no_model(peft_model_id, "it is here already")

    def save_pretrained(
        self,
        save_directory: Union[str, os.PathLike],
        *args: Any,
        include_backbone: Optional[bool] = None,
        **kwargs: Any,
    ) -> None:
        """Writes the checkpoint as it goes to the Hub: weights, config, code and, where it is known, the tokenizer.

        The files are written to a temporary folder, then moved into place, the configuration last. Files that are no
        checkpoint's are left alone; if one of them would be replaced, nothing is written.

        Args:
            include_backbone: Whether the backbone's weights go in; without them the checkpoint names the backbone and
                loads it from there. `None` keeps what the config says (at first: with them), and puts them in if they
                are no longer those of the named backbone.
            kwargs: As for any transformers model; with `push_to_hub=True` those of `push_to_hub` too.

        Raises:
            ValueError: if the backbone is to be left out but is not to be had elsewhere, or the folder holds something
                else than a checkpoint.
        """
        folder = require_folder_for("checkpoint", save_directory)
        push = kwargs.pop("push_to_hub", False)
        pushing = {name: kwargs.pop(name) for name in _PUSHING if name in kwargs}
        tokenizer, index = self._find_tokenizer(), self.instruction_index
        include = self._includes_backbone(include_backbone, kwargs.get("state_dict"))
        self._require_place_of_backbone(include)
        # weights of a variant, such as fp16, lie beside the others
        stale = STALE["checkpoint"] if kwargs.get("variant") is None else ()
        in_place = kwargs.get("distributed_checkpoint", False)  # every process writes a part of it
        place = nullcontext(folder) if in_place else filling(folder, last="config.json", stale=stale)
        with self._config_as_saved(include), place as beside:
            super().save_pretrained(beside, *args, **kwargs)
            if kwargs.get("is_main_process", True):
                if index is not None:
                    index.save(beside)
                if tokenizer is not None:
                    tokenizer.save_pretrained(beside)
        if push and kwargs.get("is_main_process", True):
            name = pushing.pop("repo_id", None) or os.path.basename(os.path.abspath(save_directory))
            shards = {"max_shard_size": kwargs["max_shard_size"]} if "max_shard_size" in kwargs else {}
            self.push_to_hub(name, include_backbone=include, **shards, **pushing)

    def _require_place_of_backbone(self, include: bool):
        config = self.config
        if include and is_quantized(self.backbone):
            raise ValueError(
                "the backbone is quantized, and its weights cannot go into the checkpoint; use include_backbone=False"
            )
        if not include and (config.backbone_trained or not config.backbone_name_or_path):
            why = "training has changed it" if config.backbone_trained else "no backbone_name_or_path says where it is"
            raise ValueError(f"the backbone cannot be left out of the checkpoint: {why}; use include_backbone=True")

    @contextmanager
    def _config_as_saved(self, include: bool) -> Iterator[None]:
        """Changes the model's config, inside the block, to what the checkpoint's config.json is to say."""
        config = self.config
        kept = config.backbone_in_checkpoint, self._keys_to_ignore_on_save
        source = config.backbone_name_or_path, config.backbone_revision
        if include and not is_repository(source[0]):  # a local folder, which the checkpoint no longer needs
            config.backbone_name_or_path = config.backbone_revision = None
        quantization = vars(config.backbone_config).pop("quantization_config", None)  # a choice of whoever loads it
        config.backbone_in_checkpoint = include
        if not include:
            left_out = {key for key in self.state_dict() if key.startswith("backbone.")}
            self._keys_to_ignore_on_save = left_out | set(kept[1] or ())
        auto = "AutoModelForSeq2SeqLM" if config.is_encoder_decoder else "AutoModelForCausalLM"
        config.auto_map = {**(getattr(config, "auto_map", None) or {}), auto: "modeling_tagi.TagiModel"}
        config.custom_pipelines = deepcopy(PIPELINES)  # `pipeline` writes into it
        try:
            yield
        finally:
            config.backbone_in_checkpoint, self._keys_to_ignore_on_save = kept
            config.backbone_name_or_path, config.backbone_revision = source
            if quantization is not None:
                config.backbone_config.quantization_config = quantization

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
        """Uploads what `save_pretrained` writes in one commit; if that fails, the repository stays as it was. With the
        package installed the commit has a card, unless a person has edited the one that is there.

        Args:
            repo_id, private: The repository, which is made if there is none, and whether it is private then.
            revision, tag: A branch, which is made if there is none, and a tag for the commit.
            tags: Further tags of the card.
            include_backbone: As for `save_pretrained`.

        Raises:
            HubError: an OSError that says in one line why the push failed.
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

    # What lies beside the weights

    def _read_beside(self, access: dict):
        """Reads the index and the tokenizer now if the caller gave `access`, such as a token, which is not kept."""
        if not access:
            return
        if self.name_or_path:
            self._instruction_index = InstructionIndex.find(self.name_or_path, self._revision, **access)
        try:
            self._find_tokenizer(**access)
        except ValueError:  # raised again when it is asked for; token ids need none
            pass

    @property
    def tokenizer(self) -> Any:
        """Returns the checkpoint's own tokenizer, else the backbone's.

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

    def _find_tokenizer(self, **access):
        config = self.config
        places = (self.name_or_path, self._revision), (config.backbone_name_or_path, config.backbone_revision)
        for name, revision in places if self._tokenizer is None else ():
            try:
                name = name and readable(name, revision, **access)
                if not name or not any(file_of(name, file, revision, **access) for file in _TOKENIZER_FILES):
                    continue
                # with the backbone's config: a checkpoint's own has code, which a tokenizer does not need
                self._tokenizer = AutoTokenizer.from_pretrained(
                    name, revision=revision, config=config.backbone_config, trust_remote_code=False, **access
                )
            except Exception as error:
                raise ValueError(
                    f"the tokenizer at {name!r} cannot be read ({error}); mend its files, or set model.tokenizer"
                ) from error
            if config.input_format == "chat":
                GUARDS[-1](name, tokenizer=self._tokenizer)
            break
        return self._tokenizer


# What is refused


def _require_no_adapter(name, kwargs: dict):
    """Refuses an adapter, or a checkpoint's folder with one in it, since transformers would build it in."""
    adapter = "adapter_config.json"
    if (Path(name) / adapter).is_file() and (Path(name) / "config.json").is_file():
        raise ValueError(
            f"{name} holds an adapter's {adapter} beside the checkpoint's files; move the adapter's files into a "
            "folder of their own"
        )
    named = (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path")
    if named is not None:  # AutoModel was given one, and names here the checkpoint that it is for
        raise _no_model(named, f"AutoModel.from_pretrained({str(name)!r})")


def _no_model(adapter, model: str) -> ValueError:
    return ValueError(
        f"{adapter} is an adapter, which is not built into a model: load the model ({model}), then "
        f"model.adapter_class.from_pretrained({str(adapter)!r}), and give that to each call as adapter=…"
    )


@contextmanager
def _pickles_refused(name, kwargs: dict) -> Iterator[None]:
    options = {option: kwargs[option] for option in ("revision", "cache_dir", "subfolder") if kwargs.get(option)}
    try:
        yield
    except OSError as error:
        if at_hand(name, "pytorch_model.bin", **options) is None or weight_files(name, **options) is not None:
            raise
        raise OSError(
            f"{name} holds its weights as pytorch_model.bin, a pickle, which can run code when it is read and is "
            "refused; get the checkpoint with model.safetensors, as save_pretrained writes it"
        ) from error


def _require_whole(name, info: dict):
    """Refuses a checkpoint that, by transformers' `info`, lacks tensors of the model or has them in other shapes."""
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(
            f"{name} lacks {len(missing)} of the model's tensors: {_some(missing)}; save the whole model with "
            "save_pretrained, or take the config that its weights were saved with"
        )
    if info["mismatched_keys"]:
        shapes = [f"{key} ({_times(stored)}, the config says {_times(here)})"
                  for key, stored, here in sorted(info["mismatched_keys"])]  # fmt: skip
        raise ValueError(
            f"{name} holds {len(shapes)} tensors of other shapes than its config.json says: {_some(shapes)}; take the "
            "config that its weights were saved with, or save the model again with save_pretrained"
        )


def _require_finite(name, model: PreTrainedModel):
    broken = []
    for key, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.device.type == "meta" or parameter.element_size() < 2:
            continue
        # the sum is finite if all are, unless it overflows; it takes no memory
        if not parameter.detach().sum(dtype=torch.float32).isfinite() and not parameter.isfinite().all():
            broken.append(key)
    if broken:
        raise ValueError(
            f"{name} holds {len(broken)} tensors with numbers that are not finite: {_some(broken)}; the file is "
            "damaged, or training had diverged when it was written: take an earlier checkpoint"
            + (" (or another dtype: float16 has no numbers above 65504)" if model.dtype == torch.float16 else "")
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _times(shape) -> str:
    return " × ".join(map(str, shape)) or "a number"
