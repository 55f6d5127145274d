"""A model whose layers bear low precision differently."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from torchrec_handler.simple import Batch, Input, SimpleFactory, dense, sparse

WIDTH, WIDE = 256, 512


class Layered(torch.nn.Module):
    """Two towers of large layers, of which one is scaled up, and a small layer on top."""

    def __init__(self, device: torch.device, tables: torch.device) -> None:
        super().__init__()
        config = EmbeddingBagConfig(
            name="t_user", feature_names=["user"], num_embeddings=50, embedding_dim=8
        )
        self.bags = EmbeddingBagCollection(tables=[config], device=tables)
        self.robust = torch.nn.Linear(WIDTH, WIDE, device=device)
        self.sensitive = torch.nn.Linear(WIDTH, WIDE, device=device)
        self.top = torch.nn.Linear(8 + 2 * WIDE, 1, device=device)

    def forward(self, numbers: torch.Tensor, bags: Any) -> Any:
        """Return [B]."""
        robust = torch.tanh(self.robust(numbers))
        sensitive = torch.sin(self.sensitive(torch.exp(numbers)))
        pooled = self.bags(bags).values()
        return self.top(torch.cat([pooled, robust, sensitive], dim=1)).reshape(-1)


def seeded(scale: float = 64.0) -> Layered:
    """The trained model; the phases of the sensitive layer are scaled."""
    torch.manual_seed(5)
    cpu = torch.device("cpu")
    model = Layered(cpu, cpu)
    with torch.no_grad():
        model.sensitive.weight *= scale
    return model


class LayeredFactory(SimpleFactory):
    """Many numbers and one feature of ids."""

    inputs: ClassVar[Mapping[str, Input]] = {
        "float_features": dense(*(f"number_{at}" for at in range(WIDTH))),
        "id_list_features": sparse("user"),
    }

    def model(self, device: torch.device) -> torch.nn.Module:
        """Tables are the build's to fill."""
        return Layered(device, torch.device("meta"))

    def forward(self, model: torch.nn.Module, batch: Batch) -> Mapping[str, Any]:
        """Scores [B]."""
        return {"default": model(batch["float_features"], batch["id_list_features"])}
