"""Calls of the model and of adapters with arguments that make no sense."""

import pickle
import shutil

import torch
from case import Either, Fine, Place, Refused
from python_cases import Scene, Wrong, finite, python_case, refused
from world import INSTRUCTION

FINE = Fine()


def _instruction(name, value, expects, *more):
    return python_case(
        f"instruction {name}", lambda s: finite(s.m.generate_adapter(value() if callable(value) else value, *more)),
        expects,
    )  # fmt: skip


KINDS = "text|texts|token ids"
INSTRUCTIONS = [
    _instruction("empty", "", refused("instruction is ''")),
    _instruction("whitespace", "  \n\t ", refused("instruction is")),
    _instruction("list with empty", ["a", ""], refused("instruction is ''")),
    _instruction("empty list", [], refused("no instruction")),
    _instruction("None", None, refused("None", KINDS)),
    _instruction("int", 5, refused("5|int", KINDS)),
    _instruction("dict", {"a": 1}, refused("dict", KINDS)),
    _instruction("bytes", b"write", refused("bytes", KINDS)),
    _instruction("nested list", [["a"]], refused(KINDS)),
    _instruction("float tensor", lambda: torch.tensor([[1.5, 2.0]]), refused("float", "whole|integer|ids|Long|int")),
    _instruction("ids out of vocabulary", lambda: torch.tensor([[5, 10**6]]), refused("1000000", "vocabulary")),
    _instruction("negative ids", lambda: torch.tensor([[5, -3]]), refused("-3", "vocabulary")),
    _instruction("empty tensor", lambda: torch.empty(1, 0, dtype=torch.long), refused("0 tokens")),
    _instruction("all pad ids", lambda: torch.zeros(1, 4, dtype=torch.long), refused("0 tokens")),
    _instruction("emoji", "write 🦊🔥 the last wörd 日本語 \u202e rtl �", FINE),
    _instruction("lone surrogate", "write \ud800 this", refused("surrogate|UTF-8|Unicode")),
    _instruction("NUL byte", "write \x00 the word", FINE),
    _instruction("100k chars", "word " * 20_000, refused("tokens", "1024")),
    _instruction("10M chars one word", lambda: "plum" * 2_500_000, refused("tokens", "1024")),
]  # fmt: skip


def _shown(name, demonstrations, *words, instruction="write"):
    return python_case(
        f"demonstrations {name}", lambda s: s.m.generate_adapter(instruction, demonstrations), refused(*words)
    )


DEMONSTRATIONS = [
    _shown("string", "dog", "demonstrations", "pairs"),
    _shown("not pairs", ["dog"], "demonstration", "pair"),
    _shown("triple", [("a", "b", "c")], "demonstration", "pair"),
    _shown("None inside", [("a", None)], "demonstration", "pair"),
    _shown("two-letter strings", ["ab"], "demonstration", "pair"),
    _shown("with list of instructions", [("x", "y")], "2 instructions", "demonstrations", instruction=["a", "b"]),
]


def _inputs(name, value, expects):
    return python_case(f"encode_inputs {name}", lambda s: s.m.encode_inputs(value)["input_ids"].shape, expects)


def _answer(name, adapter, *words, **options):
    return python_case(name, lambda s: s.answers(adapter(s), **options), refused(*words))


