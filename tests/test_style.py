import configparser
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from modeling_tagi import TagiAdapter, TagiConfig, TagiModel

ROOT = Path(__file__).parents[1]
HOOKS = {
    hook["id"]: hook
    for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    for hook in repository["hooks"]
}


@pytest.mark.parametrize("linter", HOOKS)
def test_the_code_passes_the_linters_of_setup_cfg(linter):
    if linter in ("mypy", "bandit") and importlib.util.find_spec(linter) is None:
        pytest.skip(f'{linter} is not installed; pip install -c constraints.txt -e ".[demo,docs,serve,test]" does it')
    python, *command = shlex.split(HOOKS[linter]["entry"])
    result = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert python == "python" and result.returncode == 0, result.stdout + result.stderr


def test_hooks_before_a_commit_are_the_linters_of_the_test_environment():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    fixed = dict(re.findall(r"^([\w-]+)==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    assert list(HOOKS) == ["flake8", "isort", "mypy", "bandit"]
    for linter, hook in HOOKS.items():
        assert hook["language"] == "system"  # whose version is that of the environment, which these two lines fix
        (least,) = re.findall(rf"^{linter}>=(.+)$", setup["options.extras_require"]["test"], re.M)
        assert version(fixed[linter]) >= version(least)


def version(text):
    return tuple(map(int, text.split(".")))


def signatures(cls):
    """The signatures of what a class of the package offers, by name; what it inherits from others is theirs."""
    for base in cls.__mro__:
        if base.__module__.startswith("modeling_tagi."):
            for name, member in vars(base).items():
                member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                if inspect.isfunction(member) and (not name.startswith("_") or name in ("__init__", "__getitem__")):
                    yield f"{base.__name__}.{name}", inspect.signature(member)


@pytest.mark.parametrize("cls", [TagiModel, TagiConfig, TagiAdapter])
def test_what_users_call_is_annotated(cls):
    found = dict(signatures(cls))
    assert len(found) > 2
    for name, signature in found.items():
        bare = [parameter.name for parameter in signature.parameters.values() if
                parameter.annotation is parameter.empty and parameter.name not in ("self", "cls")]  # fmt: skip
        assert not bare, f"{name}: {', '.join(bare)}"
        assert name.endswith("__init__") or signature.return_annotation is not signature.empty, name
