"""Templates of this package, in which every value is escaped."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_ENVIRONMENT = Environment(
    loader=PackageLoader("torchrec_archiver.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: Any) -> Markup:
    """A template's text with values in it, each escaped but for those that are `Markup`.

    Args:
        template: its name in `templates`.
        values: by the names that the template calls them.
    """
    return Markup(_ENVIRONMENT.get_template(template).render(**values))  # noqa: S704  escaped