A_TAGI = ("adapter", "TagiAdapter")
USES = [
    _inputs("empty list", [], refused("no inputs")),
    _inputs("None", None, refused("None|NoneType", "text|texts|list")),
    _inputs("[None]", [None], refused("None|NoneType", "input")),
    _inputs("[1]", [1], refused("input|text", "str|text")),
    _inputs("1M words", "word " * 1_000_000, FINE),
    _answer("generate adapter=string", lambda s: "x", *A_TAGI),
    _answer("generate adapter=folder", lambda s: str(s.world.adapter), *A_TAGI),
    _answer("generate adapter=dict", lambda s: {}, *A_TAGI),
    _answer("generate adapter=list", lambda s: [s.ad], *A_TAGI),
    _answer("generate 3 adapters for 2 rows", lambda s: s.m.generate_adapter(["a", "b", "c"]), "2 rows", "3 adapters"),
    _answer("generate 0 adapters", lambda s: s.ad[[]], "no adapter"),
    python_case("generate max_new_tokens -1",
                lambda s: s.m.generate(**s.batch, adapter=s.ad, max_new_tokens=-1), refused("max_new_tokens", "-1")),
    python_case("index out of range", lambda s: s.ad[7], refused("7", "adapter")),
    python_case("index string", lambda s: s.ad["x"], refused("'x'|str", "number|index|whole")),
    python_case("adapter on bf16 to float model", lambda s: s.answers(s.ad.to(torch.bfloat16)), FINE),
    python_case("adapter int dtype", lambda s: s.answers(s.ad.to(torch.int8)), refused("int8", "float")),
    python_case("adapter to cuda", lambda s: s.ad.to("cuda"), Either(refused("CUDA|cuda|NVIDIA")), accidents=True),
    python_case("adapter to meta", lambda s: s.answers(s.ad.to("meta")), refused("meta")),
]  # fmt: skip


def _combine(s: Scene, weights, **options):
    from modeling_tagi import TagiAdapter

    return TagiAdapter.combine([s.two[0], s.two[1]], weights, **options)


def _combining(name, weights, *words, **options):
    return python_case(f"combine {name}", lambda s: _combine(s, weights, **options), refused(*words))


COMBINE = [
    python_case("combine empty", lambda s: type(s.ad).combine([], []), refused("0 adapters")),
    _combining("weights mismatch", [1.0], "2 adapters", "1 weights"),
    _combining("nan weight", [float("nan"), 1.0], "nan|finite", "weight", memory=0),
    _combining("memory 5", [1, 1], "memory", "5", memory=5),
    _combining("no memory arg", [1, 1], "memory", "None"),
    _combining("string weights", ["a", "b"], "'a'|number", memory=0),
    python_case("merge with memory", lambda s: s.ad.merge_into(s.m), refused("memory")),
]


def _tune(name, records, *words, expects=None, **options):
    return python_case(
        f"tune {name}", lambda s: finite(s.ad.tune(records, **{"steps": 1, "progress": False, **options})),
        expects or refused(*words),
    )  # fmt: skip


ONE = [("dog plum", "plum")]


def _after_pickling(s: Scene):
    return pickle.loads(pickle.dumps(s.ad)).tune(ONE, steps=1)


TUNE = [
    _tune("no examples", [], "no examples"),
    _tune("steps -1", ONE, "steps", "-1", steps=-1),
    _tune("steps 0", ONE, "steps", "0", steps=0),
    _tune("steps 1.5", ONE, "steps", r"1\.5", steps=1.5),
    _tune("lr negative", ONE, "learning.rate", "-1", learning_rate=-1),
    _tune("lr nan", ONE, "learning.rate", "nan", learning_rate=float("nan")),
    _tune("strings", ["ab"], "example 0", "pair|dict"),
    _tune("None target", [("a", None)], "example 0", "None"),
    _tune("empty target", [("a", "")], "example 0", "''"),
    python_case("tune after pickling", _after_pickling, refused("tune needs the model")),
]


def _a_file(place: Place):
    (place.here / "afile").write_text("mine")


SAVE = [
    python_case("save to file path", lambda s: s.ad.save_pretrained(s.here / "afile"), refused("afile", "is a file"),
                _a_file),
    python_case("save to ''", lambda s: s.ad.save_pretrained(""), refused("folder|directory", "''|empty|names no")),
    python_case("save None", lambda s: s.ad.save_pretrained(None), refused("None", "str|folder|path")),
    python_case("save stack of 2", lambda s: s.two.save_pretrained(s.place.out), refused("one adapter", "2")),
    python_case("push bad name", lambda s: s.ad.push_to_hub("a/b/c"), refused("a/b/c")),
    python_case("push offline", lambda s: s.ad.push_to_hub("me/x"), refused("me/x", "token")),
]  # fmt: skip


