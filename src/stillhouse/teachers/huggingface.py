"""A sequence-classification model of Hugging Face as a teacher, read from a local folder as data only."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import HuggingfaceTeacher
from stillhouse.errors import PartError
from stillhouse.files import tree_digest
from stillhouse.teachers.answers import Array, softmax, wrap_predict
from stillhouse.teachers.kinds import Member, MemberContext, answer_version, describe, open_member, require_version
from stillhouse.teachers.prompts import fill_prompt

__all__ = ["label_matrix", "make_predictor"]

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_REFUSED_KEYS = {  # of config.json: weights, adapters and kernels from elsewhere
    "transformers_weights": "names another file of weights",
    "quantization_config": "is quantised, which another package must undo",
}


@describe.register
def _(section: HuggingfaceTeacher, context: MemberContext) -> dict[str, Any]:
    return {"version": _version(section, context)}


@open_member.register
def _(section: HuggingfaceTeacher, context: MemberContext, entry: dict[str, Any]) -> Member:
    require_version(context, entry, _version(section, context))
    leaf, actions = context.leaf, context.config.actions
    predict = make_predictor(section, actions, context.where)
    answer = wrap_predict(leaf.name, actions, predict, timeout=section.call_timeout)
    return Member(leaf.name, leaf.share, answer, entry["version"])


def _version(section: HuggingfaceTeacher, context: MemberContext) -> str:
    """:raises PartError: if the folder cannot be read."""
    folder = _require_folder(section, context.where)
    try:
        return answer_version(context, weights_digest=tree_digest(folder))
    except OSError as error:
        raise PartError(f"{context.where}.folder: {folder} cannot be read ({error.strerror})") from error


def make_predictor(teacher: HuggingfaceTeacher, actions: Sequence[str], where: str) -> Callable[[pd.DataFrame], Array]:
    """A function from rows to probabilities ``[n, K]`` in the order of ``actions``; its result is not checked.

    :raises PartError: if the folder holds no such model, its weights are incomplete, or the labels do not fit; when
        called, if the model fails.
    """
    model, tokenizer = _load(teacher, where)
    to_actions = label_matrix(_read_labels(model.config, where), teacher.labels, actions, where)
    max_tokens = _max_tokens(teacher, model.config, tokenizer)

    def predict(rows: pd.DataFrame) -> Array:
        import torch

        texts, logits = _texts(teacher, actions, rows), []
        for start in range(0, len(texts), teacher.batch_size):
            batch = texts[start : start + teacher.batch_size]
            try:
                encoded = tokenizer(batch, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
                with torch.inference_mode():
                    logits.append(model(**encoded).logits.numpy())
            except Exception as error:
                raise PartError(f"{where}: fails on {len(batch)} rows: {type(error).__name__}: {error}") from error
        probs: Array = softmax(np.concatenate(logits)) @ to_actions
        return probs

    return predict


def label_matrix(names: Sequence[str], labels: Mapping[str, str] | None, actions: Sequence[str], where: str) -> Array:
    """What the model's probabilities ``[n, L]`` are multiplied by to give those of the actions, ``[L, K]``.

    >>> label_matrix(["NEG", "NEUTRAL", "POS"], {"NEG": "no", "NEUTRAL": "no", "POS": "yes"}, ("yes", "no"), "here")
    array([[0., 1.],
           [0., 1.],
           [1., 0.]])

    :param names: of the model's outputs, in their order.
    :param labels: from each name to an action; None: the names are the actions.
    :raises PartError: if a name has no action, an action no name, or ``labels`` holds an unknown name or action.
    """
    if labels is None:
        if set(names) != set(actions):
            raise PartError(
                f"{where}.labels: the labels of the model are {_list(names)}, not the actions {_list(actions)}: write "
                "an action for each label, such as `labels: {LABEL_0: …, LABEL_1: …}`"
            )
        labels = {action: action for action in actions}
    for wrong, problem in (
        (sorted(set(labels) - set(names)), f"no labels of the model, which has {_list(names)}"),
        (sorted(set(names) - set(labels)), "labels of the model without an action"),
        (sorted(set(labels.values()) - set(actions)), f"no actions; those are {_list(actions)}"),
        (sorted(set(actions) - set(labels.values())), "actions without a label: the teacher would never choose them"),
    ):
        if wrong:
            raise PartError(f"{where}.labels: {_list(wrong)}: {problem}")
    matrix = np.zeros((len(names), len(actions)))
    for row, name in enumerate(names):
        matrix[row, list(actions).index(labels[name])] = 1.0
    return matrix


def _require_folder(teacher: HuggingfaceTeacher, where: str) -> Path:
    """The folder: transformers would look for another name on the hub.

    :raises PartError: if it is none, or its weights are not safetensors.
    """
    folder = Path(teacher.folder)
    if not folder.is_dir():
        raise PartError(f"{where}.folder: {folder} is no folder: write the model there with `save_pretrained`")
    if not (folder / "config.json").is_file():
        raise PartError(f"{where}.folder: {folder} has no config.json: write it with the model's `save_pretrained`")
    config = _read_json(folder / "config.json", where)
    for key, problem in _REFUSED_KEYS.items():
        if config.get(key) is not None:
            raise PartError(f"{where}.folder: the model in {folder} {problem} ({key} of config.json)")
    if (folder / "adapter_config.json").exists():
        raise PartError(f"{where}.folder: {folder} has an adapter, not a whole model: merge it, and save the result")
    if (folder / _WEIGHTS).is_file():
        return folder
    shards = _read_json(folder / _INDEX, where).get("weight_map") if (folder / _INDEX).is_file() else None
    if not isinstance(shards, dict) or not all(
        str(shard).endswith(".safetensors") and Path(str(shard)).name == shard for shard in shards.values()
    ):
        raise PartError(
            f"{where}.folder: {folder} has no {_WEIGHTS}; other formats may hold code and are not read: save the model "
            "with `save_pretrained`"
        )
    return folder


def _read_json(path: Path, where: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PartError(f"{where}.folder: {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise PartError(f"{where}.folder: {path} must hold a JSON object")
    return content


def _load(teacher: HuggingfaceTeacher, where: str) -> tuple[Any, Any]:
    """The model in evaluation mode with float32 weights, and its tokenizer.

    :raises PartError: if transformers is missing, the files do not load, or weights are missing.
    """
    folder = _require_folder(teacher, where)
    try:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise PartError(
            f"{where}: needs the package transformers: pip install 'stillhouse[huggingface]' ({error})"
        ) from error
    disable_progress_bar()  # of the loading of weights
    as_data = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **as_data)
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            folder,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="eager",  # else config.json may name a kernel on the hub
            output_loading_info=True,
            **as_data,
        )
    except Exception as error:
        raise PartError(
            f"{where}.folder: {folder} does not load as a sequence-classification model: {type(error).__name__}: "
            f"{error}"
        ) from error
    # transformers draws missing weights at random, so a model without its classifier would answer noise
    if missing := sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}):
        raise PartError(f"{where}.folder: {folder} lacks weights of a sequence-classification model: {_list(missing)}")
    return model.eval(), tokenizer


def _read_labels(config: Any, where: str) -> list[str]:
    """The names of the model's outputs, in their order.

    :raises PartError: if its outputs are not one distribution over two labels or more.
    """
    if config.num_labels < 2 or config.problem_type in ("regression", "multi_label_classification"):
        raise PartError(
            f"{where}.folder: the model has {config.num_labels} outputs and problem_type {config.problem_type!r}; it "
            "must choose one of two labels or more"
        )
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    if len(set(names)) < len(names):
        raise PartError(f"{where}.folder: two labels of the model have one name: {_list(names)} (id2label)")
    return names


def _max_tokens(teacher: HuggingfaceTeacher, config: Any, tokenizer: Any) -> int:
    """Longest text in tokens: the section's limit, or what the model can read if that is less."""
    positions = getattr(config, "max_position_embeddings", None) or teacher.max_tokens
    return int(min(teacher.max_tokens, tokenizer.model_max_length, positions))


def _texts(teacher: HuggingfaceTeacher, actions: Sequence[str], rows: pd.DataFrame) -> list[str]:
    """What the model reads of each row; a missing text is empty."""
    if teacher.template is None:
        return ["" if pd.isna(text) else str(text) for text in rows[teacher.column]]
    records: list[dict[str, Any]] = rows.to_dict("records")  # type: ignore[assignment]
    return [fill_prompt(teacher.template, row, actions) for row in records]


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:10])
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"
