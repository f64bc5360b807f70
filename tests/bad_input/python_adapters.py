"""Folders of adapters that something happened to, read and used."""

import json
import os
import pickle
import random
import shutil

import torch
from case import Either, Fine, Place, Refused
from python_cases import Scene, python_case, refused
from safetensors.torch import load_file, save_file

WEIGHTS, MEMORY = "adapter_model.safetensors", "tagi_memory.safetensors"
CONFIG, TAGI = "adapter_config.json", "tagi_adapter.json"
FOLDER = "<here>/ad"


def _use(s: Scene, folder=None):
    from modeling_tagi import TagiAdapter

    return s.answers(TagiAdapter.from_pretrained(folder or s.here / "ad"))


def _damaged(name: str, damage, expects):
    """The adapter's folder after `damage`, read and used."""

    def make(place: Place):
        shutil.copytree(place.world.adapter, place.here / "ad")
        damage(place.here / "ad")

    return python_case(name, _use, expects, make)


def _elsewhere(name: str, folder, *words: str, make=None):
    return python_case(name, lambda s: _use(s, folder(s)), refused(*words), make)


def _without(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def _written(name, content):
    content = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(content)


class _Harm:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def _truncate(file):
    file.write_bytes(file.read_bytes()[:-40])


def _flip(file):
    content = bytearray(file.read_bytes())
    content[-6] ^= 1  # a low bit of a number
    file.write_bytes(bytes(content))


def _tensors(change):
    def damage(file):
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, {"format": "pt"})

    return damage


def _nan(tensors):
    for name, x in tensors.items():
        if x.is_floating_point():
            tensors[name] = torch.full_like(x, float("nan"))


def _lack(tensors):
    del tensors["mask" if "mask" in tensors else sorted(tensors)[0]]


def _extra(tensors):
    tensors["extra.weight"] = torch.ones(2)


def _shape(tensors):
    for name, x in tensors.items():
        tensors[name] = torch.cat([x, x, x], -1 if x.dim() == 2 and "mask" not in tensors else 0).contiguous()


def _int(tensors):
    for name, x in tensors.items():
        if x.is_floating_point():
            tensors[name] = x.int()


UNREADABLE = "read|damaged|truncated|broken|safetensors"


def _weights(file: str):
    """Everything that can happen to a file of tensors."""
    there = (FOLDER, file.replace(".", r"\."))
    cases = {
        "truncated": (_truncate, Refused((*there, UNREADABLE))),
        "empty": (lambda path: path.write_bytes(b""), Refused((*there, UNREADABLE))),
        "random": (lambda path: path.write_bytes(random.Random(0).randbytes(5000)), Refused((*there, UNREADABLE))),
        "flipped bytes (data)": (_flip, Either(Refused(there))),
        "is a pickle": (lambda path: path.write_bytes(pickle.dumps(_Harm())), Refused((*there, UNREADABLE))),
        "all NaN": (_tensors(_nan), Refused((FOLDER, "finite|NaN|nan"))),
        "one tensor missing": (_tensors(_lack), Refused((FOLDER, "A and a B|lacks|mask|missing|hold"))),
        "an extra tensor": (_tensors(_extra), Refused((FOLDER, r"extra"))),
        "wrong shape": (_tensors(_shape), Refused(("shape|×|x|rank", "adapter"))),
        "int32": (_tensors(_int), Refused((FOLDER, "int32|float"))),
    }
    return [
        _damaged(f"{file} {name}", lambda folder, damage=damage: damage(folder / file), expects)
        for name, (damage, expects) in cases.items()
    ]


def _malicious(folder):
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(_Harm()))


PLACES = [
    _elsewhere("adapter folder missing", lambda s: "/nope", "/nope"),
    _elsewhere("adapter folder is a file", lambda s: s.world.adapter / CONFIG, r"adapter_config\.json"),
    _elsewhere("adapter folder empty", lambda s: s.here / "e", "<here>/e", r"adapter_config\.json",
               make=lambda place: (place.here / "e").mkdir()),
    _elsewhere("adapter = checkpoint folder", lambda s: s.world.model, "<model>", r"adapter_config\.json|checkpoint"),
    _damaged("adapter without weights", _without(WEIGHTS), Refused((FOLDER, r"adapter_model\.safetensors"))),
    _damaged("adapter without config", _without(CONFIG), Refused((FOLDER, r"adapter_config\.json"))),
    _damaged("adapter without memory file", _without(MEMORY), Refused((FOLDER, r"tagi_memory\.safetensors"))),
    _damaged("adapter without tagi_adapter.json", _without(TAGI), Either(Refused((FOLDER, r"tagi_adapter\.json")))),
]  # fmt: skip


