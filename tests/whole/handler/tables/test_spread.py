"""Tables spread over ranks give what one process gives."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.factories.kinds_base import KindFactory
from tests.support.factories.kinds_tupled import MaskedFactory, SeveralFactory
from tests.support.kinds import CPU, KINDS, batch, prepare, random_request, signature
from tests.support.on_ranks import on_ranks
from torchrec_handler.load.call import call_method, read_result, to_host
from torchrec_handler.load.factory import run_factory
from torchrec_handler.load.states import Made
from torchrec_handler.load.steps import (
    lay_out,
    load_weights,
    make_follower,
    make_leader,
    make_ready,
)
from torchrec_handler.options import Options
from torchrec_handler.ranks import Ranks
from torchrec_handler.tables.find import find_collections
from torchrec_handler.tables.once import SharedInput, look_up_once
from torchrec_handler.tables.spread import own_lookups
from torchrec_handler.tables.store import TableStore, layout

ROWS = (1, 2, 90)
"""Of the last, lists that are empty do not travel."""
SECONDS = 30.0
LOOKED_UP_ONCE = ("widths", "dlrm")
REQUESTS = (50, 40)
"""Rows of requests whose first feature is shared."""

FACTORIES: Mapping[str, type[KindFactory]] = {
    **KINDS,
    "masked": MaskedFactory,
    "several": SeveralFactory,
}


def differences(
    ranks: Ranks, names: Sequence[str], sharding: Mapping[str, Any], off: str | Sequence[str]
) -> Mapping[str, float]:
    """How far off the leader's answers are at most from those of one process, by kind.

    Of a follower, how many lookups it has.
    """
    logging.disable(logging.WARNING)  # of the planner's topology
    over = {**sharding, "world_size": ranks.size, "timeout_seconds": SECONDS}
    options = Options.model_validate({"sharding": over, "kernels": {"off": off}})
    found: dict[str, float] = {}
    for name in names:
        known = signature(FACTORIES[name])
        output = run_factory(FACTORIES[name](), CPU, world_size=ranks.size)
        nothing: Any = None
        made = Made(
            package=nothing,
            options=options,
            device=CPU,
            output=output,
            collections=find_collections(output.module),
        )
        weighted = load_weights(made, None)
        laid = lay_out(
            weighted,
            {},
            lambda given: TableStore.encode(layout(given.collections), given.own_rows),
            ranks,
        )
        if not ranks.is_leader:
            make_follower(laid, options, ranks).run()
            found[name] = len(own_lookups(laid.sites, ranks))
            continue
        leader = make_leader(laid, options, ranks)
        module = make_ready(weighted, laid, known).module
        single = prepare(FACTORIES[name]().create_predict_module()).eval()
        found[name] = max(
            _difference(module, single, output, batch(random_request(known, rows, seed=rows)))
            for rows in ROWS
        )
        if name in LOOKED_UP_ONCE:
            inputs, shared = _with_shared(batch(random_request(known, sum(REQUESTS), seed=5)))
            with look_up_once((shared,)):
                found[name] = max(found[name], _difference(module, single, output, inputs))
        leader.stop()
    return found


def _with_shared(inputs: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], SharedInput]:
    """Inputs of `REQUESTS`, each of which gave its first feature once for all of its rows."""
    lengths = inputs["id_list_features.lengths"]
    lists = list(inputs["id_list_features.values"].tensor_split(lengths.cumsum(0)[:-1]))
    start = 0
    for rows in REQUESTS:
        lists[start : start + rows] = [lists[start]] * rows
        start += rows
    values = torch.cat(lists)
    lengths = torch.tensor([one.numel() for one in lists], dtype=torch.int32)
    features = len(lists) // start
    shared = SharedInput(
        lengths=lengths,
        values=values,
        rows=np.array(REQUESTS),
        shared=np.array([[place == 0 for place in range(features)]] * len(REQUESTS)),
    )
    given = {"id_list_features.lengths": lengths, "id_list_features.values": values}
    return {**inputs, **given}, shared


def _difference(
    module: torch.nn.Module, single: torch.nn.Module, output: Any, inputs: Any
) -> float:
    """Of all methods and outputs."""
    most = 0.0
    for qualname in output.qualnames:
        received, wanted = (
            read_result(
                call_method(each, qualname, inputs), qualname, output.result_metadata, to_host
            )
            for each in (module, single)
        )
        assert received.keys() == wanted.keys()
        for name, parts in wanted.items():
            for one, other in zip(received[name], parts, strict=True):
                most = max(most, float((one.double() - other.double()).abs().max()))
    return most


@pytest.mark.parametrize("off", ["all", ["graph"]], ids=str)
def test_table_wise_it_is_the_same_bit_for_bit(off: str | Sequence[str]) -> None:
    """Also with fewer tables or rows than ranks."""
    names = ["widths", "weighted", "shared", "position-weighted", "managed", "sequence", "dlrm"]
    names += ["two-tower", "masked", "several"]
    leader, *followers = on_ranks(4, differences, names, {"type": "table_wise"}, off)
    assert leader == dict.fromkeys(names, 0.0)
    lookups = {name: [follower[name] for follower in followers] for name in names}
    assert lookups["widths"] == [1, 1, 1]
    assert all(any(each) for each in lookups.values())


@pytest.mark.parametrize(
    ("names", "sharding"),
    [
        (["mean", "weighted", "sequence"], {"type": "row_wise"}),
        (["dlrm"], {"per_table": {"t_user": "row_wise"}}),
    ],
)
def test_row_wise_it_is_the_same_but_for_rounding(
    names: Sequence[str], sharding: Mapping[str, Any]
) -> None:
    """Sums of each rank's rows, also beside whole tables on one of the ranks."""
    leader, follower = on_ranks(2, differences, names, sharding, ["graph"])
    assert max(leader.values()) <= 1e-6
    assert min(follower.values()) >= 1
