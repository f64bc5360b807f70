"""Whether an adapter fits a model, and a batch."""

from typing import Optional

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .adapter import TagiAdapter


def require_fit(adapter: TagiAdapter, model: PreTrainedModel):
    """Refuses the adapter of another backbone."""
    backbones = sorted({str(source.get("backbone")) for source in adapter.provenance}) or ["None"]
    whose = f"the adapter was made for the backbone {', '.join(backbones)}"
    mend = f"generate it with a generator for this model's backbone, {model.adapter_base()['backbone']!r}"
    for path, a in adapter.lora_a.items():
        try:
            module = model.backbone.get_submodule(path)
        except AttributeError:
            raise ValueError(f"{whose} and changes {path!r}, which this model does not have; {mend}") from None
        d_in, d_out = module.weight.shape if isinstance(module, Conv1D) else module.weight.shape[::-1]
        if hasattr(module, "in_features"):  # quantised weights lie packed
            d_in, d_out = module.in_features, module.out_features
        if (a.shape[2], adapter.lora_b[path].shape[1]) != (d_in, d_out):
            raise ValueError(
                f"{whose}: its update of {path!r} is {adapter.lora_b[path].shape[1]} × {a.shape[2]}, the module's "
                f"weight here {d_out} × {d_in}; {mend}"
            )
    fused = adapter.memory.keys.shape[1] if adapter.memory is not None and adapter.memory.keys is not None else 0
    if fused and fused != len(model.fusion):
        raise ValueError(
            f"the adapter's instruction memory is for cross-attention in {fused} layers, this model has it in "
            f"{len(model.fusion)} (fusion={model.config.fusion!r}); {mend}"
        )
    known = {tuple(source.get("backbone_fingerprint") or ()) for source in adapter.provenance} - {()}
    ours = fingerprint(adapter, model.backbone) if known and not torch.compiler.is_compiling() else None
    for theirs in known if ours is not None else ():
        # half precision keeps 8 bits; other weights differ by much more
        alike = (abs(a - b) <= 1e-4 + 0.02 * abs(b) for a, b in zip(theirs, ours))
        if len(theirs) != len(ours) or not all(alike):
            raise ValueError(f"{whose}, whose weights are not this model's; {mend}")


def require_rows(adapter: TagiAdapter, task_index: Optional[Tensor], rows: int):
    """Refuses a number of adapters that the batch has no use for."""
    if task_index is not None and len(task_index) != rows:
        raise ValueError(
            f"task_index names the adapters of {len(task_index)} rows, but the batch has {rows}; name one for each row"
        )
    if task_index is None and len(adapter) not in (1, rows):
        raise ValueError(
            f"a batch of {rows} rows was given {len(adapter)} adapters; give one for all rows, one for each, or say "
            "with task_index which row has which"
        )


def fingerprint(adapter: TagiAdapter, backbone: nn.Module) -> Optional[list[float]]:
    """A few weights that `adapter` changes, to tell another backbone's; `None` where they cannot be read."""
    weights = [backbone.get_submodule(path).weight for path in sorted(adapter.lora_a)[:8]]
    if any(w.device.type == "meta" or not w.is_floating_point() for w in weights):
        return None
    rows = torch.stack([w.detach()[0, :2].float() for w in weights]).flatten()
    return [round(value, 6) for value in rows.tolist()]
