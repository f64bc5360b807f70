"""Files that are something else than they should be: pickles, links and names that lead elsewhere, bombs."""

import json
import shutil
import struct
import zipfile

import doors
from hostile_case import Case, share

HUGE = 2**40
F32 = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
HEADERS = {
    "whose header is 2^63 long": {"header": b"{}", "length": 2**63},
    "whose header is 90 MB long, but not there": {"header": b"{}", "length": 90_000_000},
    "whose header is nested 10^7 deep": {"header": b'{"x":' + b"[" * 10**7},
    "whose header is cut off": {"header": b'{"x": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]'},
    "of a shape of 2^80": {"header": {"x": {**F32, "shape": [HUGE, HUGE]}}},
    "of a shape that overflows": {"header": {"x": {**F32, "shape": [2**62, 4]}}},
    "of a shape below zero": {"header": {"x": {**F32, "shape": [-4, -4]}}},
    "with offsets behind its end": {"header": {"x": {**F32, "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}}},
    "with offsets that overlap": {"header": {"x": F32, "y": F32}},
    "with offsets backwards": {"header": {"x": {**F32, "data_offsets": [64, 0]}}},
    "of a type that is none": {"header": {"x": {**F32, "dtype": "PICKLE"}}},
    "of a shape of 100 000 axes": {"header": {"x": {"dtype": "U8", "shape": [1] * 10**5, "data_offsets": [0, 64]}}},
    "of 20 000 empty tensors": {"header": {f"x{n}": EMPTY for n in range(20_000)}, "body": b""},
    "with names that lead out": {"header": {"../../x": F32}},
}
WEIGHTS = {
    "checkpoint/model.safetensors": (doors.model, "model.safetensors is broken|lacks .* of the model's tensors"),
    "backbone/model.safetensors": (doors.backbone, "model.safetensors is broken|lacks .* of the model's tensors"),
    "adapter/adapter_model.safetensors": (doors.adapter, "adapter_model.safetensors (is no whole|holds '.*no LoRA)"),
    "memory/tagi_memory.safetensors": (doors.at(doors.adapter, "memory"),
                                       "tagi_memory.safetensors (is no whole|holds '.*no part of)"),
}  # fmt: skip
TEXTS = {
    "checkpoint/config.json": (doors.model, "checkpoint/config.json is broken"),
    "checkpoint/generation_config.json": (doors.used, None),  # transformers takes its defaults
    "checkpoint/tokenizer_config.json": (doors.used, "the tokenizer at .*checkpoint' cannot be read"),
    "checkpoint/tokenizer.json": (doors.used, "the tokenizer at .*checkpoint' cannot be read"),
    "backbone/config.json": (doors.backbone, "backbone/config.json is broken"),
    "adapter/adapter_config.json": (doors.adapter, "adapter_config.json is damaged"),
    "adapter/tagi_adapter.json": (doors.adapter, "tagi_adapter.json is damaged"),
    "bank/index.json": (doors.bank, "index.json is no index"),
    "function/function.json": (doors.function, "function.json is damaged"),
}
LINK = "is a link that leads out of its folder, to "
SHARD = "model.safetensors.index.json names .* but must name files of safetensors beside it"
BACKBONE_PICKLE = "the weights of .*backbone are a pickle of more than tensors"


def moved(name, pickled, zipped=True):
    """A pickle in place of a file, under another name."""

    def plant(place):
        (place / name).unlink()
        (place.pickle if zipped else place.plain_pickle)(pickled)

    return plant


def bomb(name):
    def plant(place):
        with zipfile.ZipFile(place / name, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("archive/data.pkl", b"\0" * (1 << 26))

    return plant


def index(name, file):
    return lambda place: place.index(name, file.format(up=place.up, out=place.outside))


def index_of_pickle(file):
    def plant(place):
        place.index("checkpoint", file)
        place.pickle(f"checkpoint/{file}")

    return plant


def index_text(content):
    def plant(place):
        place.index("checkpoint", "x")
        (place / "checkpoint" / "model.safetensors.index.json").write_text(content)

    return plant


def other_formats(place):
    (place / "checkpoint" / "model.safetensors").unlink()
    for name in ("tf_model.h5", "flax_model.msgpack", "pytorch_model.bin.index.json"):
        place.pickle(f"checkpoint/{name}")


def apart_with_pickle(place):
    where = {"backbone_in_checkpoint": False, "backbone_name_or_path": str(place / "backbone")}
    place.edit("checkpoint/config.json", **where)
    moved("backbone/model.safetensors", "backbone/pytorch_model.bin")(place)


def added(place):
    line = json.dumps({"x": {"folder": "../../outside/adapter"}})
    (place / "bank" / "index-added.jsonl").write_text(line + "\n")


def linked_folder(place):
    shutil.rmtree(place / "bank" / "one")
    (place / "bank" / "one").symlink_to(place.outside / "adapter")


def edit(name, **fields):
    return lambda place: place.edit(name, **fields)


def link(name, to):
    return lambda place: place.link(name, to)


def header(name, given):
    return lambda place: place.header(name, **given)


def gguf(*parts):
    return lambda place: (place / "model.gguf").write_bytes(b"GGUF" + b"".join(parts))


def counts(tensors, fields):
    return struct.pack("<IQQ", 3, tensors, fields)


def string(content, length=None):
    return struct.pack("<Q", len(content) if length is None else length) + content


BOMBS = [Case(f"{name} {what}", header(name, given), *WEIGHTS[name]) for what, given in HEADERS.items()
         for name in WEIGHTS]  # fmt: skip
PICKLES = [
    *(Case(f"{name} is a pickle", lambda place, name=name: place.pickle(name), *door)
      for name, door in WEIGHTS.items()),
    *(Case(f"{name} is a pickle without a zip", lambda place, name=name: place.plain_pickle(name), *door)
      for name, door in {**WEIGHTS, **TEXTS}.items()),
    *(Case(f"{name} is a bomb of a zip", bomb(name), *door) for name, door in WEIGHTS.items()),
    Case("a checkpoint's weights are pytorch_model.bin",
         moved("checkpoint/model.safetensors", "checkpoint/pytorch_model.bin"), doors.model,
         "checkpoint holds its weights as pytorch_model.bin, a pickle"),
    *(Case(f"a backbone's weights are pytorch_model.bin, zipped: {zipped}",
           moved("backbone/model.safetensors", "backbone/pytorch_model.bin", zipped), doors.backbone, BACKBONE_PICKLE)
      for zipped in (True, False)),
    Case("a named backbone's weights are pytorch_model.bin", apart_with_pickle, doors.model, BACKBONE_PICKLE),
    Case("a checkpoint in other formats", other_formats, doors.model, "no file named model.safetensors"),
    Case("adapter_model.bin", moved("adapter/adapter_model.safetensors", "adapter/adapter_model.bin"), doors.adapter,
         "adapter has no adapter_model.safetensors"),
    *(Case(f"{name} beside", lambda place, name=name: place.pickle(name), door, None) for name, door in (
        ("checkpoint/pytorch_model.bin", doors.used), ("checkpoint/training_args.bin", doors.used),
        ("adapter/adapter_model.bin", doors.adapter), ("adapter/training_args.bin", doors.adapter),
        ("bank/one/adapter_model.bin", doors.bank), ("function/adapter_model.bin", doors.function))),
    Case("an index of shards names a pickle", index_of_pickle("x.bin"), doors.model, SHARD),
    Case("an index of shards names a pickle by another name", index_of_pickle("x.safetensors"), doors.model,
         "x.safetensors is broken"),
]  # fmt: skip
NAMES = [
    *(Case(f"an index of shards in a {name} names {file!r}", index(name, file), door, SHARD)
      for file in ("{up}/model.safetensors", "{out}/model.safetensors", "../backbone/model.safetensors", "x.bin", "")
      for name, door in (("checkpoint", doors.model), ("backbone", doors.backbone))),
    Case("an index of shards is a list", index_text("[]"), doors.model, "index.json is broken"),
    Case("an index of shards has numbers", index_text('{"weight_map": {"x": 1}}'), doors.model, "json is broken"),
    *(Case(f"a bank's folder is {folder!r}", lambda place, folder=folder: place.bank(
        folder.format(out=place.outside)), doors.bank, "index.json names folders that are not beside it")
      for folder in ("../../outside/adapter", "{out}/adapter", "..", "", "a/../../adapter", "../bank", "x\0y", ".")),
    Case("a bank's adapter is elsewhere", edit("bank/index.json", adapters__one={"source": "other/repo"}), doors.bank,
         "index.json is no index"),
    Case("a bank's tasks are named as ways out", edit("bank/index.json", adapters={"../../x": {"folder": "one"}}),
         doors.bank, None),
    Case("a bank's added lines lead out", added, doors.bank, "added.jsonl names folders that are not beside it"),
    Case("an adapter names a folder as its backbone", edit("adapter/adapter_config.json",
         base_model_name_or_path="/etc"), doors.adapter, None),
    Case("an adapter names code", edit("adapter/adapter_config.json", auto_mapping={"parent_library": "os",
         "base_model_class": "system"}), doors.adapter, None),
    Case("an adapter of rank 2^40", edit("adapter/adapter_config.json", r=HUGE), doors.adapter, "are of rank 4, but"),
    Case("an adapter of another type", edit("adapter/adapter_config.json", peft_type="../x"), doors.adapter, "'../x'"),
    *(Case(f"a function is made from {source!r}", edit("function/function.json", made_from={
        "generator": source, "generator_revision": revision}), doors.function, words)
      for source, revision, words in (("other/repo", None, "cannot load other/repo"),
                                      ("other/repo", "../../x", "cannot load other/repo"),
                                      (["x"], None, "must be named as a folder"),
                                      ("/nowhere", None, "there is no folder /nowhere"))),
    Case("a pushed checkpoint's shards are elsewhere", index("checkpoint", "{up}/model.safetensors"),
         doors.at(doors.push, "checkpoint"), SHARD),
    Case("a pushed checkpoint's code is elsewhere", edit("checkpoint/config.json",
         auto_map={"AutoModel": "../../outside/x.Y"}), doors.at(doors.push, "checkpoint"), "lacks ../../outside/x.py"),
]  # fmt: skip
LINKS = [
    *(Case(f"{name} is a link to {to}", link(name, to), door, f"{name} {LINK}") for name, to, door in [
        ("checkpoint/model.safetensors", "model.safetensors", doors.model),
        ("checkpoint/config.json", "config.json", doors.run),
        ("checkpoint/config.json", "/dev/zero", doors.model),
        ("checkpoint/tokenizer.json", "secret.json", doors.used),
        ("checkpoint/tokenizer_config.json", "secret.json", doors.used),
        ("checkpoint/generation_config.json", "secret.json", doors.model),
        ("checkpoint/instruction_index.json", "secret.json", doors.used),
        ("checkpoint/README.md", "secret.json", doors.release),
        ("checkpoint/notes.txt", "secret.json", doors.at(doors.push, "checkpoint")),
        ("backbone/model.safetensors", "model.safetensors", doors.backbone),
        ("backbone/config.json", "config.json", doors.backbone),
        ("adapter/adapter_model.safetensors", "adapter/adapter_model.safetensors", doors.adapter),
        ("adapter/adapter_config.json", "adapter/adapter_config.json", doors.run_adapter),
        ("adapter/adapter_config.json", "/dev/zero", doors.adapter),
        ("adapter/tagi_adapter.json", "secret.json", doors.adapter),
        ("adapter/README.md", "secret.json", doors.at(doors.push, "adapter")),
        ("bank/index.json", "secret.json", doors.bank),
        ("bank/.index.json", "secret.json", doors.bank_added),
        ("bank/index-added.jsonl", "secret.json", doors.bank_added),
        ("bank/more", "adapter", doors.at(doors.push, "bank")),
        ("function/function.json", "secret.json", doors.function)]),
    Case("a bank's adapter is a link", linked_folder, doors.bank, f"bank/one {LINK}"),
    Case("a checkpoint's link to a file of its own", link("checkpoint/more.txt", "../given/checkpoint/config.json"),
         doors.model, None),
]  # fmt: skip
GGUFS = [
    Case(f"a GGUF file {name}", plant, doors.gguf, "of the backbone '.*model.gguf' cannot be read")
    for name, plant in [
        ("with 2^60 tensors and fields", gguf(counts(2**60, 2**60))),
        ("with 2^24 tensors", gguf(counts(2**24, 0))),
        ("with a text of 2^62", gguf(counts(0, 1), string(b"general.architecture"), struct.pack("<I", 8),
                                     string(b"llama", 2**62))),
        ("without sizes", gguf(counts(0, 1), string(b"general.architecture"), struct.pack("<I", 8), string(b"llama"))),
        ("with a list of 2^50", gguf(counts(0, 1), string(b"a.b"), struct.pack("<IIQ", 9, 8, 2**50))),
        ("with 2^33 bytes", gguf(counts(0, 1), string(b"a.b"), struct.pack("<IIQ", 9, 0, 2**33), b"\0" * 64)),
        ("nested 100 000 deep", gguf(counts(0, 1), string(b"a.b"), struct.pack("<I", 9),
                                     struct.pack("<IQ", 9, 1) * 10**5)),
        ("that is empty", gguf()),
        ("that is a pickle", lambda place: place.pickle("model.gguf")),
    ]
]  # fmt: skip
CASES = [*share(BOMBS, 7), *share(PICKLES, 4), *share(NAMES, 4), *share(LINKS, 4), *share(GGUFS, 3)]
