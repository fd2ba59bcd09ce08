"""What a target refuses in its fields."""

from __future__ import annotations

import dataclasses
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd import checks, spec
from edgekd.errors import TargetError
from edgekd.smoke import smoke

BASE = spec.Target(
    name="base",
    task=spec.TextClassification(train="a.csv", test="b.csv"),
    teacher=spec.Teacher(source="dir:teacher", finetune=spec.Finetune()),
    student=spec.Student(layers=2),
    quant=spec.Quant(calibration="base"),
)


def changed(node: Any, path: str, value: object) -> Any:
    """``node`` with another value at ``path``."""
    name, _, rest = path.partition(".")
    return dataclasses.replace(node, **{name: changed(getattr(node, name), rest, value) if rest else value})


def paths(node: Any, path: str = "") -> list[str]:
    """The path of every field of a dataclass and of those inside it."""
    found = []
    for field in dataclasses.fields(node):
        found.append(path + field.name)
        if dataclasses.is_dataclass(getattr(node, field.name)):
            found += paths(getattr(node, field.name), f"{path}{field.name}.")
    return found


def classes() -> list[Any]:
    return [kind for kind in vars(spec).values() if dataclasses.is_dataclass(kind) and isinstance(kind, type)]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("quant.method", "mes", "quant.method must be one of percentile, mse, minmax, entropy, not 'mes'"),
        ("quant.percentile", 0, "quant.percentile must be above 0 and at most 100, not 0"),
        ("quant.percentile", 100.5, "at most 100, not 100.5"),
        ("quant.epochs", 0, "quant.epochs must be above 0, not 0"),
        ("budget.score_kept", 99.5, "budget.score_kept must be above 0 and at most 1.5, not 99.5"),
        ("quant.keep_float", "classifier", "quant.keep_float must be a tuple, not 'classifier'; write ('classifier',)"),
        ("bench.calls", 0, "bench.calls must be at least 1, not 0"),
        ("bench.rounds", 0, "bench.rounds must be at least 1"),
        ("bench.rounds", 2.5, "bench.rounds must be a whole number, not 2.5"),
        ("bench.threads", (1, 0), "bench.threads[1] must be at least 1, not 0"),
        ("bench.threads", (), "bench.threads is empty"),
        ("bench.workloads", {"ort_cpu": "real"}, "bench.workloads['ort_cpu'] must be a tuple, not 'real'"),
        ("bench.workloads", {1: ("real",)}, "a key of bench.workloads must be a string, not 1"),
        ("bench.workloads", {"ort_cpu": ("fixed0",)}, "unknown workload 'fixed0'"),
        ("bench.workloads", {"ort_cpu": ("fixed²",)}, "unknown workload 'fixed²'"),
        ("distill.epochs", 0, "distill.epochs must be above 0"),
        ("distill.losses", (), "distill.losses is empty"),
        (
            "distill.losses",
            spec.CE(1.0),
            "distill.losses must be a tuple, not CE(weight=1.0, labels='data'",
        ),
        (
            "distill.losses",
            (spec.KL(1.0), "ce"),
            "distill.losses[1] must be KL, PartialKL, ReverseKL, JS, CE, LogitMSE, DKD, ",
        ),
        ("distill.losses", (spec.KL(temperature=0),), "distill.losses[0].temperature must be above 0, not 0"),
        (
            "distill.losses",
            (spec.CE(), spec.HiddenMSE(layers="unifrom")),  # type: ignore[arg-type]
            "distill.losses[1].layers must be one of uniform, skip, last, final, learned or a tuple, not 'unifrom'",
        ),
        ("distill.losses", (spec.HiddenMSE(layers=((0, 1, 2),)),), "layers[0] must be a tuple of 2, not (0, 1, 2)"),  # type: ignore[arg-type]
        ("distill.losses", (spec.HiddenMSE(layers=((0, -1),)),), "layers[0][1] must be at least 0, not -1"),
        ("distill.losses", (spec.HiddenMSE(layers=()),), "layers is empty"),
        ("distill.optimizer.batch_size", 0, "distill.optimizer.batch_size must be at least 1"),
        ("distill.optimizer.micro_batch_size", 0, "must be at least 1"),
        ("distill.optimizer.warmup_fraction", 1.5, "warmup_fraction must be at least 0 and at most 1, not 1.5"),
        ("distill.optimizer.decay", None, "distill.optimizer.decay must be one of linear, cosine, not None"),
        ("teacher.finetune.optimizer.learning_rate", -1e-4, "teacher.finetune.optimizer.learning_rate must be above 0"),
        ("teacher.finetune.optimizer.learning_rate", float("nan"), "must be a finite number, not nan"),
        ("teacher.finetune.optimizer", 3, "teacher.finetune.optimizer must be Optimizer, not 3"),
        ("teacher.finetune", True, "teacher.finetune must be Finetune or None, not True"),
        ("student.layers", 0, "student.layers must be at least 1, not 0"),
        ("student.layers", (0, -2), "student.layers[1] must be at least 0, not -2"),
        ("student.layers", "all", "student.layers must be a whole number, a tuple or None, not 'all'"),
        ("student.dropout", 1, "student.dropout must be at least 0 and below 1, not 1"),
        ("student.config", {"model_type": {"bert"}}, "student.config['model_type'] must be JSON data, not {'bert'}"),
        ("export.opset", 12, "export.opset must be at least 17 and at most 20, not 12"),
        ("task.max_length", 7, "task.max_length must be at least 8, not 7"),
        ("task.labels", "abc", "task.labels must be a tuple or None, not 'abc'; write ('abc',)"),
        ("budget.size_mib", -1, "budget.size_mib must be above 0, not -1"),
        ("seed", -1, "seed must be at least 0"),
        ("seed", True, "seed must be a whole number, not True"),
        ("name", 5, "name must be a string, not 5"),
    ],
)
def test_a_wrong_value_is_refused_by_its_path(path: str, value: object, message: str) -> None:
    with pytest.raises(TargetError) as caught:
        changed(BASE, path, value)
    assert message in str(caught.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(TargetError, match=r"bench\.calls .*; bench\.rounds|bench\.rounds .*; bench\.calls"):
        spec.Target(
            **{f.name: getattr(BASE, f.name) for f in dataclasses.fields(BASE)}
            | {"bench": spec.Bench(calls=0, rounds=0)}
        )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("distill.optimizer.warmup_fraction", 0),
        ("distill.optimizer.warmup_fraction", 1),
        ("distill.epochs", 0.5),
        ("quant.percentile", 100),
        ("student.layers", (0, 3)),
        ("student.config", None),
        ("bench.threads", (1, 2)),
        ("distill.losses", (spec.KL(0.0), spec.HiddenMSE(layers=((0, 0), (2, 6))))),
        ("task.labels", ("a", "b")),
        ("budget.score_kept", 1.01),
    ],
)
def test_a_value_at_the_edge_of_its_range_is_taken(path: str, value: object) -> None:
    node = changed(BASE, path, value)
    for name in path.split("."):
        node = getattr(node, name)
    assert node == value


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just(spec.KL()),
    lambda inner: st.lists(inner, max_size=2).map(tuple) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(st.sampled_from(paths(BASE)), JUNK)
