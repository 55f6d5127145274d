"""What a front-end makes of an engine's answers."""

from collections.abc import Sequence

from torchrec_handler.front.torchserve.answers import HttpAnswer, http_answer
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.request import RawRequest


def ask(engine: Engine, requests: Sequence[RawRequest]) -> list[HttpAnswer]:
    """Answers over HTTP, errors too."""
    return [http_answer(outcome) for outcome in engine.predict(requests)]
