"""The backbone that a generator names: making a generator on it, loading it again, and telling whether it changed."""

import hashlib
import json
import os
from copy import deepcopy
from pickle import UnpicklingError  # nosec B403 # to catch it
from typing import Any, Optional, Self, Union

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file, logging

from .configuration_tagi import TagiConfig, new_model_fields
from .hub import GUARDS, PACKAGE, is_gguf, is_repository, named_with_file, readable, repository_of, said_in_one_line

logger = logging.get_logger(__name__)

ACCESS = ("cache_dir", "local_files_only", "token")  # arguments for whatever is read of a backbone or a checkpoint
_DTYPES = ("float64", "float32", "bfloat16", "float16")


class NamedBackboneMixin:
    """Makes a [`TagiModel`] on a backbone, and knows whether it still has that backbone's weights."""

    _revision: Optional[str] = None  # the commit that the model was loaded from
    _cache_dir: Union[str, os.PathLike, None] = None  # where it was loaded from, if not from the usual cache
    _backbone_may_differ = False  # from what it was loaded with: a training step may have reached it
    _backbone_is_only_here = False  # training changed it since it was loaded, so no name or folder has it

    @classmethod
    def from_backbone(
        cls,
        name_or_folder: Union[str, os.PathLike],
        *,
        gguf_file: Optional[str] = None,
        revision: Optional[str] = None,
        dtype: Union[str, torch.dtype, None] = None,
        quantization_config: Any = None,
        token: Union[str, bool, None] = None,
        cache_dir: Union[str, os.PathLike, None] = None,
        local_files_only: bool = False,
        **config_fields: Any,
    ) -> Self:
        """Makes a fresh generator on a pretrained backbone.

        Args:
            name_or_folder: A repository on the Hub, a folder, or `package:` and the name of an installed package.
            gguf_file: The GGUF file in it with the weights and the tokenizer; it needs the package `gguf`.
            revision: The repository's revision.
            dtype: The whole model's precision; `None` takes the backbone's.
            quantization_config: Such as a `BitsAndBytesConfig`, for the backbone alone; the generator stays as it is.
                Checkpoints then leave the backbone out.
            token, cache_dir, local_files_only: As for every transformers model.
            config_fields: Fields of [`TagiConfig`]; see `continues_instruction` for what is chosen beside them.
        """
        require_name(name_or_folder, "the backbone")
        require_dtype(dtype)
        name = os.path.abspath(name_or_folder) if os.path.isdir(name_or_folder) else str(name_or_folder)
        name = named_with_file(name, gguf_file)
        if is_gguf(name) and quantization_config is not None:
            raise ValueError(
                f"the backbone {name} is a GGUF file, whose weights are read as {dtype or 'float32'}, and a "
                "quantization_config is given too; leave it out, or name the model's own repository"
            )
        access = given_access({"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only})
        place = readable(name, revision, **access)
        with said_in_one_line(place, "load"):
            GUARDS[-1](place, revision, **access)
            fields, _ = PretrainedConfig.get_config_dict(place, revision=revision, **access)
        if fields.get("model_type") == cls.config_class.model_type:
            raise ValueError(
                f"the backbone {name} is a TAGI checkpoint, which has a generator: load it with "
                "TagiModel.from_pretrained, or save its backbone, model.backbone.save_pretrained(folder), for that"
            )
        backbone_config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False, **access)
        revision = commit_of(name, revision, cache_dir) or revision
        config_fields = new_model_fields(backbone_config, config_fields)
        config = TagiConfig(
            backbone_config=backbone_config, backbone_name_or_path=name, backbone_revision=revision, **config_fields
        )
        loading = {"revision": revision, "dtype": dtype or "auto", **access}
        if quantization_config is not None:
            loading["quantization_config"] = quantization_config
        backbone = load_language_model(auto_class(config), place, **loading)
        if is_quantized(backbone):
            config.backbone_in_checkpoint = False
        config.backbone_sha256 = backbone_hash(name, revision, cache_dir)
        model = cls(config, backbone=keep_weights(backbone))
        put_generator_beside(model)
        model.generation_config = deepcopy(backbone.generation_config)
        model.config.dtype = backbone.dtype
        model._cache_dir = cache_dir
        model._read_beside(access)
        return model

    def adapter_base(self) -> dict[str, Optional[str]]:
        """Returns which model an exported adapter fits: the stock backbone, or a trained one in the checkpoint. Both
        values are `None` if it was trained since the checkpoint was loaded."""
        if self._backbone_is_only_here:
            return {"backbone": None, "backbone_revision": None}
        if self.config.backbone_trained or self.config.backbone_name_or_path is None:
            return {"backbone": self.name_or_path or None, "backbone_revision": self._revision}
        return {"backbone": self.config.backbone_name_or_path, "backbone_revision": self.config.backbone_revision}

    def _expect_training(self):
        """Notes that the backbone may change from now on, if this call can be a training step with weights of it."""
        known = self._backbone_may_differ or self._backbone_is_only_here
        if self.training and not known and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._backbone_may_differ = any(parameter.requires_grad for parameter in self.backbone.parameters())

    def note_training_of_backbone(self, state_dict: Optional[dict] = None, always: bool = False) -> None:
        """Sets `config.backbone_trained` if the backbone's weights are no longer those that it was loaded with.

        They are compared with the stored ones if a training step may have changed them, or `always`.

        Args:
            state_dict: The model's weights, where they are not its own to give: gathered from several devices.
        """
        config = self.config
        in_checkpoint = bool(self.name_or_path) and config.backbone_in_checkpoint
        name, revision = config.backbone_name_or_path, config.backbone_revision
        if in_checkpoint:
            name, revision = self.name_or_path, self._revision
        known = self._backbone_is_only_here or is_quantized(self.backbone) or not name
        if known or (config.backbone_trained and not (in_checkpoint and self._backbone_may_differ)):
            return
        if always or self._backbone_may_differ:
            states = state_dict or self.state_dict()
            states = {key[len("backbone."):]: x for key, x in states.items() if key.startswith("backbone.")}
            prefix, base = "backbone." if in_checkpoint else "", self.backbone.base_model_prefix
            differs = differs_from_stored(states, name, revision, self._cache_dir, prefix, base)
            self._backbone_is_only_here = self._backbone_may_differ if differs is None else differs
            self._backbone_may_differ = False
            config.backbone_trained = config.backbone_trained or self._backbone_is_only_here

    def _includes_backbone(self, wanted: Optional[bool], state_dict: Optional[dict] = None) -> bool:
        """Tells whether a checkpoint that is written now holds the backbone."""
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
    """Loads the backbone that a checkpoint leaves out, from where its config says."""
    shared = ("cache_dir", "local_files_only", "token", "device_map", "attn_implementation", "quantization_config")
    loading = {name: kwargs[name] for name in shared if name in kwargs}
    dtype = kwargs.get("dtype") or kwargs.get("torch_dtype") or "auto"
    loading["dtype"] = config.dtype if dtype == "auto" and config.dtype is not None else dtype
    source, revision = config.backbone_name_or_path, config.backbone_revision
    try:
        place = readable(source, revision, **given_access(kwargs))
        GUARDS[-1](place, revision, **given_access(kwargs))
        backbone = load_language_model(auto_class(config), place, revision=revision, **loading)
    except (OSError, ValueError, ImportError) as error:
        raise OSError(
            f"{checkpoint} holds a generator without its backbone, which should be at {source!r} (revision "
            f"{revision or 'main'}) and could not be loaded from there: {' '.join(str(error).split())}"
        ) from error
    wanted = config.backbone_sha256
    found = backbone_hash(source, revision, kwargs.get("cache_dir")) if wanted else None
    if found is not None and found != wanted:
        raise ValueError(
            f"{checkpoint} was made for a backbone whose weights have the SHA-256 {wanted}; those at {source!r} "
            f"(revision {revision or 'main'}) have {found}, so they are another model's, or were changed since: name "
            "the right one as backbone_name_or_path and backbone_revision in the checkpoint's config.json, or set its "
            "backbone_sha256 to null to take this one all the same"
        )
    return keep_weights(backbone)


def load_language_model(auto, place: str, **loading) -> PreTrainedModel:
    """Loads a plain model without code of its own; refuses missing weights, which transformers would make up."""
    try:
        model, info = auto.from_pretrained(place, trust_remote_code=False, output_loading_info=True, **loading)
    except UnpicklingError as error:
        raise ValueError(f"the weights of {place} are a pickle of more than tensors; give it safetensors") from error
    if (missing := sorted(info["missing_keys"])) and not is_quantized(model):
        raise ValueError(f"{place} lacks {len(missing)} of the model's tensors: {missing!s:.200}; save it whole")
    return model


def generators_state_dict(model, *args, **kwargs) -> dict:
    """Returns the model's state dict without the backbone's weights."""
    # transformers allocates what it finds missing, which fails for quantized weights
    states = PreTrainedModel.state_dict(model, *args, **kwargs)
    return {key: value for key, value in states.items() if not key.startswith("backbone.")}


def keep_weights(backbone: PreTrainedModel) -> PreTrainedModel:
    """Returns the backbone, marked so that transformers does not initialise it anew inside another model."""
    for tensor in (*backbone.parameters(), *backbone.buffers()):
        tensor._is_hf_initialized = True
    return backbone


def require_backbone_for_others(config: TagiConfig, included: bool):
    """Refuses to publish a checkpoint without its backbone if that is a local folder, which others do not have."""
    named = config.backbone_name_or_path or ""
    if not included and not (named.startswith(PACKAGE) or is_repository(repository_of(named))):
        raise ValueError(
            f"the checkpoint leaves out its backbone and names {config.backbone_name_or_path!r} for it, which is no "
            "repository on the Hub: save and push it with include_backbone=True, or push the backbone first and set "
            "config.backbone_name_or_path to its repository"
        )


def is_quantized(backbone: PreTrainedModel) -> bool:
    return getattr(backbone, "is_quantized", False)


def auto_class(config: TagiConfig):
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def put_generator_beside(model):
    """Moves the generator to its backbone's device, and casts it to the dtype that the backbone computes in."""
    for part in (model.hypernetwork, model.fusion):
        part.to(device=model.backbone.device, dtype=model.backbone.dtype)


def commit_of(name, revision: Optional[str], cache_dir: Optional[str] = None) -> Optional[str]:
    """Returns the commit that a repository was just loaded from; `None` for a folder."""
    if name is None or os.path.exists(name) or str(name).startswith(PACKAGE):
        return None
    repository = repository_of(str(name))
    file = str(name)[len(repository) + 1:] or "config.json"
    found = try_to_load_from_cache(repository, file, cache_dir=cache_dir, revision=revision)
    return os.path.basename(found[: -len(file) - 1]) if isinstance(found, str) else None


def given_access(kwargs: dict) -> dict:
    """Returns those of a caller's arguments (`ACCESS`) that apply to everything read of a checkpoint."""
    return {name: kwargs[name] for name in ACCESS if kwargs.get(name)}


def require_name(name, what: str):
    if not isinstance(name, (str, os.PathLike)) or not str(name).strip() or "\0" in str(name):
        raise ValueError(f"{what} is named {name!r}, but must be named as a folder or a repository (user/name)")


def require_dtype(dtype):
    name = str(dtype).removeprefix("torch.")
    if dtype is not None and name not in (*_DTYPES, "auto"):
        raise ValueError(f"dtype is {name}, but a model computes in one of {', '.join(_DTYPES)}; or give 'auto'")


# The stored weights


def at_hand(name, file: str, **options) -> Optional[str]:
    """Returns the path of a file in a folder, or in a repository's cache; `None` if it is not at hand."""
    try:
        if is_gguf(name):
            access = {key: options[key] for key in ("revision", "cache_dir") if key in options}
            name = readable(str(name), local_files_only=True, **access)
        return cached_file(str(name), file, local_files_only=True, **options)
    except (OSError, ValueError, ImportError):
        return None


def file_of(name, file: str, revision: Optional[str] = None, **access) -> Optional[str]:
    """Returns the path of a file that a folder or repository may have, downloaded if need be; `None` if it has not, or
    there is no such repository."""
    quiet = ("missing_entries", "connection_errors", "gated_repo")
    options = {"revision": revision, **access, **{f"_raise_exceptions_for_{what}": False for what in quiet}}
    try:
        return cached_file(name, file, **options)
    except OSError:
        return None


def weight_files(name, **options) -> Optional[list[str]]:
    """Returns the paths of a model's files of weights; `None` if they are no safetensors, or not at hand.

    Args:
        name: A folder or a repository.
        options: `revision`, `cache_dir` and `subfolder` that it is loaded with.
    """
    files = [at_hand(name, "model.safetensors", **options)]
    if files == [None] and (index := at_hand(name, "model.safetensors.index.json", **options)) is not None:
        with open(index) as file:
            shards = sorted(set(json.load(file)["weight_map"].values()))
        files = [at_hand(name, shard, **options) for shard in shards]
    return None if None in files else files


def backbone_hash(name: str, revision: Optional[str] = None, cache_dir: Optional[str] = None) -> Optional[str]:
    """Returns the SHA-256 over the name, type and shape of all tensors, vectors whole, three rows of each matrix.

    It is of the files, not of the loaded model: the same in whatever precision or on whatever device it is loaded,
    quantized or not, and however the files are cut into shards. Three rows (first, middle, last), since reading all
    weights would take as long as loading them (T5-base: 0.04 s instead), and training that reaches a matrix changes
    each of its rows; a change of single rows alone, such as one word's embedding, can go unnoticed. Of a GGUF file
    it is the SHA-256 of all bytes.

    Returns:
        `None` where the weights are no safetensors that are at hand.
    """
    if is_gguf(name):
        config = at_hand(name, "config.json", revision=revision, cache_dir=cache_dir)
        return config and os.path.basename(os.path.dirname(config)).split("-")[0]
    files = weight_files(name, revision=revision, cache_dir=cache_dir)
    if files is None:
        return None
    rows: dict[str, bytes] = {}
    for path in files:
        with safe_open(os.path.realpath(path), framework="pt") as file:
            rows.update((key, _some_of(file, key)) for key in file.keys())
    return hashlib.sha256(b"".join(rows[key] for key in sorted(rows))).hexdigest()


def _some_of(file, key: str) -> bytes:
    stored = file.get_slice(key)
    shape = stored.get_shape()
    if len(shape) < 2:
        parts = [file.get_tensor(key)]
    else:
        inner = (slice(0, 1),) * (len(shape) - 2)
        places = sorted({0, shape[0] // 2, max(0, shape[0] - 1)})
        parts = [stored[(slice(place, place + 1), *inner)] for place in places]
    rows = (part.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes() for part in parts)
    return f"{key} {stored.get_dtype()} {shape}\n".encode() + b"".join(rows)


def differs_from_stored(
    states: dict[str, Tensor],
    name: str,
    revision: Optional[str] = None,
    cache_dir: Optional[str] = None,
    prefix: str = "",
    base: str = "",
) -> Optional[bool]:
    """Tells whether a model's weights differ from the files that it was loaded from, number by number.

    Weights that were only cast (to another precision, or there and back) do not differ. The first tensor that does
    ends the reading, and one tensor is read at a time.

    Args:
        states: The model's state dict.
        prefix: What the files' keys have before those of `states`; other keys are skipped.
        base: The model's `base_model_prefix`, which files may have or lack.

    Returns:
        `None` where it cannot be told: the files are no safetensors that are at hand or name other tensors, or the
        weights are quantized, sharded or offloaded.
    """
    files = weight_files(name, revision=revision, cache_dir=cache_dir)
    if files is None or not states or any(_is_elsewhere(tensor) for tensor in states.values()):
        return None
    compared: dict[tuple, list[Tensor]] = {}
    left = dict(states)
    for path in files:
        with safe_open(os.path.realpath(path), framework="pt") as file:
            for key in (key for key in file.keys() if key.startswith(prefix)):
                own = key[len(prefix):]
                own = next((n for n in (own, f"{base}.{own}", own.removeprefix(f"{base}.")) if n in left), None)
                if own is None:
                    continue
                tensor = left.pop(own)
                if not _alike(tensor, file.get_tensor(key)):
                    return True
                compared.setdefault(tuple(tensor.shape), []).append(tensor)
    # tied weights are stored once
    tied = all(any(torch.equal(x, y) for y in compared.get(tuple(x.shape), ())) for x in left.values())
    return False if tied else None


def _is_elsewhere(tensor: Tensor) -> bool:
    # an empty one is ZeRO-3's, whose shards no state dict has
    return tensor.device.type == "meta" or is_traceable_wrapper_subclass(tensor) or not tensor.numel()


def _alike(tensor: Tensor, stored: Tensor) -> bool:
    if tensor.shape != stored.shape:
        return False
    stored = stored.to(tensor.device)
    through = (stored.dtype, torch.bfloat16, torch.float16) if stored.is_floating_point() else (stored.dtype,)
    return any(torch.equal(stored.to(dtype).to(tensor.dtype), tensor) for dtype in through)
