"""The handler's own steps, without a server."""

import json
import logging
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from torchrec_handler.errors import OptionError
from torchrec_handler.front.torchserve.head import Head
from torchrec_handler.front.torchserve.worker import TorchRecHandler, _raw, _wait_until_read


def test_a_body_that_torchserve_parsed_is_read_as_it_was_sent() -> None:
    """A version of TorchServe whose reader is not replaced decodes JSON and text by default."""
    for value in ({"a": [1, 2.5, 2**70, None]}, ["\ud800"], "text", 7, None):
        sent = value if isinstance(value, str) else json.dumps(value)
        assert _raw({"body": value}, Head({})).body == sent.encode("utf-8", "surrogatepass")


def test_a_failed_load_logs_its_message_before_torchserve_hears_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    context = SimpleNamespace(model_yaml_config={"torchrec": {"threads": 0}}, system_properties={})
    with pytest.raises(OptionError) as raised:
        TorchRecHandler().initialize(context)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, f"OptionError: {raised.value}")
    ]


def test_a_failed_worker_waits_until_its_output_is_read() -> None:
    output, input_ = os.pipe()
    os.write(input_, b"why")
    waiting = threading.Thread(target=_wait_until_read, args=(input_, 60.0))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    os.read(output, 3)
    waiting.join(10)
    assert not waiting.is_alive()
    os.close(output)
    os.close(input_)


def test_a_failed_worker_waits_no_longer_than_it_may_and_only_for_a_pipe(tmp_path: Path) -> None:
    output, input_ = os.pipe()
    os.write(input_, b"why")
    _wait_until_read(input_, 0.1)
    assert os.read(output, 3) == b"why"
    os.close(output)
    os.close(input_)
    with (tmp_path / "output").open("wb") as file:
        file.write(b"why")
        _wait_until_read(file.fileno(), 60.0)
