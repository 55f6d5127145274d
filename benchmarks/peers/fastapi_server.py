"""FastAPI with orjson: one process, no batching, the model called where the request is read."""

import sys
from pathlib import Path

import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.peers.stock import Inputs, StockModel


def main() -> None:
    """Serve the checkpoint named first on the port named second."""
    model = StockModel(Path(sys.argv[1]))
    app = FastAPI()

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        inputs = Inputs.of(orjson.loads(await request.body()))
        content = orjson.dumps({"default": model(inputs)}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(content, media_type="application/json")

    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
