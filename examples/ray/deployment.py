"""An archive behind Ray Serve: replicas, each with an engine, and batches as Ray collects them."""

import argparse
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
from ray import serve
from rich.console import Console
from starlette.requests import Request
from starlette.responses import Response

from torchrec_archiver.answer import answering
from torchrec_handler.errors import RequestError, Unusable
from torchrec_handler.front.torchserve.answers import http_answer
from torchrec_handler.serve import request

LOGGING = {"enable_access_log": False, "log_level": "WARNING"}


@serve.deployment(
    max_ongoing_requests=256, ray_actor_options={"num_cpus": 1}, logging_config=LOGGING
)
class Model:
    """One replica."""

    def __init__(self, archive: str) -> None:
        self._lost: Unusable | None = None
        # Until the process ends, as the engine is needed.
        self._engine = ExitStack().enter_context(answering(Path(archive))).engine
        self._id = serve.get_replica_context().replica_id.unique_id

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)  # type: ignore[untyped-decorator]  # ray is not there
    async def predict(
        self, requests: list[request.RawRequest]
    ) -> list[request.Response | RequestError]:
        """Answer a batch; meanwhile Ray holds what arrives, as an engine has one thread."""
        try:
            return self._engine.predict(requests)
        except Unusable as error:
            self._lost = error
            raise

    async def __call__(self, asked: Request) -> Response:
        """Take any body that TorchServe's handler takes, and answer as it does."""
        headers = asked.headers
        outcome = await self.predict(
            request.RawRequest(
                body=await asked.body(),
                content_type=headers.get("content-type", "").partition(";")[0].strip().lower(),
                content_encoding=headers.get("content-encoding", ""),
                accept=headers.get("accept", ""),
                qualname=headers.get("x-torchrec-qualname", "forward"),
            )
        )
        answer = http_answer(outcome)
        return Response(
            answer.body, answer.status, {"x-replica": self._id}, media_type=answer.content_type
        )

    def check_health(self) -> None:
        """Let Ray start another replica in the place of one that can answer nothing more."""
        if self._lost is not None:
            raise self._lost


def main(given: Sequence[str] | None = None) -> None:
    """Serve an archive until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m examples.ray.deployment", description=__doc__)
    parser.add_argument("archive", type=Path, help="a folder (no-archive), .mar or .tar.gz")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--replicas", type=int, default=2)
    options = parser.parse_args(given)
    # Ray replaces 127.0.0.1 by the machine's outer address; 127.0.0.2 is loopback too.
    ray.init(
        num_cpus=options.replicas,
        include_dashboard=False,
        _node_ip_address="127.0.0.2",
        object_store_memory=100_000_000,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": options.port}, logging_config=LOGGING)
    deployment: Any = Model
    deployment = deployment.options(num_replicas=options.replicas)
    serve.run(deployment.bind(str(options.archive.resolve())), route_prefix="/predict")
    Console().print(f"http://127.0.0.1:{options.port}/predict", highlight=False)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
