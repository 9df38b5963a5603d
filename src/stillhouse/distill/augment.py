"""Synthetic rows near observed ones, for the teachers to answer.

A teacher is a function, and observed rows sample it at few points. A student that is also trained on the teacher's
answers to synthetic rows approximates it better than one that is trained longer on observed rows. Synthetic rows have
teacher probabilities only, never a label.

Tables: MUNGE (Buciluă, Caruana and Niculescu-Mizil 2006, "Model Compression", §3). Texts: words removed or replaced
(Tang, Lu, Liu, Mou, Vechtomova and Lin 2019, "Distilling Task-Specific Knowledge from BERT into Simple Neural
Networks", §3.2; their n-gram sampling harms short texts), and the beginning of one text with the end of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors

from stillhouse.config import AgentConfig, Augment, NumberColumn
from stillhouse.knowledge import content_keys

__all__ = ["make_synthetic_rows", "munge", "nearest_neighbours", "reword"]

Array = np.ndarray[Any, Any]

CROSSED_SHARE = 0.5  # of the synthetic texts
MAX_NEIGHBOUR_CANDIDATES = 8192  # in one block: time grows with rows · candidates


def make_synthetic_rows(config: AgentConfig, rows: pd.DataFrame, time_blocks: Array | None = None) -> pd.DataFrame:
    """``config.synthetic_copies`` synthetic rows for each of ``rows``, up to ``distillation.augment.fill_to`` rows.

    A synthetic row is made from rows of one block, so that a teacher that was not fitted on that block can answer it.
    The same rows and seed give the same synthetic rows. Duplicates, and copies of ``rows``, are left out.

    :param rows: tidy observations.
    :param time_blocks: the time block of each row, integers ``[n]``, such as those of the cross-fitting; None: all rows
        are one block.
    :return: the features, ``observed_at`` (that of the row it was made from), ``block`` and ``content_key``.
    """
    time_blocks = np.zeros(len(rows), dtype=np.int64) if time_blocks is None else time_blocks
    room = max(0, config.distillation.augment.fill_to - len(rows))
    copies = min(config.synthetic_copies, room / max(1, len(rows)))
    empty = _features(config, rows).iloc[:0]
    if copies == 0 or rows.empty:
        return empty.assign(block=0, content_key="").reset_index(drop=True)
    by_block = [
        _rows_of_block(config, rows[time_blocks == block], copies, int(block)).assign(block=int(block))
        for block in np.unique(time_blocks)
    ]
    synthetic = pd.concat([empty.assign(block=0), *by_block], ignore_index=True)
    synthetic["content_key"] = content_keys(synthetic, config)
    observed = set(content_keys(rows, config))
    new = synthetic[~synthetic["content_key"].isin(observed)]
    return new.drop_duplicates("content_key").reset_index(drop=True)


def munge(
    numbers: Array,
    categories: Array,
    other_numbers: Array,
    other_categories: Array,
    settings: Augment,
    generator: np.random.Generator,
) -> tuple[Array, Array]:
    """Rows between pairs of rows, by MUNGE.

    With probability ``mix`` a category is the other row's, and a number is drawn from a normal distribution around the
    other row's, whose standard deviation is their difference / ``closeness``. Where one of the two numbers is missing,
    it is the other row's.

    :param numbers: float ``[n, F]``; NaN: missing.
    :param categories: of any type, ``[n, C]``.
    :return: new arrays of the same shapes.
    """
    chosen = generator.random(numbers.shape) < settings.mix
    drawn = other_numbers + generator.standard_normal(numbers.shape) * np.abs(numbers - other_numbers) / (
        settings.closeness
    )
    drawn = np.where(np.isnan(numbers) | np.isnan(other_numbers), other_numbers, drawn)
    swapped = generator.random(categories.shape) < settings.mix
    return np.where(chosen, drawn, numbers), np.where(swapped, other_categories, categories)


def nearest_neighbours(points: Array, rows: Array, generator: np.random.Generator) -> Array:
    """Index of the nearest other point of each of some points, int64 ``[m]``; of many, among 8,192 random ones.

    :param points: float ``[n, D]``, n ≥ 2.
    :param rows: indices of the points whose neighbours are wanted, ``[m]``.

    >>> points = np.array([[0.0], [1.0], [10.0]])
    >>> nearest_neighbours(points, np.array([0, 2]), np.random.default_rng(0)).tolist()
    [1, 1]
    """
    pool = np.arange(len(points))
    if len(pool) > MAX_NEIGHBOUR_CANDIDATES:
        pool = np.sort(generator.choice(pool, MAX_NEIGHBOUR_CANDIDATES, replace=False))
    index = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(points[pool])
    neighbours = pool[index.kneighbors(points[rows])[1]]
    others: Array = np.where(neighbours[:, 0] == rows, neighbours[:, 1], neighbours[:, 0])
    return others


def reword(texts: Sequence[str], rows: Array, share: float, generator: np.random.Generator) -> list[str]:
    """A new text for each of some: half of them with a share of the words removed or replaced by words of all texts,
    half of them crossed with another text.

    :param rows: indices of the texts to start from, ``[m]``.
    :param share: of the words that are changed, 0 … 1: half removed, half replaced.
    """
    words = [text.split() for text in texts]
    all_words = [word for text in words for word in text]
    return [" ".join(_reword_one(words, all_words, int(row), share, generator)) or texts[int(row)] for row in rows]


# --------------------------------------------------------------------------- inside


def _features(config: AgentConfig, rows: pd.DataFrame) -> pd.DataFrame:
    return rows[[*config.observations.columns, "observed_at"]]


def _rows_of_block(config: AgentConfig, rows: pd.DataFrame, copies: float, block: int) -> pd.DataFrame:
    """``copies`` times as many synthetic rows as there are ``rows``."""
    settings, generator = config.distillation.augment, np.random.default_rng([config.distillation.seed, block])
    full_copies, part = divmod(round(copies * len(rows)), max(1, len(rows)))
    base = np.concatenate([np.tile(np.arange(len(rows)), full_copies), generator.permutation(len(rows))[:part]])
    synthetic = _features(config, rows).iloc[base].reset_index(drop=True)
    if len(rows) < 2 or synthetic.empty:
        return synthetic.iloc[:0]
    number_names, category_names = list(config.observations.numbers), list(config.observations.categories)
    numbers = rows[number_names].to_numpy(dtype=np.float64, na_value=np.nan)
    categories = rows[category_names].to_numpy(dtype=object)
    if number_names or category_names:
        other = nearest_neighbours(_points(numbers, rows[category_names]), base, generator)
        new_numbers, new_categories = munge(
            numbers[base], categories[base], numbers[other], categories[other], settings, generator
        )
        for index, name in enumerate(number_names):
            synthetic[name] = _within_observed_range(new_numbers[:, index], numbers[:, index], config, name)
        for index, name in enumerate(category_names):
            synthetic[name] = pd.Series(new_categories[:, index]).astype(rows[name].dtype)
    for name in config.observations.texts:
        texts = rows[name].fillna("").astype(str).tolist()
        synthetic[name] = reword(texts, base, settings.reworded, generator)
    return synthetic


def _points(numbers: Array, categories: pd.DataFrame) -> Array:
    """Rows as points float32 ``[n, D]``: standardised numbers (missing: the mean); two categories have distance 1."""
    finite = np.isfinite(numbers)
    count = np.maximum(1, finite.sum(axis=0))
    mean = np.where(finite, numbers, 0).sum(axis=0) / count
    centred = np.where(finite, numbers - mean, 0)
    deviation = np.sqrt((centred**2).sum(axis=0) / count)
    codes = [pd.get_dummies(categories[name]).to_numpy(dtype=np.float32) / np.sqrt(2) for name in categories]
    return np.hstack([centred / np.where(deviation > 0, deviation, 1), *codes]).astype(np.float32)


def _within_observed_range(values: Array, observed: Array, config: AgentConfig, name: str) -> Array:
    """Clipped to the range of the contract, or of the observed values; rounded where all observed values are whole."""
    column = config.observations.columns[name]
    assert isinstance(column, NumberColumn)  # `numbers` selects by type
    finite = observed[np.isfinite(observed)]
    if not len(finite):
        return values
    low = finite.min() if column.min is None else column.min
    high = finite.max() if column.max is None else column.max
    values = np.clip(values, low, high)
    return np.round(values) if (finite == np.round(finite)).all() else values


def _reword_one(
    words: Sequence[list[str]], all_words: Sequence[str], row: int, share: float, generator: np.random.Generator
) -> list[str]:
    own = words[row]
    if generator.random() < CROSSED_SHARE:
        other = words[int(generator.integers(len(words)))]
        return own[: int(generator.integers(len(own) + 1))] + other[int(generator.integers(len(other) + 1)) :]
    draws = generator.random(len(own))
    replacements = generator.integers(max(1, len(all_words)), size=len(own))
    return [
        all_words[replacement] if draw < share / 2 else word
        for word, draw, replacement in zip(own, draws, replacements, strict=True)
        if not share / 2 <= draw < share
    ]
