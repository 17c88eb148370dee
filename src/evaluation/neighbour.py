"""The nearest-neighbour baseline: give each question the answer of the most similar training question.

A fine-tuned model that scores less is worth less than a search in its training data. Similarity is the cosine of
TF-IDF vectors, as scikit-learn's TfidfVectorizer computes it by default. This is own code because the deployment
computes the baseline again, and importing scikit-learn alone takes a second (docs/decisions/0015).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from src.core.records import Baseline, Metrics, weighted_score
from src.data.rows import EvaluationRow
from src.evaluation import tokenizers
from src.evaluation.metrics import corpus_scores, row_statistics
from src.evaluation.tokenizers import WordTokens

_WORD = re.compile(r"\w\w+")
_CELLS = 2**22  # of a dense block: 32 MB
_DECIMALS = 9  # kept of a similarity: far above the last bit, which may differ between processors
Terms = list[list[str]]


def nearest_answers(train: Sequence[EvaluationRow], questions: Sequence[EvaluationRow], tokenizer: str
                    ) -> list[str]:
    """The answer of the most similar training row, for each row of `questions`.

    A row's question is all that was said before its answer, without the system prompt. If several training rows are
    equally similar, the first one answers. tokenizer: the score's, which splits languages without spaces; with 13a, a
    term is a word of two letters or more.
    """
    terms = _splitter(tokenizer)
    known, asked = [terms(_question(row)) for row in train], [terms(_question(row)) for row in questions]
    return [train[place].reference() for place in _nearest(known, asked)]


def nearest_neighbour(train: Sequence[EvaluationRow], rows: Sequence[EvaluationRow], *, weights: Mapping[str, float],
                      tokenizer: str) -> Baseline:
    """The score of `nearest_answers` on the evaluation rows, by the metrics that a model's answers are scored by."""
    answers = nearest_answers(train, rows, tokenizer)
    scores = corpus_scores(row_statistics(answers, [row.reference() for row in rows], tokenizer))
    return Baseline(weighted_score=float(weighted_score(scores, weights)), metrics=Metrics(**scores))


def _question(row: EvaluationRow) -> str:
    return "\n".join(turn.content for turn in row.messages[:-1] if turn.role != "system")


def _splitter(tokenizer: str) -> Callable[[str], list[str]]:
    if tokenizer == WordTokens.name:
        return lambda text: _WORD.findall(text.lower())
    words = tokenizers.load(tokenizer)
    return lambda text: words.split(text.lower())[0]


def _nearest(known: Terms, asked: Terms) -> Iterator[int]:
    """The place of the most similar known text for each text that is asked about, a block of them at a time."""
    vocabulary = {term: place for place, term in enumerate(dict.fromkeys(term for text in known for term in text))}
    documents = Counter(term for text in known for term in set(text))
    inverse = np.log((1 + len(known)) / (1 + np.array([documents[term] for term in vocabulary]))) + 1
    vectors = _vectors(known, vocabulary, inverse)
    block = max(1, _CELLS // max(len(known), len(vocabulary), 1))
    for start in range(0, len(asked), block):
        questions = _vectors(asked[start:start + block], vocabulary, inverse).toarray()
        yield from np.round(vectors @ questions.T, _DECIMALS).argmax(axis=0).tolist()


def _vectors(texts: Terms, vocabulary: Mapping[str, int], inverse: NDArray[np.float64]) -> csr_array:
    """TF-IDF vectors of length 1, float (texts, vocabulary); terms that the vocabulary lacks are left out."""
    counts = [Counter(vocabulary[term] for term in text if term in vocabulary) for text in texts]
    places = np.array([place for count in counts for place in count], dtype=np.intp)
    rows = np.repeat(np.arange(len(texts)), [len(count) for count in counts])
    values = np.array([number for count in counts for number in count.values()], dtype=np.float64) * inverse[places]
    lengths = np.sqrt(np.bincount(rows, weights=values**2, minlength=len(texts)))
    return csr_array((values / lengths[rows], (rows, places)), shape=(len(texts), len(vocabulary)))
