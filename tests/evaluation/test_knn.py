"""Exact k-NN against a naive implementation in whole numbers, against scikit-learn, and with ties."""

import json

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from crossdistill.errors import UserError
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.neighbours import nearest_neighbours, unit_rows
from crossdistill.evaluation.protocols import ProtocolSettings, knn
from crossdistill.evaluation.results import ProtocolResult, accuracy_from_scores

NUM_CLASSES = 7


def knn_class_scores(*, gallery_labels_n, k, **options):
    found = nearest_neighbours(gallery_labels_n=gallery_labels_n, k=k, **options)
    return knn.class_scores_of(found, gallery_labels_n, k)


def knn_predict(**options):
    return knn_class_scores(**options).argmax(1)


def evaluate_knn(*, ks=(1, 5, 20), **tensors):
    results = knn.evaluate_knn(EmbeddedSplit.from_tensors(**tensors), ProtocolSettings(ks=ks))
    return dict(zip(ks, results, strict=True))


def whole_number_similarities(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Cosines of rows rounded to multiples of 2^-26, in units of 2^-52, added as 64-bit integers."""

    def grid(rows: np.ndarray) -> np.ndarray:
        rows = rows.astype(np.float64)
        norms = np.sqrt((rows**2).sum(1, keepdims=True))
        unit = np.round(rows / np.where(norms == 0, 1, norms) * 2.0**26) / 2.0**26
        return (unit.astype(np.float32).astype(np.float64) * 2.0**26).astype(np.int64)

    return grid(queries) @ grid(gallery).T


def naive_neighbours(sims: np.ndarray, k: int) -> np.ndarray:
    return np.stack([np.lexsort((np.arange(len(row)), -row))[:k] for row in sims])


def naive_class_order(sims: np.ndarray, labels: np.ndarray, k: int, num_classes: int) -> list[list[int]]:
    """The definition, word by word; classes without a gallery sample are left out."""
    orders = []
    for row, nearest in zip(sims, naive_neighbours(sims, k), strict=True):
        votes = [sum(labels[i] == c for i in nearest) for c in range(num_classes)]
        present = [c for c in range(num_classes) if (labels == c).any()]
        orders.append(sorted(present, key=lambda c: (-votes[c], -max(row[labels == c]), c)))
    return orders


def features(num: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


def labels(num: int, seed: int, num_classes: int = NUM_CLASSES) -> torch.Tensor:
    return torch.randint(0, num_classes, (num,), generator=torch.Generator().manual_seed(seed))


def order_of(scores_bc: torch.Tensor) -> list[list[int]]:
    count = torch.isfinite(scores_bc).sum(1)
    ranked = scores_bc.argsort(dim=1, descending=True)
    return [row[:n].tolist() for row, n in zip(ranked, count, strict=True)]


def many_ties(num: int, seed: int) -> torch.Tensor:
    """Rows with entries -1, 0, 1: few different cosines, repeated and opposite rows, rows of zeros."""
    return torch.randint(-1, 2, (num, 4), generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("k", [1, 5, 20, 300])
@pytest.mark.parametrize("make", [lambda n, s: features(n, 24, s), many_ties], ids=["gaussian", "many ties"])
def test_nearest_neighbours__equals_whole_number_implementation(make, k):
    queries, gallery = make(60, 0), make(300, 1)
    found = nearest_neighbours(queries_bd=queries, gallery_nd=gallery, k=k, query_chunk=17, gallery_chunk=71)
    sims = whole_number_similarities(queries.numpy(), gallery.numpy())
    expected = naive_neighbours(sims, k)
    assert (found.indices_bk.numpy() == expected).all()
    assert (found.similarities_bk.numpy() * 2.0**52 == np.take_along_axis(sims, expected, 1)).all()


@pytest.mark.parametrize("k", [1, 3, 20, 300])
@pytest.mark.parametrize("make", [lambda n, s: features(n, 24, s), many_ties], ids=["gaussian", "many ties"])
def test_knn_class_scores__equals_naive_order(make, k):
    queries, gallery, gallery_labels = make(60, 2), make(300, 3), labels(300, 4)
    scores = knn_class_scores(
        queries_bd=queries,
        gallery_nd=gallery,
        gallery_labels_n=gallery_labels,
        num_classes=NUM_CLASSES,
        k=k,
        query_chunk=23,
        gallery_chunk=64,
    )
    sims = whole_number_similarities(queries.numpy(), gallery.numpy())
    expected = naive_class_order(sims, gallery_labels.numpy(), k, NUM_CLASSES)
    assert order_of(scores) == expected


def test_nearest_neighbours__more_equal_rows_than_candidates_equals_naive_implementation():
    queries, gallery = features(12, 16, 5), features(4_000, 16, 6)
    gallery[3_000:3_010] = gallery[5]  # equal rows, more than there are spare candidates
    queries[0] = 3 * gallery[5]
    sims = whole_number_similarities(queries.numpy(), gallery.numpy())
    for gallery_chunk in (4_000, 1_999):
        found = nearest_neighbours(queries_bd=queries, gallery_nd=gallery, k=2, gallery_chunk=gallery_chunk)
        assert (found.indices_bk.numpy() == naive_neighbours(sims, 2)).all()
        assert found.indices_bk[0].tolist() == [5, 3_000]


@pytest.mark.parametrize("sizes", [(1, 1), (7, 13), (64, 300), (100, 1_000)])
def test_nearest_neighbours__does_not_depend_on_chunks(sizes):
    queries, gallery, gallery_labels = features(50, 33, 8), features(300, 33, 9), labels(300, 10)
    gallery[200:220] = gallery[:20]
    whole = nearest_neighbours(
        queries_bd=queries, gallery_nd=gallery, k=9, gallery_labels_n=gallery_labels, num_classes=NUM_CLASSES
    )
    parts = nearest_neighbours(
        queries_bd=queries,
        gallery_nd=gallery,
        k=9,
        gallery_labels_n=gallery_labels,
        num_classes=NUM_CLASSES,
        query_chunk=sizes[0],
        gallery_chunk=sizes[1],
    )
    assert torch.equal(whole.similarities_bk, parts.similarities_bk)
    assert torch.equal(whole.indices_bk, parts.indices_bk)


@pytest.mark.parametrize("spread", [1e-2, 1e-4, 0.0], ids=lambda spread: f"spread {spread}")
def test_nearest_neighbours__collapsed_features_equal_whole_number_implementation(spread):
    """A collapsed encoder has similarities closer than float32 resolves, and ties among all rows at last."""
    gallery, queries = 1 + spread * features(500, 64, 11), 1 + spread * features(80, 64, 12)
    found = nearest_neighbours(queries_bd=queries, gallery_nd=gallery, k=5, gallery_chunk=200)
    sims = whole_number_similarities(queries.numpy(), gallery.numpy())
    assert (found.indices_bk.numpy() == naive_neighbours(sims, 5)).all()


def test_knn_class_scores__classes_beyond_the_candidates_that_float32_cannot_tell_apart():
    near, far = features(1, 64, 40), features(1, 64, 41)
    gallery = torch.cat([near + 0.05 * features(100, 64, 42), far + 2e-7 * features(120, 64, 43)])
    gallery_labels = torch.cat([torch.zeros(100).long(), torch.arange(1, 7).repeat(20)])
    queries = near + 0.05 * features(60, 64, 44)
    scores = knn_class_scores(
        queries_bd=queries, gallery_nd=gallery, gallery_labels_n=gallery_labels, num_classes=NUM_CLASSES, k=1
    )
    sims = whole_number_similarities(queries.numpy(), gallery.numpy())
    expected = naive_class_order(sims, gallery_labels.numpy(), 1, NUM_CLASSES)
    assert order_of(scores) == expected


def test_nearest_neighbours__autocast_changes_nothing():
    queries, gallery = features(20, 64, 15), features(200, 64, 16)
    expected = nearest_neighbours(queries_bd=queries, gallery_nd=gallery, k=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = nearest_neighbours(queries_bd=queries, gallery_nd=gallery, k=5)
    assert torch.equal(found.indices_bk, expected.indices_bk)
    assert torch.equal(found.similarities_bk, expected.similarities_bk)


def test_nearest_neighbours__ties_go_to_the_lowest_gallery_index():
    gallery = torch.tensor([[0.0, 1.0], [3.0, 4.0], [6.0, 8.0], [0.6, 0.8], [-1.0, 0.0]])
    found = nearest_neighbours(queries_bd=torch.tensor([[3.0, 4.0]]), gallery_nd=gallery, k=5, gallery_chunk=2)
    assert found.indices_bk.tolist() == [[1, 2, 3, 0, 4]]
    assert found.similarities_bk[0, 0] == found.similarities_bk[0, 2]


@pytest.mark.parametrize(
    ("gallery_labels", "k", "expected"),
    [
        ([3, 1, 1, 2, 0], 1, [3, 1, 2, 0]),  # by nearest neighbour
        ([3, 1, 1, 2, 0], 3, [1, 3, 2, 0]),  # two votes beat the nearest
        ([3, 1, 2, 0, 0], 2, [3, 1, 2, 0]),  # equal votes: the nearer class
        ([3, 3, 3, 3, 3], 2, [3]),
    ],
)
def test_knn_class_scores__order_of_classes(gallery_labels, k, expected):
    angles = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    scores = knn_class_scores(
        queries_bd=torch.tensor([[1.0, 0.0]]),
        gallery_nd=torch.stack([angles.cos(), angles.sin()], 1),
        gallery_labels_n=torch.tensor(gallery_labels),
        num_classes=5,
        k=k,
    )
    assert order_of(scores) == [expected]


def test_knn_predict__equal_votes_and_equal_similarities_go_to_the_lower_class():
    predicted = knn_predict(
        queries_bd=torch.tensor([[1.0, 0.0]]),
        gallery_nd=torch.tensor([[1.0, 1.0], [1.0, -1.0]]),
        gallery_labels_n=torch.tensor([2, 1]),
        num_classes=3,
        k=2,
    )
    assert predicted.tolist() == [1]


@pytest.mark.parametrize("k", [1, 5, 15])
def test_knn_predict__equals_scikit_learn(k):
    train, train_labels = features(400, 20, 17) + labels(400, 18)[:, None] * 0.3, labels(400, 18)
    test = features(150, 20, 19) + labels(150, 20)[:, None] * 0.3
    reference = KNeighborsClassifier(k, algorithm="brute", metric="cosine").fit(train.double(), train_labels)
    votes = reference.predict_proba(test.double())
    is_clear = (votes == votes.max(1, keepdims=True)).sum(1) == 1  # scikit-learn gives equal votes to the lower class
    predicted = knn_predict(
        queries_bd=test, gallery_nd=train, gallery_labels_n=train_labels, num_classes=NUM_CLASSES, k=k
    )
    assert is_clear.mean() > 0.6
    assert (predicted.numpy()[is_clear] == reference.predict(test.double())[is_clear]).all()


def test_evaluate_knn__equals_naive_accuracies():
    train, test, train_labels, test_labels = features(200, 8, 21), features(90, 8, 22), labels(200, 23), labels(90, 24)
    results = evaluate_knn(
        train_features=train,
        train_labels=train_labels,
        test_features=test,
        test_labels=test_labels,
        num_classes=NUM_CLASSES,
        ks=(20, 1, 500),
    )
    sims = whole_number_similarities(test.numpy(), train.numpy())
    assert list(results) == [20, 1, 500]
    for k, result in results.items():
        order = naive_class_order(sims, train_labels.numpy(), k, NUM_CLASSES)
        hits = np.array([o[0] == y for o, y in zip(order, test_labels.tolist(), strict=True)])
        assert result.top1 == pytest.approx(hits.mean(), abs=1e-12)
        assert result.top5 == pytest.approx(
            np.mean([y in o[:5] for o, y in zip(order, test_labels.tolist(), strict=True)]), abs=1e-12
        )
        by_class = [hits[test_labels.numpy() == c].mean() for c in range(NUM_CLASSES)]
        assert result.mean_class == pytest.approx(np.mean(by_class), abs=1e-12)
        assert result.details["effective_k"] == min(k, 200)
        assert result.num_test == 90
        assert json.loads(json.dumps(result.to_json()))["protocol"] == f"{k}-nn"


def test_evaluate_knn__random_labels_give_chance():
    result = evaluate_knn(
        train_features=features(2_000, 16, 25),
        train_labels=labels(2_000, 26, 10),
        test_features=features(2_000, 16, 27),
        test_labels=labels(2_000, 28, 10),
        num_classes=10,
        ks=(1,),
    )[1]
    assert result.top1 == pytest.approx(0.1, abs=0.03)
    assert result.top5 == pytest.approx(0.5, abs=0.05)


def test_evaluate_knn__class_without_training_clips_is_reported_and_never_hit():
    result = evaluate_knn(
        train_features=torch.eye(3),
        train_labels=torch.tensor([0, 0, 2]),
        test_features=torch.eye(3),
        test_labels=torch.tensor([0, 1, 2]),
        num_classes=4,
        ks=(1,),
    )[1]
    assert result.details["classes_without_training_clips"] == [1]
    assert (result.top1, result.top5) == (2 / 3, 2 / 3)


def test_evaluate_knn__takes_features_that_need_gradients():
    split = valid_split()
    expected = evaluate_knn(**split)
    split["train_features"].requires_grad_()
    split["test_features"].requires_grad_()
    assert evaluate_knn(**split) == expected


def test_unit_rows__scale_zero_rows_and_grid():
    rows = features(30, 50, 29)
    rows[3] = 0
    unit = unit_rows(rows)
    assert torch.equal(unit, unit_rows(rows * 4))
    assert torch.equal(unit[:7], unit_rows(rows[:7]))
    assert (unit[3] == 0).all()
    assert (unit.double() * 2**26 == (unit.double() * 2**26).round()).all()
    assert (unit - torch.nn.functional.normalize(rows.double(), dim=1)).abs().max() < 4e-8
    assert torch.isfinite(unit_rows(torch.tensor([[1e-30, 0.0], [3e38, 3e38]]))).all()


def valid_split() -> dict:
    return {
        "train_features": features(6, 4, 30),
        "train_labels": torch.tensor([0, 1, 2, 0, 1, 2]),
        "test_features": features(3, 4, 31),
        "test_labels": torch.tensor([0, 1, 2]),
        "num_classes": 3,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_features": torch.zeros(0, 4), "train_labels": torch.zeros(0).long()}, "train set is empty"),
        ({"test_features": torch.zeros(0, 4), "test_labels": torch.zeros(0).long()}, "test set is empty"),
        ({"test_features": torch.ones(3, 5)}, "4 dimensions and test features 5"),
        ({"test_labels": torch.tensor([0, -1, -1])}, "2 of 3 test clips have no label"),
        ({"train_labels": torch.tensor([0, 1, 2, 0, 1, 3])}, "go up to 3"),
        ({"train_labels": torch.tensor([0, 1])}, "must be 6 integers"),
        ({"test_features": torch.tensor([[1.0, torch.nan], [1, 2], [torch.inf, 1]])}, "2 of 3 rows of test"),
        ({"test_features": torch.ones(3)}, "must have shape"),
        ({"ks": (1, 0)}, "--k is 1 0: give numbers of neighbours from 1 on"),
        ({"ks": ()}, "--k is empty"),
    ],
)
def test_evaluate_knn__tells_what_is_wrong(change, message):
    evaluate_knn(**valid_split())
    with pytest.raises(UserError, match=message):
        evaluate_knn(**{**valid_split(), **change})


def test_nearest_neighbours__tells_what_is_wrong():
    with pytest.raises(UserError, match="gallery set is empty"):
        nearest_neighbours(queries_bd=torch.ones(1, 2), gallery_nd=torch.ones(0, 2), k=1)
    with pytest.raises(UserError, match="gallery_chunk must be at least 1"):
        nearest_neighbours(queries_bd=torch.ones(1, 2), gallery_nd=torch.ones(1, 2), k=1, gallery_chunk=0)
    with pytest.raises(UserError, match="2 dimensions and the gallery 3"):
        nearest_neighbours(queries_bd=torch.ones(1, 2), gallery_nd=torch.ones(1, 3), k=1)


def test_accuracy_from_scores__ties_go_to_the_lower_class():
    scores = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 2.0], [-torch.inf, 0.0, torch.nan]])
    accuracies = accuracy_from_scores(scores, torch.tensor([0, 1, 2, 0]))
    assert accuracies.top1 == 0.5  # the second loses its tie, the fourth cannot be predicted
    assert accuracies.top5 == 0.75
    assert accuracies.mean_class == pytest.approx((0.5 + 0 + 1) / 3)


def test_accuracy_from_scores__mean_class_ignores_classes_without_test_clips():
    accuracies = accuracy_from_scores(torch.eye(3)[[0, 0, 2, 2]], torch.tensor([0, 0, 0, 2]))
    assert accuracies.mean_class == pytest.approx((2 / 3 + 1) / 2)


def test_accuracy_from_scores__top5_counts_five_classes():
    scores = torch.arange(10.0).repeat(10, 1)
    accuracies = accuracy_from_scores(scores, torch.arange(10))
    assert (accuracies.top1, accuracies.top5) == (0.1, 0.5)


def test_protocol_result__is_json():
    result = ProtocolResult(protocol="x", top1=0.5, top5=1.0, mean_class=0.25, num_test=4, details={"k": 1})
    assert json.loads(json.dumps(result.to_json())) == {
        "protocol": "x",
        "top1": 0.5,
        "top5": 1.0,
        "mean_class": 0.25,
        "num_test": 4,
        "details": {"k": 1},
        "coverage": 1.0,
        "views": "1x1",
        "intervals": {},
        "hits": "",
    }
