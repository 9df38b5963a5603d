"""New answers: options that the student was not taught, and groups of texts that it is unsure of and gets wrong.

They are reported with examples and a suggested name, for a person to decide about. Nothing is absorbed by itself.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stillhouse.records.agreement import NewAnswers, UnsureCluster, UntaughtAnswer

__all__ = ["find_new_answers"]

Array = np.ndarray[Any, Any]

_WORDS = re.compile(r"\w+")
_MAX_ROWS = 2000  # of the newest, that are compared with each other
_MAX_WORDS = 5000
_EXAMPLES = 3
_EXAMPLE_CHARACTERS = 200
_SIMILAR = 0.3  # cosine of two texts of one cluster, by words weighted by their rarity
_NAME_WORDS = 2


def find_new_answers(
    texts: Sequence[str],
    probs: Array,
    teacher: Array,
    actions: Sequence[str],
    taught: Mapping[str, int],
    *,
    threshold: float = 1.0,
    min_rows: int = 5,
    out_of_scope: str | None = None,
) -> NewAnswers:
    """What the teacher's answers show that the student was not taught.

    Clusters are grown around the texts with most neighbours, so that each text is in one cluster at most; the name is
    made of the words that are common in the cluster and rare elsewhere.

    >>> places = ("peru", "laos", "chad", "oman", "fiji")
    >>> texts = [f"is my visa for {place} ready" for place in places] + ["book a taxi"]
    >>> probs = np.array([[0.6, 0.4, 0.0]] * 5 + [[0.1, 0.9, 0.0]])
    >>> found = find_new_answers(texts, probs, np.array([2] * 5 + [1]), ["hotel", "taxi", "visa"], {"taxi": 90})
    >>> found.untaught[0].action, found.untaught[0].rows, found.clusters[0].rows, found.clusters[0].share
    ('visa', 5, 5, 1.0)

    :param texts: of rows that the teacher has answered ``[n]``, by time.
    :param probs: the student's, ``[n, K]``.
    :param teacher: index of the teacher's action of each row, int ``[n]``.
    :param taught: number of rows that the student learned from, by action; those that are missing have none.
    :param threshold: the student is unsure below this confidence.
    :param min_rows: fewer rows are neither an untaught answer nor a cluster; and an action with fewer rows to learn
        from is untaught.
    :param out_of_scope: the action that stands for "none of these"; its errors are reported by themselves.
    :raises ValueError: if the lengths differ.
    """
    teacher = np.asarray(teacher, dtype=np.int64)
    if not len(texts) == len(probs) == len(teacher):
        raise ValueError(f"texts {len(texts)}, probs {len(probs)} and teacher {len(teacher)} must have one length")
    student, confidences = probs.argmax(axis=1), probs.max(axis=1)
    unsure = np.flatnonzero((confidences < threshold) & (student != teacher))
    missed, false = _measure_out_of_scope(student, teacher, actions, out_of_scope)
    return NewAnswers(
        rows=len(texts),
        unsure=len(unsure),
        untaught=tuple(_find_untaught(texts, teacher, actions, taught, min_rows)),
        clusters=tuple(_find_clusters(texts, teacher, actions, unsure[-_MAX_ROWS:], min_rows)),
        missed_out_of_scope=missed,
        false_out_of_scope=false,
    )


def _find_untaught(
    texts: Sequence[str], teacher: Array, actions: Sequence[str], taught: Mapping[str, int], min_rows: int
) -> list[UntaughtAnswer]:
    found = []
    for index, count in Counter(teacher.tolist()).most_common():
        learned = taught.get(actions[index], 0)
        if count >= min_rows > learned:
            rows = np.flatnonzero(teacher == index)[-_EXAMPLES:].tolist()
            examples = tuple(texts[row][:_EXAMPLE_CHARACTERS] for row in rows)
            found.append(UntaughtAnswer(action=actions[index], rows=count, taught=learned, examples=examples))
    return found


def _find_clusters(
    texts: Sequence[str], teacher: Array, actions: Sequence[str], rows: Array, min_rows: int
) -> list[UnsureCluster]:
    """Clusters of the rows, most rows first."""
    if len(rows) < min_rows:
        return []
    words = [set(_WORDS.findall(texts[row].lower())) for row in rows.tolist()]
    usual = Counter(word for text in texts[-_MAX_ROWS:] for word in set(_WORDS.findall(text.lower())))
    count = min(len(texts), _MAX_ROWS)
    frequent = Counter(word for row in words for word in row)
    columns = {word: i for i, (word, _) in enumerate(frequent.most_common(_MAX_WORDS))}
    vectors = np.zeros((len(rows), len(columns)), dtype=np.float32)
    for i, row in enumerate(words):
        for word in row & columns.keys():
            vectors[i, columns[word]] = math.log1p(count / usual[word])
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    similar = vectors @ vectors.T >= _SIMILAR
    clusters = []
    while (neighbours := similar.sum(axis=1)).max() >= min_rows:
        centre = int(neighbours.argmax())
        members = np.flatnonzero(similar[centre])
        clusters.append(_describe_cluster(texts, teacher, actions, rows, members, centre, words, usual, vectors))
        similar[members, :] = similar[:, members] = False
    return clusters


def _describe_cluster(
    texts: Sequence[str],
    teacher: Array,
    actions: Sequence[str],
    rows: Array,
    members: Array,
    centre: int,
    words: Sequence[set[str]],
    usual: Counter[str],
    vectors: Array,
) -> UnsureCluster:
    inside = Counter(word for member in members.tolist() for word in words[member])
    scores = {
        word: (count / len(members)) * (count / max(usual[word], count)) * min(len(word), 4)
        for word, count in inside.items()
    }
    name = sorted(scores, key=lambda word: (-scores[word], word))[:_NAME_WORDS]
    (action, count), *_ = Counter(teacher[rows[members]].tolist()).most_common(1)
    nearest = members[np.argsort(-(vectors[members] @ vectors[centre]), kind="stable")][:_EXAMPLES].tolist()
    return UnsureCluster(
        name="_".join(name) or "unnamed",
        rows=len(members),
        action=actions[action],
        share=count / len(members),
        examples=tuple(texts[int(rows[member])][:_EXAMPLE_CHARACTERS] for member in nearest),
    )


def _measure_out_of_scope(
    student: Array, teacher: Array, actions: Sequence[str], out_of_scope: str | None
) -> tuple[float | None, float | None]:
    """The shares that are missed and false; None where there is no such row."""
    if out_of_scope is None or out_of_scope not in actions:
        return None, None
    index = list(actions).index(out_of_scope)
    is_outside, says_outside = teacher == index, student == index
    missed = float((~says_outside[is_outside]).mean()) if is_outside.any() else None
    return missed, float((~is_outside[says_outside]).mean()) if says_outside.any() else None
