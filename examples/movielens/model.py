"""The DLRM and all it takes to build it, shared by training and by the factory.

The factory's package interns this file, so it imports nothing but torch and torchrec.
Shapes: B rows, F sparse features, D dense features, N ids.
"""

# No `from __future__ import annotations`: in a torch package a dataclass cannot resolve its
# annotations from strings, because its module is not in `sys.modules`.
from dataclasses import dataclass

import torch
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the factory reads from the package before it has any weights."""

    dense_features: tuple[str, ...]
    """D names, in the order of the columns of `float_features`."""

    sparse_features: tuple[str, ...]
    """F names, in the order of `id_list_features`."""

    rows_per_table: tuple[int, ...]
    """F sizes: the ids of a feature are below its table's."""

    embedding_dim: int
    dense_arch_layer_sizes: tuple[int, ...]
    """The last one is `embedding_dim`, as DLRM requires."""

    over_arch_layer_sizes: tuple[int, ...]
    """The last one is 1, the logit."""


def build_model(
    config: ModelConfig, device: torch.device, tables_device: torch.device | None = None
) -> DLRM:
    """Build the float32 model with fresh weights.

    Args:
        config: sizes and names.
        device: where the dense part lives.
        tables_device: where the tables live, `device` when not given; `meta` allocates none.
    """
    tables = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=f"t_{feature}",
                feature_names=[feature],
                num_embeddings=rows,
                embedding_dim=config.embedding_dim,
            )
            for feature, rows in zip(config.sparse_features, config.rows_per_table, strict=True)
        ],
        device=tables_device or device,
    )
    model = DLRM(
        embedding_bag_collection=tables,
        dense_in_features=len(config.dense_features),
        dense_arch_layer_sizes=list(config.dense_arch_layer_sizes),
        over_arch_layer_sizes=list(config.over_arch_layer_sizes),
        dense_device=device,
    )
    # DLRM leaves this module's index buffer on the default device whatever `dense_device` is.
    model.inter_arch.to(device)
    return model


def id_list_features(
    config: ModelConfig, lengths: torch.Tensor, values: torch.Tensor
) -> KeyedJaggedTensor:
    """Join lengths [F * B] and values [N], both int32 and feature by feature."""
    return KeyedJaggedTensor(
        keys=list(config.sparse_features), values=values, lengths=lengths.reshape(-1)
    )
