"""Claims about the label store: it equals the live teacher, resumes, is shared by ranks, serves other tokenizers."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from edgekd import runner, spec
from edgekd.distill import labels
from edgekd.distill.data import micro_batches
from edgekd.distill.live import LiveTeacher
from edgekd.distill.taps import LOGITS, Needs, store_bytes, stored, taps
from edgekd.errors import DataError, StoreError, TrainingError
from edgekd.models.vocabulary import trim
from edgekd.progress import Progress
from edgekd.store import Context

QUIET = Progress(quiet=True)
CPU = torch.device("cpu")
LAYERS = (0, 2, 4)
NEEDS = Needs(hidden=LAYERS)


def store(out: Path, model: Any, tokens: Any, **ranks: int) -> None:
    labels.compute(out, "train", tokens, model, NEEDS, CPU, QUIET, **ranks)


def files(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(out.glob("*.npy"))}


def test_stored_signals_equal_the_live_teacher(tmp_path: Path) -> None:
    model, tokens = tiny.bert(), tiny.tokens(tiny.split(150, 0))
    store(tmp_path, model, tokens)
    rows = np.array([149, 3, 77, 12])
    (batch,) = micro_batches(tokens, rows, None, labels.LabelStore(tmp_path, "train", NEEDS))
    with torch.no_grad():
        live = model(**batch.inputs, output_hidden_states=True)
    assert batch.teacher is not None
    torch.testing.assert_close(batch.teacher.logits_BC, live.logits, rtol=1e-4, atol=1e-5)
    mask = batch.inputs["attention_mask"].bool()
    for layer in LAYERS:
        states = batch.teacher.hidden[layer]
        assert states.dtype == torch.float16
        torch.testing.assert_close(states[mask].float(), live.hidden_states[layer][mask], rtol=2e-3, atol=2e-3)


def test_what_tokens_have_is_read_without_reading_ahead(tmp_path: Path) -> None:
    store(tmp_path, tiny.bert(), tiny.tokens(tiny.split(8, 0)))
    held = labels.LabelStore(tmp_path, "train", NEEDS)
    entries = Path("/proc/self/smaps").read_text().split("VmFlags:")
    marked = {flags.split("\n")[0].split().count("rr") for entry, flags in pairwise(entries) if ".hidden." in entry}
    others = {flags.split("\n")[0].split().count("rr") for entry, flags in pairwise(entries) if ".logits." in entry}
    assert (len(held.fields), marked, others) == (1 + len(LAYERS), {1}, {0})  # rr: random reads, in proc(5)


def test_bf16_labels_are_those_of_the_teacher_under_autocast(tmp_path: Path) -> None:
    model, tokens = tiny.bert(), tiny.tokens(tiny.split(40, 0))
    labels.compute(tmp_path, "train", tokens, model, LOGITS, CPU, QUIET, bf16=True)
    rows = np.argsort(tokens.lengths, kind="stable")
    ids, mask, _ = tokens.gather(rows)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        live = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask.astype(np.int64))).logits
    stored = labels.LabelStore(tmp_path, "train").logits[rows]
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, live.float().numpy())


def test_a_killed_store_goes_on_and_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "BLOCK", 16)
    model, tokens = tiny.bert(), tiny.tokens(tiny.split(100, 0))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    store(tmp_path / "a", model, tokens)
    block, calls = labels._block, []

    def dying(*args: Any) -> None:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        block(*args)

    monkeypatch.setattr(labels, "_block", dying)
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path / "b", model, tokens)
    monkeypatch.setattr(labels, "_block", lambda *args: (calls.append(1), block(*args)))
    store(tmp_path / "b", model, tokens)
    assert len(calls) == 7  # 100 examples in blocks of 16: none computed twice
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_two_ranks_share_the_work_and_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "BLOCK", 16)
    model, tokens = tiny.bert(), tiny.tokens(tiny.split(100, 0))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    store(tmp_path / "a", model, tokens)
    ranks = [
        threading.Thread(target=store, args=(tmp_path / "b", model, tokens), kwargs={"rank": r, "world_size": 2})
        for r in (1, 0)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_student_with_another_tokenizer_finds_the_token_at_the_same_character(tmp_path: Path) -> None:
    part = tiny.split(40, 0)
    teacher_tokenizer = tiny.wordpiece()
    teacher = tiny.tokens(part, tokenizer=tiny.wordpiece())
    store(tmp_path, tiny.bert(), teacher)
    small, _ = trim(teacher_tokenizer, part.texts, 70)
    student = tiny.tokens(part, max_length=64, tokenizer=small)
    assert len(student.ids) > len(teacher.ids)  # words are spelled with letters now
    rows = np.random.default_rng(0).permutation(40)
    _, mask, flat = student.gather(rows)
    wanted = np.where(mask, student.starts[flat], -1)
    place, read = labels.align(wanted, teacher.starts, teacher.offsets, rows, longest=64)
    assert read is None  # nothing was cut
    for i, local in zip(rows, (place[b][mask[b]] for b in range(40)), strict=True):
        mine, theirs = slice(*student.offsets[i : i + 2]), slice(*teacher.offsets[i : i + 2])
        assert local[0] == 0 and local[-1] == theirs.stop - theirs.start - 1
        starts = teacher.starts[theirs]
        for token, start in zip(local[1:-1], student.starts[mine][1:-1], strict=True):
            last = np.flatnonzero((starts >= 0) & (starts <= start))[-1]
            assert token == last


SPACES = {
    "metaspace": (pre_tokenizers.Metaspace(), []),
    "bytes": (pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.ByteLevel.alphabet()),
}


@pytest.mark.parametrize("kind", SPACES)
def test_a_token_that_begins_with_a_space_finds_the_word_behind_it(kind: str) -> None:
    part, rows = tiny.split(40, 0), np.arange(40)
    pre, alphabet = SPACES[kind]
    spaced = Tokenizer(models.BPE(unk_token="[UNK]"))
    spaced.pre_tokenizer = pre
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=tiny.SPECIALS, initial_alphabet=alphabet)
    spaced.train_from_iterator(part.texts, trainer)
    teacher, student = tiny.tokens(part, 64), tiny.tokens(part, 64, spaced)
    _, mask, flat = student.gather(rows)
    wanted = np.where(mask, student.starts[flat], -1)
    place, _ = labels.align(wanted, teacher.starts, teacher.offsets, rows, longest=64)
    words = 0
    for b, text in enumerate(part.texts):
        covers = tiny.wordpiece().encode(text).offsets
        for token, (begin, end) in zip(place[b], spaced.encode(text).offsets, strict=False):
            said = text[begin:end].lstrip()
            words += len(said) < end - begin
            if said:
                assert covers[token][0] <= end - len(said) < covers[token][1]
    assert words > 100


def test_what_a_black_box_told_of_other_examples_is_refused(tmp_path: Path) -> None:
    labels.write(tmp_path, "taught", np.zeros((10, 3), np.float32), np.ones((10, 3), np.bool_))
    np.save(tmp_path / "taught.known.npy", np.ones((4, 3), np.bool_))
    with pytest.raises(StoreError, match=r"taught\.known\.npy .*4 rows instead of 10"):
        labels.LabelStore(tmp_path, "taught")


def test_examples_of_which_the_teacher_has_no_text_pair_with_its_specials() -> None:
    starts, offsets = np.array([-1, -1, -1, 0, 4, -1, -1], np.int32), np.array([0, 2, 6, 7])
    wanted = np.array([[-1, 0, 3, -1], [-1, 5, -1, -1], [-1, 0, -1, -1]])
    for rows in ([0, 1, 2], [2, 1, 0], [2], [0]):
        expected = {0: [0, 0, 0, 1], 1: [0, 2, 3, 3], 2: [0, 0, 0, 0]}
        found, read = labels.align(wanted[rows], starts, offsets, np.array(rows), longest=5)
        assert found.tolist() == [expected[row] for row in rows] and read is None


def test_text_that_the_teacher_has_cut_is_unread(tmp_path: Path) -> None:
    part, rows = tiny.split(40, 0), np.arange(40)
    teacher, student = (tiny.tokens(part, max_length=n, tokenizer=tiny.wordpiece()) for n in (8, 64))
    store(tmp_path, tiny.bert(), teacher)
    _, mask, flat = student.gather(rows)
    offline = labels.LabelStore(tmp_path, "train", NEEDS).signal(rows, student, mask, flat)
    live = LiveTeacher(tiny.bert(), teacher, NEEDS, torch.device("cpu")).signal(rows, student, mask, flat)
    expected = np.ones_like(mask)
    for row, (mine, its) in enumerate(zip(student.lengths, teacher.lengths, strict=True)):
        if mine > its:  # the same tokenizer: what it reads beyond the cut, up to the special at its end
            expected[row, its - 1 : mine - 1] = False
    assert offline.read_BT is not None and live.read_BT is not None
    assert np.array_equal(offline.read_BT.numpy(), expected) and torch.equal(offline.read_BT, live.read_BT)


@pytest.mark.parametrize("name", ["logits", "hidden.2", "starts", "offsets"])
@pytest.mark.parametrize("damage", ["truncated", "gone", "of another split"])
def test_a_damaged_store_is_refused_by_the_name_of_the_file(tmp_path: Path, name: str, damage: str) -> None:
    for folder, count in (("mine", 20), ("other", 21)):
        (tmp_path / folder).mkdir()
        store(tmp_path / folder, tiny.bert(), tiny.tokens(tiny.split(count, 0)))
    file = tmp_path / "mine" / f"train.{name}.npy"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "gone":
        file.unlink()
    else:
        file.write_bytes((tmp_path / "other" / file.name).read_bytes())
    with pytest.raises(StoreError, match=r"train\..*--fresh labels") as caught:
        labels.LabelStore(tmp_path / "mine", "train", NEEDS)
    assert damage == "of another split" or f"train.{name}.npy" in str(caught.value)


def test_what_a_killed_stage_left_and_somebody_cut_is_not_taken_up(tmp_path: Path) -> None:
    tokens = tiny.tokens(tiny.split(20, 0))
    store(tmp_path, tiny.bert(), tokens)
    file = tmp_path / "train.hidden.2.npy"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(StoreError, match=r"train\.hidden\.2\.npy .*--fresh labels"):
        store(tmp_path, tiny.bert(), tokens)


def test_a_store_of_another_split_is_refused(tmp_path: Path) -> None:
    store(tmp_path, tiny.bert(), tiny.tokens(tiny.split(20, 0)))
    other = tiny.tokens(tiny.split(21, 0))
    with pytest.raises(DataError, match="rerun the labels stage"):
        list(micro_batches(other, np.arange(4), None, labels.LabelStore(tmp_path, "train", NEEDS)))


def test_the_size_estimate_is_the_size(tmp_path: Path) -> None:
    tokens = tiny.tokens(tiny.split(200, 0))
    store(tmp_path, tiny.bert(), tokens)
    size = sum(p.stat().st_size for p in tmp_path.glob("*.npy"))
    assert store_bytes(NEEDS, 200, len(tokens.ids), 3, 32) == pytest.approx(size, rel=0.02)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)  # the error caught below still holds the map


def test_a_full_disk_is_an_error_that_says_so_not_a_crash(small_disk: Path) -> None:
    tokens = tiny.tokens(tiny.split(300, 0))

    def stage(ctx: Context) -> None:
        store(ctx.out, tiny.bert(), tokens)

    steps = runner.resolve({"labels": {}}, small_disk, lambda name: 1)
    with pytest.raises(StoreError, match="the disk is full") as caught:
        runner.walk(
            steps,
            small_disk,
            function=lambda name: stage,
            context=lambda out: Context(out, "cpu", 1, QUIET),
            progress=QUIET,
        )
    assert caught.value.exit_code == 10
    assert list(small_disk.rglob("*.npy")) == []  # nobody else lacks what this stage could not use


def test_the_disk_is_reserved_before_any_work_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, reserved = tiny.tokens(tiny.split(20, 0)), []

    def stop(*args: Any) -> None:
        reserved.extend(p.stat().st_blocks * 512 >= p.stat().st_size for p in tmp_path.glob("*.npy"))
        raise KeyboardInterrupt

    monkeypatch.setattr(labels, "_block", stop)
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path, tiny.bert(), tokens)
    assert reserved == [True] * (3 + len(LAYERS))


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (7e4, r"in train example 17 \(counted from 0\) the teacher's hidden states of layer 2 do not fit into float16"),
        (float("nan"), r"in train example 17 \(counted from 0\) the teacher's logits are not finite"),
    ],
)
def test_an_output_that_cannot_be_stored_names_layer_and_example(tmp_path: Path, value: float, complaint: str) -> None:
    model, part = tiny.bert(), tiny.split(40, 0)
    part.texts[17] = "q z"  # letters that no other text has
    tokens = tiny.tokens(part)
    (letter,) = {int(i) for i in tokens.ids[slice(*tokens.offsets[17:19])]} & {tiny.wordpiece().token_to_id("q")}

    def spoil(module: Any, args: Any, out: Any) -> Any:
        states = out[0] if isinstance(out, tuple) else out
        seen = torch.from_numpy(np.isin(given["input_ids"].numpy(), [letter]))
        spoiled = torch.where(seen.unsqueeze(-1), torch.full_like(states, value), states)
        return (spoiled, *out[1:]) if isinstance(out, tuple) else spoiled

    given: dict[str, torch.Tensor] = {}
    model.register_forward_pre_hook(lambda m, a, k: given.update(k), with_kwargs=True)
    model.bert.encoder.layer[1].register_forward_hook(spoil)
    with pytest.raises(TrainingError, match=complaint):
        store(tmp_path, model, tokens)


def many_classes(count: int, seed: int = 1) -> Any:
    return tiny.bert(seed, id2label=dict(enumerate(map(str, range(count)))), label2id={str(i): i for i in range(count)})


def test_the_largest_logits_and_the_mass_of_the_rest_are_what_is_kept_of_many_classes(tmp_path: Path) -> None:
    tokens, model = tiny.tokens(tiny.split(30, 0)), many_classes(40)
    for name, needs in (("all", LOGITS), ("top", Needs(top=5))):
        (tmp_path / name).mkdir()
        labels.compute(tmp_path / name, "train", tokens, model, needs, CPU, QUIET)
        size = sum(p.stat().st_size for p in (tmp_path / name).glob("*.npy"))
        assert store_bytes(needs, 30, 0, 40, 32) == pytest.approx(size, abs=600)
    rows = np.array([3, 20, 7])
    exact = torch.from_numpy(labels.LabelStore(tmp_path / "all", "train").logits[rows]).double().softmax(-1)
    (batch,) = micro_batches(tokens, rows, None, labels.LabelStore(tmp_path / "top", "train", Needs(top=5), 0, 40))
    assert batch.teacher is not None
    found = batch.teacher.logits_BC.double().softmax(-1)
    top = exact.topk(5).indices
    torch.testing.assert_close(found.gather(1, top), exact.gather(1, top), rtol=1e-5, atol=1e-7)
    assert batch.teacher.known_BC is not None
    assert torch.equal(batch.teacher.known_BC, torch.zeros_like(exact, dtype=torch.bool).scatter(1, top, True))
    rest = (1 - exact.gather(1, top).sum(1)) / 35
    others = found.scatter(1, top, 0.0)
    torch.testing.assert_close(others.sum(1), 35 * rest, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(others.amax(1), rest, rtol=1e-4, atol=1e-6)


def test_keeping_as_many_logits_as_there_are_classes_is_keeping_all() -> None:
    wanted = taps(spec.Distill(source=spec.Stored(top=3)), spec.Student(layers=2))
    assert wanted == ("logits:3",) and stored(wanted, 4, 3) == LOGITS and stored(wanted, 4, 4) == Needs(top=3)
