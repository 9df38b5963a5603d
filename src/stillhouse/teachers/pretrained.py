"""Transformers models from a local folder, read as data only: no code, no pickle, no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stillhouse.errors import PartError
from stillhouse.files import tree_digest
from stillhouse.teachers.prompts import fill_prompt

__all__ = ["folder_digest", "limit_tokens", "list_names", "load_model", "read_json", "read_texts", "require_folder"]

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_REFUSED_KEYS = {  # of config.json: weights, adapters and kernels from elsewhere
    "transformers_weights": "names another file of weights",
    "quantization_config": "is quantised, which another package must undo",
}


def require_folder(folder: Path, where: str) -> Path:
    """The folder, if it holds a model: transformers would look for another name on the hub.

    :param where: the key of the agent file that names it, for errors.
    :raises PartError: if it is no folder, or its weights are not safetensors.
    """
    if not folder.is_dir():
        raise PartError(f"{where}: {folder} is no folder: write the model there with `save_pretrained`")
    if not (folder / "config.json").is_file():
        raise PartError(f"{where}: {folder} has no config.json: write it with the model's `save_pretrained`")
    config = read_json(folder / "config.json", where)
    for key, problem in _REFUSED_KEYS.items():
        if config.get(key) is not None:
            raise PartError(f"{where}: the model in {folder} {problem} ({key} of config.json)")
    if (folder / "adapter_config.json").exists():
        raise PartError(f"{where}: {folder} has an adapter, not a whole model: merge it, and save the result")
    if (folder / _WEIGHTS).is_file():
        return folder
    shards = read_json(folder / _INDEX, where).get("weight_map") if (folder / _INDEX).is_file() else None
    if not isinstance(shards, dict) or not all(
        str(shard).endswith(".safetensors") and Path(str(shard)).name == shard for shard in shards.values()
    ):
        raise PartError(
            f"{where}: {folder} has no {_WEIGHTS}; other formats may hold code and are not read: save the model "
            "with `save_pretrained`"
        )
    return folder


def folder_digest(folder: Path, where: str) -> str:
    """Hash of all files of the folder.

    :raises PartError: if they cannot be read.
    """
    try:
        return tree_digest(folder)
    except OSError as error:
        raise PartError(f"{where}: {folder} cannot be read ({error.strerror})") from error


def read_json(path: Path, where: str) -> dict[str, Any]:
    """The object in a JSON file of the folder.

    :raises PartError: if it cannot be read, or is no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PartError(f"{where}: {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise PartError(f"{where}: {path} must hold a JSON object")
    return content


def load_model(folder: Path, loader: str, what: str, where: str, optional: Sequence[str] = ()) -> tuple[Any, Any]:
    """The model in evaluation mode with float32 weights, and its tokenizer.

    :param loader: class of transformers that reads it, such as ``AutoModel``.
    :param what: the kind of model, for errors.
    :param where: as in :func:`require_folder`.
    :param optional: beginnings of the names of weights that may be missing, since nobody reads their output.
    :raises PartError: if transformers is missing, the files do not load, or weights are missing.
    """
    try:
        import torch
        import transformers
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise PartError(
            f"{where.rpartition('.')[0]}: needs the package transformers: pip install 'stillhouse[huggingface]' "
            f"({error})"
        ) from error
    disable_progress_bar()  # of the loading of weights
    as_data = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **as_data)
        model, loading = getattr(transformers, loader).from_pretrained(
            folder,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="eager",  # else config.json may name a kernel on the hub
            output_loading_info=True,
            **as_data,
        )
    except Exception as error:
        raise PartError(f"{where}: {folder} does not load as a {what}: {type(error).__name__}: {error}") from error
    # transformers draws missing weights at random, so a model without its classifier would answer noise
    missing = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
    if missing := [name for name in missing if not name.startswith(tuple(optional))]:
        raise PartError(f"{where}: {folder} lacks weights of a {what}: {list_names(missing)}")
    return model.eval(), tokenizer


def limit_tokens(limit: int, config: Any, tokenizer: Any) -> int:
    """Longest text in tokens: ``limit``, or what the model can read if that is less."""
    positions = getattr(config, "max_position_embeddings", None) or limit
    return int(min(limit, tokenizer.model_max_length, positions))


def read_texts(column: str | None, template: str | None, actions: Sequence[str], rows: pd.DataFrame) -> list[str]:
    """What a model reads of each row: the column, or the filled template; a missing text is empty.

    >>> read_texts("note", None, ("yes", "no"), pd.DataFrame({"note": ["late", None]}))
    ['late', '']
    """
    if template is None:
        return ["" if pd.isna(text) else str(text) for text in rows[column]]
    records: list[dict[str, Any]] = rows.to_dict("records")  # type: ignore[assignment]
    return [fill_prompt(template, row, actions) for row in records]


def list_names(names: Sequence[str]) -> str:
    """The first ten names, and how many more there are.

    >>> list_names([str(number) for number in range(12)])
    '0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more'
    """
    shown = ", ".join(names[:10])
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"
