"""Writes adapters as GGUF LoRA files, which llama.cpp applies to a GGUF base (`llama-server --lora`).

The file has the names of its tensors from the tables of the package `gguf`. These tables do not say that llama.cpp's
converter also reorders rows of some weights; `ARCHITECTURES` does, as read in llama.cpp's `conversion/`.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional, Union

import numpy as np
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging

from ..adapter_files import require_finite
from ..common.gguf_files import gguf_path, require_gguf
from ..common.writing import replacing_file
from ..configuration_tagi import TagiConfig
from ..hub import is_gguf, said_in_one_line

logger = logging.get_logger(__name__)

LORA_A, LORA_B = ".weight.lora_a", ".weight.lora_b"


def _pairs_side_by_side(rows: np.ndarray, heads: int) -> np.ndarray:
    """Returns rows `[out, …]` whose rotary pairs, in transformers the halves of a head, lie side by side."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _parts_together(rows: np.ndarray, heads: int) -> np.ndarray:
    """Returns rows `[out, …]` of all queries, all keys, all values, in transformers those of each head in turn."""
    return rows.reshape(heads, 3, len(rows) // heads // 3, -1).swapaxes(0, 1).reshape(rows.shape)


_ROTARY = {"attn_q": _pairs_side_by_side, "attn_k": _pairs_side_by_side}
# Architecture of a GGUF file -> which of its tensors have their rows in another order than in transformers.
ARCHITECTURES: dict[str, dict[str, Callable]] = {
    **dict.fromkeys(("llama", "granite", "arcee", "smollm3", "olmo"), _ROTARY),
    "gptneox": {"attn_qkv": _parts_together},
    **dict.fromkeys(
        ("gemma", "gemma2", "gemma3", "gpt2", "olmo2", "phi3", "qwen2", "qwen3", "stablelm", "starcoder2", "t5"), {}
    ),
}
# Model type of a transformers config -> architecture, where the two names differ.
_MODEL_TYPES = {
    "mistral": "llama", "mixtral": "llama", "gemma3_text": "gemma3", "gpt_neox": "gptneox", "mt5": "t5", "umt5": "t5",
}  # fmt: skip


@dataclass(frozen=True)
class Base:
    """Holds what a GGUF LoRA has to know of the model that it is for.

    Args:
        architecture: As in `ARCHITECTURES`.
        heads: Tensor whose rows are reordered -> its attention heads.
        has_head: Whether the output projection is a tensor of its own, not the token embeddings again.
        shapes: Tensor -> (outputs, inputs), if it is a GGUF file.
    """

    architecture: str
    heads: dict[str, Optional[int]]
    has_head: bool
    shapes: Optional[dict[str, tuple[int, ...]]] = None

    @classmethod
    def of_config(cls, config) -> "Base":
        """Returns what the config of a transformers model says.

        Raises:
            ValueError: if it is of a family whose order of rows in GGUF is not known here.
        """
        config = getattr(config, "backbone_config", config)
        kind = config.model_type
        heads = getattr(config, "num_attention_heads", None)
        return cls(
            _known(_MODEL_TYPES.get(kind, kind), f"a backbone of model type {kind!r}"),
            {"attn_q": heads, "attn_qkv": heads, "attn_k": getattr(config, "num_key_value_heads", None) or heads},
            not config.tie_word_embeddings,
        )

    @classmethod
    def of_file(cls, file: str) -> "Base":
        """Returns what the header of a GGUF model says.

        Raises:
            ValueError: if the file cannot be read, is no model, or is of an architecture that is not known here.
        """
        from gguf import GGUFReader

        try:
            reader = GGUFReader(file)
            architecture = reader.fields["general.architecture"].contents()
        except (ValueError, KeyError, IndexError, OSError) as error:
            said = " ".join(str(error).split())
            raise ValueError(f"the base {file} is no whole GGUF file ({said:.200}); give a GGUF model") from None

        def field(name: str, otherwise):
            return reader.fields[name].contents() if name in reader.fields else otherwise

        if field("general.type", "model") != "model":
            raise ValueError(f"the base {file} is a GGUF {field('general.type', '')}, but must be a model")
        heads = field(f"{architecture}.attention.head_count", None)
        keys = field(f"{architecture}.attention.head_count_kv", heads)
        shapes = {tensor.name: tuple(map(int, reversed(tensor.shape))) for tensor in reader.tensors}
        return cls(
            _known(architecture, f"the base {file} of architecture {architecture!r}"),
            {"attn_q": heads, "attn_qkv": heads, "attn_k": keys}, "output.weight" in shapes, shapes,
        )  # fmt: skip

    @classmethod
    def named(cls, name: Union[str, os.PathLike], revision: Optional[str] = None) -> "Base":
        """Returns what is known of a model by its name: a folder, a repository, or a GGUF file as a backbone's name.

        Raises:
            OSError: if it is not there.
        """
        if is_gguf(name):
            return cls.of_file(gguf_path(os.fspath(name), revision))
        with said_in_one_line(os.fspath(name), "load"):
            fields, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
            if fields.get("model_type") == TagiConfig.model_type:
                return cls.of_config(TagiConfig.from_pretrained(name, revision=revision))
            return cls.of_config(AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False))


