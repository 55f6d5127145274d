"""A server of one answer, and inputs to ask the benchmarks' servers for."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import psutil

from benchmarks.peers.stock import (
    Inputs,
    random_inputs,
)
from benchmarks.starting import Running


def some_inputs(rows: int) -> Inputs:
    return random_inputs(rows, np.random.default_rng(rows))


@contextmanager
def answering(status: int, body: bytes) -> Iterator[Running]:
    """A server that gives one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Running(
            address=f"http://127.0.0.1:{server.server_address[1]}",
            target="/predict",
            processes=lambda: [psutil.Process()],
            log=lambda: "the log",
        )
        server.shutdown()
        thread.join()
