"""Sharded weights (FSDP2) on two CPU processes. This file is the test and, run as a script, what the processes do.

accelerate shares weights on GPUs alone, so the shares are torch's own here.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import T5Config

from modeling_tagi import TagiConfig, TagiModel


def made():
    torch.manual_seed(0)
    backbone = T5Config(
        vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = TagiModel(TagiConfig(
        backbone_config=backbone, r=2, lora_alpha=4, generator_hidden_size=8, generator_index_size=4
    ))  # fmt: skip
    for stack in model.hypernetwork.stacks:
        for weight in stack.output_weights:
            torch.nn.init.normal_(weight, std=0.3)
    model.set_trainable("all")
    return model


def step(model, rows):
    generator = torch.Generator().manual_seed(1)
    inputs, labels = (torch.randint(2, 30, (4, length), generator=generator)[rows] for length in (5, 3))
    instructions = torch.randint(2, 30, (4, 6), generator=generator)[rows]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(input_ids=inputs, attention_mask=torch.ones_like(inputs), labels=labels, instruction_input_ids=instructions,
          instruction_attention_mask=torch.ones_like(instructions),
          task_index=torch.arange(len(inputs))).loss.backward()  # fmt: skip
    optimizer.step()


def main(folder):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo")
    rank, mesh = torch.distributed.get_rank(), init_device_mesh("cpu", (2,))
    model = made()
    for module in list(model.modules()):
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(hasattr(x, "full_tensor") for x in model.parameters())
    step(model, slice(2 * rank, 2 * rank + 2))
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        model.save_pretrained(folder, state_dict=state, max_shard_size="20KB")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_sharded_weights_take_the_step_of_whole_ones_and_their_checkpoint_loads(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([sys.executable, *launch, __file__, str(tmp_path)], env=environment, check=True, timeout=300)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    before, whole = made().state_dict(), made()
    step(whole, slice(None))
    loaded = TagiModel.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    assert max((x - before[name]).abs().max() for name, x in whole.state_dict().items()) > 1e-3
    assert all(torch.allclose(loaded[name], x, atol=1e-6) for name, x in whole.state_dict().items())
    files = [load_file(file) for file in tmp_path.glob("model-*.safetensors")]
    assert sum(map(len, files)) == len(set().union(*files)) > 10


if __name__ == "__main__":
    main(sys.argv[1])
