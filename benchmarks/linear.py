"""A bag of words of the student's size: the least that a student must beat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0)


def beginning(tokenizer: Any, tokens: int) -> Callable[[str], str]:
    """What a student reads of a text: as much as its first ``tokens`` say."""
    fast = tokenizer.backend_tokenizer
    fast.no_padding()
    fast.enable_truncation(tokens)
    return lambda text: text[: max((end for _, end in fast.encode(text).offsets), default=0)]


def bag_of_words(data: Any, weights: int, read: Callable[[str], str]) -> NDArray[np.float64]:
    """Log-probabilities (N, C) on the test split, of one linear layer of at most ``weights`` numbers.

    ``read`` gives what it sees of a text. Its features are TF-IDF of the most frequent words and pairs of words; its
    regularisation is chosen on validation.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    features = weights // len(data.labels)
    words = TfidfVectorizer(max_features=features, ngram_range=(1, 2), sublinear_tf=True, strip_accents="unicode")
    train = words.fit_transform(map(read, data.train.texts))
    validation = words.transform(map(read, data.validation.texts))
    fitted = [LogisticRegression(C=c, max_iter=1000).fit(train, data.train.labels) for c in STRENGTHS]
    best = max(fitted, key=lambda model: model.score(validation, data.validation.labels))
    found = np.full((len(data.test), len(data.labels)), -np.inf)
    found[:, best.classes_] = best.predict_log_proba(words.transform(map(read, data.test.texts)))
    return found
