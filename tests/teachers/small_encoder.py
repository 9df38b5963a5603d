"""A random BERT of one layer in the files that sentence-transformers writes, and an agent of intents that uses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from stillhouse.config import AgentConfig
from tests.flows import clerk

WIDTH = 48
WORDS = [*clerk.FILLING, *(word for words in clerk.WORDS.values() for group in words for word in group), ".", "!"]


def write_encoder(folder: Path, seed: int = 0, pooling: str = "mean", normalise: bool = True, **files: Any) -> Path:
    """Write the encoder and return its folder.

    Args:
        folder: made here.
        pooling: mode, as older versions of sentence-transformers write it.
        normalise: whether embeddings have length 1.
        files: contents of further JSON files, by their names without ``.json``.
    """
    import transformers

    folder.mkdir(parents=True)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS)]
    (folder / "vocab.txt").write_text("\n".join(tokens))
    torch.manual_seed(seed)
    settings = transformers.BertConfig(
        vocab_size=len(tokens),
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    model = transformers.BertModel(settings)
    with torch.no_grad():  # mostly a bag of words, so that few examples teach a head
        model.embeddings.position_embeddings.weight *= 0.1
        for layer in model.encoder.layer:
            layer.attention.output.dense.weight *= 0.1
            layer.output.dense.weight *= 0.1
    model.save_pretrained(folder)
    transformers.BertTokenizer(str(folder / "vocab.txt"), model_max_length=32).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(tokens))  # newer versions save the tokenizer's JSON alone
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), *([("Normalize", "2_Normalize")] if normalise else [])]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    mode = f"pooling_mode_{pooling}" if pooling.startswith("mean_sqrt") else f"pooling_mode_{pooling}_tokens"
    old_form = {"word_embedding_dimension": WIDTH, mode.replace("cls_tokens", "cls_token"): True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(old_form))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def intents_config(teacher: dict[str, Any], **sections: Any) -> AgentConfig:
    """An agent that chooses one of four intents for a sentence, with a sentence encoder as its teacher."""
    raw = yaml.safe_load((Path(clerk.__file__).parent / "clerk.yaml").read_text())
    section = {"kind": "sentence_encoder", "name": "encoder", "column": "said", "threads": 1} | teacher
    return AgentConfig.model_validate(raw | {"agent": "intents", "teachers": [section]} | sections)
