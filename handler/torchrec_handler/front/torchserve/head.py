"""What TorchServe tells of a request beside its body, and what the handler takes from that."""

from collections.abc import Mapping
from typing import Any

from torchrec_handler.front.torchserve import model_infer
from torchrec_handler.load.factory import FORWARD

QUALNAME = "qualname"
QUALNAME_HEADER = "x-torchrec-qualname"
URL_PATH = "url_path"
"""TorchServe's own name for what follows /predictions/NAME/VERSION/."""
EXPLAIN = "explain"
"""TorchServe's own header of /explanations/NAME, taken as the name of the method to call."""
CONTENT_TYPE = "content-type"
BODIES = ("body", "data")
"""What TorchServe calls a body: of HTTP, and of gRPC and forms."""


class Head(dict[str, Any]):
    """A request's headers as TorchServe has them: parameters' content types are among them.

    Read once, as clients send the same ones again and again; nothing changes it.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__(given)
        headers = {name.lower(): value for name, value in given.items() if isinstance(value, str)}
        self.content_types = {name: _content_type(given.get(name), headers) for name in BODIES}
        """Of a body that is called so, without parameters, in lower case."""
        self.content_encoding = headers.get("content-encoding", "")
        self.accept = headers.get("accept", "")
        self.is_explain = headers.get(EXPLAIN) == "True"
        """Goes before a parameter that names a method."""
        self.qualname = headers.get(QUALNAME_HEADER) or headers.get(URL_PATH) or FORWARD
        """The method that is asked for where no parameter names one."""
        self.is_call = model_infer.is_call(given)
        self.is_http = bool(headers)
        """HTTP sends some headers always."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Head":
        """What `reader` gave as it is; what TorchServe's own reader did is read now."""
        return given if isinstance(given, cls) else cls(given)


def _content_type(own: Any, headers: Mapping[str, str]) -> str:
    # TorchServe's own entry, unless a header of that name lies over it; in a form that TorchServe
    # took apart it is the part's.
    given = own[CONTENT_TYPE] if isinstance(own, Mapping) else headers.get(CONTENT_TYPE, "")
    found: str = given.partition(";")[0].strip().lower()
    return found
