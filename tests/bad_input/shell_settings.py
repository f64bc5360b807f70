"""`train.py`: configurations that are no YAML, and fields with values that make no sense."""

from case import Case, Either, Place, Refused, tagi_case, train_case

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{to}: &{to} [{', '.join(['*' + of] * 9)}]\n" for of, to in zip("abcdefghi", "bcdefghij")
)


def _written(text, name="bad.yaml"):
    def make(place: Place):
        (place.here / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return make


def _file(name: str, text, *words: str, file: str = "bad.yaml") -> Case:
    return train_case(name, [f"<here>/{file}"], Refused(words), _written(text, file))


YAML_FILES = [
    _file("yaml broken", "seed: [1, 2\nlabel: {x", r"bad\.yaml", "YAML"),
    _file("yaml is a list", "- 1\n- 2\n", r"list\.yaml holds a list", file="list.yaml"),
    _file("yaml is a scalar", "hello\n", r"scalar\.yaml holds a str", file="scalar.yaml"),
    _file("yaml empty", "", "backbone|empty"),
    _file("yaml latin-1", "label: caf\xe9\n".encode("latin-1"), r"bad\.yaml", "YAML|UTF-8"),
    _file("yaml NUL byte", b"label: a\0b\n", r"bad\.yaml", "YAML"),
    train_case("config missing", ["<here>/nope.yaml"], Refused((r"nope\.yaml", "there is no"))),
    train_case("config is a directory", ["<here>"], Refused(("<here>",))),
    train_case(
        "config is a binary (safetensors)", ["<model>/model.safetensors"], Refused((r"model\.safetensors", "YAML"))
    ),
    _file("yaml python tag", "label: !!python/object/apply:os.system ['touch pwned']\n", r"bad\.yaml", "YAML"),
    _file("yaml base loop", "base: loop.yaml\n", "base", r"loop\.yaml", file="loop.yaml"),
    _file("yaml base missing", "base: nope.yaml\n", r"nope\.yaml"),
    tagi_case(
        "yaml duplicate key (plan)", ["plan", "<here>/bad.yaml", "--flops_per_second", "1e12", "--without_data"],
        Refused((r"bad\.yaml", "seed", "twice|duplicate|again")),
        lambda place: (place.here / "bad.yaml").write_text(place.world.config.read_text() + "seed: 1\nseed: 2\n"),
    ),
    train_case(
        "yaml typo'd stage", ["<here>/bad.yaml"], Refused(("fintuning", "finetuning")),
        lambda place: (place.here / "bad.yaml").write_text(
            place.world.config.read_text() + "fintuning:\n  steps: 3\n"),
    ),
    _file("yaml billion laughs", LAUGHS, "unknown field a|YAML|alias"),
]  # fmt: skip


def _refused(name: str, field: str, value: str, *words: str) -> Case:
    return train_case(name, [f"--{field}", value], Refused(words or (field, value)))


FIELDS = [
    _refused("negative learning rate", "finetuning.learning_rate", "-1", r"learning_rate", "-1"),
    _refused("nan learning rate", "finetuning.learning_rate", "nan", r"learning_rate", "nan"),
    _refused("inf learning rate", "finetuning.learning_rate", "inf", r"learning_rate", "inf"),
    _refused("learning rate string", "finetuning.learning_rate", "fast", r"finetuning\.learning_rate", "fast"),
    _refused("steps -1", "finetuning.steps", "-1"),
    _refused("steps 1.5", "finetuning.steps", "1.5"),
    _refused("steps true", "finetuning.steps", "true", r"finetuning\.steps"),
    _refused("steps 1e3 as string", "finetuning.steps", "'10'"),
    _refused("r 0", "tagi.r", "0", r"\br is 0|tagi\.r"),
    _refused("r -4", "tagi.r", "-4", r"\br is -4|tagi\.r"),
    _refused("r 1.5", "tagi.r", "1.5", r"\br is 1\.5|tagi\.r"),
    _refused("r huge", "tagi.r", "100000000", "100000000|memory|GiB"),
    _refused("lora_alpha 0", "tagi.lora_alpha", "0", "lora_alpha"),
    _refused("lora_alpha nan", "tagi.lora_alpha", ".nan", "lora_alpha", "nan"),
    _refused("target modules unknown", "tagi.target_modules", "[nope]", "target_modules", "nope"),
    _refused("target modules empty", "tagi.target_modules", "[]", "target_modules"),
    train_case("target modules string", ["--tagi.target_modules", "q"], Either(Refused(("target_modules",)))),
    _refused("fusion unknown", "tagi.fusion", "magic", "fusion", "magic"),
    _refused("tagi unknown field", "tagi.rank", "4", "rank"),
    _refused("generator unknown", "tagi.generator", "gpt", "generator", "gpt"),
    _refused("seed -1", "seed", "-1", "seed", "-1"),
    _refused("seed huge", "seed", "99999999999999999999", "seed", "99999999999999999999"),
    _refused("seed text", "seed", "abc"),
    _refused("warmup 2", "finetuning.warmup", "2", "warmup"),
    _refused("schedule unknown", "finetuning.schedule", "zigzag", "schedule", "zigzag", "linear"),
    _refused("optimizer unknown", "finetuning.optimizer", "sgdd", "optimizer", "sgdd", "adamw_torch"),
    _refused("temperature 0", "finetuning.temperature", "0", "temperature"),
    _refused("temperature -1", "finetuning.temperature", "-1", "temperature"),
    _refused("batch 0", "text.batch_size", "0"),
    _refused("tasks_per_batch 0", "finetuning.tasks_per_batch", "0"),
    _refused("tasks_per_batch 10000", "finetuning.tasks_per_batch", "10000", r"tasks_per_batch", "10000", r"\b3\b"),
    _refused("max_input_length 0", "max_input_length", "0"),
    _refused("max_target_length -1", "max_target_length", "-1"),
    _refused("train_tasks 0", "train_tasks", "0"),
    _refused("train_tasks 1e9", "train_tasks", "1000000000"),
    _refused("evaluation.splits unknown", "evaluation.splits", "[nowhere]", r"evaluation\.splits", "nowhere"),
    train_case(
        ".nan learning rate (yaml)", ["<here>/nan.yaml"], Refused(("learning_rate", "nan")),
        lambda place: (place.here / "nan.yaml").write_text(
            f"base: {place.world.config}\nfinetuning:\n  learning_rate: .nan\n"),
    ),
    _refused("evaluation.references unknown", "evaluation.references", "[crystal_ball]", "references", "crystal_ball"),
    _refused("method unknown", "method", "magic"),
    _refused("save_every 0", "finetuning.save_every", "0"),
    _refused("accumulation 0", "finetuning.accumulation", "0"),
    _refused("a field that is gone", "finetuning.instruction_dropout", "0", "instruction_dropout"),
    _refused("max_grad_norm -1", "finetuning.max_grad_norm", "-1", "max_grad_norm"),
    _refused("weight_decay -1", "finetuning.weight_decay", "-1", "weight_decay"),
    _refused("backbone config unknown key", "backbone.config.n_layrs", "3", "n_layrs"),
    _refused("backbone vocab 1", "backbone.vocab_size", "1", "vocab"),
    _refused("backbone num_heads 0", "backbone.config.num_heads", "0", "num_heads"),
    _refused("backbone d_model -5", "backbone.config.d_model", "-5", "d_model"),
    _refused("backbone missing folder", "backbone.name", "/nope/model", "/nope/model"),
    _refused("backbone a file", "backbone.name", "<model>/config.json", r"config\.json"),
    _refused("backbone gguf_file without a name", "backbone.gguf_file", "x.gguf", "backbone.name", r"x\.gguf"),
    _refused("backbone package without a file", "backbone.name", "package:json", "gguf_file"),
    _refused("backbone package missing", "backbone.name", "package:nowhere/x.gguf", "no installed package", "nowhere"),
    _refused("backbone gguf missing", "backbone.name", "/nope/x.gguf", r"/nope/x\.gguf"),
    _refused("data source unknown", "data.source", "excel", "source", "excel"),
    _refused("data path missing", "data.path", "/nope"),
    _refused("unknown flag", "learnign_rate", "1", "learnign_rate"),
    _refused("stage scalar", "finetuning", "5", "finetuning"),
    _refused("alignment unknown", "finetuning.alignment", "nope", "alignment", "nope"),
    _refused("alignment_weight unknown", "finetuning.alignment_weight", "nope", "alignment_weight", "nope"),
    _refused("teacher_cache unknown", "finetuning.teacher_cache", "nope"),
    _refused("freeze unknown", "finetuning.freeze", "[everything]", "freeze", "everything"),
    _refused("reads unknown", "finetuning.reads", "tea leaves"),
    _refused("train unknown", "finetuning.train", "nothing"),
    _refused("evaluation batch 0", "evaluation.batch_size", "0"),
    _refused("max_records 0", "evaluation.max_records", "0"),
    _refused("oracle steps -3", "evaluation.oracle.steps", "-3"),
    _refused("examples_per_task huge", "finetuning.examples_per_task", "100000", "examples_per_task", "100000"),
    train_case("push without token", ["--push_to_hub", "me/x"], Refused(("me/x", "token"))),
    train_case("push bad name", ["--push_to_hub", "a/b/c d"], Refused(("a/b/c d",))),
    train_case(
        "data.options unknown", ["--data.source", "builtin", "--data.path", "null", "--data.options", "{colour: 3}"],
        Refused(("colour",)),
    ),
    train_case(
        "data.options absurd",
        ["--data.source", "builtin", "--data.path", "null", "--data.options", "{train_instances: -3}"],
        Refused(("train_instances", "-3")),
    ),
    _refused("data.text missing", "data.text", "/nope.txt"),
    train_case("field without value", ["--seed"], Refused(("seed", "value"), 2)),
    train_case("dangling value", ["--seed", "1", "2"], Refused(("'2'",), 2)),
    train_case("max_input_length 1e12", ["--max_input_length", "1000000000000"], Either(Refused(("max_input_",)))),
]  # fmt: skip

MORE = [
    train_case("lr 1e30", ["--finetuning.learning_rate", "1e30"],
               Refused(("finetuning", "step|learning_rate"), late=True)),
    _refused("weight_decay 1e9", "finetuning.weight_decay", "1e9", "weight_decay"),
]  # fmt: skip

CASES = [*YAML_FILES, *FIELDS]