def _config(fields: dict, expects):
    def damage(folder):
        found = json.loads((folder / CONFIG).read_text())
        for name, value in fields.items():
            if value == "DEL":
                found.pop(name, None)
            else:
                found[name] = value
        (folder / CONFIG).write_text(json.dumps(found))

    return _damaged(f"adapter_config {fields}", damage, expects)


def _says(*words):
    return Refused((FOLDER, *words))


FINE = Fine()
CONFIGS = [
    _config({"r": 8}, _says(r"\br\b|rank", "8")),
    _config({"r": 0}, _says(r"\br\b|rank", "0")),
    _config({"r": "4"}, _says(r"\br\b|rank", "4")),
    _config({"r": "DEL"}, _says(r"\br\b|rank")),
    _config({"lora_alpha": -3}, _says("lora_alpha", "-3")),
    _config({"lora_alpha": "DEL"}, _says("lora_alpha")),
    _config({"peft_type": "IA3"}, _says("IA3")),
    _config({"peft_type": "DEL"}, _says("peft_type|type")),
    _config({"base_model_name_or_path": "other/model"}, FINE),
    _config({"base_model_name_or_path": None}, FINE),
    _config({"target_modules": []}, Either(_says("target_modules"))),
    _config({"target_modules": "DEL"}, Either(_says("target_modules"))),
    _config({"use_rslora": True}, _says("use_rslora")),
    _config({"use_dora": True}, _says("use_dora")),
    _config({"rank_pattern": {"x": 3}}, _says("rank_pattern")),
    _config({"alpha_pattern": {"q": 3}}, _says("alpha_pattern")),
    _config({"bias": "all"}, _says("bias")),
    _config({"fan_in_fan_out": True}, Either(_says("fan_in_fan_out"))),
    _config({"modules_to_save": ["lm_head"]}, _says("modules_to_save")),
]

TEXTS = [
    _damaged(f"{file} = {content!r}", _written(file, content), _says(file.replace(".", r"\.")))
    for content in ("", "{", "[]", "null", '"x"', "\0") for file in (CONFIG, TAGI)
]  # fmt: skip


def _told(**fields):
    """Changes fields of what the file says of the adapter's origin."""

    def damage(folder):
        found = json.loads((folder / TAGI).read_text())
        inner = found.get("provenance") if isinstance(found.get("provenance"), dict) else found
        for name, value in fields.items():
            (inner if name in inner else found)[name] = value
        (folder / TAGI).write_text(json.dumps(found))

    return damage


def _of_another(folder):
    found = json.loads((folder / TAGI).read_text())
    for values in (found, found.get("provenance")):
        if isinstance(values, dict) and isinstance(values.get("backbone_fingerprint"), list):
            values["backbone_fingerprint"] = [3.0 * x + 1 for x in values["backbone_fingerprint"]]
    (folder / TAGI).write_text(json.dumps(found))


ORIGINS = [
    _damaged("fingerprint of another backbone", _of_another, Refused(("backbone", "weights"))),
    _damaged("fingerprint a string", _told(backbone_fingerprint="x"),
             Refused(("backbone|fingerprint", "weights|list|numbers|text|str"))),
    _damaged("provenance a string", _written(TAGI, '{"provenance": "x", "needs_memory": true}'),
             Refused((r"tagi_adapter\.json", FOLDER))),
    _damaged("needs_memory a string", _told(needs_memory="yes"), Either(_says("needs_memory"))),
    _damaged("adapter_config utf-16",
             lambda folder: (folder / CONFIG).write_bytes((folder / CONFIG).read_text().encode("utf-16")),
             _says(r"adapter_config\.json")),
]  # fmt: skip

CASES = [
    *PLACES, *_weights(WEIGHTS), *_weights(MEMORY),
    _damaged("adapter_model.bin malicious pickle", _malicious, _says(r"adapter_model\.safetensors")),
    *CONFIGS, *TEXTS, *ORIGINS,
]  # fmt: skip
