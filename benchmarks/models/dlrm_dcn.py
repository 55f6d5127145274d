"""DLRM-DCN as MLPerf trains it: lists of ids, low-rank cross layers in place of dot products.

Shapes: B rows, D width of an embedding, X = 27 * D what is crossed.
"""

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from benchmarks.models.seeded import Feature, as_trained, pooled
from torchrec_handler.simple import Batch, SimpleFactory, dense, sparse

ROWS = (100_000, 36_746, 17_245, 7_413, 20_243, 1_000, 7_114, 1_441, 1_000, 50_000, 50_000, 20_000)
"""Of tables, over and over."""
# fmt: off
LONGEST = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)
"""Ids a row of each of MLPerf's 26 features."""
# fmt: on
FEATURES = {
    f"cat_{number}": Feature(rows=ROWS[number % len(ROWS)], longest=longest)
    for number, longest in enumerate(LONGEST)
}
USER = dict(list(FEATURES.items())[13:])
ITEM = dict(list(FEATURES.items())[:13])
SHARED = ("user_features", "user_dense")
"""Inputs that belong to the user."""

WIDTH = 64
RANK = 512


class CrossLayer(nn.Module):
    """x0 * (W(V x) + b) + x."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width)

    def forward(self, x0: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """[B, X] of two of them."""
        crossed: torch.Tensor = x0 * self.up(self.down(x)) + x
        return crossed


class DlrmDcn(nn.Module):
    """One logit a row."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.user_tables = pooled(USER, WIDTH, device)
        self.item_tables = pooled(ITEM, WIDTH, device)
        self.bottom = nn.Sequential(
            nn.Linear(13, 512),
            nn.ReLU(),
            nn.Linear(512, 256),
            nn.ReLU(),
            nn.Linear(256, WIDTH),
            nn.ReLU(),
        )
        width = (len(FEATURES) + 1) * WIDTH
        self.cross = nn.ModuleList(CrossLayer(width, RANK) for _ in range(3))
        self.over = nn.Sequential(
            nn.Linear(width, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 1)
        )

    def forward(
        self,
        user: KeyedJaggedTensor,
        item: KeyedJaggedTensor,
        user_dense: torch.Tensor,
        item_dense: torch.Tensor,
    ) -> torch.Tensor:
        """[B] of 13 + 13 features, [B, 7] and [B, 6]."""
        numbers = self.bottom(torch.cat([user_dense, item_dense], dim=1))
        x0 = torch.cat(
            [numbers, self.user_tables(user).values(), self.item_tables(item).values()], dim=1
        )
        x = x0
        for layer in self.cross:
            x = layer(x0, x)
        logits: torch.Tensor = self.over(x).squeeze(-1)
        return logits


class Factory(SimpleFactory):
    """With seeded weights."""

    inputs = {  # noqa: RUF012  nobody changes it
        "user_features": sparse(*USER),
        "item_features": sparse(*ITEM),
        "user_dense": dense(*(f"user_{number}" for number in range(7))),
        "item_dense": dense(*(f"item_{number}" for number in range(6))),
    }

    def model(self, device: torch.device) -> nn.Module:
        """On a device; cross layers add a little, as what three of them multiply grows fast."""
        torch.manual_seed(0)
        model = as_trained(DlrmDcn(device))
        with torch.no_grad():
            for number in range(len(model.cross)):
                model.get_parameter(f"cross.{number}.up.weight").mul_(0.1)
            model.get_parameter("over.4.weight").mul_(0.7)
        return model

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """`default` [B], the probability of a click."""
        logits = model(
            batch["user_features"], batch["item_features"], batch["user_dense"], batch["item_dense"]
        )
        return {"default": torch.sigmoid(logits)}
