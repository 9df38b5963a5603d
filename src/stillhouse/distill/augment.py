"""Rows that nobody has seen, near those that were, for the teachers to speak about.

What a teacher knows is a function, and observed rows show it at a few points only. It can be asked anywhere: a student
that also learns what the teacher says about made-up rows comes closer to it than one that learns from observed rows
for longer. No outcome is made up: these rows teach by knowledge alone.

Tables: MUNGE (Buciluă, Caruana and Niculescu-Mizil 2006, "Model Compression", §3). Texts: words left out, words put in
place of others (Tang, Lu, Liu, Mou, Vechtomova and Lin 2019, "Distilling Task-Specific Knowledge from BERT into Simple
Neural Networks", §3.2; their n-grams harm short texts), and the beginning of one text with the end of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors

from stillhouse.config import AgentConfig, Augment, NumberColumn
from stillhouse.knowledge import content_keys

__all__ = ["made_up_rows", "munge", "nearest", "reworded"]

Array = np.ndarray[Any, Any]

_CROSSED = 0.5  # share of the made-up texts
_POOL = 8192  # rows of a block among which the nearest is sought: time grows with rows · pool


def made_up_rows(config: AgentConfig, rows: pd.DataFrame, blocks: Array | None = None) -> pd.DataFrame:
    """``config.synthetic_copies`` made-up rows for each of ``rows``, as far as ``distillation.augment.fill_to`` allows.

    A row is made of rows of one block alone, so that a teacher that was not fitted on a block can speak about what was
    made of it. The same rows and seed, the same made-up rows. What comes out twice, or is one of ``rows``, is left out.

    :param rows: tidy observations.
    :param blocks: of each row, integers ``[n]``, such as those of the cross-fitting; None: all are one.
    :return: the features, ``observed_at`` (that of the row it was made from), ``block`` and ``content_key``.
    """
    blocks = np.zeros(len(rows), dtype=np.int64) if blocks is None else blocks
    room = max(0, config.distillation.augment.fill_to - len(rows))
    share = min(config.synthetic_copies, room / max(1, len(rows)))
    if share == 0 or rows.empty:
        return _features(config, rows).iloc[:0].assign(block=0, content_key="").reset_index(drop=True)
    found = [
        _of_block(config, rows[blocks == block], share, int(block)).assign(block=int(block))
        for block in np.unique(blocks)
    ]
    made = pd.concat([_features(config, rows).iloc[:0].assign(block=0), *found], ignore_index=True)
    made["content_key"] = content_keys(made, config)
    known = set(content_keys(rows, config))
    return made[~made["content_key"].isin(known)].drop_duplicates("content_key").reset_index(drop=True)


def munge(
    numbers: Array,
    categories: Array,
    other_numbers: Array,
    other_categories: Array,
    settings: Augment,
    generator: np.random.Generator,
) -> tuple[Array, Array]:
    """Rows between two rows each, as MUNGE makes them.

    With probability ``mix`` a category is the other's, and a number is drawn from a normal distribution around the
    other's whose standard deviation is their difference / ``closeness``. Where one of the two is missing, the other's
    is taken as it is.

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


def nearest(points: Array, rows: Array, generator: np.random.Generator) -> Array:
    """Index of the point nearest to each of some, among others than itself; of many, among a random 8,192 of them.

    :param points: float ``[n, D]``, n ≥ 2.
    :param rows: which of them, ``[m]``.
    """
    pool = np.arange(len(points))
    if len(pool) > _POOL:
        pool = np.sort(generator.choice(pool, _POOL, replace=False))
    found = pool[NearestNeighbors(n_neighbors=2, algorithm="brute").fit(points[pool]).kneighbors(points[rows])[1]]
    others: Array = np.where(found[:, 0] == rows, found[:, 1], found[:, 0])
    return others


