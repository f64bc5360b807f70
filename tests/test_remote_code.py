import ast
from pathlib import Path

import modeling_tagi

PACKAGE = Path(modeling_tagi.__file__).parent
# What asks at a terminal whether to run a repository's own code, unless it is told that it is not to.
ASKING = {"AutoConfig", "AutoTokenizer"}


def test_no_configuration_or_tokenizer_is_read_that_may_ask_to_run_code():
    asked, seen = [], 0
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"{x}.from_pretrained" for x in ASKING}:
                seen += 1
                told = {keyword.arg: keyword.value for keyword in node.keywords}.get("trust_remote_code")
                if told is None or ast.unparse(told) != "False":
                    asked.append(f"{file.relative_to(PACKAGE)}:{node.lineno}")
    assert seen >= 8 and not asked
