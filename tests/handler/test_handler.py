"""The handler in a real TorchServe, asked over HTTP."""

from tests.torchserve import TorchServe


def test_answers(movielens: TorchServe) -> None:
    answer = movielens.predict("movielens", {"instances": [{"user_id": 3}]})
    print(answer.status_code, answer.text)
    print(movielens.inference.post("/predictions/movielens/nope", content=b"{}").text)
    r = movielens.management.get("/models/movielens", params={"customized": "true"})
    print(r.text[:3000])
    raise AssertionError
