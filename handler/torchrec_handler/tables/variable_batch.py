"""KeyedJaggedTensors whose features have batches of their own (TorchRec's variable batch, VBE).

A model makes them to look up once what many rows share: `stride_per_key_per_rank` gives the lists
of each feature, `inverse_indices` which of them each row is for. TorchRec's float collections take
them, the quantized ones do not: those get as many lists of every feature, the last ones empty.

Shapes: B rows, F features, S lists of a feature, D the sum of the features' widths.
"""

from collections.abc import Mapping

import torch
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor


def is_variable(features: KeyedJaggedTensor) -> bool:
    """Whether a feature's lists are not those of the rows, one by one."""
    return features.variable_stride_per_key() or features.inverse_indices_or_none() is not None


def with_equal_batches(features: KeyedJaggedTensor) -> KeyedJaggedTensor:
    """The same lists, and empty ones behind them where other features have more."""
    strides = features.stride_per_key()
    lengths = features.lengths()
    most = max(strides, default=0)
    if most * len(strides) > lengths.numel():
        given, lengths = lengths, lengths.new_zeros(len(strides), most)
        places = torch.arange(most, device=given.device)
        lengths[places < torch.tensor(strides, device=given.device).unsqueeze(1)] = given
    return KeyedJaggedTensor(
        keys=features.keys(),
        values=features.values(),
        lengths=lengths.view(-1),
        weights=features.weights_or_none(),
    )


def pooled_rows(found: KeyedTensor, features: KeyedJaggedTensor) -> KeyedTensor:
    """What was pooled for each list [S, D], given to the rows that it is for [B, D].

    Args:
        found: pooled for `with_equal_batches(features)`.
        features: as the model made them.

    Raises:
        ValueError: nothing says which rows the lists are for.
    """
    inverse = features.inverse_indices_or_none()
    strides = dict(zip(features.keys(), features.stride_per_key(), strict=True))
    if inverse is None:
        wanted = {_feature(name): strides[_feature(name)] for name in found.keys()}  # noqa: SIM118
        if len(set(wanted.values())) > 1:
            message = (
                f"KeyedJaggedTensor: received lists of {wanted} rows by feature and no "
                "inverse_indices, expected as many of each feature, or inverse_indices"
            )
            raise ValueError(message)
        return KeyedTensor(
            keys=found.keys(),
            length_per_key=found.length_per_key(),
            values=found.values()[: next(iter(wanted.values()), None)],
        )
    keys, rows = inverse
    lists = dict(zip(keys, rows.unbind(), strict=True))
    parts = found.values().split(found.length_per_key(), dim=1)
    return KeyedTensor(
        keys=found.keys(),
        length_per_key=found.length_per_key(),
        values=torch.cat(
            [
                part.index_select(0, lists[_feature(name)])
                for name, part in zip(found.keys(), parts, strict=True)
            ],
            dim=1,
        ),
    )


def own_lists(
    found: Mapping[str, JaggedTensor], features: KeyedJaggedTensor
) -> dict[str, JaggedTensor]:
    """Sequences of each feature's own lists, without the empty ones behind them.

    Args:
        found: looked up for `with_equal_batches(features)`.
        features: as the model made them.
    """
    strides = dict(zip(features.keys(), features.stride_per_key(), strict=True))
    return {
        name: JaggedTensor(
            values=sequence.values(),
            lengths=sequence.lengths()[: strides[_feature(name)]],
            weights=sequence.weights_or_none(),
        )
        for name, sequence in found.items()
    }


def _feature(embedding_name: str) -> str:
    """TorchRec calls what a feature finds in one of several tables FEATURE@TABLE."""
    return embedding_name.split("@", maxsplit=1)[0]
