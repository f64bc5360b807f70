"""What the benchmarks share: alternatives that take turns, ratios with their spread, peak memory, one line of JSON.

A benchmark is a script. It makes its cases with the package, hands them to `measured`, compares them with `Ratio.of`,
and ends with `finish`. `python tests/benchmarks/everything.py` runs all and writes docs/results/benchmarks.json.
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Callable, Iterable, Optional

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers reads it
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch  # noqa: E402
import transformers  # noqa: E402

from modeling_tagi.common.console import progress_bar, quiet_libraries  # noqa: E402
from modeling_tagi.common.markdown import markdown_table  # noqa: E402


def parser(doc: str, repeats: int = 7) -> argparse.ArgumentParser:
    """The arguments that every benchmark has; add its own to it."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="less of everything, within 50 s: for a look, no result")
    made.add_argument("--threads", type=int, default=2, help="of torch")
    made.add_argument("--repeats", type=int, default=repeats, help="of each case, in turns")
    made.add_argument("--device", default="cpu")
    made.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    return made


def started(made: argparse.ArgumentParser, quick: Optional[dict] = None) -> argparse.Namespace:
    """The options of a run, seed and threads set; those in `quick` take the place of others under `--quick`."""
    options = made.parse_args()
    if options.quick:
        vars(options).update(quick or {})
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    quiet_libraries()
    return options


def synchronize(device: str):
    """Waits for what a GPU still has to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measured(cases: dict[str, Callable[[], object]], options, warmups: int = 1) -> dict[str, list[float]]:
    """Seconds of each case, `options.repeats` times after `warmups`; the cases take turns."""
    seconds = {name: [] for name in cases}
    names = ", ".join(cases) if len(cases) < 5 else f"{len(cases)} cases"
    bar = progress_bar(total=options.repeats, desc=names, unit="repeat")
    for repeat in range(-warmups, options.repeats):
        for name, case in cases.items():
            gc.collect()
            synchronize(options.device)
            start = time.perf_counter()
            case()
            synchronize(options.device)
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - start)
        bar.update(repeat >= 0)
    bar.close()
    return seconds


def peak_memory(case: Callable[[], object], device: str = "cpu", warm: bool = True) -> float:
    """Bytes that `case` needs at most beyond what was there before: on a CPU the growth of a forked process's largest
    resident size, which is exact to some MiB (some 100 without a `warm` call of the case before); on a GPU of what
    torch has allocated."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before)
    context = multiprocessing.get_context("fork")
    parent, child = context.Pipe(duplex=False)

    def run():
        # OpenMP's threads do not survive a fork; memory does not depend on how many there are
        torch.set_num_threads(1)
        if warm:
            case()  # the pages of libraries, which a fork shares only once they are touched
        gc.collect()
        _give_back_free_memory()
        before = _resident()
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # forget the largest size so far
        case()
        child.send(_largest() - before)

    process = context.Process(target=run)
    process.start()
    child.close()
    try:
        return float(parent.recv())
    except EOFError:
        raise RuntimeError("the process whose memory was to be measured died; see above") from None
    finally:
        process.join()


def _give_back_free_memory():
    """What the heap holds of earlier work would be used again without a trace in the resident size."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc's
        libc.malloc_trim(0)


def _resident() -> int:
    return _status("VmRSS")


def _largest() -> int:
    """Bytes: this process's largest resident size since it was last forgotten."""
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


@dataclass
class Ratio:
    """One figure and what it is held to.

    Args:
        name: What by what.
        value: The figure.
        low, high: Quartiles over the repeats, where there are any.
        at_most, at_least: The goal; both `None` for what is only told.
    """

    name: str
    value: float
    low: Optional[float] = None
    high: Optional[float] = None
    at_most: Optional[float] = None
    at_least: Optional[float] = None

    @classmethod
    def of(cls, name: str, above: Iterable[float], below: Iterable[float], **goal) -> "Ratio":
        """`above / below`, repeat by repeat: the median of the ratios, and their quartiles."""
        ratios = [one / other for one, other in zip(above, below, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        return cls(name, middle, low, high, **goal)

    @property
    def met(self) -> Optional[bool]:
        """Whether the goal is reached; `None` without one."""
        if self.at_most is not None:
            return round(self.value, 3) <= self.at_most
        return round(self.value, 3) >= self.at_least if self.at_least is not None else None

    @property
    def goal(self) -> str:
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return f"≥ {self.at_least:g}" if self.at_least is not None else "–"


def finish(question: str, ratios: list[Ratio], options, **facts):
    """Prints the table of the ratios and then the one line of JSON; the first ratio is the answer to `question`."""
    rows = [
        (r.name, f"{r.value:.3f}", "–" if r.low is None else f"{r.low:.3f} to {r.high:.3f}", r.goal,
         {True: "yes", False: "no", None: "–"}[r.met]) for r in ratios
    ]  # fmt: skip
    print("\n" + "\n".join(markdown_table(("ratio", "median", "quartiles", "goal", "met"), rows)) + "\n")
    first = ratios[0]
    print(json.dumps({
        "question": question,
        "ratio": round(first.value, 4),
        "goal": first.goal,
        "met": all(r.met is not False for r in ratios),
        "ratios": [{**_rounded(asdict(r)), "met": r.met} for r in ratios],
        **facts,
        "options": vars(options),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else _cpu(),
    }, ensure_ascii=False))  # fmt: skip


def _rounded(values: dict) -> dict:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items() if v is not None}


def _cpu() -> str:
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]  # fmt: skip
    return f"{names[0] if names else 'CPU'}, {os.cpu_count()} cores"
