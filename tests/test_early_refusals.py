"""Claims about when a target is refused: while nothing has been trained yet."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_target
from test_teachers import other, words

from edgekd import catalog, pipeline, spec, store
from edgekd.errors import AssetError, DataError, EdgekdError, TargetError
from edgekd.models import loading
from edgekd.stages import labels, teacher

NAMELESS = {"id2label": {i: f"LABEL_{i}" for i in range(3)}, "label2id": {f"LABEL_{i}": i for i in range(3)}}
OTHER_ORDER = {"id2label": dict(enumerate(("finance", "energy", "food")))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a backbone to fine-tune, and models that have something wrong with them."""
    folder = tmp_path_factory.mktemp("early")
    tiny_target.write(folder, epochs=1)
    for name, options in {"nameless": NAMELESS, "disordered": OTHER_ORDER}.items():
        loading.save_model(tiny.bert(1, **options), tiny.fast(tiny.wordpiece()), folder / name)
    for name in ("headless", "empty", "cut", "foreign"):
        shutil.copytree(folder / "teacher", folder / name)
    tiny.bert().bert.save_pretrained(folder / "headless")
    (folder / "empty/model.safetensors").unlink()
    weights = folder / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-500])

    loading.save_model(other(), tiny.fast(words()), folder / "many")  # its head has two layers
    bare = tiny.fast(tiny.wordpiece())
    bare.mask_token = bare.unk_token = None
    loading.save_model(tiny.bert(), bare, folder / "bare")
    (folder / "foreign/config.json").write_text(json.dumps({"model_type": "perceiver"}))
    return folder


@pytest.fixture(scope="module")
def base(folder: Path) -> spec.Target:
    found = catalog.load(str(folder / "tiny_line.py"))
    return dataclasses.replace(found, distill=dataclasses.replace(found.distill, losses=(spec.KL(),)))


