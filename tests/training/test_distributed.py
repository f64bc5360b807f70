"""Runs of train.py by several processes, started as people start them, beside runs of one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil  # accelerate needs it too
import pytest
import yaml
from safetensors.torch import load_file
from tiny import tiny_settings, write_tiny_data

ROOT = Path(__file__).parents[2]
STEPS = 50  # the log has a line for each
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE, SHARES, SHARED_STATES, ZERO2, ZERO3 = (
    ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file",
     str(ROOT / "hub_configs" / "accelerate" / f"{name}.yaml")]
    for name in ("ddp", "fsdp2", "fsdp2-whole-weights", "zero2", "zero3")
)  # fmt: skip
LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
RUNS = {
    "t5": {},
    "llama": {"backbone.config": LLAMA, "finetuning.alignment": "delta", "finetuning.accumulation": 2},
    # a single task for two processes, which therefore both train on all of each batch
    "one task": {"train_tasks": 1, "evaluation.references": ["start_prompted"]},
}
FUSED = {f"{stage}.optimizer": "adamw_torch_fused" for stage in ("instruction_tuning", "finetuning")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("processes")
    write_tiny_data(made, unseen=["next"])
    settings = tiny_settings(made, steps=STEPS, save_every=20, optimizer="adamw_torch")
    settings["backbone"]["config"]["dropout_rate"] = 0.0  # each process draws its own
    (made / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return made


def start(folder, output_dir, launcher=(), **overrides):
    if launcher in (ZERO2, ZERO3):
        pytest.importorskip("deepspeed", reason="weights sharded by DeepSpeed are tried where it is installed")
    script = ROOT / ("tests/training/on_cpu_sharded.py" if launcher in (SHARES, SHARED_STATES) else "train.py")
    fields = [x for name, value in overrides.items() for x in (f"--{name}", json.dumps(value))]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return subprocess.Popen(
        [sys.executable, *launcher, str(script), "tiny.yaml", "--output_dir", output_dir, *fields],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(process):
    out, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    return out


def require_equal(one, two):
    logs = sorted(one.glob("stages/*/log*.jsonl"))
    names = ["finetuning", "instruction_tuning", "pretraining", "task_adapters", "text"]
    assert [log.parent.name for log in logs] == names
    for log in logs:
        ours, theirs = ([json.loads(line) for line in (run / log.relative_to(one)).read_text().splitlines()]
                        for run in (one, two))  # fmt: skip
        assert len(ours) == len(theirs) == STEPS
        for a, b in zip(ours, theirs):
            assert a.keys() == b.keys()
            assert abs(a["loss"] - b["loss"]) <= 1e-5, (log, a, b)
            assert abs(a["grad_norm"] - b["grad_norm"]) <= 1e-4 * max(1, a["grad_norm"]), (log, a, b)
            rounded = [name for name in a if name.startswith("loss_")]  # to five places
            assert all(abs(a[name] - b[name]) < 2.1e-5 for name in rounded), (log, a, b)
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    assert all((x - theirs[name]).abs().max() < 1e-5 for name, x in ours.items())
    ours, theirs = (json.loads((run / "results.json").read_text()) for run in (one, two))
    assert ours["splits"] == theirs["splits"] and ours["splits"]["unseen"]["methods"]["tagi"]["n"] == 6
    assert (ours["run"]["processes"], theirs["run"]["processes"]) == (1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_end_as_one_with_the_same_batches(folder, name):
    one, two = f"one-{name}", f"two-{name}"
    end(start(folder, one, **RUNS[name]))
    out = end(start(folder, two, ACCELERATE if name == "llama" else TORCHRUN, **RUNS[name]))
    require_equal(folder / one, folder / two)
    assert out.count("finetuning: starts") == 1 and out.count("scores in per cent") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name, launcher, more", [
    ("t5", SHARES, FUSED),
    ("t5", SHARES, {"finetuning.teacher_cache": "states"}),
    ("llama", SHARED_STATES, {"gradient_checkpointing": True}),
    ("t5", ZERO2, FUSED),
    ("t5", ZERO3, {"finetuning.teacher_cache": "states"}),
    ("llama", ZERO3, {"gradient_checkpointing": True}),
], ids=["t5", "cache", "llama", "zero2", "zero3", "zero3-llama"])  # fmt: skip
def test_sharded_weights_end_as_whole_ones(folder, name, launcher, more):
    if not (folder / f"one-{name}").is_dir():
        end(start(folder, f"one-{name}", **RUNS[name]))
    shares = f"shares-{name}-{len(more)}-{Path(launcher[-1]).stem}"
    end(start(folder, shares, launcher, **RUNS[name], **more))
    require_equal(folder / f"one-{name}", folder / shares)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [SHARES, ZERO2, ZERO3], ids=["fsdp2", "zero2", "zero3"])
def test_sharded_weights_compute_in_bfloat16(folder, launcher):
    one, two = folder / "one-bf16", folder / f"two-bf16-{Path(launcher[-1]).stem}"
    for run, by in ((one, ()), (two, launcher)):
        if not run.is_dir():
            end(start(folder, run.name, by, bf16=True, **{"train_tasks": 2, "finetuning.teacher_cache": 64}))
    for log in sorted(one.glob("stages/*/log*.jsonl")):
        ours, theirs = ([json.loads(line)["loss"] for line in (run / log.relative_to(one)).read_text().splitlines()]
                        for run in (one, two))  # fmt: skip
        assert ours != theirs and all(abs(x - y) < 0.05 * x for x, y in zip(ours, theirs, strict=True)), log


@pytest.mark.slow
@pytest.mark.parametrize("name, first, second", [
    ("by-one", TORCHRUN, ()), ("by-two", TORCHRUN, TORCHRUN), ("in-shares", SHARES, SHARES),
    ("zero2", ZERO2, ZERO2), ("zero3", ZERO3, ZERO3),
])
def test_a_run_of_two_that_was_killed_is_taken_up(folder, name, first, second):
    whole, cut = folder / "one-t5", folder / f"cut-{name}"
    if not whole.is_dir():
        end(start(folder, whole.name))
    process = start(folder, cut.name, first)
    checkpoint = cut / "stages" / "finetuning" / "checkpoints" / "all" / "checkpoint-20" / "complete"
    while not checkpoint.is_file():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    # torchrun's workers are in sessions of their own, and would end the run without it
    for one in (*psutil.Process(process.pid).children(recursive=True), process):
        one.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (cut / "stages" / "finetuning" / "done.json").exists()
    out = end(start(folder, cut.name, second))
    assert "finetuning: goes on" in out and out.count("was done before") == 4
    results = json.loads((cut / "results.json").read_text())
    if not second:
        results["run"]["processes"] = 2
        (cut / "results.json").write_text(json.dumps(results))
    require_equal(whole, cut)
