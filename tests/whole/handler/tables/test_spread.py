"""Tables spread over ranks give what one process gives."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from tests.support.kinds import CPU, KINDS, batch, prepare, random_request, signature
from tests.support.on_ranks import on_ranks
from torchrec_handler.load.factory import run_factory
from torchrec_handler.load.loader import lay_out, load_weights
from torchrec_handler.load.states import Made
from torchrec_handler.options import Options
from torchrec_handler.ranks import Ranks
from torchrec_handler.tables.exchange import Follower, Leader
from torchrec_handler.tables.find import find_collections
from torchrec_handler.tables.spread import ask_others, own_lookups
from torchrec_handler.tables.store import TableStore, layout

ROWS = (1, 2, 9)
SECONDS = 30.0


def differences(
    ranks: Ranks, names: Sequence[str], sharding: Mapping[str, Any]
) -> Mapping[str, float]:
    """How far off the leader's answers are at most from those of one process, by kind.

    Of a follower, how many lookups it has.
    """
    logging.disable(logging.WARNING)  # of the planner's topology
    given = {"sharding": {**sharding, "world_size": ranks.size}}
    options = Options.model_validate(given)
    found: dict[str, float] = {}
    for name in names:
        output = run_factory(KINDS[name](), CPU, world_size=ranks.size)
        nothing: Any = None
        made = Made(
            package=nothing,
            options=options,
            device=CPU,
            output=output,
            collections=find_collections(output.module),
        )
        laid = lay_out(
            load_weights(made, None),
            {},
            lambda given: TableStore.encode(layout(given.collections), given.own_rows),
            ranks,
        )
        if not ranks.is_leader:
            own = own_lookups(laid.sites, ranks)
            Follower(ranks, own, SECONDS).run()
            found[name] = len(own)
            continue
        leader = Leader(ranks, SECONDS)
        ask_others(laid.sites, leader)
        module = laid.module.eval()
        single = prepare(KINDS[name]().create_predict_module()).eval()
        known = signature(KINDS[name])
        found[name] = max(
            _difference(module, single, batch(random_request(known, rows, seed=rows)))
            for rows in ROWS
        )
        leader.stop()
    return found


def _difference(module: torch.nn.Module, single: torch.nn.Module, inputs: Any) -> float:
    with torch.inference_mode():
        received, wanted = module(inputs), single(inputs)
    assert received.keys() == wanted.keys()
    return max(float((received[name] - wanted[name]).abs().max()) for name in wanted)


def test_table_wise_it_is_the_same_bit_for_bit() -> None:
    """Also with fewer tables or rows than ranks."""
    names = ["widths", "weighted", "shared", "position-weighted", "managed", "sequence", "dlrm"]
    leader, *followers = on_ranks(4, differences, names, {"type": "table_wise"})
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
    leader, follower = on_ranks(2, differences, names, sharding)
    assert max(leader.values()) <= 1e-6
    assert min(follower.values()) >= 1