def _made(name, *words, expects=None, backbone=None, make=None, **fields):
    def call(s: Scene):
        from modeling_tagi import TagiModel

        return type(TagiModel.from_backbone(backbone(s) if backbone else str(s.world.backbone), **fields)).__name__

    return python_case(f"from_backbone {name}", call, expects or refused(*words), make)


def _empty(place: Place):
    (place.here / "emptyd").mkdir()


def _cut_gguf(place: Place):
    (place.here / "cut.gguf").write_bytes(b"GGUF\3\0\0\0")


def _bert(place: Place):
    from transformers import BertConfig, BertLMHeadModel

    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
                        is_decoder=True)  # fmt: skip
    BertLMHeadModel(config).save_pretrained(place.here / "bert")


FROM_BACKBONE = [
    _made("r=0", r"\br is 0", r=0),
    _made("lora_alpha=-1", "lora_alpha is -1", lora_alpha=-1),
    _made("fusion=x", "fusion is 'x'", "concat", fusion="x"),
    _made("target_modules=['zz']", "target_modules", "zz", target_modules=["zz"]),
    _made("generator=zz", "generator is 'zz'", "shared", generator="zz"),
    _made("generator_hidden_size=0", "generator_hidden_size is 0", generator_hidden_size=0),
    _made("max_instruction_length=-1", "max_instruction_length is -1", max_instruction_length=-1),
    _made("input_format=yaml", "input_format is 'yaml'", "chat", input_format="yaml"),
    _made("rank=3", "rank", "3", rank=3),
    _made("fusion_heads=99", expects=Either(refused("fusion_heads", "99")), fusion_heads=99),
    _made("None", "None|NoneType", "folder|backbone|name", backbone=lambda s: None),
    _made("missing", "/nope/x", "there is no|folder", backbone=lambda s: "/nope/x"),
    _made("a TAGI checkpoint", "TAGI checkpoint|already|from_pretrained|tagi", backbone=lambda s: str(s.world.model)),
    _made("an adapter folder", "adapter|model_type", backbone=lambda s: str(s.world.adapter)),
    _made("empty dir", "emptyd", backbone=lambda s: str(s.here / "emptyd"), make=_empty),
    _made("gguf missing", "no such file", backbone=lambda s: "/nope", gguf_file="x.gguf"),
    _made("gguf_file no GGUF", "ends in .gguf", gguf_file="model.bin"),
    _made("gguf cut off", "cut off|pip install gguf", backbone=lambda s: s.here / "cut.gguf", make=_cut_gguf),
    _made("package missing", "no installed package", backbone=lambda s: "package:nowhere", gguf_file="x.gguf"),
    _made("model_type unsupported", "target_modules", "bert", backbone=lambda s: str(s.here / "bert"), make=_bert),
]


# After adapters' folders

def _combined_others(s: Scene):
    adapters = [s.ad, s.other.generate_adapter(INSTRUCTION)]
    return type(s.ad).combine(adapters, [1, 1], memory=0)


def _stacked(s: Scene, *adapters):
    return type(s.ad).stack(adapters)


def _others(s: Scene):
    return s.other.generate_adapter(INSTRUCTION)


def _read_of_other(s: Scene):
    _others(s).save_pretrained(s.place.out)
    return s.answers(type(s.ad).from_pretrained(s.place.out))


def _after_change(scale):
    """The backbone changes after the adapter was made; every weight of it, or those that the adapter changes."""

    def call(s: Scene):
        adapter = s.ad
        with torch.no_grad():
            for x in s.m.backbone.parameters():
                x *= scale
        return s.answers(adapter)

    return call


def _no_nan(s: Scene, adapter):
    return s.answers(finite(adapter))


