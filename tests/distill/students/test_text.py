"""The text student: shapes, padding, a round trip to disk, training, and initialisation from a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from stillhouse.config import AgentConfig, BagEncoder, ConvolutionEncoder, TransformerEncoder
from stillhouse.distill.students import TextStudent, columns_of, input_widths, load, new_student, save
from stillhouse.distill.students.encoders import new_encoder
from stillhouse.distill.train import distil, student_probabilities
from stillhouse.distill.training_set import TrainingSet
from stillhouse.errors import ConfigError
from stillhouse.parts import TextEncoderState
from stillhouse.variant import encode
from tests.agents import agent_config

ENCODERS = {
    "bag": BagEncoder(type="bag", width=16),
    "bigrams": BagEncoder(type="bag", width=16, bigrams=64),
    "convolution": ConvolutionEncoder(type="convolution", width=8, filters=6, sizes=(1, 2, 3, 5)),
    "transformer": TransformerEncoder(type="transformer", width=16, layers=2, heads=4, feedforward=32),
}
every_encoder = pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)


def agent(**student: Any) -> AgentConfig:
    return agent_config(
        actions=["greet", "book", "cancel"],
        observations={"columns": {"said": {"type": "text"}, "hour": {"type": "number"}, "place": {"type": "category"}}},
        student={"kind": "text", "vocabulary": 120, "length": 8, "widths": [16], "embedding": 2, **student},
        distillation={"epochs": 12, "batch_size": 32, "learning_rate": 0.01, "controller": "fixed"},
    )


def rows(count: int, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    words = [["hello", "morning", "hi"], ["book", "order", "reserve"], ["cancel", "drop", "stop"]]
    frame = pd.DataFrame(
        {
            "said": [f"{random.choice(words[k])} the taxi" if random.random() < 0.9 else "" for k in labels],
            "hour": random.uniform(0, 24, count),
            "place": random.choice(["here", "there"], count),
        }
    )
    return frame, labels


def small(encoder: Any, dropout: float = 0.0, **more: Any) -> TextStudent:
    torch.manual_seed(0)
    return TextStudent(torch.zeros(0, 4), (), [(20, 6)], encoder, 3, (8,), dropout=dropout, **more).eval()


TOKENS = torch.tensor([[2.0, 3, 4, 0, 0, 0], [5, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [7, 8, 9, 10, 11, 12]])


@every_encoder
def test_shapes(encoder: Any) -> None:
    student = small(encoder)
    assert student(TOKENS).shape == (4, 3)
    assert student(TOKENS[:0]).shape == (0, 3)
    assert torch.isfinite(student(TOKENS)).all()


@every_encoder
def test_padding_changes_nothing(encoder: Any) -> None:
    """A longer student of the same weights says the same, whatever follows the text is not looked at."""
    torch.manual_seed(0)
    short, long = new_encoder(encoder, 20, 6, 0.0).eval(), new_encoder(encoder, 20, 9, 0.0).eval()
    state = short.state_dict()
    if "places" in state:
        state["places"] = torch.cat([state["places"], torch.randn(3, state["places"].shape[1])])
    long.load_state_dict(state)
    tokens = TOKENS.to(torch.int64)
    torch.testing.assert_close(long(torch.nn.functional.pad(tokens, (0, 3))), short(tokens), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(short(tokens[:1]), short(tokens)[:1], rtol=1e-5, atol=1e-6)


@every_encoder
def test_padding_has_no_gradient(encoder: Any) -> None:
    module = new_encoder(encoder, 20, 6, 0.0)
    module(TOKENS[3:].to(torch.int64)).sum().backward()
    assert module.embedding.weight.grad is not None
    grown = module.embedding.weight.grad.abs().sum(dim=1) > 0
    assert not grown[13:].any()
    assert encoder.type == "transformer" or not grown[0]


def test_bag_by_hand() -> None:
    bag = new_encoder(BagEncoder(type="bag", width=2), 4, 3, 0.0)
    with torch.no_grad():
        bag.embedding.weight.copy_(torch.tensor([[9.0, 9], [0, 2], [4, 0], [8, 8]]))
    hidden = bag(torch.tensor([[1, 2, 0], [3, 0, 0], [0, 0, 0]]))
    assert hidden.tolist() == [[2, 1], [8, 8], [0, 0]]


def test_bigrams_depend_on_the_order() -> None:
    first, second = torch.tensor([[2, 3, 0]]), torch.tensor([[3, 2, 0]])
    torch.manual_seed(0)
    plain = new_encoder(BagEncoder(type="bag", width=4), 5, 3, 0.0)
    assert torch.equal(plain(first), plain(second))
    pairs = new_encoder(BagEncoder(type="bag", width=4, bigrams=1009), 5, 3, 0.0)
    assert not torch.allclose(pairs(first), pairs(second))


def test_convolution_by_hand() -> None:
    """One filter of size 2 that responds to token 1 on the left and token 2 on the right."""
    module = new_encoder(ConvolutionEncoder(type="convolution", width=2, filters=1, sizes=(2,)), 3, 3, 0.0)
    with torch.no_grad():
        module.embedding.weight.copy_(torch.tensor([[7.0, 7], [1, 0], [0, 1]]))
        module.filters[0].weight.copy_(torch.tensor([[1.0, 0, 0, 1]]))
        module.filters[0].bias.fill_(-0.5)
    hidden = module(torch.tensor([[1, 2, 0], [2, 1, 0], [1, 1, 2], [0, 0, 0]]))
    assert hidden.flatten().tolist() == [1.5, 0.5, 1.5, 0.0]


@every_encoder
def test_text_student_survives_a_round_trip(encoder: Any, tmp_path: Path) -> None:
    student = small(encoder, dropout=0.25)
    save(student, tmp_path)
    back = load(tmp_path)
    assert back.spec == student.spec and not back.training
    assert torch.equal(back(TOKENS), student(TOKENS))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student.json", "student.safetensors"]


@every_encoder
def test_text_student_learns_and_same_seed_gives_the_same(encoder: Any) -> None:
    config = agent(encoder=encoder.model_dump())
    frame, labels = rows(400)
    columns = columns_of(config, frame)
    parts = input_widths(columns)
    assert parts == (1, 1, 8)
    x = encode(frame, columns)

    def learned() -> np.ndarray:
        student = new_student(config, columns, x)
        distil(
            student,
            TrainingSet(x, np.eye(3)[labels], labels, parts.numbers, tokens=parts.tokens),
            config.distillation,
        )
        return student_probabilities(student, encode(unseen, columns))

    unseen, true = rows(200, seed=1)
    logits = learned()
    assert (logits.argmax(axis=1) == true)[unseen["said"] != ""].mean() > 0.95
    np.testing.assert_array_equal(learned(), logits)


def test_columns_come_from_rows_and_agent_file() -> None:
    frame, _ = rows(50)
    frame.loc[0, "said"] = None
    columns = columns_of(agent(), frame)
    assert [column["name"] for column in columns] == ["hour", "place", "said"]
    assert columns[1]["values"] == ["here", "there"]
    assert columns[2]["length"] == 8 and len(columns[2]["tokens"]) <= 120
    assert {"taxi", "the"} < set(columns[2]["tokens"])
    assert columns_of(agent(), frame.sample(frac=1, random_state=1)) == columns


def test_hidden_tokens_are_unknown_and_padding_stays() -> None:
    """At a rate near 1 nearly every code is hidden: categories become 0, tokens 1, and what pads stays 0."""
    from stillhouse.distill.train import _hide

    x = np.array([[0.5, 2, 7, 8, 0]] * 200, dtype=np.float32)
    lesson = TrainingSet(x, np.full((200, 2), 0.5), np.zeros(200), numbers=1, tokens=3)
    hidden = _hide(lesson.x.clone(), lesson, 0.5, torch.Generator().manual_seed(0))
    assert (hidden[:, 0] == 0.5).all() and (hidden[:, 4] == 0).all()
    assert set(hidden[:, 1].tolist()) == {0.0, 2.0}
    assert set(hidden[:, 2].tolist()) == {1.0, 7.0}
    assert 60 < int((hidden[:, 3] == 1).sum()) < 140


# --------------------------------------------------------------------------- initialisation from a teacher


WIDE = 24
TEACHER_TOKENS = ["[PAD]", "[CLS]", "[UNK]", "taxi", "the", "book", "cancel", "hello", "h", "##i", "t", "##h"]


def initial(width: int = WIDE, layers: int = 0, heads: int = 4, feedforward: int = 32) -> TextEncoderState:
    random = np.random.default_rng(0)
    table = random.normal(size=(len(TEACHER_TOKENS), width)).astype(np.float32)
    if not layers:
        return TextEncoderState(TEACHER_TOKENS, table)
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    bert = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=len(TEACHER_TOKENS),
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=feedforward,
            max_position_embeddings=20,
        ),
        add_pooling_layer=False,
    ).eval()
    state = {name: tensor.detach().numpy() for name, tensor in bert.state_dict().items()}
    state_of_encoder = TextEncoderState(TEACHER_TOKENS, state["embeddings.word_embeddings.weight"], state, heads)
    object.__setattr__(state_of_encoder, "bert", bert)
    return state_of_encoder


def new_text_student(config: AgentConfig, teacher_state: TextEncoderState) -> tuple[TextStudent, list[str]]:
    frame, _ = rows(100)
    columns = columns_of(config, frame, teacher_state)
    student = new_student(config, columns, encode(frame, columns), teacher_state)
    assert isinstance(student, TextStudent)
    return student, columns[2]["tokens"]


def test_bag_gets_tokens_and_vectors_of_the_teacher() -> None:
    student, tokens = new_text_student(agent(initialise="teacher", encoder={"type": "bag", "width": WIDE}), initial())
    assert tokens[:2] == ["[PAD]", "[UNK]"] and set(tokens[2:]) <= set(TEACHER_TOKENS) and "taxi" in tokens
    table = student.encoders[0].embedding.weight.detach().numpy()[1:]
    teacher_vectors = initial().embeddings[[TEACHER_TOKENS.index(token) for token in tokens[1:]]]
    np.testing.assert_allclose(distances(table), distances(teacher_vectors), rtol=1e-3, atol=1e-5)
    assert 0.05 < table.std() < 0.2


def distances(vectors: np.ndarray) -> np.ndarray:
    """Distances of all pairs, divided by the first: principal components of full width keep them."""
    pairwise = np.linalg.norm(vectors[:, None] - vectors, axis=2)
    return pairwise / pairwise[0, 1]


@pytest.mark.parametrize("width", [4, 40])
def test_other_widths_get_principal_components(width: int) -> None:
    config = agent(initialise="teacher", encoder={"type": "bag", "width": width})
    (student, _), (again, _) = new_text_student(config, initial()), new_text_student(config, initial())
    table = student.encoders[0].embedding.weight
    assert torch.equal(table, again.encoders[0].embedding.weight)
    fresh, _ = new_text_student(agent(encoder={"type": "bag", "width": width}), initial())
    assert not torch.equal(table[2:, : min(width, WIDE)], fresh.encoders[0].embedding.weight[2:, : min(width, WIDE)])
    assert 0.05 < float(table.detach().std()) < 0.2


def test_transformer_of_the_same_sizes_equals_the_teachers() -> None:
    """The student's encoder gives the mean of what BERT's first layers give for [CLS] and the text."""
    measures = {"width": 16, "layers": 2, "heads": 4, "feedforward": 32}
    teacher_state = initial(width=16, layers=3)
    config = agent(initialise="teacher", encoder={"type": "transformer", **measures}, dropout=0.0)
    student, tokens = new_text_student(config, teacher_state)
    text = ["hello", "the", "taxi"]
    own = torch.tensor([[tokens.index(token) for token in text] + [0] * 5])
    theirs = torch.tensor([[TEACHER_TOKENS.index(token) for token in ("[CLS]", *text)]])
    with torch.no_grad():
        hidden = teacher_state.bert(input_ids=theirs, output_hidden_states=True).hidden_states[2]  # type: ignore[attr-defined]
        torch.testing.assert_close(student.encoders[0].eval()(own), hidden.mean(dim=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [{"heads": 2}, {"feedforward": 16}, {"width": 8}])
def test_layers_of_other_sizes_stay_random(change: dict[str, int]) -> None:
    measures = {"width": 16, "layers": 2, "heads": 4, "feedforward": 32} | change
    config = agent(initialise="teacher", encoder={"type": "transformer", **measures})
    (student, _), (fresh, _) = new_text_student(config, initial(16, 3)), new_text_student(config, initial(16))
    assert torch.equal(student.encoders[0].layers[0].up.weight, fresh.encoders[0].layers[0].up.weight)


def test_missing_teacher_encoder_is_refused() -> None:
    frame, _ = rows(50)
    with pytest.raises(ConfigError, match=r"student.initialise: is 'teacher', and none of the teachers offers"):
        columns_of(agent(initialise="teacher"), frame)


def test_frozen_embeddings_stay_the_teachers(tmp_path: Path) -> None:
    """Also those of words that no training text has; the adaptive controller compares gradients of the others."""
    config = agent(initialise="teacher", freeze=True, encoder={"type": "bag", "width": WIDE})
    settings = config.distillation.model_copy(update={"controller": "adaptive", "epochs": 4})
    frame, labels = rows(90)
    columns = columns_of(config, frame, initial())
    x = encode(frame, columns)
    student = new_student(config, columns, x, initial())
    before = {name: value.clone() for name, value in student.state_dict().items()}
    sizes = input_widths(columns)
    learned, held = (
        TrainingSet(x[part], np.eye(3)[labels[part]] * 0.9 + 1 / 30, labels[part], sizes.numbers, tokens=sizes.tokens)
        for part in (slice(0, 60), slice(60, None))
    )
    distil(student, learned, settings, validation=held)
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert "encoders.0.embedding.weight" not in changed
    assert "layers.0.weight" in changed
    assert set(columns[-1]["tokens"]) >= {token for token in TEACHER_TOKENS if token.isalpha() and len(token) > 1}
    save(student, tmp_path)
    assert not load(tmp_path).encoders[0].embedding.weight.requires_grad  # type: ignore[union-attr,index]


def test_nothing_is_frozen_without_a_teacher() -> None:
    with pytest.raises(ValueError, match=r"freeze: only embeddings of a teacher can be kept"):
        agent(freeze=True)
