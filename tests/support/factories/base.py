"""What TorchRec asks of every factory, answered in the most common way."""

import torch
from torchrec.inference.modules import BatchingMetadata, PredictFactory, QualNameMetadata


class ForwardFactory(PredictFactory):
    """`forward` gives one tensor a key; transformations change nothing."""

    inputs: dict[str, str] = {"id_list_features": "sparse"}  # noqa: RUF012  overridden, not changed

    def batching_metadata(self) -> dict[str, BatchingMetadata]:
        return {
            name: BatchingMetadata(type=kind, device="cpu", pinned=[])
            for name, kind in self.inputs.items()
        }

    def result_metadata(self) -> str:
        """One tensor a key."""
        return "dict_of_tensor"

    def run_weights_independent_tranformations(
        self, predict_module: torch.nn.Module
    ) -> torch.nn.Module:
        """Nothing."""
        return predict_module

    def run_weights_dependent_transformations(
        self, predict_module: torch.nn.Module
    ) -> torch.nn.Module:
        """Nothing."""
        return predict_module

    def qualname_metadata(self) -> dict[str, QualNameMetadata]:
        """Only forward."""
        return {"forward": QualNameMetadata(need_preproc=True)}