BACKBONES = "backbone|weights|generator"
OTHERS = [
    python_case("adapter of another model (same shape)", lambda s: s.answers(_others(s)), refused(BACKBONES)),
    python_case("combine adapters of two models", _combined_others, refused("backbone|weights")),
    python_case("stack adapters of two models", lambda s: _stacked(s, s.ad, _others(s)),
                Either(refused("backbone|weights"))),
    python_case("similarity of two models' adapters", lambda s: s.ad.similarity(_others(s)),
                refused("backbone|weights")),
    python_case("adapter of another model read from folder", _read_of_other,
                Refused((BACKBONES,), late=True)),
    python_case("merge adapter into other model", lambda s: s.ad.without_memory().merge_into(s.other),
                refused(BACKBONES)),
    python_case("adapter without cross-attn memory kind (hint) in tagi",
                lambda s: s.answers(s.hint.generate_adapter(INSTRUCTION)), refused(BACKBONES + "|memory")),
    python_case("tagi adapter in hint model", lambda s: s.answers(s.ad, s.hint), refused(BACKBONES + "|memory")),
    python_case("adapter of other rank/modules", lambda s: s.answers(s.wide.generate_adapter(INSTRUCTION)),
                refused(BACKBONES)),
    python_case("combine of other modules",
                lambda s: type(s.ad).combine([s.ad, s.wide.generate_adapter(INSTRUCTION)], [1, 1], memory=0),
                refused("backbone|weights|modules")),
    python_case("similarity other modules", lambda s: s.ad.similarity(s.wide.generate_adapter(INSTRUCTION)),
                Either(refused("backbone|weights|modules"))),
    python_case("adapter after backbone weights changed", _after_change(1.02), Either(refused(BACKBONES))),
    python_case("stack of two models, then generate", lambda s: s.answers(_stacked(s, s.ad, _others(s))),
                refused("backbone|weights")),
    python_case("stack of two models, then generate (reversed)", lambda s: s.answers(_stacked(s, _others(s), s.ad)),
                refused("backbone|weights")),
    python_case("stack []", lambda s: type(s.ad).stack([]), refused("no adapters")),
    python_case("stack [None]", lambda s: type(s.ad).stack([None]), refused("None|NoneType", "TagiAdapter|adapter")),
    python_case("stack adapter and string", lambda s: _stacked(s, s.ad, "x"), refused("str|'x'", "TagiAdapter")),
    python_case("combine a8, ga (different backbones' weights)",
                lambda s: type(s.ad).combine([s.made(target_modules=["k"]).generate_adapter("a"), s.ad], [1, 1],
                                             memory=0),
                refused("backbone|weights|modules")),
    python_case("stack other rank", lambda s: _stacked(s, s.ad, s.made(r=4).generate_adapter("a")),
                refused("differ")),
    python_case("combine NaN weight then generate",
                lambda s: _no_nan(s, _combine(s, [float("nan"), 1.0], memory=0)), refused("nan|finite", "weight")),
    python_case("combine inf weight", lambda s: finite(_combine(s, [float("inf"), 1.0], memory=0)),
                refused("inf", "weight")),
    python_case("adapter after all backbone weights x1.5 in memory", _after_change(1.5), refused(BACKBONES)),
]  # fmt: skip


def _copied_checkpoint(place: Place):
    place.world.checkpoint(place.here / "ck")


def _copied_adapter(place: Place):
    shutil.copytree(place.world.adapter, place.here / "ad")


def _load(s: Scene, folder, **options):
    from modeling_tagi import TagiModel

    return TagiModel.from_pretrained(folder, **options)


def _save_over_own(s: Scene):
    model = _load(s, s.here / "ck")
    model.save_pretrained(s.here / "ck")
    again = _load(s, s.here / "ck")
    if any(not x.equal(again.state_dict()[name]) for name, x in model.state_dict().items()):
        raise Wrong("other weights than were saved")


def _auto(s: Scene):
    from transformers import AutoModel

    return AutoModel.from_pretrained(s.world.adapter, trust_remote_code=True)


def _misindexed(index):
    return lambda s: s.answers(s.two, task_index=index() if callable(index) else index)


