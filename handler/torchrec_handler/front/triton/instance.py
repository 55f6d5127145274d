"""The one class that Triton's python backend sees; only this room imports its module."""

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import triton_python_backend_utils as backend
import yaml

from torchrec_handler import options as torchrec_options
from torchrec_handler.archive.format import MODEL_CONFIG
from torchrec_handler.archive.repository import ARCHIVE, ENDED, version_parameter
from torchrec_handler.archive.trust import trusted_keys
from torchrec_handler.errors import LoadError, RequestError, Unusable
from torchrec_handler.front.periodic import Periodic
from torchrec_handler.front.series import Counted
from torchrec_handler.front.triton.answers import Answers
from torchrec_handler.front.triton.ending import Ending
from torchrec_handler.front.triton.metrics import Metrics
from torchrec_handler.front.triton.requests import read
from torchrec_handler.load import loader
from torchrec_handler.load.process import become_worker, keep_what_is_loaded, worker_device
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.observe import Totals
from torchrec_handler.updates.served import serve_updates

logger = logging.getLogger(__name__)


class TritonPythonModel:
    """Loads an archive once, then answers batches of requests."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the archive that lies beside `model.py`.

        Raises:
            LoadError: whose first line says what to do.
        """
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        _check_numpy()
        # Triton's Python reads no PYTHONPATH, as TorchServe's workers do.
        sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        version = Path(args["model_repository"], args["model_version"])
        folder = (version / ARCHIVE).resolve()
        options = _options(folder / MODEL_CONFIG)
        is_gpu = args["model_instance_kind"] == "GPU"
        device = worker_device(
            options.device, int(args["model_instance_device_id"]) if is_gpu else None
        )
        become_worker(options, device)
        keys = trusted_keys()
        predictor = loader.load(folder, options, device, keys)
        updates = serve_updates(options, args["model_name"], folder, predictor, keys)
        if options.record.rate:
            logger.warning("torchrec.record: requests are recorded by TorchServe's workers only")
        totals = Totals()
        self._engine = Engine(args["model_name"], predictor, options, totals, updates)
        config = json.loads(args["model_config"])
        self._answers = Answers([output["name"] for output in config["output"]])
        counted = Counted(totals, self._engine.out_of_range_ids, updates)
        metrics = Metrics((args["model_name"], _version(config, args["model_version"])), counted)
        metrics.emit()  # to declare them all takes a quarter of a second
        self._periodic = Periodic([metrics.emit])
        keep_what_is_loaded()
        self._ending = Ending(version / ENDED)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer a batch, each request on its own."""
        given = []
        refused: dict[int, RequestError] = {}
        for at, request in enumerate(requests):
            try:
                given.append(read(request))
            except RequestError as error:
                refused[at] = error
        try:
            outcomes = self._engine.predict(given)
        except Unusable as error:
            _end(error)
        for at, refusal in refused.items():
            outcomes.insert(at, refusal)
        return list(map(self._answers.write, outcomes, requests))

    def finalize(self) -> None:
        """Triton unloads the model."""
        self._ending.called_for()
        self._periodic.stop()


def _options(path: Path) -> torchrec_options.Options:
    document = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    return torchrec_options.read_options(document or {})


def _version(config: Mapping[str, Any], number: str) -> str:
    """The archive's own, of which Triton's are numbers."""
    told = config["parameters"].get(version_parameter(number), {"string_value": number})
    _, _, version = told["string_value"].rpartition(" ")
    return str(version)


def _end(error: Unusable) -> NoReturn:
    """End the instance, so that Triton loads another, see `ending`."""
    logger.error("%s. This instance ends, and Triton loads another where it polls", error)
    sys.stderr.flush()
    # What Python does at an end may wait for a device, or for ranks, that do not answer.
    os._exit(1)


def _check_numpy() -> None:
    """See that this Triton reads numpy's arrays right: that before 24.12 knows numpy 1 only."""
    wanted = torch.arange(2.0)
    probe = backend.Tensor.from_dlpack("probe", wanted).as_numpy()
    if probe.tolist() != wanted.tolist():
        message = "this Triton's python backend needs numpy 1, and would misread what numpy 2 holds"
        hint = "take Triton 24.12 or newer, or numpy 1.26 in the environment that it runs in"
        raise LoadError(message, hint=hint)
