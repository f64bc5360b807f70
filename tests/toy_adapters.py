"""What tests compare of adapters."""

import torch


def flat(adapter):
    tensors = {**{f"a {k}": v for k, v in adapter.lora_a.items()}, **{f"b {k}": v for k, v in adapter.lora_b.items()}}
    if adapter.memory is not None:
        tensors.update({f"memory {k}": v for k, v in adapter.memory.tensors().items()})
    return tensors


def assert_same(one, two):
    one_flat, two_flat = flat(one), flat(two)
    assert one_flat.keys() == two_flat.keys() and one.lora_alpha == two.lora_alpha and one.provenance == two.provenance
    for name, tensor in one_flat.items():
        assert tensor.dtype == two_flat[name].dtype and torch.equal(tensor, two_flat[name]), name


def names(folder):
    return sorted(path.name for path in folder.iterdir())