@settings(max_examples=400)
def test_whatever_stands_in_a_field_makes_a_target_or_a_target_error(path: str, value: object) -> None:
    try:
        changed(BASE, path, value)
    except TargetError as error:
        assert str(error).startswith("target ")


def holds_numbers(kind: Any) -> bool:
    return kind in (int, float) or any(holds_numbers(part) for part in get_args(kind))


def test_every_number_in_a_target_has_a_range_and_every_range_a_number() -> None:
    fields = {f"{kind.__name__}.{name}": hint for kind in classes() for name, hint in get_type_hints(kind).items()}
    numbers = [name for name, hint in fields.items() if holds_numbers(hint)]
    rules = {rule.removesuffix("[]") for rule in checks.RANGES}
    assert not [name for name in numbers if not any(fnmatch(name, rule) for rule in rules)]
    assert not [rule for rule in rules if not any(fnmatch(name, rule) for name in numbers)]
    assert not [rule for rule in checks.NOT_EMPTY if not any(fnmatch(name, rule) for name in fields)]


GROUPED = spec.Distill(losses=(spec.KL(), spec.RKD(group=16)), optimizer=spec.Optimizer(micro_batch_size=8))


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        (GROUPED, r"RKD compares examples in groups of 16: make distill.optimizer.micro_batch_size \(8\) a multiple"),
        (spec.Distill(losses=(spec.KL(spec.Ramp(0, 1, begin=0.5, until=0.5)),)), "KL.weight: a ramp must begin"),
        (spec.Distill(losses=(spec.JS(temperature=spec.Ramp(4, 0)),)), "JS.temperature must stay above 0"),
        (spec.Distill(losses=(spec.Exits(), spec.Exits(at=(2, 1)))), r"Exits name a layer twice, of \[1, 2, 1\]"),
        (spec.Distill(losses=(spec.Exits(at=(1, 3)),), exit=2), r"distill.exit 2 is not among the exits \[1, 3\]"),
        (spec.Distill(losses=(spec.Exits(),), exit=1, generations=2), "remove assistants and generations"),
        (spec.Distill(source=spec.Mutual(1)), r"Mutual\(students=1\) leaves nobody to learn from"),
    ],
)
def test_losses_that_contradict_themselves_or_the_batches_are_refused(distill: spec.Distill, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        dataclasses.replace(BASE, distill=distill)


def test_the_operator_sets_are_those_that_the_exporter_knows() -> None:
    exporter = Path(checks.__file__).parent / "onnxio" / "export.py"  # read, since importing it takes long
    found = re.search(r"^OPSETS = range\((\d+), (\d+)\)$", exporter.read_text(), re.MULTILINE)
    assert found is not None
    assert checks.RANGES["Export.opset"] == {"at least": int(found[1]), "at most": int(found[2]) - 1}


def test_a_smoke_run_never_has_more_examples_than_the_target_asks_for() -> None:
    assert smoke(BASE).task.limit == 256
    assert smoke(changed(BASE, "task.limit", 20)).task.limit == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "head", "dropout": 0.1}, "dropout changes nothing in a backbone that stands still"),
        ({"train": "head", "rank": 4}, "rank and alpha are for train 'lora', not 'head'"),
        ({"alpha": 4}, "rank and alpha are for train 'lora', not 'all'"),
        ({"train": "lora", "rank": 0}, r"teacher\.finetune\.rank must be at least 1, not 0"),
        ({"train": "tail"}, r"teacher\.finetune\.train must be one of all, lora, head, not 'tail'"),
    ],
)
def test_what_of_a_teacher_is_trained_is_said_without_contradiction(options: dict[str, Any], message: str) -> None:
    teacher = dataclasses.replace(BASE.teacher, finetune=spec.Finetune(**options))
    with pytest.raises(TargetError, match=message):
        dataclasses.replace(BASE, teacher=teacher)
    with pytest.raises(TargetError, match=message.replace("teacher", r"co_teachers\[0\]", 1)):
        dataclasses.replace(BASE, co_teachers=(teacher,))


