r"""A small Transformer that predicts the next word, as Cohen et al. (2021) train it on WikiText-2.

The encoder of Vaswani et al. (2017) behind a causal mask, in the shape of PyTorch's word language
model example: an embedding of width 200 times √200, sinusoidal positions, two layers (two heads,
200 hidden units, ReLU, the normalisation after each sum), a linear layer to one score a word. No
dropout.

Two remarks on faithfulness. The paper's repository held two versions of this model, and the one
wired in transposed the mask, so that a position saw the words after it, also the one it was to
predict; which of them made the figure is unknown. Here the mask is causal, and tests hold it. And
the outputs are scores, not logarithms of probabilities: cross-entropy is the same for both.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Transformer"]


class Transformer(nn.Module):
    """Scores of the next word at every position of a sequence, given the words up to there.

    Embedding and decoder weights are uniform on ±0.1, the decoder's biases zero. The rest has
    PyTorch's default for ``nn.TransformerEncoder``, whose layers begin as copies of one.

    Args:
        num_inputs: words of the vocabulary.
        num_outputs: scores per position; the words of the vocabulary again.
        width: of embedding and layers, even.
        num_heads: attention heads, a divisor of the width.
        hidden: units between the two linear maps of a layer.
        depth: layers.
        max_length: the longest sequence it takes.

    Raises:
        ValueError: a size is not positive, the width is odd or no multiple of ``num_heads``.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        *,
        width: int = 200,
        num_heads: int = 2,
        hidden: int = 200,
        depth: int = 2,
        max_length: int = 512,
    ) -> None:
        super().__init__()
        sizes = (num_inputs, num_outputs, width, num_heads, hidden, depth, max_length)
        if min(sizes) < 1 or width % 2 or width % num_heads:
            raise ValueError(
                "a Transformer needs positive sizes and a width that is even and a multiple of "
                f"num_heads, got width={width}, num_heads={num_heads}, sizes {sizes}"
            )
        self.embedding = nn.Embedding(num_inputs, width)
        layer = _Layer(width, num_heads, hidden)
        self.layers = nn.Sequential(*(copy.deepcopy(layer) for _ in range(depth)))
        self.decoder = nn.Linear(width, num_outputs)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        self.register_buffer("positions", sinusoidal_positions(max_length, width), persistent=False)

    def forward(self, words: Tensor) -> Tensor:
        """Scores ``(m, outputs, length)`` for words ``(m, length)``, integers.

        The classes are the second dimension, where cross-entropy expects them.

        Raises:
            ValueError: the sequences are longer than ``max_length``.
        """
        length = words.shape[1]
        positions: Tensor = self.positions  # type: ignore[assignment]
        if length > len(positions):
            raise ValueError(
                f"sequences of {length} words, but this Transformer has positions for "
                f"{len(positions)}; build it with max_length={length}"
            )
        hidden = self.embedding(words) * math.sqrt(self.embedding.embedding_dim)
        scores: Tensor = self.decoder(self.layers(hidden + positions[:length]))
        return scores.mT


class _Layer(nn.Module):
    """Attention to the words up to each position, then two linear maps; both with a shortcut.

    `nn.TransformerEncoderLayer` without its fused passes, which cannot be differentiated twice and
    are taken or not depending on the mode and on whether gradients are on.
    """

    def __init__(self, width: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.expand, self.reduce = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.attention_norm, self.output_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        nn.init.xavier_uniform_(self.queries_keys_values.weight)
        nn.init.zeros_(self.queries_keys_values.bias)
        nn.init.zeros_(self.mix.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention_norm(x + self.attention(x))
        output: Tensor = self.output_norm(x + self.reduce(torch.relu(self.expand(x))))
        return output

    def attention(self, x: Tensor) -> Tensor:
        heads = self.queries_keys_values(x).unflatten(-1, (3, self.num_heads, -1))
        queries, keys, values = heads.transpose(1, 3).unbind(2)  # (m, heads, length, width / heads)
        seen = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        mixed: Tensor = self.mix(seen.transpose(1, 2).flatten(-2))
        return mixed


def sinusoidal_positions(length: int, width: int) -> Tensor:
    r"""The encoding of positions, ``(length, width)``, float32.

    .. math:: e_{p, 2i} = \sin(p / 10000^{2i/w}), \qquad e_{p, 2i+1} = \cos(p / 10000^{2i/w})

    Source: Vaswani et al. (2017), §3.5.
    """
    position = torch.arange(length, dtype=torch.float64)[:, None]
    angles = position / 10000 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()
