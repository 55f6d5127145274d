"""Float lookups in a checkpoint's own rows, so that the float model can be asked without a copy.

Shapes: D width, N ids.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn import functional

from torchrec_handler.tables.collection import Table


def can_look_up(table: Table, rows: torch.Tensor) -> bool:
    """Whether a table can be looked up in these rows, [rows, D], without copying all of them."""
    owner: Any = table.owner
    return _is_as_declared(table, rows) or (
        rows.is_floating_point()
        and type(owner) in {torch.nn.EmbeddingBag, torch.nn.Embedding}
        and owner.padding_idx is None
        and owner.max_norm is None
    )


@contextmanager
def looked_up(rows: Mapping[Table, torch.Tensor]) -> Iterator[None]:
    """Let float tables be looked up in rows that `can_look_up`; afterwards they are on `meta`."""
    with ExitStack() as stack:
        for table, source in rows.items():
            stack.callback(_to_meta, table)
            if not _is_as_declared(table, source):
                stack.callback(delattr, table.owner, "forward")
                owner: Any = table.owner
                owner.forward = _Converting(owner, source, table.weight.dtype)
            else:
                table.owner.weight = torch.nn.Parameter(source, requires_grad=False)
        yield


def _is_as_declared(table: Table, rows: torch.Tensor) -> bool:
    # A lookup would copy a table whose rows do not lie one behind another.
    return rows.dtype == table.weight.dtype and rows.is_contiguous()


def _to_meta(table: Table) -> None:
    table.owner.weight = torch.nn.Parameter(table.weight.detach().to("meta"))


class _Converting:
    """A module's forward that converts the rows it looks up, and no others."""

    def __init__(self, owner: Any, rows: torch.Tensor, dtype: torch.dtype) -> None:
        self.owner, self.rows, self.dtype = owner, rows, dtype

    def __call__(
        self,
        input: torch.Tensor,  # noqa: A002  torch's own name
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As `EmbeddingBag` and `Embedding` are called.

        Args:
            input: [N] ids.
            offsets: where each bag starts.
            per_sample_weights: [N]
        """
        found = self.rows[input.long()].to(self.dtype)
        if offsets is None and isinstance(self.owner, torch.nn.Embedding):
            return found
        return functional.embedding_bag(
            torch.arange(input.numel(), dtype=input.dtype).view(input.shape),
            found.view(-1, found.shape[-1]),
            offsets,
            mode=self.owner.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.owner.include_last_offset,
        )
