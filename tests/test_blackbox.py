"""Claims about teachers of which only the answers can be had: what they cost, what is kept, what their answers mean."""

from __future__ import annotations

import dataclasses
import email.utils
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_endpoint
import tiny_target

from edgekd import catalog, plan, spec
from edgekd.blackbox import ask, cache, client, parse
from edgekd.distill import evaluate
from edgekd.errors import AssetError, BudgetError, DataError, StoreError, TargetError
from edgekd.progress import Progress
from edgekd.report import schema
from edgekd.store import read_json

TEXTS = tiny.split(30, 5).texts
COUNT = len(set(TEXTS))
RIGHT = [tiny.LABELS.index(tiny_endpoint.label(text)) for text in TEXTS]


@pytest.fixture
def server() -> Iterator[tiny_endpoint.Endpoint]:
    with tiny_endpoint.endpoint() as found:
        yield found


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    pause = client.pause
    monkeypatch.setattr(client, "pause", lambda attempt, wait_s: pause(attempt, wait_s) / 1000)


def box(server: Any, **changes: Any) -> spec.BlackBox:
    options: dict[str, Any] = dict(source=server.source, model="m", timeout_s=20.0, retries=2)
    return spec.BlackBox(**(options | changes))


def asked(given: spec.BlackBox, folder: Path, texts: list[str] = TEXTS, progress: Progress | None = None) -> Any:
    """All that a stage does: look before, then ask."""
    asker = ask.Asker(given, tiny.LABELS, folder, progress or Progress(quiet=True))
    try:
        asker.prepare(texts)
        return asker.ask(texts, "asking")
    finally:
        asker.close()


def test_labels_come_back_in_order_and_are_asked_for_once(server: Any, tmp_path: Path) -> None:
    logits, known = asked(box(server), tmp_path)
    assert logits.argmax(1).tolist() == RIGHT and known.all()
    assert logits.dtype == np.float32 and set(np.unique(logits)) == {-np.inf, 0.0}
    assert len(server.bodies) == COUNT
    assert all(body["temperature"] == 0 and "- energy\n- finance\n- food" in str(body["messages"][0]["content"])
               for body in server.bodies)  # fmt: skip
    again, _ = asked(box(server, concurrency=3, timeout_s=9.0), tmp_path)
    np.testing.assert_array_equal(again, logits)
    assert len(server.bodies) == COUNT
    asked(box(server, model="other"), tmp_path)  # another question each
    assert len(server.bodies) == 2 * COUNT


def test_no_more_requests_are_under_way_than_allowed(server: Any, tmp_path: Path) -> None:
    server.pause_s = 0.1
    asked(box(server, concurrency=4), tmp_path, TEXTS[:12])
    assert 2 <= server.most <= 4


def test_what_may_pass_is_tried_again_and_what_the_endpoint_asks_for_is_awaited(server: Any, tmp_path: Path) -> None:
    server.faults = [429, None, 503, "nonsense", None, 500]
    logits, _ = asked(box(server, concurrency=1), tmp_path)
    assert logits.argmax(1).tolist() == RIGHT and len(server.bodies) == COUNT + 4
    waits = [client._wait(text) for text in ("7", "0.5", "soon", None, "-3", "nan")]
    assert waits == [7.0, 0.5, None, None, 0.0, None]
    date = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 50 < (client._wait(date) or 0) <= 60
    server.faults = [{"Retry-After": "86400000"}] * 3
    with pytest.raises(AssetError, match="HTTP 429"):  # nobody waits a thousand days
        asked(box(server, model="b"), tmp_path)
    assert len(server.faults) == 2


def test_pauses_double_and_differ_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for attempt, longest in enumerate((1, 2, 4, 8, 16, 32, 60, 60)):
        found = [client.pause(attempt, None) for _ in range(20)]
        assert longest / 2 <= min(found) < max(found) <= longest
    assert client.pause(0, 12.0) == 12.0


