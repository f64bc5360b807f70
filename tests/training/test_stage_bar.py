from types import SimpleNamespace

import pytest

from modeling_tagi.training import stage_training


def test_a_training_that_breaks_off_leaves_no_bar(monkeypatch, tmp_path):
    bars = []

    class Broken:
        def __init__(self, **options):
            self.bar = None

        def remove_callback(self, callback):
            pass

        def add_callback(self, callback):
            self.bar = callback

        def train(self, resume_from_checkpoint):
            state = SimpleNamespace(global_step=0, max_steps=3, is_world_process_zero=True)
            self.bar.on_train_begin(None, state, None)
            bars.append((self.bar, self.bar.training_bar))
            raise OSError("the disk is full")

    monkeypatch.setattr(stage_training, "TagiTrainer", Broken)
    monkeypatch.setattr(stage_training, "training_arguments", lambda *args: None)
    stage = SimpleNamespace(folder=tmp_path, label="[2/6] instruction_tuning", name="instruction_tuning")
    run = SimpleNamespace(settings=SimpleNamespace(bf16=False, seed=0))
    with pytest.raises(OSError, match="the disk is full"):
        stage_training.train_stage(run, stage, None, None, None, None, None, seed=0)
    [(callback, bar)] = bars
    assert callback.training_bar is None and bar.disable  # tqdm's word for a bar that is closed
