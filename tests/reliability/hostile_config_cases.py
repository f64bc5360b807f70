"""Configurations that name code, kernels or sizes that a checkpoint has no right to, and templates that run on."""

import doors
from hostile_case import Case, share
from hostile_world import CHAT

ELSEWHERE = {name: "other/repo--module.Class" for name in ("AutoConfig", "AutoModel", "AutoModelForSeq2SeqLM")}
OWN = {name: "module.Class" for name in ELSEWHERE}
PIPELINES = {"tagi-function": {"impl": "other/repo--module.Class", "pt": ["AutoModel"]}}
HUGE = 2**40
TRUST = "trust_remote_code"
KERNEL = r"config.json: \w+ is 'other/kernel', a repository of kernels"
TOO_LARGE = r"config.json describes (a model of|no model that)|config.json: \w+ is \d+, but the weights beside it hold"
TEMPLATE = "the chat template of the tokenizer at .*chat cannot be used "


def checkpoint(**fields):
    return lambda place: place.edit("checkpoint/config.json", **fields)


def backbone(**fields):
    return lambda place: place.edit("backbone/config.json", **fields)


def chat(**fields):
    return lambda place: place.edit("chat/config.json", **fields)


def with_code(name, auto_map=OWN, **fields):
    def plant(place):
        place.edit(f"{name}/config.json", auto_map=auto_map, **fields)
        place.code(f"{name}/module.py")
        place.code(f"{name}/modeling_tagi.py")

    return plant


def generates_by_code(place):
    (place / "checkpoint" / "custom_generate").mkdir()
    place.code("checkpoint/custom_generate/generate.py")
    place.edit("checkpoint/generation_config.json", custom_generate="other/repo")


def tokenizes_by_code(place):
    place.code("checkpoint/module.py")
    place.edit("checkpoint/tokenizer_config.json", auto_map={"AutoTokenizer": ["module.Class", None]})


def tokenizes_by_code_elsewhere(place):
    elsewhere = {"AutoTokenizer": ["other/repo--module.Class", None]}
    place.edit("checkpoint/tokenizer_config.json", auto_map=elsewhere, tokenizer_class="Mine")


def text(name, content):
    return lambda place: (place / name).write_text(content)


def template(content):
    def plant(place):
        place.edit("chat/config.json", input_format="chat")
        place.edit("chat/tokenizer_config.json", chat_template=content)
        (place / "chat" / "chat_template.jinja").unlink(missing_ok=True)

    return plant


def apart(name):
    return checkpoint(backbone_in_checkpoint=False, backbone_name_or_path=name)


