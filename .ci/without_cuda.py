"""Lets a CUDA build of torch run on a machine without CUDA, and without the gigabytes of libraries that it asks for.

    python .ci/without_cuda.py

PyPI has no CPU builds of torch. `pip install --no-deps torch==…` leaves NVIDIA's libraries out; this puts empty ones
in their place, in the same environment: every function of theirs answers 35, which CUDA's runtime calls an
insufficient driver, so `torch.cuda.is_available()` is False and everything runs on the CPU. What torch's metadata asks
for of CUDA is struck out, or the next `pip install` of whatever needs torch would fetch it. For tests alone.
"""

import importlib.metadata
import importlib.util
import re
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

_INSUFFICIENT_DRIVER = 35
# What is asked for without CUDA too: whether a graph is being captured, and what an error is called.
_ANSWERED = {
    "cudaStreamIsCapturing": "int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }",
    "cudaGetErrorString": 'const char *cudaGetErrorString(int error) { return "there is no CUDA here"; }',
    "cudaGetErrorName": 'const char *cudaGetErrorName(int error) { return "cudaErrorInsufficientDriver"; }',
}


def main():
    _strike_out(Path(importlib.metadata.distribution("torch").locate_file("")))
    libraries = Path(importlib.util.find_spec("torch").origin).parent / "lib"
    ours = [file for file in libraries.glob("*.so*") if file.is_file()]
    present = {file.name for file in ours} | _of_the_system()
    wanted, undefined, defined = set(), set(), set()
    for file in ours:
        wanted |= set(re.findall(r"\(NEEDED\).*\[(.+)\]", _output("readelf", "-dW", file)))
        for line in _output("nm", "-D", file).splitlines():
            kind, symbol = line[17:].split(maxsplit=1)
            if kind == "U":
                undefined.add(symbol)
            elif kind not in "wv":
                defined.add(re.sub("@.*", "", symbol))
    missing = sorted(wanted - present)
    if not missing:
        print("torch has all the libraries that it asks for")
        return
    system = _symbols_of_the_system(wanted & _of_the_system())
    # symbol versions are named after their library, as in cudaMalloc@libcudart.so.12
    by_library = defaultdict(lambda: defaultdict(set))
    for symbol in undefined:
        name, _, version = symbol.partition("@")
        if name in defined or name in system:
            continue
        library = version if version in missing else missing[0]
        by_library[library][version].add(name)
    for library in missing:
        _write(libraries / library, by_library[library])
    print(f"torch runs without {', '.join(missing)}")


def _strike_out(packages: Path):
    """Takes the requirements of CUDA from torch's metadata."""
    (file,) = packages.glob("torch-*.dist-info/METADATA")
    text = file.read_text(encoding="utf-8")
    file.write_text(re.sub(r"(?m)^Requires-Dist: (nvidia-|cuda-|triton).*\n", "", text), encoding="utf-8")


def _write(path: Path, names_by_version: dict[str, set[str]]):
    """A library with functions of these names."""
    names = sorted(set().union(*names_by_version.values()))
    with tempfile.TemporaryDirectory() as folder:
        source, versions = Path(folder) / "empty.c", Path(folder) / "versions"
        refusal = "int {}(void) {{ return %d; }}" % _INSUFFICIENT_DRIVER
        source.write_text("".join(f"{_ANSWERED.get(name, refusal.format(name))}\n" for name in names))
        versions.write_text("".join(
            f"{version} {{ global: {'; '.join(sorted(own))}; }};\n"
            for version, own in names_by_version.items() if version
        ))  # fmt: skip
        script = [f"-Wl,--version-script={versions}"] if versions.read_text() else []
        subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{path.name}", *script,
                        "-o", path, source], check=True)  # fmt: skip


def _of_the_system() -> set[str]:
    return set(re.findall(r"^\s+(\S+) \(", _output("ldconfig", "-p"), re.M)) | {"ld-linux-x86-64.so.2"}


def _symbols_of_the_system(libraries: set[str]) -> set[str]:
    places = dict(re.findall(r"^\s+(\S+) \(.*x86-64.*\) => (\S+)", _output("ldconfig", "-p"), re.M))
    found = set()
    for library in libraries & places.keys():
        for line in _output("nm", "-D", "--defined-only", places[library]).splitlines():
            found.add(re.sub("@.*", "", line.split()[-1]))
    return found


def _output(*command) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
