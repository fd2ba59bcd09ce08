"""Which stages a target has, and exactly what each is given."""

from __future__ import annotations

from collections.abc import Mapping

from edgekd import phases
from edgekd.runner import After
from edgekd.spec import BlackBox, Target, Teacher

STAGES = ("assets", "teacher", "labels", "distill", "quantize", "export", "bench")
"""Those that every target has, in order; the store keeps them."""

STUDENT = "student:"
"""Before the locator of a backbone that students are cut from in place of the teacher, among the sources."""


def graph(
    target: Target,
    sources: Mapping[str, str],
    calibration_ids: tuple[str, ...],
    machine: Mapping[str, object],
    session: Mapping[str, object] | None = None,
    converters: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, dict[str, object]]:
    """Each stage's keyword arguments, which are also what its key is made of. Nothing else reaches a stage.

    Co-teachers have steps of their own beside the teacher's. Assistants and earlier generations of the student stand
    before ``distill``, each with the labels that it gives; before them what ``edgekd.phases`` adds. Students are taught
    on ``data``, which ``assets``, ``transfer`` or ``augment`` wrote; teachers on the labelled text of ``assets`` alone,
    so that another transfer set trains none anew (but a black box is asked about all of it, at once). Teachers taken as
    they come stand before those that are fine-tuned: what is wrong with one is found first. ``sources`` are
    the fingerprints of the data and the models, ``machine`` what a latency depends on; ``session`` holds the options
    that `edgekd tune` chose, if any. ``converters`` are the versions of what makes the files of those runtimes of the
    target that read no ``.onnx``.
    """
    from edgekd.distill.taps import taps

    t, best = target, target.distill.relabel == "best"
    assets, teacher, distill, quantize, export = (After(name) for name in STAGES[:-1] if name != "labels")
    asked_of = teachers(t)
    transfer = phases.transfer_sets(t, sources, asked_of)
    reader, labelled = "transfer" if "transfer" in transfer else "assets", phases.labelled(t.task)
    texts = After(reader)
    copies, general = phases.changed_copies(t, texts), phases.before_the_task(t, texts)
    data, begin = After("augment") if copies else texts, After(list(general)[-1]) if general else None
    stored = tuple(After(f"labels{name}") for name in asked_of)
    labels: After | tuple[After, ...] = stored if t.co_teachers else stored[0]
    asked = taps(t.distill, t.learners[0])
    parent: After = teacher
    before: tuple[After, ...] = ()
    chain: dict[str, dict[str, object]] = {}
    conversions: dict[str, dict[str, object]] = {
        f"convert_{name}": dict(runtime=name, versions=versions, lengths=lengths(t), export=export)
        for name, versions in (converters or {}).items()
    }
    unlabelled = ("transfer", phases.GENERAL)
    task_sources = {name: source for name, source in sources.items() if name not in unlabelled}
    for i, student in enumerate(t.learners):
        if i:
            made, labels = After(f"distill_{i}"), After(f"labels_{i}")
            parent, before = (made, (made,)) if i <= len(t.assistants) else (parent, (*before, made))
            by = before if best else made
            chain[labels.stage] = dict(task=t.task, taps=taps(t.distill, student), assets=data, teacher=by)
        chain["distill" if i + 1 == len(t.learners) else f"distill_{i + 1}"] = dict(
            task=student.reading(t.task),
            student=student,
            distill=t.distill,
            assets=data,
            teacher=parent,
            labels=labels,
            begin=begin,
            seed=t.seed + (i if best else 0),
        )
    return {
        **{
            f"assets{name}": dict(
                task=labelled,
                teacher_source=None if isinstance(given, BlackBox) else given.source,
                teacher_files=given.files,
                student_sources={} if name else _starting(sources, STUDENT),
                source_fingerprints=_fingerprints(task_sources, name),
                seed=t.seed,
            )
            for name, given in asked_of.items()
        },
        **transfer,
        **{
            f"teacher{name}": dict(
                task=t.task if isinstance(given, BlackBox) else labelled,
                teacher=given,
                assets=texts if isinstance(given, BlackBox) else After(f"assets{name}"),
                seed=t.seed,
            )
            for name, given in sorted(asked_of.items(), key=lambda pair: getattr(pair[1], "finetune", None) is not None)
        },
        **copies,
        **general,
        **{
            f"labels{name}": dict(
                task=t.task,
                taps=asked[:1] if name else asked,
                assets=data if copies else After(f"{reader}{name}"),
                teacher=After(f"teacher{name}"),
            )
            for name in asked_of
        },
        **chain,
        "quantize": dict(
            task=t.student.reading(t.task),
            distill_spec=t.distill,
            quant=t.quant,
            score_kept=t.budget.score_kept if t.quant.train == "if_needed" else None,
            assets=data,
            teacher=teacher,
            labels=labels,
            distill=distill,
            calibration_ids=calibration_ids,
            seed=t.seed,
        ),
        "export": dict(
            task=t.student.reading(t.task),
            quant=t.quant,
            export=t.export,
            assets=assets,
            teacher=teacher,
            distill=distill,
            quantize=quantize,
        ),
        **conversions,
        "bench": dict(
            task=t.task,
            bench=t.bench,
            export=export,
            assets=assets,
            machine=machine,
            session=dict(session or {}),
            conversions=tuple(After(name) for name in conversions),
        ),
    }


def lengths(target: Target) -> tuple[int, ...]:
    """The numbers of tokens that a file of fixed lengths must take for all that is timed: powers of two from 16."""
    names = {name for workloads in target.bench.workloads.values() for name in workloads} - {"real"}
    longest = max(
        [target.student.reading(target.task).max_length, *(int(name.removeprefix("fixed")) for name in names)]
    )
    return tuple(2**i for i in range(4, max(5, (longest - 1).bit_length() + 1)))


def teachers(target: Target) -> dict[str, Teacher | BlackBox]:
    """Every teacher by what its steps' names end in, the target's own first: by nothing."""
    return {"": target.teacher} | {f"_also{i}": given for i, given in enumerate(target.co_teachers, 1)}


def _fingerprints(sources: Mapping[str, str], name: str) -> dict[str, str]:
    """Those of the data and of one teacher, as if it were the only one: its stages are those of such a target."""
    models = {source for source in sources if source.startswith(("teacher", STUDENT))} - {f"teacher{name}"}
    return {source.removesuffix(name): found for source, found in sources.items() if source not in models}


def _starting(sources: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): found for name, found in sources.items() if name.startswith(prefix)}
