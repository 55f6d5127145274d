"""First step of building: find the classes that the user named."""

import importlib
import pkgutil
import sys
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from torchrec.inference.model_packager import PredictFactoryPackager
from torchrec.inference.modules import PredictFactory

from torchrec_archiver.near import near_name
from torchrec_handler.errors import BuildError


def find_factory(factory: str | type[PredictFactory]) -> type[PredictFactory]:
    """Import a `module:Class`, and see that it is a PredictFactory.

    Raises:
        BuildError: it cannot be imported, is something else, or is in no module that can be packed.
    """
    found = _find("factory", factory) if isinstance(factory, str) else factory
    if not (isinstance(found, type) and issubclass(found, PredictFactory)):
        message = f"factory: {factory} is not a torchrec.inference.modules.PredictFactory"
        raise BuildError(message, hint=_near_factory(factory))
    if found.__module__ == "__main__":
        message = (
            f"factory: {found.__name__} is defined in the script that runs, which would be packed "
            "whole; move it to a module"
        )
        raise BuildError(message)
    return found


def find_packager(packager: str | type[PredictFactoryPackager]) -> type[PredictFactoryPackager]:
    """Import a `module:Class`, and see that it is a PredictFactoryPackager.

    Raises:
        BuildError: it cannot be imported, or is something else.
    """
    found = _find("packager", packager) if isinstance(packager, str) else packager
    if not (isinstance(found, type) and issubclass(found, PredictFactoryPackager)):
        message = (
            f"packager: {packager} is not a "
            "torchrec.inference.model_packager.PredictFactoryPackager"
        )
        raise BuildError(message)
    return found


def _find(option: str, name: str) -> type:
    module, class_name = import_module(option, name)
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        message = f"{option}: module {module.__name__!r} has no class {class_name!r}"
        raise BuildError(message, hint=near_name(class_name, _classes(module), "classes"))
    return found


def import_module(option: str, name: str) -> tuple[ModuleType, str]:
    """Import the module of a `module:name`, from the current folder too.

    Args:
        option: which errors name.
        name: as the user gave it.

    Returns:
        The module, and the name in it.

    Raises:
        BuildError: it is of another form, or the module cannot be imported.
    """
    module_name, separator, class_name = name.partition(":")
    if not (module_name and separator and class_name):
        message = f"{option}: received {name!r}, expected MODULE:CLASS"
        raise BuildError(message)
    if module_name.endswith(".py") or "/" in module_name:
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        message = f"{option}: received the file {module_name!r}, expected MODULE:CLASS"
        raise BuildError(message, hint=f"did you mean {dotted}:{class_name}?")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        message = f"{option}: {module_name!r} cannot be imported from {here}: {error}"
        raise BuildError(message, hint=_near_module(module_name, error.name)) from error
    except Exception as error:
        message = f"{option}: importing {module_name!r} raised {type(error).__name__}: {error}"
        raise BuildError(message) from error
    return module, class_name


def _near_module(wanted: str, missing: str | None) -> str | None:
    """What may have been meant; None where it is not the module itself that is missing."""
    if missing is None or not f"{wanted}.".startswith(f"{missing}."):
        return None
    outer, _, name = missing.rpartition(".")
    paths = sys.modules[outer].__path__ if outer else [str(Path.cwd())]
    known = [found.name for found in pkgutil.iter_modules(paths)]
    known += [found.name for path in paths for found in Path(path).iterdir() if found.is_dir()]
    close = get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {'.'.join([*outer.split('.'), close[0]]).lstrip('.')}?"
    return "run it in the folder that Python imports the module from, or name that in PYTHONPATH"


def _near_factory(wanted: str | type) -> str | None:
    """A factory of the module that was named."""
    if not isinstance(wanted, str):
        return None
    module, name = import_module("factory", wanted)
    own = [one for one in _classes(module) if issubclass(getattr(module, one), PredictFactory)]
    return near_name(name, own, "factories") or "torchrec-archiver init writes one"


def _classes(module: ModuleType) -> list[str]:
    """Those that it defines itself."""
    return [
        name
        for name, found in vars(module).items()
        if isinstance(found, type) and found.__module__ == module.__name__
    ]