def test_training_only_if_needed_needs_a_budget_to_tell() -> None:
    quant = dataclasses.replace(BASE.quant, train="if_needed")
    with pytest.raises(TargetError, match=r"trains where PTQ keeps less than budget\.score_kept: set it"):
        dataclasses.replace(BASE, quant=quant, budget=spec.Budget(size_mib=1))
    dataclasses.replace(BASE, quant=quant, budget=spec.Budget(score_kept=0.99))


def test_four_bits_are_refused_where_another_runtime_is_to_be_timed() -> None:
    quant = spec.Quant(scheme="w4_block")  # needs no calibration list
    dataclasses.replace(BASE, quant=quant)
    with pytest.raises(TargetError, match="w4_block runs in ort_cpu alone: remove openvino"):
        dataclasses.replace(BASE, quant=quant, bench=spec.Bench(runtimes=("ort_cpu", "openvino")))


@pytest.mark.parametrize("option", [{"scales": "learned"}, {"weights_first": 0.5}, {"weight_bits": 4}])
def test_what_static_schemes_alone_have_is_refused_elsewhere(option: dict[str, Any]) -> None:
    dataclasses.replace(BASE, quant=spec.Quant(calibration="base", **option))
    for scheme in ("u8s8_dynamic", "w4_block"):
        with pytest.raises(TargetError, match=f"{scheme} has no ranges to learn"):
            dataclasses.replace(BASE, quant=spec.Quant(scheme=scheme, **option))
    with pytest.raises(TargetError, match="a scale for every block"):
        dataclasses.replace(BASE, quant=spec.Quant(scheme="w4_block", per_channel=False))


@pytest.mark.parametrize(
    ("scheme", "graph", "why"),
    [("u8s8_dynamic", "requantized", "gives outputs fixed ranges"), ("w4_block", "sequence", "products in int8")],
)
def test_a_form_of_the_graph_that_the_scheme_has_not_is_refused(scheme: Any, graph: Any, why: str) -> None:
    with pytest.raises(TargetError, match=f"export.graph '{graph}' .*{why}"):
        dataclasses.replace(BASE, quant=spec.Quant(scheme=scheme), export=spec.Export(graph=graph))


def test_seven_bits_are_not_made_eight() -> None:
    with pytest.raises(TargetError, match="7-bit weights"):
        dataclasses.replace(BASE, quant=spec.Quant(scheme="u8s7_static", calibration="base", weight_bits=8))


