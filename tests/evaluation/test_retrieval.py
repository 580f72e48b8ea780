from itertools import combinations

import pytest
import torch

from components.evaluation.retrieval import chance, hits_by_rank, retrieval
from tests.tolerances import FLOAT64


def test_recall_counts_a_photo_as_right_if_one_of_its_own_texts_is_among_the_best():
    similarity = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.8, 0.7], [0.3, 0.2, 0.1], [0.6, 0.5, 0.4]])
    matches = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 1, 1], [1, 0, 0]]).bool()
    results = retrieval(similarity, matches, seed=0, ks=(1, 2, 3))
    photo, text = results["photo_to_text"], results["text_to_photo"]
    assert [photo["1"]["value"], photo["2"]["value"]] == [2 / 4, 4 / 4]
    # each text is one query, and each photo that has it is right: of text 0 photos 0 and 3
    assert [text["1"]["value"], text["2"]["value"], text["3"]["value"]] == [2 / 3, 2 / 3, 1]
    assert (results["photos"], results["texts"]) == (4, 3)
    assert "3" not in photo  # there are not more than three texts
    assert (photo["1"]["of"], text["1"]["of"]) == (4, 3)


def test_chance_is_the_mean_over_all_orders():
    matches = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]).bool()
    for k in (1, 2, 3):
        expected = []
        for row in matches.tolist():
            drawn = list(combinations(range(5), k))
            expected.append(sum(any(row[i] for i in some) for some in drawn) / len(drawn))
        assert chance(matches, k) == pytest.approx(sum(expected) / 3, rel=FLOAT64)


def test_exchanged_texts_bring_a_perfect_order_down_to_chance():
    count = 200
    similarity, matches = torch.eye(count), torch.eye(count).bool()
    results = retrieval(similarity + 0.1 * torch.rand(count, count), matches, seed=0)
    for direction in ("photo_to_text", "text_to_photo"):
        recall = results[direction]["1"]
        assert (recall["value"], recall["shuffled"]) == (1.0, 0.0)  # no photo keeps its own text
        assert recall["chance"] == pytest.approx(1 / count)
        tenth = results[direction]["10"]
        assert abs(tenth["shuffled"] - tenth["chance"]) < 0.02  # the mean of 20 times 200 queries


def test_a_query_has_found_a_match_from_its_first_one_on():
    matches = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0]]).bool()
    best = torch.tensor([[0, 3, 2], [2, 0, 3]])
    assert hits_by_rank(best, matches).tolist() == [[False, True, True], [False, False, False]]
