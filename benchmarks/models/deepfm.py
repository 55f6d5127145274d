"""DeepFM: a factorization machine and a deep part on the same embeddings.

Shapes: B rows, F = 26 features, D width of an embedding.
"""

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from benchmarks.models.seeded import Feature, as_trained, pooled
from torchrec_handler.simple import Batch, SimpleFactory, dense, sparse

ROWS = (100_000, 50_000, 20_000, 10_000, 2_000, 1_000, 100_000, 1_000, 5_000, 30_000, 1_000, 8_000)
"""Of tables, over and over."""
FEATURES = {f"cat_{number}": Feature(rows=ROWS[number % len(ROWS)]) for number in range(26)}
USER = dict(list(FEATURES.items())[:12])
ITEM = dict(list(FEATURES.items())[12:])
SHARED = ("user_features", "user_dense")
"""Inputs that belong to the user."""

WIDTH = 16
DENSE = 13


class DeepFM(nn.Module):
    """One logit a row."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.user_tables = pooled(USER, WIDTH, device)
        self.item_tables = pooled(ITEM, WIDTH, device)
        width = len(FEATURES) * WIDTH + DENSE
        self.first_order = nn.Linear(width, 1)
        self.deep = nn.Sequential(
            nn.Linear(width, 400),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(400, 400),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(400, 1),
        )
        self.second_order_weight = nn.Parameter(torch.tensor(0.02))

    def forward(
        self,
        user: KeyedJaggedTensor,
        item: KeyedJaggedTensor,
        user_dense: torch.Tensor,
        item_dense: torch.Tensor,
    ) -> torch.Tensor:
        """[B] of 12 + 14 features, [B, 6] and [B, 7]."""
        embedded = torch.cat([self.user_tables(user).values(), self.item_tables(item).values()], 1)
        fields = embedded.view(-1, len(FEATURES), WIDTH)
        square_of_sum = fields.sum(dim=1).pow(2)
        sum_of_square = fields.pow(2).sum(dim=1)
        second = 0.5 * (square_of_sum - sum_of_square).sum(dim=1)
        together = torch.cat([embedded, user_dense, item_dense], dim=1)
        first = self.first_order(together).squeeze(1)
        deep = self.deep(together).squeeze(1)
        logits: torch.Tensor = first + self.second_order_weight * second + deep
        return logits


class Factory(SimpleFactory):
    """With seeded weights."""

    inputs = {  # noqa: RUF012  nobody changes it
        "user_features": sparse(*USER),
        "item_features": sparse(*ITEM),
        "user_dense": dense(*(f"user_{number}" for number in range(6))),
        "item_dense": dense(*(f"item_{number}" for number in range(7))),
    }

    def model(self, device: torch.device) -> nn.Module:
        """On a device."""
        torch.manual_seed(0)
        model = as_trained(DeepFM(device))
        with torch.no_grad():
            model.first_order.weight.mul_(0.3)
        return model

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """`default` [B], the probability of a click."""
        logits = model(
            batch["user_features"], batch["item_features"], batch["user_dense"], batch["item_dense"]
        )
        return {"default": torch.sigmoid(logits)}
