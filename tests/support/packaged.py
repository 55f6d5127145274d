"""What a factory's package holds of this project's own code."""

from pathlib import Path

from torch.package.package_importer import PackageImporter
from torchrec.inference.modules import PredictFactory

from torchrec_archiver.package import DefaultPackager


def interned_examples(factory: type[PredictFactory], folder: Path) -> set[str]:
    """Save a factory's package and return the modules of `examples` in it."""
    package = folder / "predict_factory.pt"
    DefaultPackager.save_predict_factory(factory, {}, package, {})
    names = PackageImporter(str(package)).zip_reader.get_all_records()
    return {name for name in names if name.startswith("examples/") and name.endswith(".py")}
