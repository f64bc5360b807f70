"""A process that has transformers, but not this package."""

import os
import subprocess
import sys

_REFUSING = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == "modeling_tagi" or name.startswith("modeling_tagi."):
            raise ImportError("modeling_tagi must not be needed")

sys.meta_path.insert(0, Refuse())
"""


def run_without_package(code, *arguments, cwd):
    """Runs Python code in such a process, offline, and returns what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**kept, "HF_HOME": str(cwd / "hf"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", _REFUSING + code, *map(str, arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


WRITTEN_BY_AUTO_MODEL = """
import transformers

model = transformers.AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
print(sum(float(b.abs().sum()) for b in model.generate_adapter(sys.argv[2]).lora_b.values()))
"""