def reworded(texts: Sequence[str], rows: Array, share: float, generator: np.random.Generator) -> list[str]:
    """A new text for each of some: half of them with a share of the words left out or replaced by words of all texts,
    half of them crossed with another text.

    :param rows: which of ``texts`` to begin from, ``[m]``.
    :param share: of the words that are changed, in 0 … 1: half left out, half replaced.
    """
    words = [text.split() for text in texts]
    common = [word for text in words for word in text]
    return [" ".join(_reworded(words, common, int(row), share, generator)) or texts[int(row)] for row in rows]


# --------------------------------------------------------------------------- inside


def _features(config: AgentConfig, rows: pd.DataFrame) -> pd.DataFrame:
    return rows[[*config.observations.columns, "observed_at"]]


def _of_block(config: AgentConfig, rows: pd.DataFrame, copies: float, block: int) -> pd.DataFrame:
    """``copies`` times as many made-up rows as there are ``rows``."""
    generator = np.random.default_rng([config.distillation.seed, block])
    whole, part = divmod(round(copies * len(rows)), max(1, len(rows)))
    base = np.concatenate([np.tile(np.arange(len(rows)), whole), generator.permutation(len(rows))[:part]])
    made = _features(config, rows).iloc[base].reset_index(drop=True)
    if len(rows) < 2 or made.empty:
        return made.iloc[:0]
    names, named = list(config.observations.numbers), list(config.observations.categories)
    numbers, categories = rows[names].to_numpy(dtype=np.float64, na_value=np.nan), rows[named].to_numpy(dtype=object)
    if names or named:
        other = nearest(_points(numbers, rows[named]), base, generator)
        mixed, swapped = munge(
            numbers[base], categories[base], numbers[other], categories[other], config.distillation.augment, generator
        )
        for place, name in enumerate(names):
            made[name] = _as_observed(mixed[:, place], numbers[:, place], config, name)
        for place, name in enumerate(named):
            made[name] = pd.Series(swapped[:, place]).astype(rows[name].dtype)
    for name in config.observations.texts:
        texts = rows[name].fillna("").astype(str).tolist()
        made[name] = reworded(texts, base, config.distillation.augment.reworded, generator)
    return made


def _points(numbers: Array, categories: pd.DataFrame) -> Array:
    """Rows as points ``[n, D]``: numbers in standard deviations, missing in the middle; two values of a category lie 1
    apart."""
    known = np.isfinite(numbers)
    count = np.maximum(1, known.sum(axis=0))
    mean = np.where(known, numbers, 0).sum(axis=0) / count
    centred = np.where(known, numbers - mean, 0)
    spread = np.sqrt((centred**2).sum(axis=0) / count)
    codes = [pd.get_dummies(categories[name]).to_numpy(dtype=np.float32) / np.sqrt(2) for name in categories]
    return np.hstack([centred / np.where(spread > 0, spread, 1), *codes]).astype(np.float32)


def _as_observed(values: Array, observed: Array, config: AgentConfig, name: str) -> Array:
    """Within what the contract and the observed values allow, and whole where all of them are."""
    column = config.observations.columns[name]
    assert isinstance(column, NumberColumn)  # `numbers` selects by type
    known = observed[np.isfinite(observed)]
    if not len(known):
        return values
    low, high = (known.min() if column.min is None else column.min, known.max() if column.max is None else column.max)
    values = np.clip(values, low, high)
    return np.round(values) if (known == np.round(known)).all() else values


def _reworded(
    words: Sequence[list[str]], common: Sequence[str], row: int, share: float, generator: np.random.Generator
) -> list[str]:
    own = words[row]
    if generator.random() < _CROSSED:
        other = words[int(generator.integers(len(words)))]
        return own[: int(generator.integers(len(own) + 1))] + other[int(generator.integers(len(other) + 1)) :]
    draws = generator.random(len(own))
    drawn = generator.integers(max(1, len(common)), size=len(own))
    return [
        common[new] if draw < share / 2 else word
        for word, draw, new in zip(own, draws, drawn, strict=True)
        if not share / 2 <= draw < share
    ]
