"""model-config.yaml: the user's words as they are, and our defaults of what they leave open."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from torchrec_archiver.package import read_bytes
from torchrec_handler.errors import BuildError
from torchrec_handler.kernels.registry import check_names
from torchrec_handler.options import SECTION, Options, read_options

DEFAULT_MODEL_CONFIG: Mapping[str, int] = {
    "minWorkers": 1,
    "maxWorkers": 1,
    "batchSize": 64,
    "maxBatchDelay": 1,
    "jobQueueSize": 4000,
    "clientTimeoutInMills": 0,
    "responseTimeout": 8,
    "startupTimeout": 600,
}
"""TorchServe's settings of an archive whose --config-file does not say otherwise.

TorchServe's own are a worker a core, each batch one request, a queue of 100, no client timeout, and
120 seconds for both timeouts, after which it kills the worker. docs/reliability.md tells how the
queue's length was found, and that TorchServe never answers what a client timeout drops. The largest
batch that the limits allow takes half a second, so a worker that has not answered in eight hangs.
One that loads may be reading 100 GB (`verify: full`, or a checkpoint that the factory brings),
which takes 500 s at 200 MB/s; killed, it would start over.
"""

LEAST = {"minWorkers": 0, "maxWorkers": 0, "maxBatchDelay": 0, "clientTimeoutInMills": 0}
"""1 of all others."""

ADDED = "# What is not said above, by torchrec-archiver."


def read_model_config(path: str | Path | None) -> tuple[bytes, Options]:
    """Read --config-file.

    Returns:
        The document to put into the archive, which says every setting of `DEFAULT_MODEL_CONFIG`,
        and our own options in it.

    Raises:
        BuildError: it cannot be read, or TorchServe would pass over a setting.
        OptionError: an option of ours is wrong.
    """
    if path is None:
        return _dump(DEFAULT_MODEL_CONFIG), Options()
    content = read_bytes("config file", Path(path))
    try:
        document = yaml.safe_load(content)
    except yaml.YAMLError as error:
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            said = f"line {error.problem_mark.line + 1}: {error.problem}"
        else:
            said = " ".join(str(error).split())
        message = f"config file: {path} is not YAML: {said}"
        raise BuildError(message) from error
    document = {} if document is None else document
    if not isinstance(document, dict):
        message = f"config file: {path} holds a {type(document).__name__}, expected a mapping"
        raise BuildError(message)
    options = read_options(document)
    check_names(options.kernels)
    _check(path, document)
    missing = _missing(document)
    return _with(content, document, missing) if missing else content, options


def _check(path: str | Path, document: Mapping[str, Any]) -> None:
    """Of what it cannot read TorchServe only logs a warning, and takes its own default."""
    known = [*DEFAULT_MODEL_CONFIG, SECTION]
    for name in map(str, document):
        close = get_close_matches(name, known, n=1, cutoff=0.8)
        if close and name not in known:
            message = f"config file: {path}: {name}: neither TorchServe nor torchrec-serve reads it"
            raise BuildError(message, hint=f"did you mean {close[0]}?")
    for name in DEFAULT_MODEL_CONFIG:
        value, least = document.get(name, 1), LEAST.get(name, 1)
        if type(value) is not int or value < least:
            message = (
                f"config file: {path}: {name}: received {value!r}, "
                f"expected a whole number from {least} on"
            )
            raise BuildError(message)
    if document.get("asyncCommunication", False) is not False:
        message = (
            f"config file: {path}: asyncCommunication: received "
            f"{document['asyncCommunication']!r}, expected false: TorchServe 0.12 then lets one "
            "error answer every request in flight, and none has a time limit"
        )
        raise BuildError(message)
    fewest, most = document.get("minWorkers"), document.get("maxWorkers")
    if fewest is not None and most is not None and fewest > most:
        message = f"config file: {path}: minWorkers: received {fewest}, expected at most {most}, "
        message += "which is maxWorkers"
        raise BuildError(message)


def _missing(document: Mapping[str, Any]) -> dict[str, int]:
    missing = {name: value for name, value in DEFAULT_MODEL_CONFIG.items() if name not in document}
    # Of workers, one number says much of the other.
    if "minWorkers" in missing and "maxWorkers" in document:
        missing["minWorkers"] = min(missing["minWorkers"], document["maxWorkers"])
    if "maxWorkers" in missing and "minWorkers" in document:
        missing["maxWorkers"] = max(missing["maxWorkers"], document["minWorkers"])
    return missing


def _with(content: bytes, document: Mapping[str, Any], missing: Mapping[str, int]) -> bytes:
    """The user's text and more lines; of a text that cannot go on so, the same in new words."""
    whole = {**document, **missing}
    longer = content.removesuffix(b"\n") + f"\n{ADDED}\n".encode() + _dump(missing)
    try:
        if yaml.safe_load(longer) == whole:
            return longer
    except yaml.YAMLError:
        pass
    return _dump(whole)


def _dump(document: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump(dict(document), sort_keys=False).encode()
