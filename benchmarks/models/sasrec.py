"""SASRec: a causal transformer over a user's last items, asked for one candidate a row.

Shapes: B rows, L = 50 items read of a history, D width of an embedding.
"""

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from benchmarks.models.seeded import Feature, as_trained, pooled, sequences
from torchrec_handler.simple import Batch, SimpleFactory, sparse

MOST = 50
HISTORY = {"history": Feature(rows=100_000, longest=MOST)}
ITEM = {"item_id": Feature(rows=100_000)}
SHARED = ("history",)
"""Inputs that belong to the user."""

WIDTH = 64
HEADS = 2
LAYERS = 2


class SasRec(nn.Module):
    """One logit a row."""

    causal: torch.Tensor

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.history_table = sequences(HISTORY, WIDTH, device)
        self.item_table = pooled(ITEM, WIDTH, device)
        self.positions = nn.Embedding(MOST, WIDTH)
        self.dropout = nn.Dropout(0.2)
        layer = nn.TransformerEncoderLayer(
            d_model=WIDTH,
            nhead=HEADS,
            dim_feedforward=4 * WIDTH,
            dropout=0.2,
            activation="gelu",
            norm_first=True,
            batch_first=True,
        )
        self.encoder = nn.TransformerEncoder(
            layer, num_layers=LAYERS, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False
        )
        self.item_bias = nn.Linear(WIDTH, 1)
        causal = torch.ones(MOST, MOST, dtype=torch.bool).triu(diagonal=1)
        self.register_buffer("causal", causal, persistent=False)

    def forward(self, history: KeyedJaggedTensor, item: KeyedJaggedTensor) -> torch.Tensor:
        """[B] of one feature each; the history is oldest first."""
        read: JaggedTensor = self.history_table(history)["history"]
        # An empty history is one item of zeros: attention to nothing is no number.
        lengths = read.lengths().clamp(min=1, max=MOST)
        positions = torch.arange(MOST, device=lengths.device)
        x = self.dropout(read.to_padded_dense(MOST) + self.positions(positions))
        is_missing = positions >= lengths.unsqueeze(1)
        hidden = self.encoder(x, mask=self.causal, src_key_padding_mask=is_missing)
        last = hidden[torch.arange(len(lengths), device=lengths.device), lengths - 1]
        candidate = self.item_table(item).values()
        near = (last * candidate).sum(dim=-1) / WIDTH**0.5
        logits: torch.Tensor = near + self.item_bias(candidate).squeeze(-1)
        return logits


class Factory(SimpleFactory):
    """With seeded weights."""

    inputs = {  # noqa: RUF012  nobody changes it
        "history": sparse(*HISTORY),
        "item_features": sparse(*ITEM),
    }

    def model(self, device: torch.device) -> nn.Module:
        """On a device."""
        torch.manual_seed(0)
        return as_trained(SasRec(device))

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """`default` [B], the probability that the item comes next rather than another."""
        return {"default": torch.sigmoid(model(batch["history"], batch["item_features"]))}
