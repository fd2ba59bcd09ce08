from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSequenceClassification

from edgekd import shape, spec
from edgekd.errors import TargetError
from edgekd.models import surgery

SMALL = {
    "hidden_size": 24,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "vocab_size": 101,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
CONFIGS: list[tuple[str, dict[str, Any]]] = [
    *((kind, SMALL) for kind in ("bert", "roberta", "xlm-roberta", "camembert")),
    ("electra", SMALL | {"embedding_size": 24}),
    ("electra", SMALL | {"embedding_size": 12}),
    ("distilbert", {"dim": 24, "hidden_dim": 40, "n_layers": 3, "n_heads": 4, "vocab_size": 101}),
    *((kind, GROUPED) for kind in ("llama", "mistral", "qwen2", "qwen3")),
]


def real(config: Any) -> dict[str, int]:
    """What transformers itself would allocate."""
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("kind", "options"), CONFIGS)
@pytest.mark.parametrize("labels", [2, 7])
def test_every_parameter_is_counted_as_transformers_allocates_it(
    kind: str, options: dict[str, Any], labels: int
) -> None:
    config = AutoConfig.for_model(kind, num_labels=labels, **options)
    found = shape.tensors(config.to_dict(), labels)
    assert found is not None
    assert {tensor.name: tensor.count for tensor in found} == real(config)


@given(
    layers=st.integers(1, 3), heads=st.sampled_from([1, 2, 4]), width=st.integers(1, 6), ffn=st.integers(1, 40),
    vocabulary=st.integers(8, 200), kind=st.sampled_from(["bert", "roberta", "electra"]),
)  # fmt: skip
@settings(max_examples=20)
def test_a_student_by_surgery_is_counted_as_surgery_makes_it(
    layers: int, heads: int, width: int, ffn: int, vocabulary: int, kind: str
) -> None:
    extra = {"embedding_size": 24} if kind == "electra" else {}
    teacher = AutoConfig.for_model(kind, num_labels=5, pad_token_id=1, **(SMALL | extra))
    student = spec.Student(layers=layers, hidden=heads * width, heads=heads, ffn=ffn, vocabulary=vocabulary)
    config, _ = surgery.student_config(teacher, student, 16, min(vocabulary, 101))
    found = shape.tensors(shape.student_config(student, teacher.to_dict(), 16), 5)
    assert found is not None
    assert shape.parameters(found) == sum(real(config).values())


def test_a_student_with_its_own_configuration_keeps_the_vocabulary_that_is_asked_for() -> None:
    teacher = AutoConfig.for_model("bert", **SMALL).to_dict()
    own = {"model_type": "distilbert", "dim": 16, "hidden_dim": 8, "n_layers": 1, "n_heads": 2}
    config = shape.student_config(spec.Student(config=dict(own), vocabulary=50), teacher, 32)
    assert (config["vocab_size"], config["max_position_embeddings"]) == (50, 32)
    found = shape.tensors(config, 3)
    assert found is not None
    library = AutoConfig.for_model(**own, vocab_size=50, max_position_embeddings=32, num_labels=3)
    assert shape.parameters(found) == sum(real(library).values())


@given(
    layers=st.none() | st.integers(1, 3) | st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple),
    heads=st.none() | st.sampled_from([1, 2, 4]), width=st.none() | st.sampled_from([4, 8, 24]),
    ffn=st.none() | st.integers(1, 40), vocabulary=st.none() | st.integers(8, 101),
    kind=st.sampled_from(["bert", "roberta", "electra"]), labels=st.integers(2, 60),
)  # fmt: skip
@settings(max_examples=60)
def test_no_student_is_smaller_than_the_one_of_the_smallest_teacher(
    layers: Any, heads: int | None, width: int | None, ffn: int | None, vocabulary: int | None, kind: str, labels: int
) -> None:
    student = spec.Student(layers=layers, heads=heads, hidden=width, ffn=ffn, vocabulary=vocabulary)
    real = {"model_type": kind, "max_position_embeddings": 64, "type_vocab_size": 1, "embedding_size": 24, **SMALL}
    try:
        whole = shape.tensors(shape.student_config(student, real, 16), labels)
    except TargetError:
        return  # heads wider than the teacher's, say: there is no such student
    bound = shape.tensors(shape.student_config(student, shape.smallest_teacher(student, 16), 16), 2)
    assert whole is not None and bound is not None
    assert shape.file_bytes(bound, spec.Quant())[0] <= shape.file_bytes(whole, spec.Quant())[0]


@pytest.mark.parametrize(
    "config", [{}, {"model_type": "deberta"}, {"model_type": "bert"}, {"model_type": "distilbert", "dim": 8}]
)
def test_what_is_not_known_is_none_rather_than_a_guess(config: dict[str, Any]) -> None:
    assert shape.tensors(config, 2) is None


@pytest.mark.parametrize("kind", ["albert", "deberta-v2", "mobilebert", "modernbert", "mpnet", "gpt2"])
def test_a_family_that_gives_every_number_and_is_not_known_is_none_too(kind: str) -> None:
    assert shape.tensors(AutoConfig.for_model(kind).to_dict(), 2) is None


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_a_known_family_with_tables_that_are_not_counted_is_none_too(kind: str) -> None:
    config = AutoConfig.for_model(kind, position_embedding_type="relative_key", **SMALL)
    assert any("distance_embedding" in name for name in real(config))
    assert shape.tensors(config.to_dict(), 2) is None


def test_int8_takes_one_byte_a_weight_and_four_for_all_else() -> None:
    found = shape.tensors(AutoConfig.for_model("bert", **SMALL).to_dict(), 2)
    assert found is not None
    least, expected = shape.file_bytes(found, spec.Quant())
    matrices = sum(t.count for t in found if t.columns > 1)
    assert least == matrices + 4 * (shape.parameters(found) - matrices)
    assert expected > least
    for attention in ("*.attention.self.*", "*.attention.self"):  # a module, and whatever it contains
        kept, _ = shape.file_bytes(found, spec.Quant(keep_float=("classifier", attention)))
        assert kept - least == 3 * (2 * 24 + 3 * 3 * 24 * 24)


def test_a_teacher_that_does_not_say_its_numbers_is_taken_to_have_enough() -> None:
    shape.check_cut(spec.Student(layers=9, hidden=64, heads=8, ffn=99), {"model_type": "bert"}, 512)
    with pytest.raises(TargetError, match=r"give student\.config instead"):
        shape.check_cut(spec.Student(), {}, 16)


@pytest.mark.parametrize(("pad_id", "rows"), [(0, 2), (1, 2), (None, 2)])
def test_mpnet_counts_positions_from_one_whatever_its_padding_is(pad_id: int | None, rows: int) -> None:
    assert shape.position_offset("mpnet", pad_id) == rows


@pytest.mark.parametrize(("kind", "offset"), [("roberta", 2), ("bert", 0)])
def test_roberta_needs_positions_for_its_padding_too(kind: str, offset: int) -> None:
    teacher = {"model_type": kind, "max_position_embeddings": 66, "pad_token_id": 1}
    shape.check_cut(spec.Student(), teacher, 66 - offset)
    with pytest.raises(TargetError, match="positions are more than the teacher has"):
        shape.check_cut(spec.Student(), teacher, 66 - offset + 1)
