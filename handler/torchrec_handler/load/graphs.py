"""Last step but two of loading: methods as graphs, tried on recorded samples and drawn inputs.

Before the kernels, after which modules no longer meet their inputs one by one; put in place behind
them, as a graph is kept where it is no slower than they are.
"""

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torchrec.inference.modules import QualNameMetadata

from torchrec_handler.archive.format import Declined, Replaced, Report, Signature
from torchrec_handler.archive.samples import Sample
from torchrec_handler.kernels.graph.capture import Batch
from torchrec_handler.kernels.graph.method import (
    EVERY,
    LEAST_TRIED,
    Graph,
    GraphMethod,
)
from torchrec_handler.kernels.graph.methods import (
    capture_methods,
    choose,
)
from torchrec_handler.kernels.graph.part import Part, PartForward
from torchrec_handler.kernels.graph.parts import capture_parts
from torchrec_handler.kernels.graph.trials import Trial
from torchrec_handler.kernels.kernel import Target
from torchrec_handler.load.call import call_observed, no_gradients
from torchrec_handler.load.signature.draw import STYLES, Style, draw_inputs, open_inputs
from torchrec_handler.options import GRAPH, Kernels

logger = logging.getLogger(__name__)

ROWS = (1, 2, 7, 16, 128, 1000)
"""Of the batches that are drawn."""

CAPTURED_ROWS = 5

LONGEST = 0.01
"""Seconds of a call behind which larger batches are left out: what holds of these holds of them."""


class Trials:
    """Batches to try methods on."""

    def __init__(
        self, module: torch.nn.Module, signature: Signature, samples: Sequence[Sample]
    ) -> None:
        self._module, self.signature, self._samples = module, signature, samples
        self._drawn: dict[str, list[Trial]] = {}

    def first(self, qualname: str) -> Trial | None:
        """A batch of some rows that a method takes; None where it takes nothing."""
        for style in STYLES if not open_inputs(self.signature) else ():
            draw = partial(draw_inputs, self.signature.inputs, style=style)
            given = _batch(draw(CAPTURED_ROWS, generator=np.random.default_rng(0)))
            try:
                call_observed(self._module, qualname, given)
                sized = self._sized(qualname, draw)
                self._drawn[qualname] = [*sized, *self._few(qualname)]
            except Exception:
                logger.debug("graphs: %s does not take %s", qualname, style, exc_info=True)
                continue
            return Trial(CAPTURED_ROWS, given)
        return None

    def of(self, qualname: str) -> list[Trial]:
        """Those that `first` found out, and the recorded ones; none where it takes nothing."""
        if qualname not in self._drawn:
            return []
        recorded = [
            Trial(sample.rows, _batch(sample.inputs), is_timed=False)
            for sample in self._samples
            if sample.qualname == qualname
        ]
        return [*self._drawn[qualname], *recorded]

    def _few(self, qualname: str) -> Iterator[Trial]:
        """One row of an id a feature, and of none, where a method takes that."""
        for ids in (1, 0):
            draw = draw_inputs(
                self.signature.inputs, 1, Style(least=ids, most=ids), np.random.default_rng(ids)
            )
            batch = _batch(draw)
            try:
                call_observed(self._module, qualname, batch)
            except Exception:
                logger.debug("graphs: %s does not take %s ids", qualname, ids, exc_info=True)
            else:
                yield Trial(1, batch, is_timed=False)

    def _sized(self, qualname: str, draw: partial[dict[str, torch.Tensor]]) -> Iterator[Trial]:
        for rows in ROWS:
            batch = _batch(draw(rows, generator=np.random.default_rng(rows)))
            begin = time.perf_counter()
            call_observed(self._module, qualname, batch)
            yield Trial(rows, batch)
            if rows >= LEAST_TRIED and time.perf_counter() - begin > LONGEST:
                return


class InPlace(NamedTuple):
    """What is computed as graphs."""

    methods: Mapping[str, GraphMethod]
    """By their names."""
    parts: Mapping[str, PartForward]
    """Modules of methods that are no graph, by their paths."""
    report: Report


