"""The page of a Space: set the variable CHECKPOINT to the checkpoint's repository."""

import os

import torch

from modeling_tagi import TagiModel
from modeling_tagi.demo.page import launch, make_page

name = os.environ.get("CHECKPOINT")
if not name:
    raise SystemExit("set the Space's variable CHECKPOINT to the repository of a TAGI checkpoint, such as user/name")
model = TagiModel.from_pretrained(name).eval().to("cuda" if torch.cuda.is_available() else "cpu")
page = make_page(model, name)
launch(page, "0.0.0.0", None)
page.block_thread()
