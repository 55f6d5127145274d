"""A batch of several forward calls on ranks: lookups of the next are asked for during the one."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.kinds import CPU, KINDS, build, random_request
from tests.support.on_ranks import on_ranks
from torchrec_handler.archive.read import read_index
from torchrec_handler.errors import Unusable
from torchrec_handler.load.loader import load, load_follower
from torchrec_handler.load.states import Predictor
from torchrec_handler.options import Options
from torchrec_handler.ranks import Ranks
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.request import RawRequest, Response
from torchrec_handler.tables import ahead
from torchrec_handler.tables.exchange import Follower, Leader
from torchrec_handler.tables.messages import Asked

ROWS, PIECE = 50, 16
CALLS = 4
"""That many rows take."""
Forward = Callable[[Any], Any]


def as_it_is(forward: Forward) -> Forward:
    return forward


def fussy(forward: Forward) -> Forward:
    """Refuses a row, once it has looked it up."""

    def call(batch: Any) -> Any:
        found = forward(batch)
        if bool((batch["float_features"] == 7).any()):
            message = "a row of sevens"
            raise ValueError(message)
        return found

    return call


def fickle(forward: Forward) -> Forward:
    """Looks up its inputs as they are in each second call, and otherwise something else."""
    calls = iter(range(1_000))

    def call(batch: Any) -> Any:
        if next(calls) % 2:
            values = batch["id_list_features.values"]
            batch = {**batch, "id_list_features.values": values.clone().clamp(max=1)}
        return forward(batch)

    return call


def engine(predictor: Predictor, options: Options, change: Callable[[Forward], Forward]) -> Engine:
    module: Any = predictor.module
    module.forward = change(module.forward)
    return Engine("kind", predictor, options)


def answers(served: Engine, batches: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """Bodies, or what was wrong."""
    return [
        [
            each.body.decode() if isinstance(each, Response) else str(each)
            for each in served.predict([RawRequest(body=json.dumps(one).encode()) for one in batch])
        ]
        for batch in batches
    ]


def asked_early(
    ranks: Ranks,
    archive: Path,
    sharding: Mapping[str, Any],
    change: Callable[[Forward], Forward],
    batches: Sequence[Sequence[Mapping[str, Any]]],
) -> tuple[list[list[str]], list[list[str]], int, int] | None:
    """Answers of ranks and of one process; how much was asked for early, and taken."""
    logging.disable(logging.WARNING)
    given = {"limits": {"rows_per_forward": PIECE}, "kernels": {"off": ["graph"]}}
    over = Options.model_validate({**given, "sharding": {**sharding, "timeout_seconds": 30.0}})
    if not ranks.is_leader:
        load_follower(archive, over, CPU, ranks).run()
        return None
    leads = load(archive, over, CPU, ranks=ranks)
    counts = {"keep": 0, "take": 0}
    for name in counts:
        method = getattr(ahead.Ahead, name)

        def counted(*args: Any, name: str = name, method: Any = method) -> Any:
            found = method(*args)
            counts[name] += name == "keep" or found is not None
            return found

        setattr(ahead.Ahead, name, counted)
    found = answers(engine(leads, over, change), batches)
    assert isinstance(leads.leader, Leader)
    leads.leader.stop()
    options = Options.model_validate(given)
    alone = answers(engine(load(archive, options, CPU), options, change), batches)
    return found, alone, counts["keep"], counts["take"]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("ahead")
    names = ("dlrm", "sequence")
    return {name: build(KINDS[name], folder, name) for name in names}


def requests(archive: Path, *rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Random ones of so many rows."""
    known = read_index(archive).signature
    return [random_request(known, count, seed + at) for at, count in enumerate(rows)]


@pytest.mark.parametrize(("name", "size"), [("dlrm", 4), ("sequence", 2)])
def test_all_but_the_first_are_asked_for_early_and_scores_stay_bit_for_bit(
    name: str, size: int, archives: Mapping[str, Path]
) -> None:
    archive = archives[name]
    batches = [requests(archive, ROWS), requests(archive, ROWS, 3, seed=5), requests(archive, 3)]
    (result, *_) = on_ranks(size, asked_early, archive, {}, as_it_is, batches)
    found, alone, asked, taken = result
    assert found == alone
    assert asked == taken == 2 * (CALLS - 1)


@pytest.mark.parametrize(
    ("sharding", "sites"),
    [({"type": "row_wise"}, 1), ({"per_table": {"t_user": "row_wise"}}, 2)],
)
def test_row_wise_too(
    sharding: Mapping[str, Any], sites: int, archives: Mapping[str, Path]
) -> None:
    batches = [requests(archives["dlrm"], ROWS)]
    (result, _) = on_ranks(2, asked_early, archives["dlrm"], sharding, as_it_is, batches)
    ((found,),), ((alone,),), asked, taken = result
    assert json.loads(found)["default"] == pytest.approx(json.loads(alone)["default"], abs=1e-6)
    assert asked == taken == sites * (CALLS - 1)


def test_a_request_that_the_model_refuses_fails_alone_and_no_rank_waits(
    archives: Mapping[str, Path],
) -> None:
    bad, *others = requests(archives["dlrm"], ROWS, 3, 4)
    bad["float_features"][PIECE + 3] = [7.0] * len(bad["float_features"][0])
    batches = [[bad, *others], requests(archives["dlrm"], ROWS)]
    (result, *_) = on_ranks(4, asked_early, archives["dlrm"], {}, fussy, batches)
    found, alone, _, taken = result
    assert found == alone
    assert [("sevens" in one) for one in found[0]] == [True, False, False]
    assert taken


def test_guesses_that_prove_wrong_are_dropped_and_given_up(archives: Mapping[str, Path]) -> None:
    batches = [requests(archives["dlrm"], ROWS, seed=seed) for seed in range(5)]
    (result, _) = on_ranks(2, asked_early, archives["dlrm"], {}, fickle, batches)
    found, alone, asked, taken = result
    assert found == alone
    assert (asked, taken) == (ahead.MOST_DROPPED, 0)


def left(ranks: Ranks, how: str) -> str | None:
    """What a batch ends with that leaves a lookup which raises on its rank, or ends it."""
    seconds = 1.0
    if not ranks.is_leader:

        def fail(*_: Any) -> torch.Tensor:
            if how == "dies":
                os._exit(9)
            raise ValueError(how)

        Follower(ranks, {0: fail}, seconds).run()
        return None
    leader = Leader(ranks, seconds)
    lists = (torch.tensor([1]), torch.tensor([0, 1]), None)
    asked = Asked(
        rank=1,
        site=0,
        ids=lists[0],
        offsets=lists[1],
        weights=None,
        shape=(1, 2),
        dtype=torch.float32,
    )
    calls = ahead.Ahead()
    try:
        with calls.batch():
            early = ahead.Early(lists={1: lists}, asked=[asked], wait=leader.ask([asked]))
            calls.keep(0, early)
    except Unusable as error:
        return str(error)
    leader.stop()
    return "well"


@pytest.mark.parametrize(
    ("how", "said"), [("raises", "well"), ("dies", "rank 1 of 2 is gone, or does not answer: ")]
)
def test_what_nobody_took_fails_nothing_but_where_its_rank_is_gone(how: str, said: str) -> None:
    found, _ = on_ranks(2, left, how)
    assert found.startswith(said)