def refused(target: spec.Target, folder: Path, runs: Path, kind: type[EdgekdError], message: str) -> list[str]:
    """The stages that were begun before ``target`` was refused; never ``teacher``, whose backbone is fine-tuned."""
    bars = tiny.Bars()
    with pytest.raises(kind, match=message):
        pipeline.run(target, folder=runs, beside=folder / "tiny_line.py", to="distill", progress=bars)
    begun = [line.split()[1] for line in bars.said if line.startswith("running")]
    assert "assets" in begun and "teacher" not in begun and "distill" not in begun, begun
    return begun


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("disordered", DataError, "not the data's .* in the same order"),
        ("headless", AssetError, "no classification head"),
        ("nameless", DataError, r"have no names, and seem to be \['finance', 'food', 'energy'\]"),
    ],
)
def test_a_co_teacher_taken_as_it_comes_is_refused_before_another_is_trained(
    base: spec.Target,
    folder: Path,
    tmp_path: Path,
    name: str,
    kind: type[EdgekdError],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answers(model: Any, tokens: Any, **options: Any) -> Any:
        return np.eye(3, dtype=np.float32)[(tokens.labels - 1) % 3]

    monkeypatch.setattr(teacher.evaluate, "logits", answers)
    also = dataclasses.replace(base, co_teachers=(spec.Teacher(source=f"dir:{folder}/{name}"),))
    assert refused(also, folder, tmp_path, kind, message)[-1] == "teacher_also1"


def tuned(folder: Path, name: str) -> dict[str, Any]:
    return {"co_teachers": (spec.Teacher(source=f"dir:{folder}/{name}", finetune=spec.Finetune()),)}


def cut_from(folder: Path, name: str) -> dict[str, Any]:
    return {"student": spec.Student(layers=2, source=f"dir:{folder}/{name}")}


def smaller(folder: Path, name: str) -> dict[str, Any]:
    return {"student": spec.Student(layers=2, vocabulary=20)}


def by_way_of(folder: Path, name: str) -> dict[str, Any]:
    return {"assistants": (spec.Student(layers=3, vocabulary=20),), "student": spec.Student(layers=2)}


def of_its_own(folder: Path, name: str) -> dict[str, Any]:
    configs: Any = ({"model_type": "brt"}, {"model_type": "bert", "num_hidden_layers": 2})
    assistant, student = (spec.Student(config=config) for config in configs)
    return {"assistants": (assistant,), "student": student, "budget": spec.Budget()}


def by_its_head(folder: Path, name: str) -> dict[str, Any]:
    return {"co_teachers": (spec.Teacher(source=f"dir:{folder}/{name}", finetune=spec.Finetune(train="head")),)}


def masked(folder: Path, name: str) -> dict[str, Any]:
    teacher = spec.Teacher(source=f"dir:{folder}/{name}", finetune=spec.Finetune())
    return {"teacher": teacher, "distill": spec.Distill(losses=(spec.KL(),), augment=spec.Augment())}


def twelve(*losses: spec.Loss) -> Any:
    """A student whose configuration leaves its twelve layers to the library."""
    config = {"model_type": "bert", "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    student = spec.Student(config=config, vocabulary=70)
    return lambda folder, name: {"student": student, "distill": spec.Distill(losses=losses), "budget": spec.Budget()}


@pytest.mark.parametrize(
    ("changes", "name", "kind", "message"),
    [
        (by_its_head, "many", TargetError, "trains one linear layer, and the head of .* consists of"),
        (masked, "bare", TargetError, "has no mask and no unknown token; set mask=0"),
        (twelve(spec.HiddenMSE(layers=((13, 1),))), "", TargetError, r"out of range: the student has layers 0\.\.12"),
        (twelve(spec.HiddenMSE()), "", TargetError, "cannot pair 12 layers"),
        (twelve(spec.Exits(at=(12,))), "", TargetError, "the student has 12 blocks"),
        (tuned, "empty", AssetError, "no weights in .*empty"),
        (tuned, "cut", AssetError, "cannot load the weights in .*cut"),
        (tuned, "foreign", TargetError, "'perceiver' are not supported, whose configuration gives no num_hidden_layer"),
        (cut_from, "empty", AssetError, "no weights in .*empty"),
        (cut_from, "cut", AssetError, "cannot load the weights in .*cut"),
        (smaller, "", AssetError, "student.vocabulary=20 is below the 57 special and single-character tokens"),
        (by_way_of, "", AssetError, "student.vocabulary=20 is below the 57"),
        (of_its_own, "", TargetError, "not 'brt'; did you mean 'bert'"),
    ],
)
def test_what_is_wrong_with_a_source_or_a_student_is_found_when_all_is_fetched(
    base: spec.Target, folder: Path, tmp_path: Path, changes: Any, name: str, kind: type[EdgekdError], message: str
) -> None:
    begun = refused(dataclasses.replace(base, **changes(folder, name)), folder, tmp_path, kind, message)
    assert {stage.partition("_")[0] for stage in begun} == {"assets"}


def test_a_vocabulary_is_looked_at_in_the_finished_teacher_where_its_source_is_gone(
    base: spec.Target, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = dataclasses.replace(base, teacher=spec.Teacher(source=f"dir:{folder}/teacher"))
    pipeline.run(given, folder=tmp_path, beside=folder / "tiny_line.py", to="teacher")
    monkeypatch.setattr("edgekd.assets.resolve", None)
    target = dataclasses.replace(given, student=spec.Student(layers=2, vocabulary=20))
    with pytest.raises(AssetError, match="is below the 57"):
        pipeline.run(target, folder=tmp_path, beside=folder / "tiny_line.py", to="labels")


def test_a_finished_teacher_that_was_damaged_is_made_again_and_not_refused(
    base: spec.Target, folder: Path, tmp_path: Path
) -> None:
    given = dataclasses.replace(base, teacher=spec.Teacher(source=f"dir:{folder}/teacher"))

    def walk() -> Any:
        return pipeline.run(given, folder=tmp_path, beside=folder / "tiny_line.py", to="teacher")["stages"]["teacher"]

    tokenizer = Path(walk()["folder"]) / "model/tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes().replace(b"{", b"[", 1))
    assert walk()["action"] == "run"


# ---------------------------------------------------------------------------------------------- labels without a name


@pytest.mark.parametrize(("options", "accepted"), [({}, True), (NAMELESS, False)])
def test_only_labels_without_a_name_are_taken_to_stand_in_another_order(
    options: dict[str, Any], accepted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading.save_model(tiny.bert(**options), tiny.fast(tiny.wordpiece()), tmp_path / "model")
    scored: list[str] = []

    def answers(model: Any, tokens: Any, name: str, **given: Any) -> Any:
        scored.append(name)
        return np.eye(3, dtype=np.float32)[(tokens.labels + 1) % 3]

    monkeypatch.setattr(teacher, "read_data", lambda task, assets: tiny.data())
    monkeypatch.setattr(teacher.evaluate, "logits", answers)
    (out := tmp_path / "out").mkdir()

    def run() -> None:
        teacher.run(
            store.Context(out, "cpu", 1, tiny.Bars()),
            task=spec.TextClassification(train="train.csv", test="test.csv", max_length=16),
            teacher=spec.Teacher(source=f"dir:{tmp_path}/model"),
            assets=store.Stage("assets", "0", tmp_path),
            seed=0,
        )

    if accepted:
        run()
        assert store.read_json(out / "scores.json")["validation"] == {"score": 0.0}
        return
    said = r"\['food', 'energy', 'finance'\].*of 24 validation examples 24 are right by that order, 0 by the data's"
    with pytest.raises(DataError, match=said):
        run()
    assert scored == ["teacher: scoring validation"], "the test split is not looked at"


def drawn(seed: int, examples: int, shares: Any, right: float) -> tuple[Any, Any]:
    """Labels of these shares, and answers of which so many are right; the others are drawn by the same shares."""
    rng, p = np.random.default_rng(seed), np.array(shares) / np.sum(shares)
    given = rng.choice(len(p), examples, p=p)
    return np.where(rng.random(examples) < right, given, rng.choice(len(p), examples, p=p)), given


@pytest.mark.parametrize(
    ("order", "examples", "shares"),
    [
        ((1, 2, 0), 20, (1, 1, 1)),
        ((1, 0, 2), 60, (1, 1, 1)),  # still right more often than always one label would be
        ((1, 0), 40, (1, 2)),
        ((2, 1, 0, 3), 100, (1, 1, 1, 1)),
        (tuple(np.roll(range(20), 3).tolist()), 200, range(1, 21)),
    ],
)
def test_the_order_of_a_good_teachers_labels_is_found(order: tuple[int, ...], examples: int, shares: Any) -> None:
    answers, given = drawn(0, examples, shares, 0.9)
    assert teacher.other_order(answers, given, len(order)) is None
    place = np.argsort(order)  # answer a stands for label order[a]
    assert teacher.other_order(place[answers], given, len(order)) == order


@pytest.mark.parametrize(("examples", "shares"), [(15, (1, 1, 1)), (30, (1, 9)), (300, (1, 2, 3, 4)), (300, [1] * 60)])
def test_a_teacher_that_knows_nothing_is_not_taken_for_one_of_another_order(examples: int, shares: Any) -> None:
    for seed in range(50):
        answers, given = drawn(seed, examples, shares, 0.0)
        assert teacher.other_order(answers, given, len(shares)) is None, seed
        for always in range(len(shares)):
            assert teacher.other_order(np.full(examples, always), given, len(shares)) is None


# --------------------------------------------------------------------------------------------- what losses cannot see

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 8, "vocab_size": 9}
BART = {
    "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "vocab_size": 9,
}  # fmt: skip
FUNNEL = {"d_model": 8, "n_head": 2, "d_head": 4, "d_inner": 8, "block_sizes": [1, 1], "vocab_size": 9}


@pytest.mark.parametrize(
    ("kind", "options", "loss", "message"),
    [
        ("bart", BART, spec.HiddenMSE(), "an encoder and a decoder"),
        ("bart", BART, spec.RKD(), "an encoder and a decoder"),
        ("bart", BART, spec.Relations(heads=2), "an encoder and a decoder"),
        ("perceiver", {}, spec.HiddenMSE(), "no num_hidden_layers and no hidden_size"),
        ("fnet", SMALL, spec.HiddenMSE(), "takes other inputs than tokens and their mask"),
        # these look at numbers, so that they run on zeros alone
        ("funnel", FUNNEL, spec.HiddenMSE(), "not one state for every token"),
        ("llama", SMALL | {"num_key_value_heads": 1}, spec.Relations(heads=8), "does not divide the 4 channels"),
    ],
)
def test_a_family_that_cannot_teach_by_its_states_is_refused_by_its_configuration(
    kind: str, options: dict[str, Any], loss: Any, message: str
) -> None:
    with pytest.raises(TargetError, match=message):
        labels.check_signals({"model_type": kind, "pad_token_id": 0, **options}, (spec.KL(), loss), "teacher")


def test_a_teacher_whose_states_are_not_taken_is_refused_before_any_stage_begins(
    base: spec.Target, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "teacher", tmp_path / "bart")
    (tmp_path / "bart/config.json").write_text(json.dumps({"model_type": "bart", "pad_token_id": 0, **BART}))
    target = dataclasses.replace(
        base,
        teacher=dataclasses.replace(base.teacher, source=f"dir:{tmp_path}/bart"),
        student=spec.Student(config={"model_type": "bert", **SMALL} | {"vocab_size": 70}, vocabulary=70),
        distill=dataclasses.replace(base.distill, losses=(spec.HiddenMSE(),)),
    )
    bars = tiny.Bars()
    with pytest.raises(TargetError, match="teacher: BartForSequenceClassification is an encoder and a decoder"):
        pipeline.run(target, folder=tmp_path, beside=folder / "tiny_line.py", to="distill", progress=bars)
    assert not bars.said


def test_masked_copies_are_refused_for_an_assistant_that_reads_by_another_tokenizer(base: spec.Target) -> None:
    augmented = dataclasses.replace(base.distill, augment=spec.Augment(mask=0.3))
    with pytest.raises(TargetError, match="other tokenizers read as text: set mask=0"):
        dataclasses.replace(base, distill=augmented, assistants=(spec.Student(layers=3, source="dir:other"),))
