"""A mark by which processes tell generators apart, so that they share adapters of the same one alone."""

import hashlib
import json

from ..modeling_tagi import TagiModel

_OF_EACH = 256  # numbers of each tensor: training changes nearly all of them
# Fields of configs that say nothing of what is written; the dtype is that of the weights.
_NOT_READ = ("_name_or_path", "architectures", "auto_map", "custom_pipelines", "dtype", "transformers_version")


def generator_mark(model: TagiModel) -> str:
    """Returns 16 hex digits that differ for models that write different adapters for an instruction.

    They are of the model's settings and of numbers spread evenly over each of its tensors, so that no gigabytes are
    read; weights that differ in other numbers alone go unnoticed. A copy in another folder has the same mark.
    """
    digest = hashlib.sha256(json.dumps(_of_use(model.config.to_dict()), sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.device.type != "meta":  # an offloaded one is elsewhere
            some = tensor.detach().reshape(-1)[:: max(1, tensor.numel() // _OF_EACH)][:_OF_EACH]
            digest.update(some.double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _of_use(fields):
    if isinstance(fields, dict):
        return {str(name): _of_use(value) for name, value in fields.items() if name not in _NOT_READ}
    return fields
