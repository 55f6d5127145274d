"""Last step but two of loading: methods as graphs, tried on recorded samples and drawn inputs.

Before the kernels, after which modules no longer meet their inputs one by one; put in place behind
them, as a graph is kept where it is no slower than they are.
"""

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

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
        """Those that `first` found out, and the recorded ones."""
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


@dataclass(frozen=True, kw_only=True)
class Graphs:
    """What was captured of a module."""

    module: torch.nn.Module
    found: Sequence[Graph]
    declined: Sequence[Declined]
    trials: Trials
    qualnames: Collection[str]
    """Of all methods, those that get no batched input too."""

    def put_in_place(
        self, report: Report, target: Target
    ) -> tuple[Mapping[str, GraphMethod], Report]:
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
        return kept, Report(
            replaced=(*replaced, *others),
            declined=(*self.declined, *declined, *report.declined),
        )

    def _without_layers(self, replaced: Sequence[Replaced]) -> Sequence[Replaced]:
        """Take back the kernels of what only graphs compute: packed weights are copies.

        Of collections, which hold no weights of their own, kernels stay.
        """
        layers = [one for one in replaced if one.dtype is not None]
        for one in layers:
            del vars(self.module.get_submodule(one.path))["forward"]
        return [one for one in replaced if one not in layers]


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
    found, declined = capture_methods(module, allowed, trials.first, features, target)
    return Graphs(
        module=module,
        found=found,
        declined=declined,
        trials=trials,
        qualnames=qualnames,
    )


def _batch(inputs: Mapping[str, torch.Tensor]) -> Batch:
    """As a predict module takes it: of embeddings [F, B, D] a list."""
    return {
        name: list(value.unbind(0)) if value.dim() == 3 else value for name, value in inputs.items()
    }