@pytest.mark.parametrize(
    ("faults", "changes", "error", "message"),
    [
        ([401], {"api_key_env": "TINY_KEY"}, AssetError, "HTTP 401.*look at the key in TINY_KEY"),
        ([404], {}, AssetError, "HTTP 404.*teacher.source must be what stands before /chat/completions"),
        ([400], {}, AssetError, "HTTP 400.*mend what it complains of"),
        ([302], {"api_key_env": "TINY_KEY"}, AssetError, "HTTP 302.*keys are not sent there"),
        ([402], {}, AssetError, "no credit left"),
        ([500] * 9, {}, AssetError, "HTTP 500.*give the same command again later"),
        (["timeout"] * 9, {"timeout_s": 0.05}, AssetError, r"did not answer within 0\.05 s; raise teacher.timeout_s"),
        (["nonsense"] * 9, {}, AssetError, "is no chat completion: <html>a proxy"),
        ([[]] * 9, {"probabilities": True}, AssetError, "gives no logprobs.*set teacher.probabilities=False"),
        ([], {"api_key_env": "NO_SUCH_KEY"}, AssetError, "the variable NO_SUCH_KEY holds no key"),
    ],
)
def test_an_endpoint_that_is_no_use_is_told_by_the_first_question(
    server: Any, tmp_path: Path, faults: Any, changes: Any, error: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_KEY", "sk-secret")
    server.faults = list(faults)
    with pytest.raises(error, match=message) as caught:
        asked(box(server, **changes), tmp_path)
    assert len(server.bodies) <= 2 and "sk-secret" not in str(caught.value)


def test_nobody_there_is_said_so(tmp_path: Path) -> None:
    given = spec.BlackBox(source="http://127.0.0.1:9/v1", model="m", retries=0)
    with pytest.raises(AssetError, match="cannot be reached"):
        asked(given, tmp_path)


def test_answers_that_are_no_labels_stop_it_at_once_or_when_they_are_too_many(server: Any, tmp_path: Path) -> None:
    server.say = lambda text: "I would rather not"
    with pytest.raises(DataError, match=r"the first 3 are no label.*it said 'I would rather not'"):
        asked(box(server), tmp_path)
    assert len(server.bodies) == 3
    odd = TEXTS[7]
    server.say = lambda text: "hm" if text == odd else tiny_endpoint.label(text).upper() + "."
    logits, known = asked(box(server, model="b"), tmp_path)
    lost = [i for i, text in enumerate(TEXTS) if text == odd]
    assert np.flatnonzero(np.isnan(logits[:, 0])).tolist() == lost and not known[lost].any()
    before = len(server.bodies)
    with pytest.raises(DataError, match=r"1 are no label, more than max_unlabelled=0\.01 of 30.*it said 'hm'"):
        asked(box(server, model="b", max_unlabelled=0.01), tmp_path)
    assert len(server.bodies) == before  # that it answered nonsense was known


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_budget_is_never_exceeded_and_what_it_bought_is_kept(server: Any, tmp_path: Path, concurrency: int) -> None:
    given = box(server, concurrency=concurrency, max_requests=COUNT - 1)
    with pytest.raises(BudgetError, match=f"{COUNT} answers are missing, and max_requests is {COUNT - 1}"):
        asked(given, tmp_path)
    assert not server.bodies
    server.faults = [None, *["nonsense"] * 5]  # billed, and of no use
    enough = dataclasses.replace(given, max_requests=COUNT, retries=20)
    with pytest.raises(BudgetError, match="another request could exceed"):
        asked(enough, tmp_path)
    assert len(server.bodies) == COUNT
    with pytest.raises(BudgetError, match="5 answers are missing"):  # the bill outlives the process
        asked(enough, tmp_path)
    logits, _ = asked(dataclasses.replace(given, max_requests=COUNT + 5), tmp_path)
    assert logits.argmax(1).tolist() == RIGHT and len(server.bodies) == COUNT + 5


def test_the_cost_is_reckoned_before_and_never_exceeded(server: Any, tmp_path: Path) -> None:
    prices = {"input_price": 4.0, "output_price": 10.0}
    body = client.request(box(server), TEXTS[0], tiny.LABELS)
    one = (client.size(body) // 4 * 4.0 + 2 * 10.0) / 1e6
    with pytest.raises(BudgetError, match=r"it will need about .* more, and max_cost is"):
        asked(box(server, **prices, max_cost=one * COUNT / 2), tmp_path)
    assert len(server.bodies) == 1  # the first question, from which the others are reckoned
    bars = tiny.Bars()
    asked(box(server, **prices, max_cost=one * COUNT * 1.5), tmp_path, progress=bars)
    (said,) = (line for line in bars.said if "is to answer" in line)
    assert f"{COUNT - 2} of {COUNT}" in said  # each of the two asked a first question
    assert float(said.rpartition("about ")[2]) == pytest.approx(one * (COUNT - 2), rel=0.2)
    answers = cache.Answers(tmp_path, f"{server.source} (m)")
    requests, cost = answers.spent()
    billed = sum(client.size(b) // 4 * 4.0 + 20 for b in server.bodies) / 1e6
    assert requests == COUNT and cost == pytest.approx(billed)
    longer = [" ".join([text] * 20) for text in TEXTS]
    limit = cost + 2 * client.most_cost(box(server, **prices), client.request(box(server), longer[0], tiny.LABELS))
    with pytest.raises(BudgetError):
        asked(box(server, **prices, max_cost=limit), tmp_path, longer)
    assert answers.spent()[1] <= limit
    answers.close()


def test_reservations_of_many_threads_never_exceed_the_limits(tmp_path: Path) -> None:
    answers, granted = cache.Answers(tmp_path, "x"), []

    def spend() -> None:
        other = cache.Answers(tmp_path, "x")  # as another process has it
        for _ in range(5):
            granted.append(answers.reserve(0.3, 12, 2.0) + other.reserve(0.3, 12, 2.0))
        other.close()

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(granted) == 6 and answers.spent() == (6, pytest.approx(1.8))  # 6 · 0.3 ≤ 2 < 7 · 0.3
    answers.release(0.3)
    answers.keep("k", {"text": "oil"}, booked=0.3, cost=0.1)
    assert answers.spent() == (5, pytest.approx(1.3)) and answers.get(["k", "l"]) == {"k": {"text": "oil"}}
    answers.close()
    answers.path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError, match="cannot be read or written"):
        cache.Answers(tmp_path, "x")


KILLED = """
from pathlib import Path
from edgekd.blackbox.ask import Asker
from edgekd.progress import Progress
from edgekd.spec import BlackBox
box = BlackBox(source={source!r}, model="m", concurrency=4)
Asker(box, {labels!r}, Path({folder!r}), Progress(quiet=True)).ask({texts!r}, "asking")
"""


def test_a_run_that_is_killed_pays_for_no_answer_twice(server: Any, tmp_path: Path) -> None:
    server.pause_s = 0.05
    script = KILLED.format(source=server.source, labels=tiny.LABELS, folder=str(tmp_path), texts=TEXTS)
    process = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"OMP_NUM_THREADS": "1"})
    tiny_endpoint.until(lambda: len(server.bodies) >= 10)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    tiny_endpoint.until(lambda: server.now == 0)
    before = len(server.bodies)
    answers = cache.Answers(tmp_path, f"{server.source} (m)")
    requests, _ = answers.spent()
    kept = answers._db.execute("SELECT COUNT(*) FROM answers").fetchone()[0]
    answers.close()
    # Of the four under way some answers were lost, and some were not sent yet; all of them stay on the bill.
    assert before - 4 <= kept <= requests <= before + 4
    server.pause_s = 0.0
    logits, _ = asked(box(server), tmp_path)
    assert logits.argmax(1).tolist() == RIGHT and len(server.bodies) == before + COUNT - kept


