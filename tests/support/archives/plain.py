"""Archives made without this project's archiver, by the real torch-model-archiver."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchrec.inference.model_packager import PredictFactoryPackager
from torchrec.inference.modules import PredictFactory

from tests.support.paths import ROOT
from torchrec_archiver import DefaultPackager


def build_plain(  # noqa: PLR0913  what the two tools take
    export_path: Path,
    factory: type[PredictFactory],
    *,
    configs: Mapping[str, Any] | None = None,
    extra_files: Mapping[str, str | bytes] | None = None,
    packager: type[PredictFactoryPackager] = DefaultPackager,
    model_config: str = "minWorkers: 1\nmaxWorkers: 1\n",
    archive_format: str = "default",
) -> Path:
    """An archive called `plain`, by the command that docs/operate.md shows."""
    package = export_path / "predict_factory.pt"
    packager.save_predict_factory(factory, dict(configs or {}), package, dict(extra_files or {}))
    config_file = export_path / "model-config.yaml"
    config_file.write_text(model_config)
    command = [
        *(str(Path(sys.executable).with_name("torch-model-archiver")), "--force"),
        *("--model-name", "plain", "--version", "1.0", "--serialized-file", str(package)),
        *("--handler", "handler/predict_factory_handler.py", "--config-file", str(config_file)),
        *("--export-path", str(export_path), "--archive-format", archive_format),
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    return export_path / {"default": "plain.mar", "no-archive": "plain"}[archive_format]
