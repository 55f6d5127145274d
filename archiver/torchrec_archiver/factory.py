"""First step of building: find the classes that the user named."""

import importlib
import sys
from pathlib import Path

from torchrec.inference.model_packager import PredictFactoryPackager
from torchrec.inference.modules import PredictFactory

from torchrec_handler.errors import BuildError


def find_factory(name: str) -> type[PredictFactory]:
    """Import a `module:Class` that is a PredictFactory.

    Raises:
        BuildError: it cannot be imported, or is something else.
    """
    found = _find("factory", name)
    if not issubclass(found, PredictFactory):
        message = f"factory: {name} is not a torchrec.inference.modules.PredictFactory"
        raise BuildError(message)
    return found


def find_packager(name: str) -> type[PredictFactoryPackager]:
    """Import a `module:Class` that is a PredictFactoryPackager.

    Raises:
        BuildError: it cannot be imported, or is something else.
    """
    found = _find("packager", name)
    if not issubclass(found, PredictFactoryPackager):
        message = (
            f"packager: {name} is not a torchrec.inference.model_packager.PredictFactoryPackager"
        )
        raise BuildError(message)
    return found


def _find(option: str, name: str) -> type:
    module_name, separator, class_name = name.partition(":")
    if not separator or not class_name:
        message = f"{option}: received {name!r}, expected MODULE:CLASS"
        raise BuildError(message)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        message = f"{option}: {module_name!r} cannot be imported from {here}: {error}"
        raise BuildError(message) from error
    except Exception as error:
        message = f"{option}: importing {module_name!r} raised {type(error).__name__}: {error}"
        raise BuildError(message) from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        message = f"{option}: module {module_name!r} has no class {class_name!r}"
        raise BuildError(message)
    return found