def test_an_error_loses_nothing_that_was_answered(server: Any, tmp_path: Path) -> None:
    server.faults = [None] * 10 + [403]
    server.pause_s = 0.02
    with pytest.raises(AssetError, match="HTTP 403"):
        asked(box(server, concurrency=4), tmp_path)
    before = len(server.bodies)
    asked(box(server), tmp_path)
    assert len(server.bodies) == COUNT + 1 and before < COUNT


def test_the_key_is_sent_and_stands_nowhere_else(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_KEY", "sk-very-secret")
    given, bars = box(server, api_key_env="TINY_KEY"), tiny.Bars()
    server.say = lambda text: f"{tiny_endpoint.label(text)} Bearer sk-very-secret"
    server.faults = [500]
    asked(given, tmp_path, progress=bars)
    assert set(server.keys) == {"Bearer sk-very-secret"}
    said = str(bars.said) + repr(given) + repr(dataclasses.asdict(given))
    assert "sk-very" not in said
    assert all(b"sk-very" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


# -------------------------------------------------------------------------------------------------- what answers mean

NAMES = parse.names(("energy", "earn", "earnings", "Money-FX"))


@pytest.mark.parametrize(
    ("text", "label"),
    [("energy", 0), (" **Energy**.\n", 0), ("earn", 1), ("earnings", 2), ("The label is: money-fx.", 3),
     ("money fx", None), ("energy or earn", None), ("", None), ("bioenergy", None)],
)  # fmt: skip
def test_an_answer_is_the_only_label_in_it(text: str, label: int | None) -> None:
    assert parse.label_of(text, NAMES) == label


def test_labels_that_answers_cannot_tell_apart_are_refused() -> None:
    with pytest.raises(DataError, match="of the label 'a' only 'a' is looked at"):
        parse.names(("A", "b", "a"))


def position(chosen: str, **top: float) -> dict[str, Any]:
    given = {name.replace("_", " "): share for name, share in top.items()}
    return {"token": chosen, "top": [[token, math.log(share)] for token, share in given.items()]}


def test_tokens_add_up_to_probabilities_of_labels_and_a_rest() -> None:
    # 0.5 begins "earn" and "earnings"; of that 0.8 ends there; "The" begins no label; 0.05 is not listed
    first = position("earn", earn=0.5, en=0.2, _En=0.05, The=0.2)
    row = parse.from_tokens([first, position("</s>", **{"</s>": 0.8, "ings": 0.1, "x": 0.1})], NAMES)
    assert row is not None
    log_p, known = row
    label = 1 - 0.2  # that it is one at all
    expected = np.array([0.25, 0.5 * 0.8 + 0.05, 0.05, 0.05]) / label
    np.testing.assert_allclose(np.exp(log_p), expected)  # "x" ends "earn" too; the one that is left has what is left
    assert known.tolist() == [True, True, True, False]
    assert parse.from_tokens([position("The", The=0.9, en=0.1)], NAMES) is None
    assert parse.from_tokens([position("ear", ear=0.9)], NAMES) is None  # cut off before it was clear
    assert parse.from_tokens([], NAMES) is None


def test_a_function_names_the_probabilities_that_it_knows() -> None:
    row = parse.from_shares({"earn": 0.6, "Energy": 0.0}, NAMES)
    assert row is not None
    np.testing.assert_allclose(np.exp(row[0]), [0.0, 0.6, 0.2, 0.2])
    assert row[1].tolist() == [True, True, False, False]
    assert parse.from_shares({}, NAMES) is None
    for wrong in ({"oil": 0.5}, {"earn": 1.5}, {"earn": 0.7, "energy": 0.7}, {"earn": float("nan")}):
        with pytest.raises(DataError, match="must name labels, with probabilities from 0 to 1"):
            parse.from_shares(wrong, NAMES)


def function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, **changes: Any) -> spec.BlackBox:
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(f"ASKED = []\ndef label(text, labels):\n    ASKED.append(text)\n    {body}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return spec.BlackBox(source=f"callable:{name}:label", retries=1, **changes)


def test_a_function_is_asked_once_until_its_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = function(tmp_path, monkeypatch, "return labels[len(text) % 3]")
    logits, _ = asked(given, tmp_path)
    assert logits.argmax(1).tolist() == [len(text) % 3 for text in TEXTS]
    asked(given, tmp_path)
    name = given.source.split(":")[1]
    assert len(sys.modules[name].ASKED) == COUNT
    path = tmp_path / f"{name}.py"
    path.write_text(path.read_text() + "# changed\n")
    asked(given, tmp_path)
    assert len(sys.modules[name].ASKED) == 2 * COUNT


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise OSError('the line is dead')", "raised OSError.'the line is dead'"),
        ("return 3", "it must return a label"),
    ],
)
def test_a_function_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    with pytest.raises(AssetError, match=message):
        asked(function(tmp_path, monkeypatch, body), tmp_path)
    with pytest.raises(TargetError, match="there is no module nowhere"):
        asked(spec.BlackBox(source="callable:nowhere:label"), tmp_path)
    with pytest.raises(TargetError, match="json has no function 'label'"):
        asked(spec.BlackBox(source="callable:json:label"), tmp_path)


