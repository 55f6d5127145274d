"""A model of which a method branches on numbers, so that no graph holds all of it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from torchrec_handler.simple import Batch, Input, SimpleFactory, dense, sparse

NUMBERS, WIDTH = 6, 8


class Tower(torch.nn.Module):
    """As users write them."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.first = torch.nn.Linear(inputs, WIDTH)
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.last = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """[B, inputs] to [B, WIDTH]."""
        hidden = torch.nn.functional.gelu(self.norm(self.first(numbers)))
        found: torch.Tensor = self.last(hidden)
        return found


class Branching(torch.nn.Module):
    """Two towers, and what depends on numbers between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        config = EmbeddingBagConfig(
            name="t_user", feature_names=["user"], num_embeddings=50, embedding_dim=WIDTH
        )
        self.bags = EmbeddingBagCollection(tables=[config])
        self.tower, self.over = Tower(NUMBERS), Tower(2 * WIDTH)

    def forward(self, numbers: torch.Tensor, bags: Any) -> torch.Tensor:
        """Return [B]."""
        hidden = self.tower(numbers)
        if numbers.sum() > 0:
            hidden = hidden * 2
        pooled = self.bags(bags).values()
        found: torch.Tensor = self.over(torch.cat([hidden, pooled], dim=1))
        return found.sum(dim=1)


class BranchingFactory(SimpleFactory):
    """Brings its weights itself."""

    inputs: ClassVar[Mapping[str, Input]] = {
        "float_features": dense(*(f"number_{at}" for at in range(NUMBERS))),
        "id_list_features": sparse("user"),
    }

    def model(self, device: torch.device) -> torch.nn.Module:
        """The model, on the CPU."""
        return Branching().to(device)

    def forward(self, model: torch.nn.Module, batch: Batch) -> Mapping[str, Any]:
        """Scores [B]."""
        return {"default": model(batch["float_features"], batch["id_list_features"])}