@dataclass(frozen=True, kw_only=True)
class Graphs:
    """What was captured of a module."""

    module: torch.nn.Module
    found: Sequence[Graph]
    parts: Sequence[Part]
    """Of methods that are no graph."""
    declined: Sequence[Declined]
    trials: Trials
    qualnames: Collection[str]
    """Of all methods, those that get no batched input too."""

    def put_in_place(self, report: Report, target: Target) -> "InPlace":
        """Let the module call those that are kept; tell which, and why others are not."""
        module = self.module
        kept, replaced, declined = choose(
            self.found, module, self.trials.of, target, partial(no_gradients, module)
        )
        for qualname, method in kept.items():
            setattr(module, qualname, method)
        others: Sequence[Replaced] = report.replaced
        if all(name in kept and kept[name].ranges == EVERY for name in self.qualnames):
            others = self._without_layers(others)
        parts: dict[str, PartForward] = {}
        of_parts, others, late = self._put_parts(others, target, parts)
        told = Report(
            replaced=(*replaced, *of_parts, *others),
            declined=(*self.declined, *declined, *late, *report.declined),
        )
        return InPlace(kept, parts, told)

    def _put_parts(
        self, others: Sequence[Replaced], target: Target, placed: dict[str, PartForward]
    ) -> tuple[list[Replaced], Sequence[Replaced], list[Declined]]:
        """Let modules compute as graphs; gives these, the other kernels, and why some are none."""
        kept: list[Replaced] = []
        declined: list[Declined] = []
        for part in self.parts:
            path, module = part.graph.qualname, part.module
            if any(_is_inside(path, one.path) for one in others):
                continue
            part.call.own = module.forward
            found, replaced, late = choose(
                [part.graph],
                module,
                lambda _, part=part: part.trials,  # type: ignore[misc]
                target,
                partial(no_gradients, self.module),
            )
            declined += late
            kept += replaced
            for method in found.values():
                method.stay_alone()
                if method.ranges == EVERY and len(self.qualnames) == 1:
                    others = self._without_layers(others, path)
                    part.call.own = module.forward
                placed[path] = PartForward(part.call, method)
                setattr(module, "forward", placed[path])  # noqa: B010  its own
        return kept, others, declined

    def _without_layers(self, replaced: Sequence[Replaced], path: str = "") -> Sequence[Replaced]:
        """Take back the kernels of what only graphs compute: packed weights are copies.

        Of collections, which hold no weights of their own, kernels stay.
        """
        layers = [
            one
            for one in replaced
            if one.dtype is not None and (one.path == path or _is_inside(one.path, path))
        ]
        for one in layers:
            del vars(self.module.get_submodule(one.path))["forward"]
        return [one for one in replaced if one not in layers]


def _is_inside(path: str, outer: str) -> bool:
    return not outer or path.startswith(f"{outer}.")


def as_graphs(
    module: torch.nn.Module,
    qualnames: Mapping[str, QualNameMetadata],
    trials: Trials,
    target: Target,
    kernels: Kernels,
) -> Graphs:
    """Capture the methods that take the batched input."""
    features = {
        entry.name: entry.num_features or 1
        for entry in trials.signature.inputs
        if "sparse" in entry.type
    }
    batched = [name for name, entry in qualnames.items() if entry.need_preproc]
    allowed = batched if kernels.allow(GRAPH) else []
    found, declined, stuck = capture_methods(module, allowed, trials.first, features, target)
    left = [one.path for one in declined]
    batches = [(name, trial) for name in left for trial in trials.of(name)]
    call = partial(call_observed, module)
    parts, of_parts = capture_parts(module, batches, call, stuck) if batches else ([], [])
    return Graphs(
        module=module,
        found=found,
        parts=parts,
        declined=[*declined, *of_parts],
        trials=trials,
        qualnames=qualnames,
    )


def _batch(inputs: Mapping[str, torch.Tensor]) -> Batch:
    """As a predict module takes it: of embeddings [F, B, D] a list."""
    return {
        name: list(value.unbind(0)) if value.dim() == 3 else value for name, value in inputs.items()
    }
