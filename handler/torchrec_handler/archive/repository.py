"""An archive in a Triton model repository: what its builder and its instances both know.

Only the standard library is used.
"""

MODEL_FILE = "model.py"
ARCHIVE = "archive"
"""The folder of the archive's members, or a link to it, beside `MODEL_FILE`."""
ENDED = "ended"
"""The file beside `MODEL_FILE` whose time changes when an instance ends."""

BODY = "body"
"""The input that holds a request in any format, and the output that holds such a one's answer."""
CONTENT_TYPE = "content_type"
"""The parameter that tells what `BODY` is, and the output that tells what its answer is."""


def version_parameter(number: int | str) -> str:
    """The parameter of the configuration that tells which archive a version is: name and version.

    Args:
        number: Triton's version, a whole number.
    """
    return f"version {number}"
