"""What a capable person would write in an afternoon: LightGBM, or logistic regression on words, distilled to an MLP.

A replay plays policies with it beside our own student. It is meant to be strong: the size of its teacher is chosen by
cross-validation, and its student stops early and is calibrated. Where LightGBM is not installed, its teacher is
scikit-learn's histogram gradient boosting. Its constants were chosen on the development streams of
``benchmarks.streams_data`` and on the router, where soft targets of teachers that were fitted on other folds were no
better.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from stillhouse.config import AgentConfig, leaves
from stillhouse.errors import WindowError
from stillhouse.replay.script_teachers import Boosting, HistogramBoosting, Words
from stillhouse.replay.training import Predict, TrainedModel
from stillhouse.threads import limit_threads

__all__ = ["plain_script", "train_script_student"]

Array = np.ndarray[Any, Any]
_VALIDATION_SHARE = 0.15
_LABEL_WEIGHT = 0.5
_DEFAULT_WIDTHS = (48, 24)  # for a student of the user's own
_MAX_EPOCHS, _PATIENCE = 200, 8
_LEARNING_RATE, _TEXT_LEARNING_RATE = 2e-3, 1e-2  # the inputs of a text are small: TF-IDF of length 1


def train_script_student(settings: AgentConfig, rows: pd.DataFrame, ready: Array | None) -> TrainedModel:
    """The student of a plain script, as :func:`~stillhouse.replay.training.train_student` trains ours.

    :param ready: probabilities ``[n, K]`` of the agent's teachers that do not learn; used if all of them are such.
    :raises WindowError: if the rows are too few, or all of one action.
    """
    all_ready = ready is not None and not any(leaf.teacher.is_fitted for leaf in leaves(settings.teachers))
    try:
        predict = plain_script(rows, settings, settings.distillation.seed, ready if all_ready else None)
    except ValueError as error:
        raise WindowError(f"a plain script cannot be trained for agent {settings.agent!r}: {error}") from error
    return TrainedModel(predict, len(rows))


def plain_script(rows: pd.DataFrame, settings: AgentConfig, seed: int, teacher_probs: Array | None = None) -> Predict:
    """Fit a teacher on the labelled rows, and distil it to an MLP with as many hidden units as the agent's student has.

    The input is standardised numbers (the median where missing) and one-hot categories, or the TF-IDF of as many terms
    as the agent's student has tokens. Half of the target is the label, half the teacher's probabilities (Hinton,
    Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", at temperature 1). The training stops when
    the log loss of held-out labels does not fall, and its best state is calibrated on them by a temperature (Guo
    et al. 2017, "On Calibration of Modern Neural Networks", §4.2).

    :param rows: with the agent's columns and ``outcome`` (action index; −1: unknown, and then only the teacher's
        probabilities teach).
    :param settings: of the agent: columns, number of actions, widths of the student.
    :param seed: of the teacher, the weights and the batches.
    :param teacher_probs: of a teacher that exists already, ``[n, K]``, a row of NaN where it has no answer; None: a
        teacher is fitted.
    :raises ValueError: if fewer than 50 rows have a label or an answer, or all labels are the same action.
    """
    rng = np.random.default_rng(seed)
    labels, actions = rows["outcome"].to_numpy(), len(settings.actions)
    if teacher_probs is None:
        teacher_probs = _fit_and_answer(rows, labels, settings, seed)
    targets, usable = _soft_targets(teacher_probs, labels, actions)
    if usable.sum() < 50:
        raise ValueError(f"{usable.sum()} rows with a label or an answer are too few to train on: give 50 or more")
    held_out = usable & (rng.uniform(size=len(rows)) < _VALIDATION_SHARE)
    encode = _text_encoder(rows, settings) if settings.observations.texts else _table_encoder(rows, settings)
    x, y = encode(rows), torch.from_numpy(targets).float()
    learning_rate = _TEXT_LEARNING_RATE if settings.observations.texts else _LEARNING_RATE
    torch.manual_seed(seed)
    model = _mlp(x.shape[1], _widths(settings), actions)
    with limit_threads(model):
        train, validation = np.flatnonzero(usable & ~held_out), np.flatnonzero(held_out)
        truth = torch.from_numpy(np.where(labels >= 0, labels, targets.argmax(axis=1))[validation])
        _train(model, x[train], y[train], x[validation], truth, learning_rate)
        temperature = _temperature(model, x[validation], truth)

    def predict(new_rows: pd.DataFrame) -> Array:
        with torch.no_grad(), limit_threads(model):
            probs: Array = (model(encode(new_rows)).double() / temperature).softmax(dim=1).numpy()
        return probs

    return predict


def _fit_and_answer(rows: pd.DataFrame, labels: Array, settings: AgentConfig, seed: int) -> Array:
    """Probabilities ``[n, K]`` of a teacher that was fitted on the rows with labels."""
    features, known = rows[list(settings.observations.columns)], labels >= 0
    if len(np.unique(labels[known])) < 2:
        raise ValueError("all labels are the same action: a teacher needs two different ones")
    teacher = _new_teacher(settings, seed).fit(features[known], labels[known])
    return teacher.predict_proba(features)


def _new_teacher(settings: AgentConfig, seed: int) -> Boosting | HistogramBoosting | Words:
    actions, texts = len(settings.actions), settings.observations.texts
    if texts:
        return Words(actions=actions, column=texts[0])
    return (Boosting if find_spec("lightgbm") else HistogramBoosting)(actions=actions, seed=seed)


def _soft_targets(teacher_probs: Array, labels: Array, actions: int) -> tuple[Array, Array]:
    """Targets ``[n, K]``, and which rows have one: the mean of label and answer, or the one that is known."""
    known, answered = labels >= 0, ~np.isnan(teacher_probs[:, 0])
    weight = np.where(known & answered, _LABEL_WEIGHT, known.astype(np.float64))[:, None]
    one_hot = np.eye(actions)[np.maximum(labels, 0)]
    return weight * one_hot + (1 - weight) * np.nan_to_num(teacher_probs), known | answered


def _widths(settings: AgentConfig) -> list[int]:
    """Hidden units of the student: those of a text student begin with the width of its token embeddings."""
    student: Any = settings.student
    encoder = [student.encoder.width] if student.reads_text else []
    return [*encoder, *getattr(student, "widths", _DEFAULT_WIDTHS)]


def _mlp(inputs: int, widths: list[int], actions: int) -> nn.Sequential:
    sizes = [inputs, *widths]
    hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], actions))


def _train(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    x_held_out: torch.Tensor,
    truth: torch.Tensor,
    learning_rate: float,
) -> None:
    """Adam on the cross-entropy with soft targets ``y [n, K]``; the model ends in its best state on held-out labels."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-2)
    batch_size = int(np.clip(len(x) // 50, 32, 256))
    best_loss, best_state, waited = np.inf, deepcopy(model.state_dict()), 0
    for _ in range(_MAX_EPOCHS):
        for batch in torch.randperm(len(x)).split(batch_size):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimiser.step()
        with torch.no_grad():
            loss = float(nn.functional.cross_entropy(model(x_held_out), truth))
        if loss < best_loss - 1e-4:
            best_loss, best_state, waited = loss, deepcopy(model.state_dict()), 0
        else:
            waited += 1
        if waited >= _PATIENCE:
            break
    model.load_state_dict(best_state)


def _temperature(model: nn.Module, x: torch.Tensor, truth: torch.Tensor) -> float:
    """The divisor of the logits (0.5 … 3) with the smallest log loss on held-out labels."""
    with torch.no_grad():
        logits = model(x)
        candidates = np.geomspace(0.5, 3.0, 37)
        losses = [float(nn.functional.cross_entropy(logits / value, truth)) for value in candidates]
    return float(candidates[int(np.argmin(losses))])


# --------------------------------------------------------------------------- inputs


def _table_encoder(rows: pd.DataFrame, settings: AgentConfig) -> Callable[[pd.DataFrame], torch.Tensor]:
    """Rows to standardised numbers and one-hot categories, float32 ``[n, D]``."""
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    columns, categories = settings.observations.columns, list(settings.observations.categories)
    numbers = [name for name in columns if name not in categories]
    impute = SimpleImputer(strategy="median", keep_empty_features=True)
    transformer = make_column_transformer(
        (make_pipeline(impute, StandardScaler()), numbers),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), categories),
    ).fit(_as_objects(rows, categories))

    def encode(table: pd.DataFrame) -> torch.Tensor:
        return torch.from_numpy(transformer.transform(_as_objects(table, categories))).float()

    return encode


def _as_objects(rows: pd.DataFrame, categories: list[str]) -> pd.DataFrame:
    return rows.assign(**{name: rows[name].astype(object).fillna("missing").astype(str) for name in categories})


def _text_encoder(rows: pd.DataFrame, settings: AgentConfig) -> Callable[[pd.DataFrame], torch.Tensor]:
    """Rows to the TF-IDF of their words, float32 ``[n, D]``; D is at most the vocabulary of the agent's student."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    student: Any = settings.student
    column = settings.observations.texts[0]
    vectorizer = TfidfVectorizer(sublinear_tf=True, max_features=student.vocabulary).fit(rows[column].fillna(""))

    def encode(table: pd.DataFrame) -> torch.Tensor:
        return torch.from_numpy(vectorizer.transform(table[column].fillna("")).toarray()).float()

    return encode
