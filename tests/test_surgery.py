"""Claims about cutting a student out of a teacher."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from edgekd import spec
from edgekd.errors import TargetError
from edgekd.models import loading, student, surgery


def cut(
    teacher: Any, options: spec.Student, old_ids: list[int] | None = None, max_length: int = 64, principal: bool = False
) -> Any:
    size = len(old_ids) if old_ids else teacher.config.vocab_size
    config, layers = surgery.student_config(teacher.config, options, max_length, size)
    scores = surgery.importance(teacher, tiny.tokens(tiny.split(30, 0)))
    return surgery.cut(teacher, config, layers, old_ids, scores, principal).eval()


def inputs(part: Any) -> dict[str, torch.Tensor]:
    tokens = tiny.tokens(part)
    ids, mask, _ = tokens.gather(torch.arange(len(tokens)).numpy())
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask).long()}


def test_a_student_that_keeps_everything_is_the_teacher() -> None:
    teacher = tiny.bert()
    given = inputs(tiny.split(10, 1))
    with torch.no_grad():
        torch.testing.assert_close(cut(teacher, spec.Student())(**given).logits, teacher(**given).logits)


def test_dropping_what_is_dead_changes_nothing() -> None:
    """Neurons and heads that the teacher does not use are the first to go, and nobody misses them."""
    teacher = tiny.bert()
    with torch.no_grad():
        for layer in teacher.bert.encoder.layer:
            layer.intermediate.dense.weight[::2] = 0.0
            layer.intermediate.dense.bias[::2] = 0.0
            layer.attention.self.value.weight[8:16] = 0.0
            layer.attention.self.value.bias[8:16] = 0.0
            layer.attention.self.value.weight[24:] = 0.0
            layer.attention.self.value.bias[24:] = 0.0
    given = inputs(tiny.split(10, 1))
    small = cut(teacher, spec.Student(ffn=24))
    with torch.no_grad():
        torch.testing.assert_close(small(**given).logits, teacher(**given).logits, rtol=1e-4, atol=1e-5)


def test_the_principal_directions_span_the_hidden_states_that_lie_in_few() -> None:
    """If the states fill only k directions, k principal directions lose nothing: x = (x B) Bᵀ."""
    rng = torch.Generator().manual_seed(0)
    plane_KH = torch.randn(5, 32, generator=rng, dtype=torch.float64)
    x_NH = torch.randn(100, 5, generator=rng, dtype=torch.float64) @ plane_KH
    basis_HK = surgery._basis({"hidden": torch.ones(32), "covariance": x_NH.T @ x_NH}, 5, principal=True).double()
    torch.testing.assert_close(x_NH @ basis_HK @ basis_HK.T, x_NH, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(basis_HK.T @ basis_HK, torch.eye(5).double(), rtol=1e-5, atol=1e-6)


def test_a_principal_cut_projects_every_reader_and_writer_of_the_hidden_states() -> None:
    teacher = tiny.bert()
    small = cut(teacher, spec.Student(hidden=16, heads=4), principal=True)
    scores = surgery.importance(teacher, tiny.tokens(tiny.split(30, 0)))
    basis = surgery._basis(scores, 16, principal=True)
    old, new = teacher.bert.encoder.layer[0], small.bert.encoder.layer[0]
    torch.testing.assert_close(new.intermediate.dense.weight, old.intermediate.dense.weight @ basis)
    torch.testing.assert_close(new.output.dense.weight, basis.T @ old.output.dense.weight)
    torch.testing.assert_close(small.classifier.weight, teacher.classifier.weight @ basis)


def test_the_most_active_neurons_heads_and_channels_are_kept_in_their_order() -> None:
    assert surgery._top(torch.tensor([1.0, 5.0, 3.0, 4.0]), 2).tolist() == [1, 3]
    score = torch.tensor([[1.0, 9.0, 2.0], [0.0, 0.0, 0.0], [5.0, 4.0, 6.0]])
    assert surgery._head_index(score, torch.tensor([0, 2]), 2).tolist() == [1, 2, 6, 8]


@pytest.mark.parametrize(
    ("wanted", "kept"), [(None, (0, 1, 2, 3)), (2, (1, 3)), (3, (0, 2, 3)), (1, (3,)), ((0, 3), (0, 3))]
)
def test_layers_are_spread_evenly_and_the_last_stays(wanted: Any, kept: tuple[int, ...]) -> None:
    assert surgery._layers(wanted, 4) == kept


def test_a_cut_vocabulary_gathers_the_teachers_own_embeddings() -> None:
    teacher = tiny.bert()
    small = cut(teacher, spec.Student(), old_ids=[0, 1, 2, 3, 10, 40], max_length=16)
    table = teacher.bert.embeddings.word_embeddings.weight
    assert torch.equal(small.bert.embeddings.word_embeddings.weight, table[[0, 1, 2, 3, 10, 40]])
    assert small.bert.embeddings.position_embeddings.weight.shape[0] == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (spec.Student(hidden=64, heads=4), "exceeds the teacher's 32"),
        (spec.Student(hidden=32, heads=2), "wider than the teacher's"),
        (spec.Student(layers=9), "the teacher has 4"),
        (spec.Student(layers=(1, 7)), r"layers 0\.\.3"),
    ],
)
def test_what_cannot_be_cut_is_refused(options: spec.Student, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        cut(tiny.bert(), options)


def test_an_unknown_family_is_pointed_to_a_config() -> None:
    with pytest.raises(TargetError, match=r"give student\.config instead"):
        surgery.student_config(SimpleNamespace(model_type="llama"), spec.Student(), 64, 10)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    loading.save_model(tiny.bert(), tiny.fast(tiny.wordpiece()), tmp_path / "teacher")
    return tmp_path / "teacher"


def test_a_student_is_built_alike_for_one_seed_and_reports_what_was_kept(saved: Path) -> None:
    options = spec.Student(layers=2, hidden=16, heads=4, ffn=20, vocabulary=66)
    one, tokenizer, summary = student.build(options, tiny.bert(), saved, tiny.data(), 16, seed=1)
    again, _, _ = student.build(options, tiny.bert(), saved, tiny.data(), 16, seed=1)
    for (name, a), (_, b) in zip(one.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert (summary["layers"], summary["hidden"], summary["heads"], summary["ffn"]) == (2, 16, 4, 20)
    assert summary["vocabulary"]["size"] == len(tokenizer) == 66
    assert summary["vocabulary"]["unknown_rate"] == {"train": 0.0, "validation": 0.0, "test": 0.0}
    assert summary["parameters"] == sum(p.numel() for p in one.parameters())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "distilbrt"}, "did you mean 'distilbert'"),
        ({"model_type": "\N{SNOWMAN}"}, "e.g. {'model_type': 'distilbert'"),
        ({"model_type": "vit"}, "makes no text classifier"),
        ({"model_type": "distilbert", "dim": 30, "n_heads": 4}, "makes no text classifier"),
        ({"model_type": "distilbert", "vocab_size": 9}, "sets vocab_size"),
    ],
)
def test_a_config_that_makes_no_student_is_an_error_of_the_target(
    saved: Path, config: dict[str, object], message: str
) -> None:
    with pytest.raises(TargetError, match=re.escape(message)):
        student.build(spec.Student(config=config), tiny.bert(), saved, tiny.data(), 16, seed=1)


@pytest.mark.parametrize("kind", ["roberta", "mpnet"])
def test_a_family_that_counts_positions_from_its_padding_reads_texts_of_the_longest_length(
    saved: Path, kind: str
) -> None:
    config: dict[str, object] = {
        "model_type": kind, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 20,
    }  # fmt: skip
    model, _, _ = student.build(spec.Student(config=config), tiny.bert(), saved, tiny.data(), 16, seed=1)
    with torch.no_grad():
        assert model(input_ids=torch.full((1, 16), 40)).logits.isfinite().all()


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "distilbert", "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 20},
        {
            "model_type": "bert",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 20,
        },
    ],
)
def test_a_student_of_any_config_takes_the_trimmed_vocabulary(saved: Path, config: dict[str, object]) -> None:
    model, tokenizer, summary = student.build(
        spec.Student(config=config, vocabulary=66), tiny.bert(), saved, tiny.data(), 16, seed=1
    )
    with torch.no_grad():
        out = model(**{k: v for k, v in tokenizer(["oil price"], return_tensors="pt").items() if k != "token_type_ids"})
    assert out.logits.shape == (1, 3) and summary["init"] == "random"
