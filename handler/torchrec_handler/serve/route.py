"""Which method of the predict module a request asks for."""

from collections.abc import Mapping

from torchrec_handler.errors import UnknownQualname
from torchrec_handler.serve.codecs.json_document import shortened


def route(qualname: str, methods: Mapping[str, bool]) -> bool:
    """Look a method up.

    Args:
        qualname: the name asked for.
        methods: qualname -> need_preproc, as `qualname_metadata` gives it.

    Returns:
        Whether the method takes the batched input of many requests (`need_preproc`), or one
        request's payload as keyword arguments.

    Raises:
        UnknownQualname: lists the known names.
    """
    if qualname not in methods:
        raise UnknownQualname(
            where="qualname",
            received=repr(shortened(qualname)),
            expected=f"one of {', '.join(sorted(methods))}",
        )
    return methods[qualname]
