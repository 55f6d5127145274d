"""Two towers: how near an item is to a user.

Shapes: B rows, D width of an embedding, V width of what a tower gives.
"""

import torch
from torch import nn
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from benchmarks.models.seeded import Feature, as_trained, pooled
from torchrec_handler.simple import Batch, SimpleFactory, dense, sparse

USER = {
    "user_id": Feature(rows=100_000),
    "country": Feature(rows=1_000),
    "device": Feature(rows=2_000),
    "watched": Feature(rows=100_000, longest=50),
    "searched": Feature(rows=50_000, longest=20),
}
ITEM = {
    "item_id": Feature(rows=100_000),
    "author": Feature(rows=50_000),
    "category": Feature(rows=1_000),
    "words": Feature(rows=30_000, longest=12),
}
SHARED = ("user_features", "user_dense")
"""Inputs that belong to the user."""

WIDTH = 64
USER_DENSE = 8
ITEM_DENSE = 6


class Tower(nn.Module):
    """[B, V] of length 1."""

    def __init__(
        self, features: dict[str, Feature], dense_features: int, device: torch.device
    ) -> None:
        super().__init__()
        self.tables = pooled(features, WIDTH, device)
        layers: list[nn.Module] = []
        before = len(features) * WIDTH + dense_features
        for width in (512, 256):
            layers += [nn.Linear(before, width), nn.LayerNorm(width), nn.GELU()]
            before = width
        self.layers = nn.Sequential(*layers, nn.Linear(before, 128))

    def forward(self, ids: KeyedJaggedTensor, numbers: torch.Tensor) -> torch.Tensor:
        """Of all features and [B, dense features]."""
        x = torch.cat([self.tables(ids).values(), numbers], dim=1)
        return functional.normalize(self.layers(x), dim=1)


class TwoTower(nn.Module):
    """One similarity a row."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.user = Tower(USER, USER_DENSE, device)
        self.item = Tower(ITEM, ITEM_DENSE, device)
        self.log_temperature = nn.Parameter(torch.tensor(-1.5))

    def forward(
        self,
        user: KeyedJaggedTensor,
        item: KeyedJaggedTensor,
        user_dense: torch.Tensor,
        item_dense: torch.Tensor,
    ) -> torch.Tensor:
        """[B] of 5 + 4 features, [B, 8] and [B, 6]."""
        user_vector = self.user(user, user_dense)
        item_vector = self.item(item, item_dense)
        near: torch.Tensor = (user_vector * item_vector).sum(dim=-1)
        return near / self.log_temperature.exp()


class Factory(SimpleFactory):
    """With seeded weights."""

    inputs = {  # noqa: RUF012  nobody changes it
        "user_features": sparse(*USER),
        "item_features": sparse(*ITEM),
        "user_dense": dense(*(f"user_{number}" for number in range(USER_DENSE))),
        "item_dense": dense(*(f"item_{number}" for number in range(ITEM_DENSE))),
    }

    def model(self, device: torch.device) -> nn.Module:
        """On a device."""
        torch.manual_seed(0)
        return as_trained(TwoTower(device))

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """`default` [B]."""
        near = model(
            batch["user_features"], batch["item_features"], batch["user_dense"], batch["item_dense"]
        )
        return {"default": near}