def test_a_student_is_compared_by_what_was_told_alone() -> None:
    student = np.log([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]).astype(np.float32)
    with np.errstate(divide="ignore"):
        teacher = np.log([[0.4, 0.3, 0.3], [0.0, 1.0, 0.0], [np.nan] * 3]).astype(np.float32)
    known = np.array([[True, False, False], [True, True, True], [False] * 3])
    labels = np.array([0, 1, 0])
    found = evaluate.compare(student, labels, teacher, known)
    expected = (0.4 * math.log(0.4 / 0.5) + 0.6 * math.log(0.6 / 0.5) + math.log(1 / 0.8)) / 2
    assert found == {"score": 2 / 3, "agreement": 1.0, "kl": pytest.approx(expected, rel=1e-5)}
    assert evaluate.answers(teacher, known).tolist() == [0, 1, -1]


# -------------------------------------------------------------------------------------------------- in a target

STUDENT = {"model_type": "distilbert", "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24}


def line(folder: Path, teacher: spec.BlackBox, **distill: Any) -> spec.Target:
    """The tiny target with another teacher, and a student of its own."""
    base = catalog.load(tiny_target.write(folder, epochs=6))
    return dataclasses.replace(
        base,
        task=dataclasses.replace(base.task, limit=48),
        teacher=teacher,
        student=spec.Student(config=STUDENT, vocabulary=300),
        distill=dataclasses.replace(
            base.distill, epochs=5, optimizer=spec.Optimizer(learning_rate=1e-2, batch_size=8), **distill
        ),
        quant=dataclasses.replace(
            base.quant, scheme="w4_block", block=32, epochs=1, keep_float=("*.attention.MatMul*", "classifier")
        ),
    )


def run(target: spec.Target, folder: Path, to: str | None = None, progress: Progress | None = None) -> dict[str, Any]:
    from edgekd import pipeline

    places = {"folder": folder / "runs", "out": folder / "dist", "beside": folder / f"{target.name}.py"}
    return pipeline.run(target, to=to, progress=progress or Progress(quiet=True), **places)


def folders(done: dict[str, Any]) -> dict[str, Path]:
    return {name: Path(entry["folder"]) for name, entry in done["stages"].items()}


@pytest.mark.slow
def test_an_endpoint_teaches_a_student_of_its_own_down_to_the_bundle_and_no_key_is_left(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_KEY", "sk-very-secret")
    server.say = lambda text: "? sk-very-secret" if len(text) % 11 == 0 else tiny_endpoint.label(text)
    terms: dict[str, Any] = {"licence": "MIT", "terms": "outputs may not train models", "acknowledged_terms": True}
    teacher = box(server, probabilities=True, max_unlabelled=0.5, max_requests=200, api_key_env="TINY_KEY", **terms)
    target = line(tmp_path, teacher, losses=(spec.PartialKL(), spec.CE(0.1, labels="teacher")))
    target = dataclasses.replace(
        target, bench=spec.Bench(rounds=1, calls=5), budget=spec.Budget(size_mib=1.0, score_kept=0.1)
    )
    assert planned(target, tmp_path)["black_box"] == teacher.name
    bars = tiny.Bars()
    done = run(target, tmp_path, progress=bars)
    stages = folders(done)

    scores = read_json(stages["teacher"] / "scores.json")
    assert 0.5 < scores["test"]["score"] < 1 and scores["parameters"] is None  # no answer is a wrong one
    told = ~np.isnan(np.load(stages["labels"] / "taught.logits.npy")[:, 0])
    assert len(told) > 48, "windows of the texts are asked about, too"
    assert (np.load(stages["labels"] / "taught.known.npy")[told].sum(1) == 2).all()
    assert np.load(stages["distill"] / "rows.npy").tolist() == np.flatnonzero(told).tolist() != list(range(len(told)))
    history = [json.loads(row) for row in (stages["distill"] / "history.jsonl").read_text().splitlines()]
    assert history[-1]["kl"] < history[0]["kl"] < 0.5  # of a student that knows nothing: ln 3 less 0.613 nats
    found = read_json(stages["quantize"] / "scores.json")
    assert found["qad"]["kl"] < history[0]["kl"] and found["training"]["steps"] > 0
    student = read_json(stages["distill"] / "student.json")
    assert planned(target, tmp_path)["student"]["parameters"] == student["parameters"]

    report = schema.load(Path(done["report"]))
    assert {row["artifact"] for row in report["rows"]} == {"student_fp32", "student_ptq", "student_qad"}
    assert all(row["speedup_vs_teacher"] is None and row["score"] is not None for row in report["rows"])
    kept = next(line for line in report["budget"] if line["name"] == "score_kept")
    mine = next(row for row in report["rows"] if row["artifact"] == "student_qad")
    assert kept["measured"] == pytest.approx(mine["score"] / scores["test"]["score"])
    assert any("of the teacher's score" in line for line in report["headline"])
    said = " ".join(report["limits"])
    assert "The teacher is a black box" in said and "may not train models; the target says" in said
    assert "MIT; its outputs may not train models." in (tmp_path / "dist" / "README.md").read_text()

    assert set(server.keys) == {"Bearer sk-very-secret"} and "sk-very" not in str(bars.said)
    files = [path for place in ("runs", "dist") for path in (tmp_path / place).rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"sk-very" in path.read_bytes()]


def planned(target: spec.Target, folder: Path) -> dict[str, Any]:
    return plan.plan(target, folder / "runs", beside=folder / f"{target.name}.py")


def test_a_student_that_a_black_box_teaches_may_have_an_early_exit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = function(tmp_path, monkeypatch, "import tiny_endpoint; return tiny_endpoint.label(text, labels)")
    target = line(tmp_path, teacher, losses=(spec.CE(labels="teacher"), spec.Exits()))
    config = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    student = spec.Student(config=config | {"intermediate_size": 24}, vocabulary=300)
    stage = folders(run(dataclasses.replace(target, student=student), tmp_path, "distill"))["distill"]
    scores = read_json(stage / "scores.json")
    assert set(scores["exits"]) == {"1", "2"} and scores["exits"]["2"] == scores["validation"]
    assert read_json(stage / "exit-1" / "config.json")["num_hidden_layers"] == 1


def test_what_a_function_answered_serves_other_runs_and_its_limits_are_in_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = function(tmp_path, monkeypatch, "import tiny_endpoint; return tiny_endpoint.label(text, labels)")
    target = line(tmp_path, teacher, losses=(spec.CE(labels="teacher"),))
    stages = folders(run(target, tmp_path, "labels"))
    module = sys.modules[teacher.source.split(":")[1]]
    count = len(module.ASKED)
    poorer = dataclasses.replace(teacher, max_requests=1, concurrency=1, licence="MIT")
    assert folders(run(dataclasses.replace(target, teacher=poorer), tmp_path, "labels")) == stages
    shorter = dataclasses.replace(target, task=dataclasses.replace(target.task, max_length=12))
    others = folders(run(shorter, tmp_path, "labels"))
    assert others["labels"] != stages["labels"] and len(module.ASKED) == count
