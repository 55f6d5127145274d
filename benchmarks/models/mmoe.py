"""Multi-gate mixture of experts: three tasks that share six experts.

Shapes: B rows, D width of an embedding, W width of all that is known of a row, E experts, H what
an expert gives.
"""

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from benchmarks.models.seeded import Feature, as_trained, pooled
from torchrec_handler.simple import Batch, SimpleFactory, dense, sparse

USER = {
    "user_id": Feature(rows=100_000),
    "age": Feature(rows=1_000),
    "city": Feature(rows=5_000),
    "device": Feature(rows=2_000),
    "followed": Feature(rows=50_000, longest=20),
    "interests": Feature(rows=2_000, longest=8),
}
ITEM = {
    "item_id": Feature(rows=100_000),
    "author": Feature(rows=50_000),
    "category": Feature(rows=1_000),
    "tags": Feature(rows=20_000, longest=10),
    "language": Feature(rows=1_000),
}
SHARED = ("user_features", "user_dense")
"""Inputs that belong to the user."""

WIDTH = 32
USER_DENSE = 8
ITEM_DENSE = 10
EXPERTS = 6
TASKS = ("click", "like", "share")


class Expert(nn.Module):
    """[B, W] to [B, H]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One expert's view of the rows."""
        view: torch.Tensor = self.layers(x)
        return view


class MMoE(nn.Module):
    """One logit a row and task."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.user_tables = pooled(USER, WIDTH, device)
        self.item_tables = pooled(ITEM, WIDTH, device)
        width = (len(USER) + len(ITEM)) * WIDTH + USER_DENSE + ITEM_DENSE
        self.experts = nn.ModuleList(Expert(width) for _ in range(EXPERTS))
        self.gates = nn.ModuleDict({task: nn.Linear(width, EXPERTS) for task in TASKS})
        self.towers = nn.ModuleDict(
            {task: nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1)) for task in TASKS}
        )

    def forward(
        self,
        user: KeyedJaggedTensor,
        item: KeyedJaggedTensor,
        user_dense: torch.Tensor,
        item_dense: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Task -> [B] of 6 + 5 features, [B, 8] and [B, 10]."""
        x = torch.cat(
            [
                self.user_tables(user).values(),
                self.item_tables(item).values(),
                user_dense,
                item_dense,
            ],
            dim=-1,
        )
        views = torch.stack([expert(x) for expert in self.experts], dim=1)  # [B, E, H]
        logits = {}
        for task, tower in self.towers.items():
            gate = torch.softmax(self.gates[task](x), dim=-1)
            mixed = torch.einsum("be,beh->bh", gate, views)
            logits[task] = tower(mixed).squeeze(-1)
        return logits


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
        return as_trained(MMoE(device))

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Task -> [B], the probability of it."""
        logits = model(
            batch["user_features"], batch["item_features"], batch["user_dense"], batch["item_dense"]
        )
        return {task: torch.sigmoid(own) for task, own in logits.items()}
