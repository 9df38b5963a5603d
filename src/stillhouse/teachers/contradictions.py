"""Find where teachers, or a student and its teachers, contradict each other, and which of them was right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from math import sqrt
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig
from stillhouse.records import Contradiction, ContradictionExample, Contradictions, Window
from stillhouse.stats import cluster_ids, clustered_error, total_variation

__all__ = ["MIN_TOTAL_VARIATION", "find_contradictions", "find_places"]

Array = np.ndarray[Any, Any]

MIN_TOTAL_VARIATION = 0.5
"""Above this total variation two teachers contradict each other even if both would choose the same action."""

_MIN_PLACE_ROWS = 10  # rows of each half in a place
_MAX_PLACE_VALUES = 20  # values of a category that a place may name
_MIN_DECIDED_ROWS = 10  # rows in which exactly one of the two was right; with fewer none is called better
_NORMAL_QUANTILE_975 = 1.959963984540054  # two-sided 95 %


def find_contradictions(
    config: AgentConfig,
    window: Window,
    rows: pd.DataFrame,
    teacher_probs: Mapping[str, Array],
    labels: Array,
    *,
    places: bool = False,
    examples: int = 0,
) -> Contradictions:
    """Compare each pair of teachers on all rows, and on each slice of ``promotion.slices`` with enough rows.

    :param rows: with ``observed_at`` and the slice columns, ``[n]``.
    :param teacher_probs: by the teacher's name, float64 ``[n, K]``, NaN if it did not answer a row. A student may be
        among them.
    :param labels: action indices ``[n]``, −1 if unknown.
    :param places: also search for conditions on the columns under which most rows contradict.
    :param examples: number of rows that each comparison shows.
    :returns: comparisons on all rows first, then by slice; in both, the largest shares of contradicting rows first.
    """
    clusters = cluster_ids(rows["observed_at"], config.promotion.cluster)
    comparisons: list[Contradiction] = []
    for pair in combinations(teacher_probs, 2):
        p, q = (teacher_probs[name] for name in pair)
        answered = ~(np.isnan(p[:, 0]) | np.isnan(q[:, 0]))
        parts = [
            (name, answered & in_slice)
            for name, in_slice in _iterate_slices(rows, config.promotion.slices)
            if not name or (answered & in_slice).sum() >= config.promotion.min_slice_rows
        ]
        if places:
            parts += find_places(config, rows, answered, _contradicts(p, q))
        for name, mask in parts:
            if mask.any():
                compared = _compare(pair, name, p[mask], q[mask], labels[mask], clusters[mask])
                shown = _pick_examples(config, rows[mask], p[mask], q[mask], labels[mask], examples)
                comparisons.append(compared.model_copy(update={"examples": shown}))
    comparisons.sort(key=lambda c: (bool(c.slice), -c.share, c.first, c.second, c.slice))
    return Contradictions(window=window, contradictions=tuple(comparisons))


def find_places(
    config: AgentConfig, rows: pd.DataFrame, answered: Array, contradicts: Array
) -> list[tuple[str, Array]]:
    """Conditions on numbers and categories under which most rows contradict, and the rows to count them on.

    A shallow decision tree finds the conditions on every second row; the returned masks contain only the other rows, so
    that the search does not make the counts larger.

    :param answered: rows that both have answered, bool ``[n]``.
    :param contradicts: bool ``[n]``; read where ``answered``.
    :returns: conditions such as ``"amount > 900 and region=far"``, with a mask ``[n]``.
    """
    from sklearn.tree import DecisionTreeClassifier

    order = np.flatnonzero(answered)
    learned, counted = order[::2], order[1::2]
    names, matrix = _tree_inputs(config, rows)
    if len(learned) < 4 * _MIN_PLACE_ROWS or not 0 < contradicts[learned].sum() < len(learned) or not names:
        return []
    tree = DecisionTreeClassifier(max_depth=3, min_samples_leaf=_MIN_PLACE_ROWS, random_state=0)
    tree.fit(matrix[learned], contradicts[learned])
    leaf_of, nodes = tree.apply(matrix), tree.tree_
    found = []
    for leaf, conditions in _iterate_leaves(nodes, names):
        in_leaf = leaf_of == leaf
        if contradicts[learned][in_leaf[learned]].mean() > 0.5 and in_leaf[counted].sum() >= _MIN_PLACE_ROWS:
            mask = np.zeros(len(rows), dtype=bool)
            mask[counted[in_leaf[counted]]] = True
            found.append((" and ".join(conditions), mask))
    return found


def _tree_inputs(config: AgentConfig, rows: pd.DataFrame) -> tuple[list[str], Array]:
    """Names and float32 matrix ``[n, M]`` of the numbers, and one column a frequent value of each category."""
    names, columns = list[str](), list[Array]()
    for name in config.observations.numbers:
        names.append(name)
        columns.append(rows[name].to_numpy(dtype=np.float64))
    for name in config.observations.categories:
        for value in rows[name].value_counts().index[:_MAX_PLACE_VALUES]:
            names.append(f"{name}={value}")
            columns.append((rows[name] == value).to_numpy(dtype=np.float64))
    matrix = np.column_stack(columns) if columns else np.empty((len(rows), 0))
    return names, matrix.astype(np.float32)


def _iterate_leaves(nodes: Any, names: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """The number of each leaf of a fitted tree, and the conditions on the way to it, the narrowest of each kind."""
    stack: list[tuple[int, dict[tuple[str, str], float]]] = [(0, {})]
    while stack:
        node, limits = stack.pop()
        if nodes.children_left[node] < 0:
            yield node, [_format_condition(name, sign, limit) for (name, sign), limit in limits.items()]
            continue
        name, limit = names[nodes.feature[node]], float(nodes.threshold[node])
        stack.append((int(nodes.children_left[node]), limits | {(name, "≤"): limit}))  # a deeper limit is narrower
        stack.append((int(nodes.children_right[node]), limits | {(name, ">"): limit}))


def _format_condition(name: str, sign: str, limit: float) -> str:
    if "=" in name:
        return name if sign == ">" else name.replace("=", "≠", 1)
    return f"{name} {sign} {limit:.4g}"


def _contradicts(p: Array, q: Array) -> Array:
    contradicts: Array = (p.argmax(axis=1) != q.argmax(axis=1)) | (total_variation(p, q) > MIN_TOTAL_VARIATION)
    return contradicts


def _pick_examples(
    config: AgentConfig, rows: pd.DataFrame, p: Array, q: Array, labels: Array, count: int
) -> tuple[ContradictionExample, ...]:
    """Up to ``count`` rows with different actions: of each pair of actions in turn the one that differs most."""
    actions, p_action, q_action = config.actions, p.argmax(axis=1), q.argmax(axis=1)
    differs = pd.DataFrame({"pair": p_action * len(actions) + q_action, "apart": total_variation(p, q)})
    differs = differs[p_action != q_action].sort_values("apart", ascending=False, kind="stable")
    differs["turn"] = differs.groupby("pair").cumcount()
    chosen = differs.sort_values(["turn", "apart"], ascending=[True, False], kind="stable").index[:count]
    return tuple(
        ContradictionExample(
            observation_id=rows["observation_id"].iloc[index],
            observed_at=rows["observed_at"].iloc[index],
            first=actions[p_action[index]],
            second=actions[q_action[index]],
            outcome=actions[labels[index]] if 0 <= labels[index] < len(actions) else None,
            values={name: _format_value(rows[name].iloc[index]) for name in config.observations.columns},
        )
        for index in chosen
    )


def _format_value(value: Any) -> str:
    if pd.isna(value):
        return "missing"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _iterate_slices(rows: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[str, Array]]:
    """Name and mask ``[n]`` of all rows (name '') and of each slice ``column=value``."""
    yield "", np.ones(len(rows), dtype=bool)
    for column in columns:
        for value in sorted(rows[column].dropna().unique()):
            yield f"{column}={value}", (rows[column] == value).to_numpy(dtype=bool)


def _compare(pair: tuple[str, str], name: str, p: Array, q: Array, labels: Array, clusters: Array) -> Contradiction:
    p_action, q_action = p.argmax(axis=1), q.argmax(axis=1)
    contradicts = _contradicts(p, q)
    low, high = _share_interval(contradicts, clusters)
    mask = contradicts & (labels >= 0)
    first_right = int((mask & (p_action == labels) & (q_action != labels)).sum())
    second_right = int((mask & (q_action == labels) & (p_action != labels)).sum())
    lead = np.where(mask, (p_action == labels) * 1.0 - (q_action == labels), 0.0)
    return Contradiction(
        first=pair[0],
        second=pair[1],
        slice=name,
        rows=len(p),
        contradicting=int(contradicts.sum()),
        share=float(contradicts.mean()),
        low=low,
        high=high,
        known=int(mask.sum()),
        first_right=first_right,
        second_right=second_right,
        better=_find_better(pair, lead, clusters),
    )


def _share_interval(contradicts: Array, clusters: Array) -> tuple[float, float]:
    """Wilson's interval (95 %) of the share of contradicting rows, at the effective number of rows.

    The effective number of rows is the number of independent rows whose share would have the same variance.
    """
    n, share = len(contradicts), float(contradicts.mean())
    variance = clustered_error(contradicts - share, clusters, small_sample=False) ** 2 / n**2
    effective = min(float(n), share * (1 - share) / variance) if variance > 0 else float(len(np.unique(clusters)))
    scale = 1 + _NORMAL_QUANTILE_975**2 / effective
    middle = (share + _NORMAL_QUANTILE_975**2 / (2 * effective)) / scale
    half = (
        _NORMAL_QUANTILE_975
        / scale
        * sqrt(share * (1 - share) / effective + _NORMAL_QUANTILE_975**2 / (4 * effective**2))
    )
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))


def _find_better(pair: tuple[str, str], lead: Array, clusters: Array) -> str | None:
    """The teacher that was right more often, if the difference is significant (sign test by cluster, 95 %).

    :param lead: ``[n]``, 1 where only the first was right, −1 where only the second was, else 0.
    """
    if np.count_nonzero(lead) < _MIN_DECIDED_ROWS:
        return None
    error = clustered_error(lead, clusters, small_sample=False)
    total = float(lead.sum())
    return None if abs(total) <= _NORMAL_QUANTILE_975 * error else pair[0 if total > 0 else 1]
