"""Ask a black box about texts: what is known already first, then several at once, within the budget, all of it kept."""

from __future__ import annotations

import textwrap
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.blackbox import cache, client, function, parse
from edgekd.errors import AssetError, BudgetError, DataError
from edgekd.progress import Progress
from edgekd.spec import BlackBox

PROBES = 3
"""So many answers in a row that are no label are enough to stop before anything else is asked."""
LONGEST_WAIT_S = 300.0
"""An endpoint that asks for a longer pause is left alone for today."""


class Asker:
    """A black box and its answers so far; to be closed.

    ``folder`` is where the store keeps the answers. Raises ``TargetError`` for a function that is not there,
    ``AssetError`` for a key that is not, ``DataError`` for labels that cannot be told apart in an answer.
    """

    def __init__(self, box: BlackBox, labels: Sequence[str], folder: Path, progress: Progress) -> None:
        self.box, self.labels, self.progress = box, tuple(labels), progress
        self.known = parse.names(labels)
        self.function = function.load(box) if box.function else None
        client.key_of(box)
        self._identity = {"source": box.source, "of": function.version(box)}
        self.answers = cache.Answers(folder, box.name)
        self._turn, self._under_way = threading.Condition(), 0
        self._dearer = 1.0  # so many times what it was reckoned to cost at most a request has been billed

    def close(self) -> None:
        """Close the file of answers."""
        self.answers.close()

    def prepare(self, texts: Sequence[str]) -> None:
        """Before long work: is the budget enough for all ``texts``, and does it answer? One question tells, or three.

        Raises ``BudgetError`` where the answers that are missing would cost more than the target allows,
        ``AssetError`` where it does not answer, ``DataError`` where its answers are no labels.
        """
        box, asked = self.box, self._questions(texts)
        found = self.answers.get(list(asked))
        for key, answer in found.items():
            self._learn(self._most(self._question(asked[key])), answer)
        missing = {key: text for key, text in asked.items() if key not in found}
        requests, _ = self.answers.spent()
        if missing and box.max_requests is not None and requests + len(missing) > box.max_requests:
            raise self._too_much(f"{len(missing):,} answers are missing, and max_requests is {box.max_requests:,}")
        said: dict[str, dict[str, Any]] = {}
        for key in list(missing)[:PROBES]:
            text = missing.pop(key)
            said[text] = answer = self._answer(key, text, min(1, box.retries), threading.Event())
            if self._row(answer) is not None:
                break
            if len(said) == PROBES:
                raise self._nonsense(text, answer, f"the first {PROBES} are no label")
        about, (_, spent) = self._estimate(missing, said), self.answers.spent()
        if box.max_cost is not None and spent + about > box.max_cost:
            raise self._too_much(f"it will need about {about:.4g} more, and max_cost is {box.max_cost:g}")
        if missing:
            price = f", for about {about:.4g}" if box.input_price or box.output_price else ""
            self.progress.log(f"teacher: {box.name} is to answer {len(missing):,} of {len(asked):,} questions{price}")

    def ask(self, texts: Sequence[str], name: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Log-probabilities (N, C), and of which classes they are known (N, C); an example without an answer is NaN.

        A class that is sure not to be it has -inf; those that are not known share what is left. Equal texts are asked
        once. Raises as ``prepare`` does, and ``AssetError`` for an endpoint that fails ``retries`` times in a row.
        Whatever is raised, and after ctrl-C too, what was answered is kept, and is not asked again.
        """
        order = [cache.key(self._question(text)) for text in texts]
        asked = dict(zip(order, texts, strict=True))
        found = self.answers.get(list(asked))
        rows = {key: self._row(answer) for key, answer in found.items()}
        self._judge(asked, found, rows)
        missing = {key: text for key, text in asked.items() if key not in found}
        with self.progress.bar(name, total=len(asked), start=len(found), unit="answer") as advance:
            for key, answer in self._fetch(missing):
                found[key], rows[key] = answer, self._row(answer)
                if rows[key] is None:
                    self._judge(asked, found, rows)
                advance(1)
        lost = sum(row is None for row in rows.values())
        if lost:
            self.progress.log(f"{name}: {lost:,} of {len(rows):,} answers are no label; their examples are left out")
        none = np.full(len(self.known), np.nan), np.zeros(len(self.known), np.bool_)
        both = [rows[key] or none for key in order]
        return np.array([row for row, _ in both], np.float32), np.array([known for _, known in both])

    def _question(self, text: str) -> dict[str, Any]:
        if self.function is not None:
            asked: dict[str, Any] = {"text": text, "labels": self.labels, "shares": self.box.probabilities}
            return self._identity | asked | {"model": self.box.model}
        return self._identity | client.request(self.box, text, self.labels)

    def _questions(self, texts: Sequence[str]) -> dict[str, str]:
        """The key of each different question, and its text."""
        return {cache.key(self._question(text)): text for text in texts}

    def _fetch(self, missing: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Ask, ``concurrency`` at once. Whoever stops listening, or whatever fails: those under way are awaited."""
        stop, queue = threading.Event(), iter(missing.items())
        running: dict[Future[dict[str, Any]], str] = {}
        with ThreadPoolExecutor(self.box.concurrency) as pool:
            try:
                while True:
                    for key, text in islice(queue, self.box.concurrency - len(running)):
                        running[pool.submit(self._answer, key, text, self.box.retries, stop)] = key
                    if not running:
                        return
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        yield running.pop(done), done.result()
            finally:
                stop.set()

    def _answer(self, key: str, text: str, retries: int, stop: threading.Event) -> dict[str, Any]:
        """One answer, kept before it is returned; after ``stop`` is set, no further try."""
        for attempt in range(retries + 1):
            try:
                return self._try(key, text, stop)
            except client.TryAgain as error:
                why, wait_s = str(error), client.pause(attempt, error.wait_s)
                if wait_s > LONGEST_WAIT_S or attempt == retries or stop.wait(wait_s):
                    break
        kept = "What was answered is kept: give the same command again later"
        if self.function is not None and not self.box.model:
            kept = (
                "What was answered is kept while its file stays as it is: a changed one is asked everything anew. A "
                "teacher.model, given from the start, keeps the answers until you change that"
            )
        raise AssetError(f"{why} (try {attempt + 1}). {kept}")

    def _try(self, key: str, text: str, stop: threading.Event) -> dict[str, Any]:
        """One request, booked before, and corrected to what it did cost; taken back where it surely costs nothing."""
        box, question = self.box, self._question(text)
        most = self._most(question)
        booked = self._reserve(most, stop)
        try:
            if self.function is not None:
                answer = function.call(self.function, box, text, self.labels)
                self._row(answer)  # raises for what makes no sense, which is not kept: the function can be mended
            else:
                answer = client.complete(box, {k: v for k, v in question.items() if k not in self._identity})
        except (AssetError, client.TryAgain) as error:  # a function has been called, whatever became of it
            if self.function is None and not getattr(error, "billed", False):
                self.answers.release(booked)
            raise
        else:
            tokens = answer.get("tokens")
            self._learn(most, answer)
            self.answers.keep(key, answer, booked, client.cost(box, *tokens) if tokens else booked)
            return answer
        finally:
            with self._turn:
                self._under_way -= 1
                self._turn.notify_all()

    def _reserve(self, most: float, stop: threading.Event) -> float:
        """Book a request of at most ``most``, by the dearest so far, and return what was booked.

        Where that is too much, those under way may yet turn out to cost less.
        """
        with self._turn:
            while not self.answers.reserve(booked := most * self._dearer, self.box.max_requests, self.box.max_cost):
                if stop.is_set() or not self._under_way:
                    raise self._too_much("another request could exceed max_requests or max_cost")
                self._turn.wait(1.0)
            self._under_way += 1
            return booked

    def _most(self, question: Mapping[str, Any]) -> float:
        return 0.0 if self.function is not None else client.most_cost(self.box, question)

    def _learn(self, most: float, answer: Mapping[str, Any]) -> None:
        """Some endpoints bill more tokens than were asked for: what was reckoned at ``most`` may cost more again."""
        if most > 0 and answer.get("tokens"):
            with self._turn:
                self._dearer = max(self._dearer, client.cost(self.box, *answer["tokens"]) / most)

    def _row(self, answer: Mapping[str, Any]) -> parse.Row | None:
        if "shares" in answer:
            return parse.from_shares(answer["shares"], self.known)
        if self.box.probabilities:
            return parse.from_tokens(answer.get("positions", ()), self.known)
        label = parse.label_of(answer["text"], self.known)
        return None if label is None else parse.certain(label, len(self.known))

    def _judge(self, asked: Mapping[str, str], found: Mapping[str, Any], rows: Mapping[str, Any]) -> None:
        """Raise ``DataError`` once more answers are no label than ``max_unlabelled`` of all may be."""
        lost = [key for key, row in rows.items() if row is None]
        if len(lost) > self.box.max_unlabelled * len(asked):
            allowed = f"more than max_unlabelled={self.box.max_unlabelled:g} of {len(asked):,}"
            raise self._nonsense(asked[lost[-1]], found[lost[-1]], f"{len(lost):,} are no label, {allowed}")

    def _nonsense(self, text: str, answer: Mapping[str, Any], what: str) -> DataError:
        given, said = (textwrap.shorten(part, 120) for part in (text, str(answer.get("text", ""))))
        cure = "Change teacher.prompt, or the model"
        if self.function is not None:
            cure = "Mend the function" + (", and change teacher.model, its version" if self.box.model else "")
        return DataError(
            f"teacher {self.box.name}: of its answers {what}. Asked for the label of {given!r} it said {said!r}. "
            f"{cure}; the labels are {', '.join(self.labels[:8])}"
        )

    def _too_much(self, why: str) -> BudgetError:
        requests, spent = self.answers.spent()
        return BudgetError(
            f"teacher {self.box.name}: {why}. It has been asked {requests:,} times so far, for {spent:.4g}, and what "
            "it said is kept: raise teacher.max_requests or max_cost, or lower task.limit, and run again"
        )

    def _estimate(self, missing: Mapping[str, str], said: Mapping[str, Mapping[str, Any]]) -> float:
        """What the ``missing`` answers will cost, by the tokens of those that were ``said`` to texts; else at most."""
        if self.function is not None:
            return 0.0
        counted = [(client.size(self._question(t)), *a["tokens"]) for t, a in said.items() if a["tokens"]]
        questions = [self._question(text) for text in missing.values()]
        if not counted:
            return sum(client.most_cost(self.box, question) for question in questions)
        size, tokens_in, tokens_out = map(sum, zip(*counted, strict=True))
        asked = sum(map(client.size, questions)) * tokens_in / size
        return client.cost(self.box, asked, len(questions) * tokens_out / len(counted))
