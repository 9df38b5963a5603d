"""Teachers as in a plain script: LightGBM, scikit-learn's boosting where it is not installed, and words of a text.

All of them implement :class:`stillhouse.parts.Teacher`, so an agent file may name them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import lightgbm

__all__ = ["Boosting", "HistogramBoosting", "Words"]

Array = np.ndarray[Any, Any]

_NOT_FEATURES = frozenset({"observation_id", "observed_at", "known_at", "outcome", "action"})


class Boosting:
    """LightGBM with its default settings, but for the number of trees, which cross-validation chooses (at most 300).

    >>> rows = pd.DataFrame({"age": np.arange(200.0), "ward": ["a", "b"] * 100})
    >>> teacher = Boosting(actions=2).fit(rows, (rows["age"] > 100).astype(int).to_numpy())
    >>> teacher.predict_proba(rows.tail(1)).argmax()
    np.int64(1)

    Every column is a feature but those of the stream itself (identifier, times, outcome). Numbers may be missing; a
    category that the training rows lack counts as missing.

    :param actions: number of actions (≥ 2).
    :param seed: of the folds and of LightGBM.
    :param threads: threads for fitting and prediction (≥ 1).
    """

    def __init__(self, *, actions: int = 2, seed: int = 0, threads: int = 1) -> None:
        self.settings = {"actions": actions, "seed": seed, "threads": threads}
        self._numbers: list[str] = []
        self._categories: dict[str, list[str]] = {}
        self._booster: lightgbm.Booster | None = None

    def fit(self, rows: pd.DataFrame, labels: Array) -> Self:
        """Fit on rows ``[n]`` and their labels ``[n]``, as action indices."""
        import lightgbm

        features = rows.drop(columns=[name for name in rows if name in _NOT_FEATURES])
        self._numbers = [str(name) for name in features.select_dtypes(["number", "bool"]).columns]
        others = [str(name) for name in features.columns if name not in self._numbers]
        self._categories = {name: sorted(features[name].dropna().astype(str).unique()) for name in others}
        parameters = {
            "objective": "multiclass" if self.settings["actions"] > 2 else "binary",
            "num_threads": self.settings["threads"],
            "seed": self.settings["seed"],
            "deterministic": True,
            "force_row_wise": True,
            "verbose": -1,
        }
        if self.settings["actions"] > 2:
            parameters["num_class"] = self.settings["actions"]
        data = lightgbm.Dataset(
            self._matrix(rows),
            label=np.asarray(labels),
            feature_name=[f"f{index}" for index in range(features.shape[1])],
            categorical_feature=list(range(len(self._numbers), features.shape[1])),
            free_raw_data=False,
        )
        trees = self._count_trees(parameters, data, np.asarray(labels))
        self._booster = lightgbm.train(parameters, data, num_boost_round=trees)
        return self

    def predict_proba(self, rows: pd.DataFrame) -> Array:
        """Return the probability of each action, float64 ``[n, K]``."""
        if self._booster is None:
            raise RuntimeError("This Boosting has not been fitted: call fit(rows, labels) or Boosting.load(folder).")
        probs = np.asarray(self._booster.predict(self._matrix(rows), num_threads=self.settings["threads"]))
        return probs if probs.ndim == 2 else np.column_stack([1.0 - probs, probs])

    def save(self, folder: Path) -> None:
        """Write `teacher.json` (settings, columns) and `trees.txt` in LightGBM's format."""
        assert self._booster is not None
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._booster.save_model(folder / "trees.txt")
        description = {"settings": self.settings, "numbers": self._numbers, "categories": self._categories}
        (folder / "teacher.json").write_text(json.dumps(description, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a teacher that :meth:`save` wrote."""
        import lightgbm

        folder = Path(folder)
        description = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))
        teacher = cls(**description["settings"])
        teacher._numbers, teacher._categories = description["numbers"], description["categories"]
        teacher._booster = lightgbm.Booster(model_file=folder / "trees.txt")
        return teacher

    def _count_trees(self, parameters: dict[str, Any], data: lightgbm.Dataset, labels: Array) -> int:
        """Number of trees with the smallest log loss in five folds; where folds lack a class: 100, the default."""
        import lightgbm

        counts = np.bincount(labels, minlength=int(self.settings["actions"]))
        if counts.min() < 5 or len(labels) < 100:
            return 100
        history: Any = lightgbm.cv(
            parameters,
            data,
            num_boost_round=300,
            nfold=5,
            seed=int(self.settings["seed"]),
            callbacks=[lightgbm.early_stopping(20, verbose=False)],
        )
        return len(next(iter(history.values())))

    def _matrix(self, rows: pd.DataFrame) -> Array:
        """The numbers, then the codes of the categories (NaN where unknown), float64 ``[n, D]``."""
        numbers = rows[self._numbers].to_numpy(dtype=np.float64)
        codes = [
            rows[name].map({value: code for code, value in enumerate(values)}).to_numpy(dtype=np.float64)
            for name, values in self._categories.items()
        ]
        return np.column_stack([numbers, *codes])


class HistogramBoosting:
    """Scikit-learn's histogram gradient boosting with its default settings, where LightGBM is not installed.

    >>> rows = pd.DataFrame({"age": np.arange(200.0), "ward": ["a", "b"] * 100})
    >>> teacher = HistogramBoosting(actions=2).fit(rows, (rows["age"] > 100).astype(int).to_numpy())
    >>> teacher.predict_proba(rows.tail(1)).argmax()
    np.int64(1)

    :param actions: number of actions (≥ 2); one that no training row has gets the probability 0.
    :param seed: of its validation rows.
    """

    def __init__(self, *, actions: int = 2, seed: int = 0) -> None:
        self.actions, self.seed = actions, seed
        self._model: Any = None

    def fit(self, rows: pd.DataFrame, labels: Array) -> Self:
        """Fit on rows ``[n]`` and their labels ``[n]``, as action indices."""
        from sklearn.compose import make_column_transformer
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OrdinalEncoder

        numbers = [str(name) for name in rows.select_dtypes(["number", "bool"]).columns]
        categories = [str(name) for name in rows.columns if name not in numbers]
        codes = OrdinalEncoder(
            handle_unknown="use_encoded_value", unknown_value=np.nan, encoded_missing_value=np.nan, max_categories=255
        )
        columns = make_column_transformer((codes, categories), ("passthrough", numbers))
        boosting = HistGradientBoostingClassifier(
            random_state=self.seed, categorical_features=list(range(len(categories)))
        )
        self._model = make_pipeline(columns, boosting).fit(rows, labels)
        return self

    def predict_proba(self, rows: pd.DataFrame) -> Array:
        """Return the probability of each action, float64 ``[n, K]``."""
        probs = np.zeros((len(rows), self.actions))
        probs[:, self._model.classes_.astype(int)] = self._model.predict_proba(rows)
        return probs


class Words:
    """Logistic regression on the TF-IDF of words and pairs of words (scikit-learn).

    >>> rows = pd.DataFrame({"text": ["cheap pills", "minutes of the meeting"] * 20})
    >>> teacher = Words(actions=2).fit(rows, np.array([1, 0] * 20))
    >>> teacher.predict_proba(pd.DataFrame({"text": ["pills"]})).argmax()
    np.int64(1)

    :param actions: number of actions (≥ 2); one that no training row has gets a probability of 1e-6 before the
        rows are normalised.
    :param column: of the texts.
    :param strength: inverse strength of the L2 penalty (> 0).
    :param terms: largest number of terms (≥ 1).
    """

    def __init__(self, *, actions: int = 2, column: str = "text", strength: float = 30.0, terms: int = 50_000) -> None:
        self.settings: dict[str, Any] = {"actions": actions, "column": column, "strength": strength, "terms": terms}
        self._terms: dict[str, int] = {}
        self._idf = self._weights = self._bias = np.empty(0)
        self._classes = np.empty(0, dtype=np.int64)

    def fit(self, rows: pd.DataFrame, labels: Array) -> Self:
        """Fit on rows ``[n]`` and their labels ``[n]``, as action indices of at least two actions."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=self.settings["terms"])
        x = vectorizer.fit_transform(self._texts(rows))
        model = LogisticRegression(C=self.settings["strength"], max_iter=300).fit(x, labels)
        self._terms = {term: int(index) for term, index in vectorizer.vocabulary_.items()}
        self._idf, self._classes = vectorizer.idf_, model.classes_.astype(np.int64)
        self._weights, self._bias = model.coef_, model.intercept_
        return self

    def predict_proba(self, rows: pd.DataFrame) -> Array:
        """Return the probability of each action, float64 ``[n, K]``."""
        from scipy.special import softmax
        from sklearn.feature_extraction.text import TfidfVectorizer

        if not self._terms:
            raise RuntimeError("This Words has not been fitted: call fit(rows, labels) or Words.load(folder).")
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, vocabulary=self._terms)
        vectorizer.idf_ = self._idf
        logits = vectorizer.transform(self._texts(rows)) @ self._weights.T + self._bias
        if len(self._weights) == 1:
            logits = np.column_stack([np.zeros(len(logits)), logits])
        probs = np.full((len(rows), self.settings["actions"]), 1e-6)
        probs[:, self._classes] = softmax(logits, axis=1)
        normalised: Array = probs / probs.sum(axis=1, keepdims=True)
        return normalised

    def save(self, folder: Path) -> None:
        """Write `teacher.json` (settings, terms) and `weights.safetensors`."""
        from safetensors.numpy import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {"idf": self._idf, "weights": self._weights, "bias": self._bias, "classes": self._classes}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "weights.safetensors")
        description = {"settings": self.settings, "terms": self._terms}
        (folder / "teacher.json").write_text(json.dumps(description), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a teacher that :meth:`save` wrote."""
        from safetensors.numpy import load_file

        folder = Path(folder)
        description = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))
        stored, teacher = load_file(folder / "weights.safetensors"), cls(**description["settings"])
        teacher._terms = description["terms"]
        teacher._idf, teacher._classes = stored["idf"], stored["classes"]
        teacher._weights, teacher._bias = stored["weights"], stored["bias"]
        return teacher

    def _texts(self, rows: pd.DataFrame) -> list[str]:
        texts: list[str] = rows[self.settings["column"]].fillna("").tolist()
        return texts
