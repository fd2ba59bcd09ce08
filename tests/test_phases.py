"""Claims about the steps that only some targets have: what each is given, what reaches it, and what a plan says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from test_pipeline import keys, signature, target
from test_plan import COUNTS, finish, made, seconds, workplace  # noqa: F401 (a fixture)
from test_plan import target as planned

from edgekd import pipeline, runner, spec
from edgekd.distill.taps import LOGITS, Needs, store_bytes
from edgekd.errors import TargetError
from edgekd.smoke import smoke

AUGMENT, GENERAL = spec.Augment(copies=2), spec.General(text="more.csv")
BOTH = spec.Distill(augment=AUGMENT, general=GENERAL, generations=2)
SOURCES = {"train": "a", "general": "b"}


def test_the_steps_stand_in_order_and_the_student_begins_where_the_time_before_the_task_ended() -> None:
    graph = pipeline.graph(target(distill=BOTH), SOURCES, (), {})
    assert list(graph) == [
        *("assets", "transfer_general", "teacher", "augment", "backbone", "labels_general", "distill_general"),
        *("labels", "distill_1", "labels_1", "distill", "quantize", "export", "bench"),
    ]
    after = runner.After
    for name in ("distill_1", "distill"):
        assert graph[name]["begin"] == after("distill_general")
    data = {name: given["assets"] for name, given in graph.items() if "assets" in given}
    assert data == dict.fromkeys(data, after("assets")) | dict.fromkeys(
        ("labels", "distill_1", "labels_1", "distill", "quantize"), after("augment")
    ) | dict.fromkeys(("labels_general", "distill_general"), after("transfer_general"))
    first = graph["distill_general"]
    assert (first["begin"], first["teacher"]) == (None, after("backbone"))
    without = pipeline.graph(target(distill=spec.Distill(general=spec.General())), SOURCES, (), {})
    assert without["labels_general"]["assets"] == after("assets") and "transfer_general" not in without


def test_every_teacher_is_asked_about_the_copies() -> None:
    copies = spec.Augment(copies=2, mask=0.0)
    several = target(co_teachers=(spec.Teacher(source="dir:other"),), distill=spec.Distill(augment=copies))
    graph = pipeline.graph(several, SOURCES, (), {})
    assert {graph[name]["assets"] for name in ("labels", "labels_also1", "distill")} == {runner.After("augment")}


@pytest.mark.parametrize("name", ["augment", "backbone", "transfer"])
def test_a_stage_takes_exactly_what_the_graph_gives_it(name: str) -> None:
    wanted = target(distill=BOTH, task=dataclasses.replace(target().task, transfer_words=50))
    assert sorted(signature(name)) == sorted(pipeline.graph(wanted, SOURCES, (), {})[name])


def test_another_transfer_set_trains_no_teacher_anew() -> None:
    finetuned = spec.Teacher(source="dir:teacher", finetune=spec.Finetune())

    def keyed(general: spec.General = spec.General(), **changes: Any) -> dict[str, str]:  # noqa: B008
        task = dataclasses.replace(target().task, **changes)
        wanted = target(task=task, teacher=finetuned, distill=dataclasses.replace(BOTH, general=general))
        return keys(wanted, sources=SOURCES | {"transfer": str(changes.get("transfer"))})

    without, windows, wider = keyed(), keyed(transfer_words=50), keyed(transfer_words=60)
    elsewhere = keyed(transfer="more.csv", transfer_column="body")
    for other in (windows, wider, elsewhere):
        assert {name for name in without if without[name] == other[name]} == {"assets", "teacher", "backbone"}
    assert len({windows["transfer"], wider["transfer"], elsewhere["transfer"]}) == 3
    apart = {"general": spec.General(text="more.csv")}
    one, other = keyed(transfer_words=50, **apart), keyed(transfer_words=60, **apart)
    first = {"transfer_general", "labels_general", "distill_general"}
    assert {name for name in one if one[name] == other[name]} == {"assets", "teacher", "backbone"} | first


def test_a_key_changes_exactly_where_the_change_reaches() -> None:
    finetuned = spec.Teacher(source="dir:teacher", finetune=spec.Finetune())
    before = keys(target(distill=BOTH, teacher=finetuned), sources=SOURCES)

    def kept(sources: dict[str, str] = SOURCES, teacher: spec.Teacher = finetuned, **changes: Any) -> set[str]:
        after = keys(target(distill=dataclasses.replace(BOTH, **changes), teacher=teacher), sources=sources)
        return {name for name in before if before[name] == after[name]}

    first = {"assets", "teacher", "backbone", "labels_general", "distill_general", "transfer_general"}
    assert kept(augment=dataclasses.replace(AUGMENT, mask=0.2)) == first
    assert kept(sources=SOURCES | {"general": "c"}) == {"assets", "teacher", "backbone", "augment", "labels"}
    assert kept(general=dataclasses.replace(GENERAL, epochs=9)) == (first - {"distill_general"}) | {"augment", "labels"}
    longer = dataclasses.replace(finetuned, finetune=spec.Finetune(epochs=9))
    assert kept(teacher=longer) == first - {"teacher"}  # the backbone is the same


def test_a_smoke_run_has_less_of_the_time_before_the_task() -> None:
    general = smoke(target(distill=BOTH)).distill.general
    assert general is not None and general.epochs == 1
    assert smoke(target()).distill.general is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"assistants": (spec.Student(layers=3),)}, "distill.general begins with a student cut from the teacher"),
        ({"distill": dataclasses.replace(BOTH, generations=1, source=spec.Mutual())}, "distill.source Mutual teaches"),
        ({"distill": spec.Distill(general=spec.General(losses=(spec.KL(),)))}, r"losses\[0\] must be HiddenMSE,"),  # type: ignore[arg-type]
        ({"distill": spec.Distill(general=spec.General(losses=()))}, "losses is empty"),
        (
            {
                "distill": spec.Distill(
                    general=spec.General(losses=(spec.RKD(),), optimizer=spec.Optimizer(micro_batch_size=8))
                )
            },
            r"make distill\.general\.optimizer\.micro_batch_size \(8\) a multiple",
        ),
    ],
)
def test_a_time_before_the_task_that_contradicts_something_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        target(**{"distill": dataclasses.replace(BOTH, generations=1)} | changes)


def test_a_plan_knows_what_the_teacher_and_its_backbone_will_be_asked(workplace: Path) -> None:  # noqa: F811
    (workplace / "more.csv").write_text("text\nx\n")
    wanted = planned(distill=dataclasses.replace(BOTH, generations=1))
    assert made(wanted)["labels_bytes"] is None
    finish(wanted, {"assets": 1, "transfer": 1})
    needs, train, held = Needs(attention=(4,)), COUNTS["train"], COUNTS["validation"]
    expected = store_bytes(LOGITS, train + 2 * train + held, 0, 3, 32)  # two copies of each text
    for count in (train, held):
        expected += store_bytes(needs, count, count * 16, 3, 32)
    assert made(wanted)["labels_bytes"] == expected
    deep = spec.General(losses=(spec.HiddenMSE(layers=((1, 5),)),))
    with pytest.raises(TargetError, match=r"the teacher 0\.\.4"):
        made(planned(distill=spec.Distill(general=deep)))


def test_the_time_of_what_is_taught_on_copies_is_scaled_by_how_many_there_are(workplace: Path) -> None:  # noqa: F811
    wanted = planned(distill=spec.Distill(epochs=10, augment=AUGMENT))
    finish(wanted, {"assets": 1, "teacher": 5, "augment": 3, "labels": 10, "distill": 60})
    more = planned(distill=spec.Distill(epochs=10, augment=dataclasses.replace(AUGMENT, copies=5)))
    found = seconds(made(more))
    assert (found["teacher"], found["augment"]) == (0, 3)
    assert found["distill"] == pytest.approx(60 * 6 / 3)
