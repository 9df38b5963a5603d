"""Text encoders: the token ids of a text to one vector; one class per type of encoder in the agent file."""

from __future__ import annotations

import math
from functools import singledispatch

import torch
from torch import Tensor, nn
from torch.nn import functional

from stillhouse.config import BagEncoder, ConvolutionEncoder, TransformerEncoder

__all__ = ["Bag", "Convolution", "TextEncoder", "Transformer", "TransformerLayer", "new_encoder"]

BIGRAM_HASH_FACTOR = 1_000_003  # a prime: spreads pairs (a, b) over the bigram embeddings


class TextEncoder(nn.Module):
    """Token ids int64 ``[n, L]``, 0 being padding, to float ``[n, width]``.

    :ivar embedding: the table ``[V, D]``; row 0, that of padding, is free for the encoder's own use.
    """

    def __init__(self, tokens: int, embedding_width: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(tokens, embedding_width)
        nn.init.normal_(self.embedding.weight, std=0.1)


class Bag(TextEncoder):
    """Mean of the embeddings of tokens and of hashed pairs of neighbours; zeros for an empty text.

    Joulin, Grave, Bojanowski and Mikolov 2017, "Bag of Tricks for Efficient Text Classification", §2.
    """

    def __init__(self, tokens: int, width: int, bigrams: int) -> None:
        super().__init__(tokens, width, width)
        self.bigrams = nn.Embedding(bigrams, width) if bigrams else None
        if self.bigrams is not None:
            nn.init.normal_(self.bigrams.weight, std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        is_token = tokens > 0
        total, count = _masked(self.embedding(tokens), is_token).sum(dim=1), is_token.sum(dim=1, keepdim=True)
        if self.bigrams is not None:
            pairs = torch.remainder(tokens[:, :-1] * BIGRAM_HASH_FACTOR + tokens[:, 1:], self.bigrams.num_embeddings)
            is_pair = is_token[:, 1:]  # padding comes last: the left neighbour of a token is a token
            total = total + _masked(self.bigrams(pairs), is_pair).sum(dim=1)
            count = count + is_pair.sum(dim=1, keepdim=True)
        mean: Tensor = total / count.clamp(min=1).to(total.dtype)
        return mean


class Convolution(TextEncoder):
    """Filters over neighbouring tokens with ReLU and max-pooling; zeros for an empty text.

    Kim 2014, "Convolutional Neural Networks for Sentence Classification", §2. Each filter is a linear layer over the
    concatenated vectors of neighbours, which the quantiser supports.
    """

    def __init__(self, tokens: int, width: int, filters: int, sizes: tuple[int, ...]) -> None:
        super().__init__(tokens, width, filters * len(sizes))
        self.sizes = sizes
        self.filters = nn.ModuleList(nn.Linear(size * width, filters) for size in sizes)

    def forward(self, tokens: Tensor) -> Tensor:
        is_token = tokens > 0
        vectors, length = _masked(self.embedding(tokens), is_token), tokens.shape[1]
        pooled = []
        for size, filters in zip(self.sizes, self.filters, strict=True):
            padded = functional.pad(vectors, (0, 0, (size - 1) // 2, size // 2))
            windows = torch.cat([padded[:, i : i + length] for i in range(size)], dim=2)
            pooled.append(_masked(torch.relu(filters(windows)), is_token).amax(dim=1))
        return torch.cat(pooled, dim=1)


class Transformer(TextEncoder):
    """A start token and the text through layers like BERT's; the mean of their outputs.

    Devlin et al. 2019, "BERT", §3: learned position embeddings (``places``), layer normalisation after each residual
    sum, exact GELU. Row 0 of the embeddings is the start token, so that an empty text has something to attend to.
    """

    def __init__(
        self, tokens: int, length: int, width: int, layers: int, heads: int, feedforward: int, dropout: float
    ) -> None:
        super().__init__(tokens, width, width)
        self.places = nn.Parameter(torch.randn(length + 1, width) * 0.02)
        self.normalise = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(TransformerLayer(width, heads, feedforward, dropout) for _ in range(layers))

    def forward(self, tokens: Tensor) -> Tensor:
        is_token = functional.pad(tokens, (1, 0), value=1) > 0
        hidden = self.dropout(self.normalise(self.embedding(functional.pad(tokens, (1, 0))) + self.places))
        for layer in self.layers:
            hidden = layer(hidden, is_token)
        mean: Tensor = _masked(hidden, is_token).sum(dim=1) / is_token.sum(dim=1, keepdim=True).to(hidden.dtype)
        return mean


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward network, each added to its input and normalised.

    :param heads: divides ``width``.
    """

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.after_attention, self.after_feedforward = (nn.LayerNorm(width, eps=1e-12) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Hidden ``[n, L, D]`` and which positions hold a token ``[n, L]``, to ``[n, L, D]``."""
        hidden = self.after_attention(hidden + self.dropout(self._attend(hidden, mask)))
        residual = self.down(functional.gelu(self.up(hidden)))
        output: Tensor = self.after_feedforward(hidden + self.dropout(residual))
        return output

    def _attend(self, hidden: Tensor, mask: Tensor) -> Tensor:
        length = hidden.shape[1]
        query, key, value = (
            project(hidden).reshape(-1, length, self.heads, self.size).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(self.size)
        scores = scores.masked_fill(~mask[:, None, None, :], -1e4)
        mixed = (torch.softmax(scores, dim=3) @ value).transpose(1, 2).reshape(-1, length, self.heads * self.size)
        attended: Tensor = self.out(mixed)
        return attended


def _masked(vectors: Tensor, mask: Tensor) -> Tensor:
    """Vectors ``[n, L, D]``, zeros where ``mask`` ``[n, L]`` is false."""
    return vectors * mask.unsqueeze(2).to(vectors.dtype)


@singledispatch
def new_encoder(config: object, tokens: int, length: int, dropout: float) -> TextEncoder:
    """The encoder that ``config`` describes, for texts of ``length`` ids and a vocabulary of ``tokens``."""
    raise TypeError(f"no encoder for {type(config).__name__}")


@new_encoder.register
def _(config: BagEncoder, tokens: int, length: int, dropout: float) -> TextEncoder:
    return Bag(tokens, config.width, config.bigrams)


@new_encoder.register
def _(config: ConvolutionEncoder, tokens: int, length: int, dropout: float) -> TextEncoder:
    return Convolution(tokens, config.width, config.filters, config.sizes)


@new_encoder.register
def _(config: TransformerEncoder, tokens: int, length: int, dropout: float) -> TextEncoder:
    return Transformer(tokens, length, config.width, config.layers, config.heads, config.feedforward, dropout)
