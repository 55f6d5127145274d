"""What a worker keeps beside its answers: metrics, refusals, and some of the requests."""

from collections.abc import Mapping, Sequence
from typing import Any

from torchrec_handler.errors import RequestError
from torchrec_handler.front.periodic import Periodic
from torchrec_handler.front.series import Counted
from torchrec_handler.front.torchserve.metrics import Metrics
from torchrec_handler.front.torchserve.refusals import Refusals
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.observe import Totals
from torchrec_handler.serve.record import Recorder
from torchrec_handler.serve.request import RawRequest, Response


class Books:
    """Is told of each batch; a thread of its own writes, every few seconds."""

    def __init__(
        self,
        engine: Engine,
        totals: Totals,
        recorder: Recorder | None,
        version: str,
        cache: Any,
    ) -> None:
        """Open them.

        Args:
            engine: that answers.
            totals: what it tells its stages to.
            recorder: of requests, where some are to be kept.
            version: of the model.
            cache: TorchServe's of metrics, `context.metrics`; without one there are none.
        """
        self._engine = engine
        self._totals = totals
        self._refusals = Refusals(engine.model_name)
        self._recorder = recorder
        tasks = [self._refusals.next]
        if recorder is not None:
            tasks.append(recorder.write)
        if cache is not None:
            named = (engine.model_name, version)
            counted = Counted(totals, engine.out_of_range_ids, engine.updates)
            tasks.append(Metrics(cache, named, counted).emit)
        self._periodic = Periodic(tasks)

    def enter(
        self,
        requests: Sequence[RawRequest],
        outcomes: Sequence[Response | RequestError],
        ids: Mapping[int, str],
    ) -> None:
        """Take in a batch, with TorchServe's id of each request."""
        # Most batches hold none, which is found faster than each outcome is looked at.
        if set(map(type, outcomes)) != {Response}:
            for at, outcome in enumerate(outcomes):
                if isinstance(outcome, RequestError):
                    self._refusals.tell(requests[at].qualname, ids.get(at, "unknown"), outcome)
        if self._recorder is not None:
            self._recorder.take(requests, outcomes)

    def served(self) -> dict[str, Any]:
        """What there was since the worker started, as JSON holds it."""
        served = {**self._totals.as_json(), "out_of_range_ids": self._engine.out_of_range_ids()}
        updates = self._engine.updates
        return {**served, "updates": updates.as_json()} if updates else served
