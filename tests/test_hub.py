import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from hub_stand_in import hub_stand_in
from safetensors.torch import load_file, save_file

PUSH = """
import sys
from modeling_tagi import TagiModel

model = TagiModel.from_pretrained(sys.argv[1])
model.push_to_hub("user/generator")
model.save_pretrained("saved-and-pushed", push_to_hub=True, repo_id="user/other")
"""

PULL = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == "modeling_tagi" or name.startswith("modeling_tagi."):
            raise ImportError("modeling_tagi must not be needed")

sys.meta_path.insert(0, Refuse())
import json
from safetensors.torch import load_file, save_file
from transformers import AutoModel

model = AutoModel.from_pretrained("user/generator", trust_remote_code=True)
adapter = model.generate_adapter("say yes")
ids = load_file(sys.argv[1])["ids"]
tokens = model.generate(ids, adapter=adapter, max_new_tokens=5, min_new_tokens=5)
save_file({"tokens": tokens.contiguous()}, sys.argv[2])
print(json.dumps(adapter.provenance[0]))
"""


def run(code, arguments, cwd, **environment):
    kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=cwd, env={**kept, **environment},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_what_one_process_pushes_another_pulls_and_uses(make_model, tokenizer, random_ids, tmp_path):
    model = make_model("t5")
    model.tokenizer = tokenizer
    model.save_pretrained(tmp_path / "saved")
    ids = random_ids(2, 5)
    save_file({"ids": ids}, tmp_path / "ids.safetensors")
    root = Path(__file__).parents[1]
    with hub_stand_in() as hub:
        online = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_x", "HOME": str(tmp_path)}
        run(PUSH, [tmp_path / "saved"], tmp_path, HF_HOME=str(tmp_path / "one"), PYTHONPATH=str(root), **online)
        pushed = hub.files["user/generator"]
        arguments = [tmp_path / "ids.safetensors", tmp_path / "tokens.safetensors"]
        (tmp_path / "elsewhere").mkdir()
        printed = run(PULL, arguments, tmp_path / "elsewhere", HF_HOME=str(tmp_path / "two"), **online)
        revision = hub.revision("user/generator")
    for repository in ("user/generator", "user/other"):
        assert set(hub.files[repository]) >= {path.name for path in (tmp_path / "saved").iterdir()}
    assert not [name for name in pushed if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    assert pushed["model.safetensors"] == (tmp_path / "saved" / "model.safetensors").read_bytes()
    expected = model.generate(ids, adapter=model.generate_adapter("say yes"), max_new_tokens=5, min_new_tokens=5)
    assert torch.equal(load_file(tmp_path / "tokens.safetensors")["tokens"], expected)
    provenance = json.loads(printed.splitlines()[-1])
    assert provenance["generator"] == "user/generator" and provenance["generator_revision"] == revision
