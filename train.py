"""Trains a generator of adapters: config -> task adapters -> pretraining -> finetuning -> evaluation -> save.

    python train.py [CONFIG.yaml] [--field value ...]

This is `tagi train`, which an installed package has too: see modeling_tagi/commands/train.py.
"""

import sys

from modeling_tagi.commands.main import train

if __name__ == "__main__":
    sys.exit(train())
