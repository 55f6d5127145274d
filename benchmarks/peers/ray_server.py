"""Ray Serve with one replica and batches of 64."""

import signal
import sys
from pathlib import Path

import orjson
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.stock import Inputs, StockModel, score


@serve.deployment(
    num_replicas=1,
    max_ongoing_requests=256,
    ray_actor_options={"num_cpus": 1},
    logging_config={"enable_access_log": False, "log_level": "WARNING"},
)
class Model:
    """One replica."""

    def __init__(self, checkpoint: str) -> None:
        self._model = StockModel(Path(checkpoint))

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.002)
    async def predict(self, inputs: list[Inputs]) -> list[bytes]:
        """Answer a batch."""
        return [
            orjson.dumps({"default": scores}, option=orjson.OPT_SERIALIZE_NUMPY)
            for scores in score(self._model, inputs)
        ]

    async def __call__(self, request: Request) -> Response:
        """Read one request and wait for its share of a batch."""
        inputs = Inputs.of(orjson.loads(await request.body()))
        return Response(await self.predict(inputs), media_type="application/json")


def main() -> None:
    """Serve the checkpoint named first on the port named second."""
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        # Ray replaces 127.0.0.1 by the machine's outer address; this one is loopback too.
        _node_ip_address="127.0.0.2",
        object_store_memory=200_000_000,
        logging_level="warning",
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(sys.argv[2])},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    serve.run(Model.bind(sys.argv[1]), route_prefix="/predict")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
