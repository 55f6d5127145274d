"""Sixth step of loading: give the lookups their rows, without copying a table on the CPU."""

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation

from torchrec_handler.archive.format import TableKey
from torchrec_handler.errors import ArchiveError
from torchrec_handler.tables.collection import Collections
from torchrec_handler.tables.rows import NAMES
from torchrec_handler.tables.store import TableStore

WHOLE = 1.0
"""FBGEMM's cache load factor of tables that are on the GPU as a whole."""


def attach(
    collections: Collections, store: TableStore, device: torch.device, rank: int | None = None
) -> None:
    """Point every lookup at its rows.

    On the CPU that is one buffer and an offset per table. On CUDA each shard's rows are copied to
    the device the lookup was sharded to, or else to the worker's, where rows are padded to 16
    bytes.

    Args:
        collections: sharded.
        store: the tables.
        device: where to serve.
        rank: the one whose lookups get rows, where tables are spread over ranks; None: all.

    Raises:
        ArchiveError: the module has a table that the store lacks, or of another shape.
    """
    for lookup in collections.lookups:
        if rank is not None and lookup.rank != rank:
            continue
        operator = lookup.operator
        shards = []
        for spec, first_row in zip(operator.embedding_specs, lookup.first_rows, strict=True):
            name, rows, width, sparse_type, _ = spec
            entry = store.entries.get(TableKey(lookup.collection, name))
            dtype = NAMES[sparse_type]
            if entry is None:
                message = f"table {name!r} of {lookup.collection}: the archive does not hold it"
                raise ArchiveError(message)
            if (entry.width, entry.dtype) != (width, dtype) or first_row + rows > entry.rows:
                message = (
                    f"table {name!r}: the archive holds {entry.rows} x {entry.width} {entry.dtype},"
                    f" the module expects {first_row + rows} x {width} {dtype}"
                )
                raise ArchiveError(message)
            shards.append((entry, first_row, rows))
        if device.type == "cpu":
            operator.reset_weights_placements_and_offsets(device, EmbeddingLocation.HOST.value)
            operator.recompute_module_buffers()
            _materialise_buffers(operator, device)
            offsets = [entry.offset + first * entry.row_bytes for entry, first, _ in shards]
            operator.weights_physical_offsets = offsets
            operator.weights_offsets = torch.tensor(
                [offsets[table] for table in operator.feature_table_map], dtype=torch.int64
            )
            operator.weights_host = store.buffer
            operator.weight_initialized = True
        else:
            if operator.current_device.type == "meta":
                operator.move_to_device_with_cache(device, WHOLE)
            weights = operator.split_embedding_weights(split_scale_shifts=False)
            for (entry, first, rows), (target, _) in zip(shards, weights, strict=True):
                block = store.rows(entry)[first : first + rows]
                target[:, : entry.row_bytes].copy_(block)


def _materialise_buffers(operator: torch.nn.Module, device: torch.device) -> None:
    # What recompute_module_buffers leaves on meta serves the cache on CUDA only; zeros will do.
    for name, buffer in operator.named_buffers(recurse=False):
        if buffer.is_meta:
            setattr(operator, name, torch.zeros_like(buffer, device=device))
