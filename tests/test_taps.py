"""Claims about layer maps and about what a label store must hold."""

from __future__ import annotations

from typing import Any

import pytest

from edgekd import spec
from edgekd.distill.taps import check, layer_map, stored, taps
from edgekd.errors import TargetError


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [(6, 12, (2, 4, 6, 8, 10, 12)), (4, 12, (3, 6, 9, 12)), (4, 6, (2, 3, 4, 6)), (1, 6, (6,))],
)
def test_a_uniform_map_keeps_the_last_block_and_spreads_the_rest(
    student: int, teacher: int, expected: tuple[int, ...]
) -> None:
    assert layer_map("uniform", student, teacher) == tuple(enumerate(expected, 1))


@pytest.mark.parametrize("pair", [(5, 0), (0, 7), (-1, 2)])
def test_a_pair_outside_either_model_is_refused_by_name(pair: tuple[int, int]) -> None:
    with pytest.raises(TargetError, match=r"pair .* out of range"):
        layer_map((pair,), 4, 6)


def test_a_student_deeper_than_its_teacher_has_no_uniform_map() -> None:
    with pytest.raises(TargetError, match=r"cannot pair 7 layers with the teacher's 6.*explicit"):
        layer_map("uniform", 7, 6)


def test_hidden_states_are_stored_only_when_a_loss_needs_them() -> None:
    student = spec.Student(layers=4)
    assert taps(spec.Distill(losses=(spec.KL(), spec.CE())), student) == ("logits",)
    wanted = taps(spec.Distill(losses=(spec.KL(), spec.HiddenMSE())), student)
    assert stored(wanted, 12, 3).hidden == (3, 6, 9, 12)
    assert stored(wanted, 6, 3).hidden == (2, 3, 4, 6)
    explicit = taps(spec.Distill(losses=(spec.HiddenMSE(layers=((1, 3), (4, 6))),)), student)
    assert stored(explicit, 6, 3).hidden == (3, 6)


def test_a_student_from_a_config_states_its_layers_there() -> None:
    wanted = taps(
        spec.Distill(losses=(spec.HiddenMSE(),)), spec.Student(config={"model_type": "distilbert", "n_layers": 2})
    )
    assert stored(wanted, 6, 3).hidden == (3, 6)
    unknown = taps(spec.Distill(losses=(spec.HiddenMSE(),)), spec.Student())
    assert stored(unknown, 3, 3).hidden == (0, 1, 2, 3)


@pytest.mark.parametrize("layer", [99, 7, -1])
def test_a_layer_that_the_teacher_lacks_is_refused_by_name_before_its_outputs_are_computed(layer: int) -> None:
    wanted = taps(spec.Distill(losses=(spec.HiddenMSE(layers=((0, 0), (1, layer))),)), spec.Student(layers=4))
    with pytest.raises(TargetError, match=rf"asks for layer {layer} of the teacher, which has layers 0\.\.6"):
        stored(wanted, 6, 3)


@pytest.mark.parametrize("layers", ["uniform", ((4, 6),)])
def test_layers_that_both_models_have_pass_the_check(layers: Any) -> None:
    check(spec.Distill(losses=(spec.KL(), spec.HiddenMSE(layers=layers))), 4, 6)


@pytest.mark.parametrize("pair", [(5, 6), (4, 7)])
def test_the_check_refuses_a_pair_outside_either_model_once_both_are_known(pair: tuple[int, int]) -> None:
    asked = spec.Distill(losses=(spec.KL(), spec.HiddenMSE(layers=(pair,))))
    with pytest.raises(TargetError, match=r"pair .* out of range"):
        check(asked, 4, 6)
    check(asked, None, 6)
    check(asked, 4, None)
