"""Which method a request asks for."""

import pytest

from torchrec_handler.errors import UnknownQualname
from torchrec_handler.serve.route import route

METHODS = {"forward": True, "user_embedding": True, "similar": False}


@pytest.mark.parametrize(("qualname", "need_preproc"), METHODS.items())
def test_tells_whether_a_method_takes_the_batched_input(qualname: str, need_preproc: bool) -> None:  # noqa: FBT001  a table's column
    assert route(qualname, METHODS) is need_preproc


@pytest.mark.parametrize("qualname", ["__init__", "Forward", "", "predict_module.forward"])
def test_an_unknown_name_lists_the_known_ones(qualname: str) -> None:
    """What qualname_metadata does not name is not served, whether or not the module has it."""
    with pytest.raises(UnknownQualname) as caught:
        route(qualname, METHODS)
    assert str(caught.value) == (
        f"qualname: received {qualname!r}, expected one of forward, similar, user_embedding"
    )
