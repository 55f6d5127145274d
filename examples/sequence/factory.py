"""What the archiver packages: how a server builds the model, feeds it and reads its answers.

The package interns this file, so it imports nothing but torch, torchrec, `SimpleFactory` and
`model.py`. Shapes: B rows, K movies found for each.
"""

import torch
from torchrec.inference.model_packager import load_pickle_config

from examples.sequence.model import FEATURE, ModelConfig, NextMovie
from torchrec_handler.simple import Batch, SimpleFactory, sparse


class NextMoviePredictFactory(SimpleFactory):
    """Finds for histories, each newest first, the movies that most probably come next."""

    inputs = {"id_list_features": sparse(FEATURE)}  # noqa: RUF012  nobody changes it

    def model(self, device: torch.device) -> torch.nn.Module:
        """Build the dense part on `device` and the table without memory: weights come later."""
        config: ModelConfig = load_pickle_config("config.pkl", ModelConfig)
        self._movies_found = config.movies_found
        return NextMovie(config, device, tables_device=torch.device("meta"))

    def forward(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Find the next movies of a batch; a movie of the history is never one of them.

        Returns:
            `movies`: [B * K] int64 ids, the most probable first, those of row 0 first.
            `scores`: [B * K] float32, their probabilities.
        """
        history = batch["id_list_features"]
        logits = model(history)
        lengths, values = history.lengths(), history.values()
        row = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
        logits[row, values] = -torch.inf
        logits[:, 0] = -torch.inf
        scores, movies = logits.softmax(dim=1).topk(self._movies_found)
        return {"movies": movies.reshape(-1), "scores": scores.reshape(-1)}
