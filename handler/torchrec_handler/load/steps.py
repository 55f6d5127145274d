"""The steps that a worker and a build share: from a package to a predictor."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch

from torchrec_handler.archive.format import (
    Signature,
)
from torchrec_handler.archive.samples import Sample
from torchrec_handler.kernels.direct import DirectKernel, follow
from torchrec_handler.kernels.kernel import Target
from torchrec_handler.load.attach import attach
from torchrec_handler.load.call import call_method
from torchrec_handler.load.dense import lower
from torchrec_handler.load.factory import run_factory, run_weights_dependent
from torchrec_handler.load.graphs import Trials, as_graphs
from torchrec_handler.load.package import Package
from torchrec_handler.load.placing import Choose, Placing
from torchrec_handler.load.quantize import (
    quantize,
    to_meta,
)
from torchrec_handler.load.shard import shard
from torchrec_handler.load.signature.inputs import observe_signature
from torchrec_handler.load.signature.reach import (
    guard,
    lets_rows_pass,
)
from torchrec_handler.load.states import LaidOut, Made, Predictor, Quantized, Weighted
from torchrec_handler.load.weights import load_dense, table_names
from torchrec_handler.options import ALL, GRAPH, Options
from torchrec_handler.ranks import Ranks
from torchrec_handler.tables.exchange import Follower, Leader
from torchrec_handler.tables.find import find_collections, is_parallel
from torchrec_handler.tables.rows import quantized_rows
from torchrec_handler.tables.spread import ask_others, own_lookups, sites
from torchrec_handler.tables.store import TableStore, layout


def make(package: Package, options: Options, device: torch.device) -> Made:
    """Run a package's factory, and see what collections it made."""
    output = run_factory(package.factory, device, options.sharding.world_size)
    collections = find_collections(output.module, options.tables.quantization_mapping)
    return Made(
        package=package, options=options, device=device, output=output, collections=collections
    )


def load_weights(made: Made, dense: Mapping[str, torch.Tensor] | None) -> Weighted:
    """Give the module its dense weights and transform it; rows are left to `make_ready`.

    Args:
        made: what `make` gave.
        dense: checkpoint name -> tensor; None when the factory brought its own weights, tables
            included.
    """
    module = made.output.module
    named = table_names(module, made.collections)
    if dense is not None:
        to_meta([table for name, table in named.items() if name not in dense])
        load_dense(module, made.collections, dense, made.device)
    given = {name: table.weight.detach() for name, table in named.items()}
    module = run_weights_dependent(made.output)
    collections = find_collections(module, made.options.tables.quantization_mapping)
    left = {table.key.table for table in collections.float_tables}
    left |= {entry.name for entry in layout(collections)}
    hidden = {name: given[name] for name, table in named.items() if table.key.table not in left}
    if hidden:
        collections = collections.beside(made.collections)
    return Weighted(
        made=made,
        module=module,
        collections=collections,
        own_rows=to_meta(collections.float_tables),
        hidden=hidden,
    )


def lay_out(
    weighted: Weighted,
    widened: Mapping[str, str],
    give_tables: Callable[[Quantized], TableStore | None],
    ranks: Ranks | None = None,
) -> LaidOut:
    """Quantize, shard and give the lookups their rows.

    Args:
        weighted: what `load_weights` gave.
        widened: table name -> data type, of those that are `unpackable`.
        give_tables: called once it is known what they are; gives None for a module that its
            factory sharded.
        ranks: to spread the tables over.
    """
    made, module = weighted.made, weighted.module
    options, device = made.options, made.device
    quantize(module, weighted.collections, options.tables, widened)
    collections = find_collections(module)
    own_rows = {**weighted.own_rows, **quantized_rows(collections)}
    store = give_tables(Quantized(weighted=weighted, collections=collections, own_rows=own_rows))
    name = options.sharding.plan
    given = made.package.load_config(name) if name else None
    module, plan = shard(module, collections, options.sharding, given, device)
    found = find_collections(module)
    if store is not None:
        attach(found, store, device, ranks.own if ranks else None)
    return LaidOut(
        module=module,
        store=store,
        plan=plan,
        sites=sites(found) if ranks and store else (),
        is_parallel=ranks is not None and is_parallel(module),
    )


def make_follower(laid: LaidOut, options: Options, ranks: Ranks) -> Follower:
    """What looks up for the rank that leads."""
    own = own_lookups(laid.sites, ranks)
    if options.kernels.allow(DirectKernel.name):
        direct = {number: follow(laid.sites[number], ranks.own) for number in own}
        own |= {number: found for number, found in direct.items() if found is not None}
    file = laid.store.file if laid.store else None
    return Follower(
        ranks,
        own,
        options.sharding.timeout_seconds,
        check=file.check if file else None,
        call=partial(call_method, laid.module) if laid.is_parallel else None,
    )


def make_leader(
    laid: LaidOut, options: Options, ranks: Ranks, qualnames: Iterable[str] = ()
) -> Leader:
    """Let a model ask the other ranks, which follow already or will soon.

    Args:
        laid: the model.
        options: of the worker.
        ranks: of which this one leads.
        qualnames: of the methods that all ranks call together, where they have to.
    """
    leader = Leader(ranks, options.sharding.timeout_seconds)
    for name in qualnames if laid.is_parallel else ():
        method = getattr(laid.module, name)
        setattr(laid.module, name, partial(leader.call, method, name))
    ask_others(laid.sites, leader, getattr(torch, options.sharding.exchange_dtype))
    return leader


def make_ready(
    weighted: Weighted,
    laid: LaidOut,
    signature: Signature | None,
    samples: Sequence[Sample] = (),
    *,
    choose: Choose = Placing.put,
) -> Predictor:
    """Fit a module to the machine.

    Args:
        weighted: what `load_weights` gave.
        laid: what `lay_out` gave.
        signature: as recorded; None to observe it.
        samples: recorded calls, which graphs are tried on too.
        choose: puts kernels in place.
    """
    made, module = weighted.made, laid.module
    output, options, device = made.output, made.options, made.device
    lower(module, options, device)
    # Before the kernels, after which modules no longer meet their inputs one by one.
    signature = signature or observe_signature(output, module, weighted.collections, device)
    if lets_rows_pass(signature):
        guard(module, weighted.collections)
    target = Target(device=device, dtype=options.kernel_dtype)
    trials = Trials(module, signature, samples)
    kernels = options.kernels
    if laid.is_parallel and kernels.off != ALL:  # no graph may hold collectives
        kernels = kernels.model_copy(update={"off": [*kernels.off, GRAPH]})
    graphs = as_graphs(module, output.qualnames, trials, target, kernels)
    placed = choose(Placing(module, graphs, options, target))
    return Predictor(
        module=module,
        signature=signature,
        batching=output.batching,
        qualnames=output.qualnames,
        result_metadata=output.result_metadata,
        device=device,
        tables=laid.store,
        plan=laid.plan,
        report=placed.report,
        graphs=placed.graphs,
        parts=placed.parts,
        dense=placed.dense,
        package=made.package,
    )