CODE = [
    Case("auto_map of another repository", with_code("checkpoint", ELSEWHERE), doors.model, None),
    Case("auto_map of its own code", with_code("checkpoint"), doors.model, None),
    Case("auto_map of another repository, tagi run", with_code("checkpoint", ELSEWHERE), doors.run, None),
    Case("auto_map of another repository, saved again", with_code("checkpoint", ELSEWHERE), doors.saved_again, None),
    Case("auto_map of another repository, AutoConfig", with_code("checkpoint", ELSEWHERE), doors.auto_config, TRUST),
    Case("auto_map of another repository, AutoModel", with_code("checkpoint", ELSEWHERE), doors.auto, TRUST),
    Case("auto_map of its own code, AutoModel", with_code("checkpoint"), doors.auto, TRUST),
    Case("auto_map of another repository inside", checkpoint(backbone_config__auto_map=ELSEWHERE), doors.model, None),
    Case("auto_map that is a list", checkpoint(auto_map=[["a"]]), doors.model, None),
    Case("auto_map of another repository, backbone", with_code("backbone", ELSEWHERE), doors.backbone, None),
    Case("a backbone that only its code knows", with_code("backbone", model_type="mine"), doors.backbone, TRUST),
    Case("a type that only code elsewhere knows",
         checkpoint(backbone_config__model_type="mine", backbone_config__auto_map=ELSEWHERE), doors.model, TRUST),
    Case("a generator in a generator", checkpoint(backbone_config={"model_type": "tagi"}), doors.model, TRUST),
    Case("trust_remote_code in config.json", with_code("checkpoint", trust_remote_code=True), doors.model,
         "TagiConfig: unknown field 'trust_remote_code'"),
    Case("trust_remote_code in backbone_config", checkpoint(backbone_config__trust_remote_code=True,
         backbone_config__auto_map=OWN), doors.model, None),
    Case("trust_remote_code in a backbone", with_code("backbone", trust_remote_code=True), doors.backbone, None),
    *(Case(f"{name} of a repository in {where.__name__}'s {inside or 'config.json'}",
           where(**{inside + name: "other/kernel"}), door, KERNEL)
      for name in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal",
                   "_experts_implementation")
      for where, door in ((checkpoint, doors.model), (backbone, doors.backbone))
      for inside in ("", "backbone_config__") if where is checkpoint or not inside),
    Case("a kernel for one part", checkpoint(attn_implementation={"": "eager", "x": "other/kernel"}), doors.model,
         KERNEL),
    Case("custom_pipelines elsewhere, pipeline", checkpoint(custom_pipelines=PIPELINES), doors.piped, TRUST),
    Case("custom_pipelines elsewhere", checkpoint(custom_pipelines=PIPELINES), doors.model, None),
    Case("quantization_config", checkpoint(quantization_config={"quant_method": "gptq", "bits": 4}), doors.model,
         "checkpoint/config.json has a quantization_config"),
    Case("quantization_config inside", checkpoint(backbone_config__quantization_config={"load_in_4bit": True}),
         doors.model, "checkpoint/config.json has a quantization_config"),
    Case("custom_generate", generates_by_code, doors.used, None),
    Case("a tokenizer's code", tokenizes_by_code, doors.used, None),
    Case("a tokenizer's code elsewhere", tokenizes_by_code_elsewhere, doors.used, None),
    Case("backbone_config is a name", checkpoint(backbone_config="other/repo"), doors.model, "backbone_config is str"),
    Case("a backbone that is elsewhere", apart("other/repo"), doors.model, "checkpoint holds a generator without"),
    Case("a backbone that leaves its package", apart("package:json/../../x.gguf"), doors.model, "no such file"),
]  # fmt: skip
JSON = [
    Case("config.json nested 100 000 deep", text("checkpoint/config.json", '{"a":' * 10**5), doors.model,
         "checkpoint/config.json is broken"),
    Case("config.json with 10 000 digits", text("checkpoint/config.json", f'{{"r": {"9" * 10000}}}'), doors.model,
         "checkpoint/config.json is broken"),
    Case("config.json that is a list", text("backbone/config.json", "[1]"), doors.backbone,
         "backbone/config.json is broken"),
    Case("adapter_config.json nested 100 000 deep", text("adapter/adapter_config.json", '{"a":' * 10**5),
         doors.adapter, "adapter/adapter_config.json is damaged"),
    Case("index.json nested 100 000 deep", text("bank/index.json", '{"a":' * 10**5), doors.bank,
         "bank/index.json is no index"),
    Case("function.json nested 100 000 deep", text("function/function.json", '{"a":' * 10**5), doors.function,
         "function/function.json is damaged"),
    Case("function.json that asks for 2^40 tokens", lambda place: place.edit("function/function.json",
         max_new_tokens=HUGE), doors.function, "function/function.json is damaged .max_new_tokens is 1099511627776"),
    Case("generation_config.json of 2^40", lambda place: place.edit("checkpoint/generation_config.json",
         max_new_tokens=HUGE, num_beams=HUGE), doors.used, None),
]  # fmt: skip
SIZES = [
    *(Case(f"a checkpoint's {field} is {value}", checkpoint(**{field: value}), doors.model, TOO_LARGE)
      for field, value in [
          ("generator_hidden_size", HUGE), ("generator_hidden_size", 10**8), ("generator_index_size", HUGE),
          ("r", HUGE), ("r", 10**7), ("backbone_config__d_model", 10**6), ("backbone_config__d_model", HUGE),
          ("backbone_config__vocab_size", 10**9), ("backbone_config__vocab_size", HUGE),
          ("backbone_config__num_layers", 10**6), ("backbone_config__num_layers", HUGE),
          ("backbone_config__num_decoder_layers", 10**6), ("backbone_config__num_heads", HUGE),
          ("backbone_config__d_ff", HUGE), ("backbone_config__d_ff", 2**62),
          ("backbone_config__relative_attention_num_buckets", HUGE)]),
    *(Case(f"a backbone's {field} is {value}", backbone(**{field: value}), doors.backbone, TOO_LARGE)
      for field, value in [("d_model", HUGE), ("d_model", 10**6), ("vocab_size", 10**9), ("num_layers", 10**6),
                           ("d_ff", HUGE)]),
    *(Case(f"a Llama's {field} is {value}", chat(**{f"backbone_config__{field}": value}),
           doors.at(doors.model, "chat"), TOO_LARGE)
      for field, value in [("num_hidden_layers", 10**6), ("head_dim", HUGE), ("num_key_value_heads", HUGE),
                           ("intermediate_size", 10**9)]),
    Case("a backbone's d_ff is another", backbone(d_ff=65), doors.backbone, "config.json says that .* but the"),
    Case("positions without end", chat(backbone_config__max_position_embeddings=HUGE), doors.at(doors.model, "chat"),
         None),
    Case("an instruction without end", checkpoint(max_instruction_length=HUGE), doors.model, None),
    Case("layers_to_transform of 100 000", checkpoint(layers_to_transform=list(range(10**5))), doors.model,
         r"layers_to_transform has \[2, 3"),
]  # fmt: skip
TEMPLATES = [
    Case(f"a template that {name}", template(content), doors.at(doors.used, "chat"), TEMPLATE + f"\\(.*{why}")
    for name, content, why in [
        ("loops 10^12 times", "{% for i in range(10**12) %}{% endfor %}", "powers"),
        ("loops in loops",
         "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "on and on"),
        ("multiplies a text", "{{ 'a' * 10**11 }}", "powers"),
        ("multiplies a text by a number", "{{ 'a' * 100000000000 }}", "the number 100000000000"),
        ("multiplies a list", "{% set x = [1] * 99999999 %}", "the number"),
        ("doubles a text", "{% set n = namespace(x='aaaa') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}"
         "{% endfor %}{{ n.x }}", "grow"),
        ("doubles a number", "{% set n = namespace(x=2) %}{% for i in range(40) %}{% set n.x = n.x * n.x %}"
         "{% endfor %}{{ 'a' * n.x }}", "grow"),
        ("pads", "{{ 'a'.ljust(99999999999) }}", "the number"),
        ("pads by a format", "{{ '%99999999999d' % 1 }}", "any width"),
        ("computes powers", "{{ 10 ** 10 ** 9 }}", "powers"),
        ("recurses", "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(1) }}", "recursion|on and on"),
        ("leaves its sandbox", "{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("includes a file", "{% include '/etc/hostname' %}", "no loader"),
        ("is of 2 MB", "{{ 'a' }}" * 200_000 + CHAT, "1800050 characters"),
        ("is nested 5000 deep", "{% if 1 %}" * 5000 + "{% endif %}" * 5000, "recursion"),
        ("is no Jinja", "{% for %}", "block"),
    ]
]  # fmt: skip
CASES = [*share(CODE, 2), *share(JSON, 2), *share(SIZES, 4), *share(TEMPLATES, 3)]
