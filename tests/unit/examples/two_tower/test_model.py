"""The towers that training and serving share."""

import numpy as np
import torch

from examples.movielens.data import Dataset
from examples.two_tower.data import items, users
from examples.two_tower.model import TwoTower
from examples.two_tower.train import keyed_bags, model_config


def test_the_score_of_a_pair_is_the_cosine_of_its_embeddings(dataset: Dataset) -> None:
    config = model_config(dataset)
    model = TwoTower(config, torch.device("cpu")).eval()
    user = keyed_bags(config.user, users(dataset, np.array([1, 2, 3])))
    item = keyed_bags(config.item, items(dataset.catalogue, np.array([50, 100, 267])))
    with torch.inference_mode():
        user_embedding, item_embedding = model.user(user), model.item(item)
        scores = model(user, item)
    torch.testing.assert_close(user_embedding.norm(dim=1), torch.ones(3))
    expected = torch.nn.functional.cosine_similarity(user_embedding, item_embedding)
    torch.testing.assert_close(scores, expected)


def test_tables_on_meta_take_no_memory(dataset: Dataset) -> None:
    model = TwoTower(model_config(dataset), torch.device("cpu"), torch.device("meta"))
    on_meta = {name for name, weight in model.named_parameters() if weight.is_meta}
    assert on_meta == {name for name, _ in model.named_parameters() if ".tables." in name}
