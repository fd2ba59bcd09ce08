"""What the papers' formulas give, example by example in float64: written apart from the losses, in NumPy."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import tiny

from edgekd import spec
from edgekd.distill.signal import Batch, Signal


def reference(option: Any, student: Signal, teacher: Signal, batch: Batch) -> float:
    """The loss of one whole batch; layers are compared as in ``PAIRS``, without projections."""
    return float(FORMULAS[type(option)](option, _plain(student), _plain(teacher), batch))


PAIRS = ((1, 2), (2, 4))


class _Plain:
    def __init__(self, signal: Signal) -> None:
        def f64(x: Any) -> Any:
            return x.detach().float().numpy().astype(np.float64)

        self.logits = f64(signal.logits_BC)
        self.hidden = {n: f64(x) for n, x in signal.hidden.items()}
        self.attention = {n: tuple(map(f64, qkv)) for n, qkv in signal.attention.items()}
        self.heads = signal.heads
        self.pooled = f64(signal.pooled_BH)


def _plain(signal: Signal) -> _Plain:
    return _Plain(signal)


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p: Any, q: Any) -> float:
    return float(sum(a * math.log(a / b) for a, b in zip(p.ravel(), q.ravel(), strict=True) if a > 0))


def _probabilities(option: Any, s: _Plain, t: _Plain) -> list[tuple[Any, Any]]:
    temperature = option.temperature
    return list(zip(softmax(t.logits / temperature), softmax(s.logits / temperature), strict=True))


def _kl(o: Any, s: _Plain, t: _Plain, batch: Batch) -> float:
    return o.temperature**2 * np.mean([kl(p, q) for p, q in _probabilities(o, s, t)])


def _reverse_kl(o: Any, s: _Plain, t: _Plain, batch: Batch) -> float:
    return o.temperature**2 * np.mean([kl(q, p) for p, q in _probabilities(o, s, t)])


def _js(o: Any, s: _Plain, t: _Plain, batch: Batch) -> float:
    pairs = _probabilities(o, s, t)
    return o.temperature**2 * np.mean([kl(p, (p + q) / 2) / 2 + kl(q, (p + q) / 2) / 2 for p, q in pairs])


def _ce(o: Any, s: _Plain, t: _Plain, batch: Batch) -> float:
    labels = t.logits.argmax(1) if o.labels == "teacher" else batch.labels_B.numpy()
    classes = s.logits.shape[1]
    target = np.full(s.logits.shape, o.smoothing / classes)
    target[np.arange(len(labels)), labels] += 1 - o.smoothing
    return -np.mean((target * np.log(softmax(s.logits))).sum(1))


def _logit_mse(o: Any, s: _Plain, t: _Plain, batch: Batch) -> float:
    a, b = s.logits, t.logits
    if o.centred:
        a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    return float(((a - b) ** 2).mean())


def _dkd(o: Any, s: _Plain, t: _Plain, batch: Batch) -> float:
    found = []
    for (p, q), label in zip(_probabilities(o, s, t), batch.labels_B.numpy(), strict=True):
        y = int(p.argmax()) if label < 0 else int(label)
        others_p, others_q = np.delete(p, y), np.delete(q, y)
        target = kl(np.array([p[y], others_p.sum()]), np.array([q[y], others_q.sum()]))
        others = kl(others_p / others_p.sum(), others_q / others_q.sum())
        found.append(o.target * target + o.others * others)
    return o.temperature**2 * np.mean(found)


def _groups(count: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def _dist(o: Any, s: _Plain, t: _Plain, batch: Batch) -> float:
    p, q = softmax(t.logits / o.temperature), softmax(s.logits / o.temperature)
    inter = sum(1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True))
    intra = 0.0
    for group in _groups(len(p), o.group):
        columns = zip(p[group].T, q[group].T, strict=True)
        if len(p[group]) > 1:
            intra += np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in columns]) * len(p[group])
    return o.temperature**2 * (o.inter * inter + o.intra * intra) / len(p)


def _tokens(s: _Plain, t: _Plain, batch: Batch, pairs: Any) -> list[tuple[Any, Any]]:
    valid = batch.inputs["attention_mask"].bool().numpy()
    return [(s.hidden[a][valid], t.hidden[b][valid]) for a, b in pairs]


def _hidden_mse(o: Any, s: _Plain, t: _Plain, batch: Batch) -> float:
    pairs = ((0, 0),) if isinstance(o, spec.EmbeddingMSE) else PAIRS
    return float(np.mean([((a - b) ** 2).mean() for a, b in _tokens(s, t, batch, pairs)]))


def _hidden_cosine(o: Any, s: _Plain, t: _Plain, batch: Batch) -> float:
    def apart(a: Any, b: Any) -> float:
        return 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    return float(np.mean([[apart(a, b) for a, b in zip(x, y, strict=True)] for x, y in _tokens(s, t, batch, PAIRS)]))


def _rows(batch: Batch) -> Any:
    return batch.inputs["attention_mask"].bool().numpy()


def _attention_transfer(o: Any, s: _Plain, t: _Plain, batch: Batch) -> float:
    found = []
    for a, b in PAIRS:
        for row, valid in enumerate(_rows(batch)):
            one, other = ((x[row][valid] ** 2).sum(1) for x in (s.hidden[a], t.hidden[b]))
            found.append(((one / np.linalg.norm(one) - other / np.linalg.norm(other)) ** 2).sum())
    return float(np.mean(found))


def _attention(signal: _Plain, layer: int, row: int, valid: Any) -> list[Any]:
    """Scores of each head, (T, T), among an example's tokens."""
    q, k, _ = (x[row][valid] for x in signal.attention[layer])
    width = q.shape[1] // signal.heads
    shared = signal.heads // (k.shape[1] // width)
    cut = [slice(h * width, (h + 1) * width) for h in range(signal.heads)]
    return [q[:, cut[h]] @ k[:, cut[h // shared]].T / math.sqrt(width) for h in range(signal.heads)]


def _attention_maps(o: Any, s: _Plain, t: _Plain, batch: Batch) -> float:
    groups, found, tokens = math.gcd(s.heads, t.heads), 0.0, 0
    for a, b in PAIRS:
        for row, valid in enumerate(_rows(batch)):
            tokens += int(valid.sum())
            maps = []
            for signal, layer in ((s, a), (t, b)):
                heads = _attention(signal, layer, row, valid)
                heads = [softmax(head) for head in heads] if o.divergence == "kl" else heads
                size = signal.heads // groups
                maps.append([np.mean(heads[g * size : (g + 1) * size], 0) for g in range(groups)])
            for one, other in zip(*maps, strict=True):
                for x, y in zip(one, other, strict=True):
                    found += (kl(y, x) if o.divergence == "kl" else float(((x - y) ** 2).mean())) / groups
    return found / tokens


def _relations(o: Any, s: _Plain, t: _Plain, batch: Batch) -> float:
    found, count = 0.0, 0
    for a, b in PAIRS:
        for kind in o.of:
            which = "qkv".index(kind[0])
            for row, valid in enumerate(_rows(batch)):
                one, other = s.attention[a][which][row][valid], t.attention[b][which][row][valid]
                for h in range(o.heads):
                    parts = [np.split(x, o.heads, axis=1)[h] for x in (one, other)]
                    q, p = (softmax(x @ x.T / math.sqrt(x.shape[1])) for x in parts)
                    found += sum(kl(p[i], q[i]) for i in range(len(p)))
                    count += len(p)
    return found / count


def _huber(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def _rkd(o: Any, s: _Plain, t: _Plain, batch: Batch) -> float:
    def geometry(x: Any) -> tuple[dict[Any, float], dict[Any, float]]:
        pairs = list(itertools.permutations(range(len(x)), 2))
        apart = {(i, j): float(np.linalg.norm(x[i] - x[j])) for i, j in pairs}
        mean = np.mean(list(apart.values())) if apart else 1.0
        angles = {}
        for i, j, k in itertools.permutations(range(len(x)), 3):
            one, other = x[i] - x[j], x[k] - x[j]
            angles[i, j, k] = float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
        return {pair: value / mean for pair, value in apart.items()}, angles

    total = 0.0
    for group in _groups(len(s.pooled), o.group):
        (d_s, a_s), (d_t, a_t) = geometry(s.pooled[group]), geometry(t.pooled[group])
        size = len(s.pooled[group])
        total += o.distance * size * np.mean([_huber(d_s[k] - d_t[k]) for k in d_t]) if d_t else 0.0
        total += o.angle * size * np.mean([_huber(a_s[k] - a_t[k]) for k in a_t]) if a_t else 0.0
    return total / len(s.pooled)


def _of_groups(o: Any, s: _Plain, t: _Plain, matrix: Any) -> float:
    total = 0.0
    for group in _groups(len(s.pooled), o.group):
        a, b = matrix(s.pooled[group]), matrix(t.pooled[group])
        total += ((a - b) ** 2).mean() * len(a)
    return total / len(s.pooled)


def _similarity(o: Any, s: _Plain, t: _Plain, batch: Batch) -> float:
    def matrix(x: Any) -> Any:
        return x @ x.T / np.linalg.norm(x @ x.T, axis=1, keepdims=True)

    return _of_groups(o, s, t, matrix)


def _congruence(o: Any, s: _Plain, t: _Plain, batch: Batch) -> float:
    def matrix(x: Any) -> Any:
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        terms = [(2 * o.gamma) ** p / math.factorial(p) * (x @ x.T) ** p for p in range(o.order + 1)]
        return math.exp(-2 * o.gamma) * sum(terms)

    return _of_groups(o, s, t, matrix)


FIVE = {"id2label": dict(enumerate("abcde")), "label2id": {name: i for i, name in enumerate("abcde")}}
EXITS = tiny.bert(3, hidden_size=8, num_attention_heads=2, intermediate_size=8, initializer_range=1.0, **FIVE)
"""A student of four layers, whose exits' heads are its own one."""


def _exits(o: Any, s: _Plain, t: _Plain, batch: Batch) -> float:
    w = {name: tensor.numpy().astype(np.float64) for name, tensor in EXITS.state_dict().items()}
    valid, labels, total = batch.inputs["attention_mask"].bool().numpy(), batch.labels_B.numpy(), 0.0
    for layer in o.at:
        pooled = np.tanh(s.hidden[layer][:, 0] @ w["bert.pooler.dense.weight"].T + w["bert.pooler.dense.bias"])
        logits = pooled @ w["classifier.weight"].T + w["classifier.bias"]
        total -= o.labels * np.mean(np.log(softmax(logits))[np.arange(len(labels)), labels])
        pairs = zip(softmax(s.logits / o.temperature), softmax(logits / o.temperature), strict=True)
        total += o.answers * o.temperature**2 * np.mean([kl(p, q) for p, q in pairs])
        total += o.hidden * float(((s.hidden[layer] - s.hidden[4])[valid] ** 2).mean())
    return total


def _partial_kl(o: Any, s: _Plain, t: _Plain, batch: Batch) -> float:
    return float(np.mean([kl(p, q) for p, q in zip(softmax(t.logits), softmax(s.logits), strict=True)]))


FORMULAS: dict[type, Any] = {
    spec.KL: _kl,
    spec.PartialKL: _partial_kl,
    spec.ReverseKL: _reverse_kl,
    spec.JS: _js,
    spec.CE: _ce,
    spec.LogitMSE: _logit_mse,
    spec.DKD: _dkd,
    spec.DIST: _dist,
    spec.HiddenMSE: _hidden_mse,
    spec.HiddenCosine: _hidden_cosine,
    spec.EmbeddingMSE: _hidden_mse,
    spec.AttentionTransfer: _attention_transfer,
    spec.AttentionMaps: _attention_maps,
    spec.Relations: _relations,
    spec.RKD: _rkd,
    spec.SimilarityPreserving: _similarity,
    spec.CorrelationCongruence: _congruence,
    spec.Exits: _exits,
}
