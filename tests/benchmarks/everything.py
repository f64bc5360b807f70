"""Runs every benchmark and writes docs/results/benchmarks.json, a line of JSON a run, and benchmarks.md beside it.

    python tests/benchmarks/everything.py [--quick] [--threads 1 2] [--only decoding …] [--output FOLDER]

An idle machine is needed; on two cores it takes hours. A benchmark that was run before is replaced, others stay.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from modeling_tagi.common.markdown import markdown_table  # noqa: E402
from modeling_tagi.common.writing import write_text  # noqa: E402

HERE = Path(__file__).parent
SHARED = {"everything", "harness", "shapes"}
NEEDS_GPU = {"full_size"}
NAMES = sorted(name for path in HERE.glob("*.py") if (name := path.stem) not in SHARED and name[:5] != "test_")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--output", type=Path, help="folder; by default docs/results, but nothing with --quick")
    parser.add_argument("--more", default="", help='arguments for each benchmark, such as "--fusion cross_attention"')
    options = parser.parse_args()
    failed = []
    for number, name in enumerate(options.only):
        if name in NEEDS_GPU and not options.quick and not torch.cuda.is_available():
            print(f"[{number + 1}/{len(options.only)}] {name} needs a GPU, and there is none", flush=True)
            continue
        for threads in options.threads:
            arguments = [f"tests/benchmarks/{name}.py", "--threads", str(threads), *["--quick"] * options.quick,
                         *shlex.split(options.more)]  # fmt: skip
            print(f"[{number + 1}/{len(options.only)}] python {' '.join(arguments)}", flush=True)
            start = time.monotonic()
            done = subprocess.run(
                [sys.executable, *arguments], cwd=HERE.parents[1], stdout=subprocess.PIPE, text=True
            )
            print(done.stdout, flush=True)
            if done.returncode:
                failed.append(name)
                continue
            if options.quick and options.output is None:
                continue
            facts = {"command": "python " + " ".join(arguments), "seconds": round(time.monotonic() - start),
                     "commit": commit()}  # fmt: skip
            result = json.loads(done.stdout.splitlines()[-1])
            record(options.output or HERE.parents[1] / "docs" / "results", {"benchmark": name, **result, **facts})
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def record(folder: Path, result: dict):
    """Puts a result in the place of what its command gave before, and writes the table anew."""
    file = folder / "benchmarks.json"
    before = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    results = [one for one in before if one["command"] != result["command"]] + [result]
    results.sort(key=lambda one: (one["benchmark"], one["options"]["threads"], one["command"]))
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, "".join(json.dumps(one, ensure_ascii=False) + os.linesep for one in results))
    write_text(folder / "benchmarks.md", document(results))


def document(results: list[dict]) -> str:
    """The table of all questions."""
    rows = []
    for one in results:
        for ratio in one["ratios"]:
            spread = f"{ratio['low']:.2f} to {ratio['high']:.2f}" if "low" in ratio else "–"
            goal = f"≤ {ratio['at_most']:g}" if "at_most" in ratio else \
                f"≥ {ratio['at_least']:g}" if "at_least" in ratio else "–"
            met = {True: "yes", False: "**no**"}.get(ratio.get("met"), "–")
            threads, value = str(one["options"]["threads"]), f"{ratio['value']:.3f}"
            rows.append((one["benchmark"], ratio["name"], threads, value, spread, goal, met))
    heads = ("benchmark", "ratio", "threads", "median", "quartiles", "goal", "met")
    versions = {f"torch {one['torch']}, transformers {one['transformers']}, {one['device']}" for one in results}
    commands = [f"- `{one['command']}`: {one['question']} ({one['seconds']} s)" for one in results]
    return "\n".join([
        "# Benchmarks", "",
        "Ratios against a named alternative in the same run, medians of repeats in turns, with quartiles: "
        "`python tests/benchmarks/everything.py`. " + "; ".join(sorted(versions)) + ".", "",
        *markdown_table(heads, rows, text=2), "", *commands, "",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