@pytest.mark.parametrize(
    ("device", "scheme", "wanted"),
    [
        (spec.X86_VNNI, "s8s8_static", "use u8s8_static or u8s7_static or u8s8_dynamic or w4_block"),
        (spec.X86_AVX2, "u8s8_dynamic", "use u8s7_static or w4_block"),
        (spec.X86_AVX2, "u8s8_static", "use u8s7_static or w4_block"),
        (spec.Device(name="x86", isa="x86_64"), "u8s8_static", "use u8s7_static or w4_block"),
        (
            spec.Device(name="x", isa="x86_64", features=("avx2|avx_vnni", "novnni")),
            "u8s8_static",
            "use u8s7_static or w4",
        ),
        (spec.ARM64_DOTPROD, "u8s7_static", "use u8s8_static or s8s8_static or u8s8_dynamic or w4_block"),
    ],
)
def test_a_scheme_that_the_device_has_no_kernels_for_is_refused_with_the_one_to_use(
    device: spec.Device, scheme: str, wanted: str
) -> None:
    with pytest.raises(TargetError, match=f"scheme {scheme} does not suit {device.name}: {wanted}"):
        dataclasses.replace(BASE, device=device, quant=spec.Quant(calibration="base", scheme=scheme))  # type: ignore[arg-type]
    for fitting in device.schemes:
        dataclasses.replace(BASE, device=device, quant=spec.Quant(calibration="base", scheme=fitting))  # type: ignore[arg-type]


def test_more_threads_than_the_device_has_cores_are_refused() -> None:
    with pytest.raises(TargetError, match=r"bench.threads 8: Raspberry Pi 5 .* has 4 cores"):
        dataclasses.replace(BASE, device=spec.RASPBERRY_PI_5, bench=spec.Bench(threads=(1, 8)))
    dataclasses.replace(BASE, device=spec.RASPBERRY_PI_5, bench=spec.Bench(threads=(1, 4)))


BOX = spec.BlackBox(source="https://host/v1", model="m", probabilities=True)
TAUGHT = dataclasses.replace(
    BASE,
    teacher=BOX,
    student=spec.Student(config={"model_type": "distilbert"}),
    distill=spec.Distill(losses=(spec.PartialKL(),)),
)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("teacher.source", "callable:module", "names no function: write callable:package.module:function"),
        *(
            ("teacher.source", f"http://{address}", "a plain ASCII address")
            for address in ("host/vü1", "vü.example/v1", "a..b/v1", f"{'a' * 64}/v1", "host/a b", "host/v1\n")
        ),
        ("distill.losses", (spec.CE(),), "no loss looks at its answers: add PartialKL"),
        (
            "teacher.source",
            "host/v1",
            "teacher.source must be callable:package.module:function or a plain ASCII address",
        ),
        ("teacher.source", "https://user:key@host/v1", "without a key, user or query in it"),
        ("teacher.source", "https://host/v1?key=abc", "a key belongs into the variable that api_key_env names"),
        ("teacher.source", "https://[host/v1", "teacher.source must be"),
        ("teacher.model", "", "teacher.model must name the model"),
        ("teacher.prompt", "Which label?", "teacher.prompt must hold {text}"),
        ("teacher.max_cost", 5, "teacher.max_cost needs teacher.input_price and teacher.output_price"),
        ("teacher.concurrency", 0, "teacher.concurrency must be at least 1"),
        (
            "teacher.terms",
            "none",
            "teacher.terms must be one of outputs may train models, outputs may not train models",
        ),
        (
            "student",
            spec.Student(layers=2),
            "no weights to cut a student from: give the first student a source, or a config",
        ),
        ("student.vocabulary", 100, "a tokenizer of its own, of 260 tokens at least: raise vocabulary"),
        ("assistants", (spec.Student(layers=2),), "give the first student a source, or a config"),
        ("distill.source", spec.Live(), "answers once, into the store: leave distill.source as it is"),
        ("distill.source", spec.Stored(top=3), "leave distill.source as it is"),
        ("distill.select", spec.Select("random"), "distill.select would leave out answers that have been paid for"),
        ("distill.losses", (spec.KL(),), "KL asks for more than this black box shows: use PartialKL and CE"),
        ("distill.losses", (spec.CE(), spec.HiddenMSE()), "HiddenMSE asks for more than this black box shows"),
        ("teacher.probabilities", False, "PartialKL asks for more.*: use CE.labels=.teacher"),
        ("budget.speedup", 2, "budget.speedup compares with the teacher's own graph"),
        ("budget.shrink", 2, "budget.shrink compares with the teacher's own graph"),
    ],
)
def test_what_a_black_box_cannot_do_is_refused(path: str, value: object, message: str) -> None:
    with pytest.raises(TargetError, match=message.replace("{", r"\{").replace("}", r"\}")):
        changed(TAUGHT, path, value)


@pytest.mark.parametrize("target", [BASE, TAUGHT])
def test_terms_that_forbid_to_learn_from_answers_must_be_acknowledged(target: spec.Target) -> None:
    teacher = dataclasses.replace(target.teacher, terms="outputs may not train models")
    with pytest.raises(TargetError, match=r"terms of .* are that outputs may not train models: choose another teacher"):
        dataclasses.replace(target, teacher=teacher)
    dataclasses.replace(target, teacher=dataclasses.replace(teacher, acknowledged_terms=True))
    dataclasses.replace(target, teacher=dataclasses.replace(teacher, terms="outputs may train models"))
