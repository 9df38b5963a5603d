"""Sentence encoders from a folder or an installed package, in the files that sentence-transformers writes.

Read are ``modules.json``, the pooling, tokenizer and configuration as JSON, and weights as safetensors: no code, no
pickle, no network. Modules other than a transformer, one pooling and a normalisation are refused.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.config import home
from stillhouse.errors import PartError
from stillhouse.parts import TextEncoderState
from stillhouse.records import short_id
from stillhouse.teachers.embeddings import Embeddings, embed_with_cache
from stillhouse.teachers.pretrained import folder_digest, limit_tokens, load_model, read_json, require_folder

__all__ = ["SentenceEncoder", "limited_threads", "package_folder"]

_POOLINGS = ("cls", "mean", "max", "mean_sqrt_len_tokens")
_OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class SentenceEncoder:
    """Texts to embeddings, on the CPU. The files are read when the first text is encoded.

    :param folder: of the encoder.
    :param where: key of the agent file that names it, for errors.
    :param max_tokens: longest text; the rest of a text is cut.
    :param batch_size: texts per forward pass.
    :param threads: most threads of torch.
    :raises PartError: if the folder holds no such encoder.
    """

    def __init__(self, folder: Path, where: str, max_tokens: int = 256, batch_size: int = 64, threads: int = 2) -> None:
        self.folder, self.where = require_folder(folder, where), where
        self.max_tokens, self.batch_size, self.threads = max_tokens, batch_size, threads
        self.pooling, self.normalises = self._read_modules()
        self.config = read_json(folder / "config.json", where)

    @cached_property
    def version(self) -> str:
        """Hash of the encoder's files and of what is cut: decides its embeddings."""
        return short_id(folder_digest(self.folder, self.where), str(self.max_tokens))

    @property
    def width(self) -> int:
        """Dimensions of an embedding."""
        return int(self.config.get("hidden_size") or self.config.get("dim") or self._model[0].config.hidden_size)

    @property
    def bytes(self) -> int:
        """Size of the encoder's files."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """The embeddings of ``texts``, float32 ``[n, D]``, from the cache below ``STILLHOUSE_HOME`` where it has them.

        A single text is always encoded and never read from the cache, so that the latency of one decision is measured
        as it is.
        """
        if len(texts) == 1:
            return self.encode(texts)
        return embed_with_cache(texts, self.encode, home() / "embeddings" / f"{self.version}.sqlite", self.width)

    def encode(self, texts: Sequence[str]) -> Embeddings:
        """The embeddings of ``texts``, float32 ``[n, D]``, without the cache.

        :raises PartError: if the files do not load, or the model fails.
        """
        import torch

        model, tokenizer = self._model
        limit, prefix = self._token_limit, self._prefix
        shown = [prefix + (text.lower() if self._lowers_texts else text).strip() for text in texts]
        order = sorted(range(len(shown)), key=lambda index: len(shown[index]))  # alike lengths need less padding
        embeddings = np.empty((len(shown), self.width), dtype=np.float32)
        with limited_threads(self.threads):
            for start in range(0, len(order), self.batch_size):
                indices = order[start : start + self.batch_size]
                try:
                    tokens = tokenizer(
                        [shown[index] for index in indices],
                        padding=True,
                        truncation=True,
                        max_length=limit,
                        return_tensors="pt",
                    )
                    with torch.inference_mode():
                        states = model(**tokens).last_hidden_state
                        pooled = _pool(states, tokens["attention_mask"], self.pooling)
                        if self.normalises:
                            pooled = torch.nn.functional.normalize(pooled, dim=1)
                except Exception as error:
                    raise PartError(
                        f"{self.where}: fails on {len(indices)} texts: {type(error).__name__}: {error}"
                    ) from error
                embeddings[indices] = pooled.numpy()
        return embeddings

    @property
    def has_text_encoder(self) -> bool:
        """Whether a text student may be initialised from it: a BERT with WordPiece tokens in lower case."""
        tokenizer = self.folder / "tokenizer_config.json"
        lowers = not tokenizer.is_file() or read_json(tokenizer, self.where).get("do_lower_case", True)
        return self.config.get("model_type") == "bert" and (self.folder / "vocab.txt").is_file() and bool(lowers)

    def text_encoder(self) -> TextEncoderState:
        """Tokens, embeddings and layers of a BERT, from which a student can be initialised."""
        from safetensors.numpy import load_file

        tokens = (self.folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        state = {
            name.removeprefix("bert."): value for name, value in load_file(self.folder / "model.safetensors").items()
        }
        heads = int(self.config["num_attention_heads"])
        return TextEncoderState(tokens, state["embeddings.word_embeddings.weight"], state, heads)

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        # the pooler's output is not read
        return load_model(self.folder, "AutoModel", "sentence encoder", self.where, optional=("pooler.",))

    @cached_property
    def _settings(self) -> dict[str, Any]:
        path = self.folder / "sentence_bert_config.json"
        return read_json(path, self.where) if path.is_file() else {}

    @property
    def _lowers_texts(self) -> bool:
        return bool(self._settings.get("do_lower_case"))

    @property
    def _token_limit(self) -> int:
        model, tokenizer = self._model
        limit = limit_tokens(self.max_tokens, model.config, tokenizer)
        return min(limit, int(self._settings.get("max_seq_length") or limit))

    @cached_property
    def _prefix(self) -> str:
        """The prompt that the encoder puts before each text by default; mostly none."""
        path = self.folder / "config_sentence_transformers.json"
        settings = read_json(path, self.where) if path.is_file() else {}
        return str((settings.get("prompts") or {}).get(settings.get("default_prompt_name")) or "")

    def _read_modules(self) -> tuple[str, bool]:
        """The pooling, and whether embeddings are scaled to length 1; without ``modules.json`` the mean, unscaled."""
        path = self.folder / "modules.json"
        if not path.is_file():
            return "mean", False
        try:
            modules = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in _read_list(path)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PartError(f"{self.where}: {path} cannot be read: {error}") from error
        kinds = [kind for kind, _ in modules]
        if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or modules[0][1]:
            raise PartError(
                f"{self.where}: {path} names the modules {', '.join(kinds)}: only a Transformer in the folder itself, "
                "a Pooling and a Normalize are read"
            )
        pooling = read_json(self.folder / modules[1][1] / "config.json", self.where)
        mode = pooling.get("pooling_mode") or [mode for key, mode in _OLD_POOLING_KEYS.items() if pooling.get(key)]
        modes = [mode] if isinstance(mode, str) else list(mode)
        if len(modes) != 1 or modes[0] not in _POOLINGS:
            raise PartError(
                f"{self.where}: the pooling {', '.join(map(str, modes)) or 'none'} is not known; known are single ones "
                f"of: {', '.join(_POOLINGS)}"
            )
        return str(modes[0]), "Normalize" in kinds


def package_folder(name: str, where: str) -> Path:
    """The folder of the encoder's files in an installed package, found without importing it.

    :param name: of the package, as it is installed or imported.
    :raises PartError: if it is not installed, or does not hold one encoder.
    """
    module = name.replace("-", "_").replace(".", "_")
    try:
        spec = importlib.util.find_spec(module) or importlib.util.find_spec(module.lower())
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise PartError(f"{where}: the package {name} is not installed: pip install {name}")
    roots = [Path(location) for location in spec.submodule_search_locations]
    folders = sorted({file.parent for root in roots for file in root.rglob("model.safetensors*")})
    if len(folders) != 1:
        what = "no model.safetensors" if not folders else f"{len(folders)} folders with model.safetensors"
        raise PartError(f"{where}: the package {name} has {what}: name the encoder's folder in `folder`")
    return folders[0]


@contextmanager
def limited_threads(limit: int) -> Iterator[None]:
    """Limit torch's threads to ``limit`` in this context."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(before, limit))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pool(states: Any, mask: Any, pooling: str) -> Any:
    """The states of a text's tokens ``[n, T, D]`` as one vector ``[n, D]``."""
    import torch

    if pooling == "cls":
        return states[:, 0]
    weights = mask.unsqueeze(-1).to(states.dtype)
    if pooling == "max":
        return torch.where(weights > 0, states, torch.finfo(states.dtype).min).amax(dim=1)
    total, count = (states * weights).sum(dim=1), weights.sum(dim=1).clamp(min=1e-9)
    return total / (count if pooling == "mean" else count.sqrt())


def _read_list(path: Path) -> list[dict[str, Any]]:
    modules = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(modules, list):
        raise ValueError("it is no list")
    return modules