def write_gguf(
    adapter,
    file: Union[str, os.PathLike],
    base_model: Union[str, os.PathLike, None] = None,
    name: Optional[str] = None,
):
    """Writes the one task of a [`TagiAdapter`]. See its `save_gguf`."""
    require_gguf("writing an adapter as GGUF")
    target = _require_place(file)
    factors = {f"{part} of {path!r}": x for part, of in (("A", adapter.lora_a), ("B", adapter.lora_b))
               for path, x in of.items()}  # fmt: skip
    require_finite(factors, f"no adapter was written to {target}", "make it anew")
    base = _base_of(adapter, base_model)
    tensors = tensors_of(adapter, base)
    if adapter.memory is not None:
        logger.warning_once(
            "an adapter was saved as GGUF without the instruction memory that its generator's fusion attends to: in "
            "llama.cpp it answers differently from model.generate(adapter=…)"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(target) as beside:
        _write(beside, adapter, base, tensors, name or target.stem)


def tensors_of(adapter, base: Base) -> dict[str, np.ndarray]:
    """Returns the tensors of the file, fp32: A `[rank, d_in]` and B `[d_out, rank]` of each module by their names.

    llama.cpp applies `alpha / rank * B A` with the rank of each pair, and one alpha for the file. B takes up what
    differs from that in the adapter's scale.

    Raises:
        ValueError: if llama.cpp has no such tensor, or the base none of that shape.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    numbers = [int(part) for path in adapter.lora_a for part in path.split(".") if part.isdigit()]
    (key,) = (key for key, known in MODEL_ARCH_NAMES.items() if known == base.architecture)
    names = get_tensor_name_map(key, max(numbers, default=0) + 1)
    found = {}
    for path in sorted(adapter.lora_a):  # equal adapters are equal files
        a, b = _array(adapter.lora_a[path]), _array(adapter.lora_b[path])
        name = names.get_name(path)
        if name is None or name == "token_embd" or (name == "output" and not base.has_head):
            tied = ", which has the token embeddings as its head" if name == "output" else ""
            raise ValueError(
                f"the adapter changes {path!r}, for which llama.cpp's architecture {base.architecture!r}{tied} has no "
                "weight that takes a LoRA; merge the adapter instead (adapter.merge_into) and convert the model"
            )
        _require_shape(base, f"{name}.weight", (len(b), a.shape[1]), path)
        kind = name.rpartition(".")[2]
        reorder = ARCHITECTURES[base.architecture].get(kind)
        b = b * np.float32(adapter.lora_alpha / _alpha(adapter) * (len(a) / adapter.rank))
        found[name + LORA_A] = a
        found[name + LORA_B] = b if reorder is None else reorder(b, base.heads[kind])
    return found


def _alpha(adapter) -> float:
    """Returns the alpha that the file has."""
    return float(np.float32(adapter.lora_alpha))


def _array(x: Tensor) -> np.ndarray:
    return x[0].detach().float().cpu().contiguous().numpy()


def _write(file: Path, adapter, base: Base, tensors: dict[str, np.ndarray], name: str):
    from gguf import GGUFType, GGUFWriter, LlamaFileType

    source = adapter.provenance[0] if adapter.provenance else {}
    writer = GGUFWriter(file, base.architecture)
    try:
        writer.add_type(GGUFType.ADAPTER)
        writer.add_name(name)
        if source.get("instruction"):
            writer.add_description(source["instruction"])
        if source.get("backbone"):
            writer.add_base_model_count(1)
            writer.add_base_model_name(0, source["backbone"])
        writer.add_file_type(LlamaFileType.ALL_F32)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", _alpha(adapter))
        for key, x in tensors.items():
            writer.add_tensor(key, np.ascontiguousarray(x))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _base_of(adapter, base_model: Union[str, os.PathLike, None]) -> Base:
    if base_model is not None:
        return Base.named(base_model)
    model = adapter.origin() if adapter.origin is not None else None
    if model is not None:
        return Base.of_config(model.backbone.config)
    source = adapter.provenance[0] if adapter.provenance else {}
    if not source.get("backbone"):
        raise ValueError(
            "a GGUF LoRA names the architecture of its base, and the adapter does not say which model it is for; give "
            "base_model=: a folder, USER/NAME on the Hub, or a GGUF file"
        )
    return Base.named(source["backbone"], source.get("backbone_revision"))


# What is refused


def _known(architecture: str, what: str) -> str:
    if architecture not in ARCHITECTURES:
        kinds = sorted(set(ARCHITECTURES) | set(_MODEL_TYPES))
        raise ValueError(
            f"{what} cannot get a GGUF LoRA: in which order llama.cpp has the rows of its weights is known for "
            f"{', '.join(kinds)} alone; merge the adapter instead (adapter.merge_into) and convert the model"
        )
    return architecture


def _require_shape(base: Base, name: str, shape: tuple[int, int], path: str):
    if base.shapes is not None and base.shapes.get(name) != shape:
        held = " × ".join(map(str, base.shapes.get(name, ()))) or "absent"
        raise ValueError(
            f"the adapter changes {path!r} by {shape[0]} × {shape[1]}, but {name} of the base is {held}; give the "
            "model that the adapter was made for"
        )


def _require_place(file: Union[str, os.PathLike]) -> Path:
    """Returns the path of a GGUF file that may be written: absent, or an adapter.

    Raises:
        ValueError: if it has another ending, or would replace a folder or a model.
    """
    from gguf import GGUFReader

    place = Path(file)
    if place.suffix != ".gguf":
        raise ValueError(f"the file is {os.fspath(file)!r}, but must be a name that ends in .gguf")
    if place.is_dir():
        raise ValueError(f"{place} is a folder; give the name of a file")
    if place.exists():
        try:
            kind = GGUFReader(place).fields["general.type"].contents()
        except (ValueError, KeyError, IndexError):
            kind = None
        if kind != "adapter":
            raise ValueError(f"{place} is there already and is no GGUF adapter; choose another name")
    return place
