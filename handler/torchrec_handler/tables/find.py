"""Where a module's embedding collections are."""

import torch
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollectionInterface,
    EmbeddingCollectionInterface,
)

COLLECTIONS = (EmbeddingBagCollectionInterface, EmbeddingCollectionInterface)
COLLECTION_ATTRIBUTES = ("tbes_configs", "_emb_modules", "_managed_collision_collection")
"""What sharded, quantized and managed-collision collections have, which share no class."""


def is_collection(module: torch.nn.Module) -> bool:
    """Whether a module is an embedding collection, float, quantized or sharded."""
    return isinstance(module, COLLECTIONS) or any(
        hasattr(module, name) for name in COLLECTION_ATTRIBUTES
    )