def _low_precision(s: Scene):
    model = _load(s, s.world.model, dtype=torch.float16)
    adapter = model.generate_adapter(INSTRUCTION)
    return model.generate(**model.encode_inputs("dog plum"), adapter=adapter, max_new_tokens=2)


def _trained_backbone(s: Scene):
    return s.m.save_pretrained(s.place.out, include_backbone=False)


def _similar_after(rate):
    def call(s: Scene):
        tuned = s.ad.tune(ONE, steps=2, learning_rate=rate, progress=False)
        found = finite(tuned).similarity(s.ad)
        if not found.isfinite().all():
            raise Wrong(f"a similarity of {found}")
        return found

    return call


USED = [
    python_case("save over model's own folder", _save_over_own, Fine(replaces=True), _copied_checkpoint,
                writes=("ck",)),
    python_case("model.save_pretrained over an adapter folder", lambda s: s.m.save_pretrained(s.here / "ad"),
                refused("ad", "adapter"), _copied_adapter),
    python_case("model.save_pretrained to a file", lambda s: s.m.save_pretrained(s.here / "afile"),
                refused("afile", "file|folder"), _a_file),
    python_case("AutoModel on adapter folder", _auto, refused("adapter|model_type")),
    python_case("TagiModel on plain T5", lambda s: _load(s, s.world.backbone), refused("t5", "TAGI|backbone")),
    python_case("task_index out of range", lambda s: s.answers(s.ad, task_index=torch.tensor([0, 7])),
                refused("task_index|7", "1|last|range|bounds")),
    python_case("task_index wrong length", _misindexed([0]), refused("task_index", "2")),
    python_case("forward without labels/decoder ids", lambda s: s.m(**s.batch, adapter=s.ad),
                refused("labels|decoder|input_ids")),
    python_case("generate without inputs", lambda s: s.m.generate(adapter=s.ad, max_new_tokens=2),
                refused("input_ids|inputs")),
    python_case("misspelt generate kwarg", lambda s: s.m.generate(**s.batch, adaptor=s.ad, max_new_tokens=2),
                refused("adaptor")),
    python_case("misspelt generate_adapter kwarg", lambda s: s.m.generate_adapter("a", demonstration=[("a", "b")]),
                refused("demonstration")),
    python_case("save include_backbone=False of trained backbone", _trained_backbone,
                refused("backbone", "changed|trained")),
    python_case("dtype float8", lambda s: _load(s, s.world.model, dtype=torch.float8_e4m3fn), refused("float8")),
    python_case("dtype int8", lambda s: _load(s, s.world.model, dtype=torch.int8), refused("int8")),
    python_case("dtype 'foo'", lambda s: _load(s, s.world.model, dtype="foo"), refused("foo|dtype"), accidents=True),
    python_case("float16 on CPU", _low_precision, Either(refused("float16|Half"))),
    python_case("model.eval vs train: tune with target longer than 1000 words",
                lambda s: finite(s.m.train().generate_adapter("a").tune([("a", "word " * 1200)], steps=1,
                                                                        progress=False)), FINE),
    _tune("batch_size 0", ONE, "batch_size", "0", batch_size=0),
    _tune("dict missing target", [{"input": "a"}], "example 0", "target"),
    _tune("lr inf", ONE, "learning.rate|finite", "inf|finite", learning_rate=float("inf")),
    python_case("tune lr 1e30 then similarity", _similar_after(1e30), refused("finite|learning.rate")),
    python_case("task_index [0,5] of 2 adapters", _misindexed(lambda: torch.tensor([0, 5])),
                refused("5", "2|last|range|bounds")),
    python_case("task_index [0,-1] of 2 adapters", _misindexed(lambda: torch.tensor([0, -1])),
                refused("-1", "task_index|2|last|range|bounds")),
    python_case("task_index strings", _misindexed(["a", "b"]), refused("task_index", "'a'|str|whole|number|tensor")),
]  # fmt: skip

FIRST = [*INSTRUCTIONS, *DEMONSTRATIONS, *USES, *COMBINE, *TUNE, *SAVE, *FROM_BACKBONE]
LAST = [*OTHERS, *USED]
