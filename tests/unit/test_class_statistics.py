"""Class statistics against numpy in float64 on the pooled data, and what is drawn from them by its distribution.

peft.md 6.5: one pass in float32 is wrong where the mean is far larger than the deviation. Several ranks are in
tests/parallel/test_peft_statistics.py.
"""

import io

import numpy as np
import pytest
import torch
from scipy import stats as tests
from sklearn.cluster import KMeans

from reprise.cl_models.peft.statistics import ClassStatistics, k_means
from reprise.runtime import dist
from reprise.runtime.errors import UserError

FITTED = ("covariance", "variance", "multi-centroid", "low-rank")
METHODS = (*FITTED, "features")
D, RIDGE = 4, 0.01


@pytest.fixture
def comm():
    return dist.init()


@pytest.fixture
def make(comm):
    return lambda method, **options: ClassStatistics(method, comm=comm, **{"seed": 3, "ridge": RIDGE, **options})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def correlated(n, seed=0, offset=2.0):
    """(n, D) float32 with unequal variances and correlations."""
    mixing = np.random.default_rng(7).normal(size=(D, D))
    rows = offset + np.random.default_rng(seed).normal(size=(n, D)) @ mixing
    return torch.tensor(rows, dtype=torch.float32)


# Centres far apart, unequal widths and shares.
CENTRES = 20.0 * np.eye(3, D)
SHARES, WIDTHS = (300, 150, 50), (0.5, 1.0, 2.0)


def mixture(seed=0):
    """Rows of three clusters, and the cluster of each."""
    random = np.random.default_rng(seed)
    rows = [centre + w * random.normal(size=(n, D)) for centre, w, n in zip(CENTRES, WIDTHS, SHARES, strict=True)]
    return torch.tensor(np.concatenate(rows), dtype=torch.float32), np.repeat(np.arange(3), SHARES)


def labelled(*parts):
    """One part per class 0, 1, ..., shuffled together."""
    x = torch.cat(parts)
    y = torch.cat([torch.full((len(part),), label) for label, part in enumerate(parts)])
    order = torch.randperm(len(y), generator=generator(1))
    return x[order], y[order]


def fitted(statistics, *parts, **options):
    statistics.fit(*labelled(*parts), range(len(parts)), **options)
    return statistics


def tensor(statistics, name, label=0, expert=0):
    return statistics.state_dict()[f"{label}.{expert}.{name}"].double().numpy()


# ---- what is stored


def test_moments_are_numpys_where_the_mean_is_far_larger_than_the_deviation(make):
    rows = correlated(500, offset=3000.0)
    pooled = rows.double().numpy()
    exact = np.cov(pooled, rowvar=False)  # unbiased
    once = (rows.T @ rows / len(rows) - torch.outer(rows.mean(0), rows.mean(0))).numpy()
    assert np.abs(once - exact).max() > 0.03  # the data does tell a wrong way from a right one
    ridge = RIDGE * np.eye(D)
    factor = tensor(fitted(make("covariance"), rows), "factor")
    np.testing.assert_allclose(factor @ factor.T, exact + ridge, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(tensor(fitted(make("variance"), rows), "std") ** 2, np.diag(exact + ridge), rtol=1e-6)
    root = tensor(fitted(make("low-rank"), rows), "root")
    assert root.shape == rows.shape
    np.testing.assert_allclose(root.T @ root, exact, rtol=1e-6, atol=1e-6)
    for method in FITTED:
        mean = fitted(make(method), rows).mean(0)
        assert mean.dtype == torch.float64
        np.testing.assert_allclose(mean, pooled.mean(0), rtol=1e-12)


def test_covariance_of_fewer_samples_than_dimensions_is_that_of_low_rank(make):
    rows = correlated(3)
    factor, root = (
        tensor(fitted(make(method), rows), name) for method, name in [("covariance", "factor"), ("low-rank", "root")]
    )
    np.testing.assert_allclose(factor @ factor.T, root.T @ root + RIDGE * np.eye(D), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", FITTED)
def test_a_class_of_one_sample_is_that_sample_and_the_ridge(make, method):
    row = correlated(1)
    drawn, _ = fitted(make(method), row).sample([0], 4000, generator())
    z = (drawn - row).double() / RIDGE**0.5
    assert tests.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3


def test_every_cluster_has_its_own_moments_and_share(make):
    rows, cluster = mixture()
    statistics = fitted(make("multi-centroid", centroids=3), rows)
    order = np.argsort(-tensor(statistics, "weight"))
    for k, stored in enumerate(order):
        members = rows.double().numpy()[cluster == k]
        np.testing.assert_allclose(tensor(statistics, "weight")[stored], len(members) / len(rows), rtol=1e-12)
        np.testing.assert_allclose(tensor(statistics, "mean")[stored], members.mean(0), rtol=1e-12, atol=1e-12)
        variance = members.var(0, ddof=1) + RIDGE
        np.testing.assert_allclose(tensor(statistics, "std")[stored] ** 2, variance, rtol=1e-6)
    np.testing.assert_allclose(statistics.mean(0), rows.double().numpy().mean(0), rtol=1e-9)


def test_a_centroid_of_one_member_has_the_variance_within_the_others(make):
    rows = torch.cat([mixture()[0], torch.full((1, D), -200.0)])
    statistics = fitted(make("multi-centroid", centroids=4), rows)
    alone = int(tensor(statistics, "weight").argmin())
    np.testing.assert_allclose(tensor(statistics, "mean")[alone], -200.0)
    parts = np.split(rows.double().numpy()[:-1], np.cumsum(SHARES)[:-1])
    within = sum(((part - part.mean(0)) ** 2).sum(0) for part in parts) / (len(rows) - 4)
    np.testing.assert_allclose(tensor(statistics, "std")[alone] ** 2, within + RIDGE, rtol=1e-6)


def test_with_no_more_samples_than_centroids_each_has_the_variance_of_the_class(make):
    rows = correlated(5)
    statistics = fitted(make("multi-centroid", centroids=10), rows)
    assert sorted(tensor(statistics, "mean").tolist()) == sorted(rows.double().tolist())
    variance = rows.double().numpy().var(0, ddof=1) + RIDGE
    np.testing.assert_allclose(tensor(statistics, "std") ** 2, np.tile(variance, (5, 1)), rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_samples_does_not_matter(make, method):
    rows = torch.cat([mixture()[0], mixture()[0][:40]])  # some twice
    first, second = (fitted(make(method, centroids=7), part) for part in (rows, rows.flip(0)))
    for name, value in first.state_dict().items():
        if name != "method":
            assert torch.equal(value, second.state_dict()[name]), name


# ---- k-means


def test_k_means_finds_clusters_that_lie_apart():
    rows, cluster = mixture()
    found = k_means(rows.double(), 3, generator())
    assert {tuple(pair) for pair in np.stack([cluster, found.numpy()], 1)} == {
        (k, int(found[cluster == k][0])) for k in range(3)
    }


def test_k_means_is_as_good_as_another_and_the_same_every_time():
    rows = torch.tensor(np.random.default_rng(4).normal(size=(400, 6)))
    found = k_means(rows, 8, generator(5))
    assert torch.equal(found, k_means(rows, 8, generator(5)))
    assert not torch.equal(found, k_means(rows, 8, generator(6)))
    assert sorted(found.unique().tolist()) == list(range(8))
    spread = sum(float((rows[found == k] - rows[found == k].mean(0)).square().sum()) for k in range(8))
    assert spread < 1.03 * KMeans(8, n_init=10, random_state=0).fit(rows.numpy()).inertia_


def test_k_means_gives_one_cluster_to_equal_rows():
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [3.0, 4.0], [1.0, 2.0]], dtype=torch.float64)
    found = k_means(rows, 4, generator())
    assert found.max() == 1
    assert len({int(found[i]) for i in (0, 2, 4)}) == 1
    assert found[1] == found[3] != found[0]


# ---- what is drawn


def moments_agree(drawn, mean, covariance, sigmas=5.0):
    """Every mean and every product moment within so many standard errors, these from the draws themselves."""
    x = drawn.double().numpy() - mean
    assert (np.abs(x.mean(0)) < sigmas * x.std(0) / len(x) ** 0.5).all()
    products = x[:, :, None] * x[:, None, :]
    error = sigmas * products.std(0) / len(x) ** 0.5
    assert (np.abs(products.mean(0) - covariance) < error).all(), (products.mean(0), covariance)


@pytest.mark.parametrize("method", ["covariance", "low-rank", "variance"])
def test_draws_have_the_moments_of_the_class(make, method):
    rows = correlated(60)
    drawn, _ = fitted(make(method), rows).sample([0], 40_000, generator(2))
    covariance = np.cov(rows.double().numpy(), rowvar=False) + RIDGE * np.eye(D)
    if method == "variance":
        covariance = np.diag(np.diag(covariance))
    mean = rows.double().numpy().mean(0)
    moments_agree(drawn, mean, covariance)
    # Normal, and not only of the right moments: squared Mahalanobis distances are chi-square.
    x = drawn.double().numpy()[:5000] - mean
    distance = np.einsum("ni,ij,nj->n", x, np.linalg.inv(covariance), x)
    assert tests.kstest(distance, tests.chi2(D).cdf).pvalue > 1e-3


def test_draws_of_a_mixture_have_its_moments_and_shares(make):
    rows, cluster = mixture()
    drawn, _ = fitted(make("multi-centroid", centroids=3), rows).sample([0], 40_000, generator(2))
    data = rows.double().numpy()
    mean, shares = data.mean(0), np.array(SHARES) / len(data)
    parts = [data[cluster == k] for k in range(3)]
    covariance = sum(
        share * (np.diag(part.var(0, ddof=1) + RIDGE) + np.outer(part.mean(0) - mean, part.mean(0) - mean))
        for share, part in zip(shares, parts, strict=True)
    )
    moments_agree(drawn, mean, covariance)
    nearest = np.square(drawn.double().numpy()[:, None] - CENTRES).sum(2).argmin(1)
    assert tests.chisquare(np.bincount(nearest), shares * len(drawn)).pvalue > 1e-3


def test_kept_features_are_some_of_the_class_and_drawn_alike_often(make):
    rows = correlated(50)
    statistics = fitted(make("features", centroids=8), rows)
    kept = statistics.state_dict()["0.0.features"]
    assert kept.dtype == torch.float16
    assert len(torch.unique(kept, dim=0)) == 8
    assert all((row == rows.half()).all(dim=1).any() for row in kept)
    np.testing.assert_allclose(statistics.mean(0), kept.double().mean(dim=0))
    drawn, _ = statistics.sample([0], 4000, generator(5))
    counts = (drawn[:, None] == kept.float()).all(dim=2).sum(dim=0)
    assert counts.sum() == 4000
    assert tests.chisquare(counts.numpy()).pvalue > 1e-3


def test_which_features_are_kept_depends_on_the_seed_and_all_are_where_there_are_few(make):
    rows = correlated(50)
    first, again, other = (fitted(make("features", seed=seed), rows).state_dict()["0.0.features"] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(fitted(make("features", centroids=90), rows).state_dict()["0.0.features"]) == 50
    with pytest.raises(UserError, match="class 0 are beyond what float16 holds"):
        fitted(make("features"), 1e6 * rows)


@pytest.mark.parametrize("method", METHODS)
def test_draws_come_class_by_class_in_float32_and_follow_the_generator(make, method):
    parts = [correlated(50), correlated(50) + 100, correlated(50) - 100]
    statistics = fitted(make(method), *parts)
    drawn, labels = statistics.sample([2, 0], 30, generator(4))
    assert (drawn.shape, drawn.dtype, labels.dtype) == ((60, D), torch.float32, torch.int64)
    assert labels.tolist() == [2] * 30 + [0] * 30
    assert (drawn[:30] < -50).all()
    assert (drawn[30:].abs() < 50).all()
    assert torch.equal(drawn, statistics.sample([2, 0], 30, generator(4))[0])
    assert not torch.equal(drawn, statistics.sample([2, 0], 30, generator(5))[0])


def test_experts_are_kept_apart_and_drawn_from_equally(make):
    statistics = make("covariance")
    for expert in (0, 3):
        statistics.fit(correlated(50) + 100 * expert, torch.zeros(50, dtype=torch.int64), [0], expert=expert)
    from_0, from_3 = (statistics.sample([0], 20, generator(), expert=expert)[0] for expert in (0, 3))
    assert (from_0 < 100).all()
    assert (from_3 > 200).all()
    n = 4000
    drawn, _ = statistics.sample([0], n, generator())
    of_3 = drawn[:, 0] > 150
    assert tests.binomtest(int(of_3.sum()), n, 0.5).pvalue > 1e-3
    # Rows are independent: neighbours come from the same expert half of the time.
    assert tests.binomtest(int((of_3[1:] == of_3[:-1]).sum()), n - 1, 0.5).pvalue > 1e-3
    torch.testing.assert_close(statistics.mean(0), (statistics.mean(0, 0) + statistics.mean(0, 3)) / 2)
    torch.testing.assert_close(statistics.mean(0, 3), statistics.mean(0, 0) + 300, rtol=1e-6, atol=1e-4)
    with pytest.raises(KeyError):
        statistics.sample([0], 1, generator(), expert=1)


def test_a_second_fit_replaces_the_first(make):
    statistics = fitted(make("covariance"), correlated(50))
    statistics.sample([0], 1, generator())
    fitted(statistics, correlated(50) + 1000)
    assert (statistics.sample([0], 50, generator())[0] > 900).all()
    assert statistics.classes == (0,)


def test_rows_of_other_classes_are_left_out(make):
    statistics = make("variance")
    x, y = labelled(correlated(30), correlated(30) + 100, correlated(30) + 200)
    statistics.fit(x, y, [1])
    assert statistics.classes == (1,)
    np.testing.assert_allclose(statistics.mean(1), (correlated(30) + 100).double().mean(0))


def test_half_precision_features_are_summed_in_float64(make):
    rows = correlated(200).half()
    np.testing.assert_allclose(fitted(make("covariance"), rows).mean(0), rows.double().mean(0), rtol=1e-12)


# ---- prototypes, bytes, state


def test_prototypes_are_the_means_and_every_centroid(make):
    parts = [mixture()[0], mixture()[0] + 7]
    ((features,), labels) = fitted(make("covariance"), *parts).prototypes()
    assert labels.tolist() == [0, 1]
    expected = torch.stack([part.double().mean(0) for part in parts])
    torch.testing.assert_close(features, expected, rtol=1e-12, atol=1e-12)
    statistics = fitted(make("multi-centroid", centroids=3), *parts)
    ((features,), labels) = statistics.prototypes()
    assert labels.tolist() == [0] * 3 + [1] * 3
    stored = np.concatenate([tensor(statistics, "mean", label) for label in (0, 1)])
    np.testing.assert_array_equal(features, stored)


@pytest.mark.parametrize("method", METHODS)
def test_prototypes_are_in_one_order_however_often_they_were_saved(make, method):
    statistics = make(method, centroids=3)
    for label in (2, 0, 1, 0):  # the last in place of the second
        rows = correlated(20, label + len(statistics.classes))
        statistics.fit(rows, torch.full((20,), label), [label])
    again = make(method, centroids=3)
    again.load_state_dict(statistics.state_dict())
    (before, labels), (after, read) = statistics.prototypes(), again.prototypes()
    assert torch.equal(torch.cat(before), torch.cat(after))
    assert torch.equal(labels, read)
    assert list(dict.fromkeys(labels.tolist())) == [2, 1, 0]


@pytest.mark.parametrize(
    ("method", "numbers"),
    [("covariance", D * D), ("variance", D), ("multi-centroid", 3 * D), ("low-rank", 500 * D + 1)],
)
def test_bytes_are_float64_means_and_float32_spreads(make, method, numbers):
    means, weights = (3, 3) if method == "multi-centroid" else (1, 0)
    expected = 8 * (means * D + weights) + 4 * numbers
    assert fitted(make(method, centroids=3), mixture()[0]).bytes == expected


@pytest.mark.parametrize("method", METHODS)
def test_state_read_back_draws_the_same(make, method):
    statistics = fitted(make(method), correlated(40), correlated(40) + 9)
    statistics.fit(*labelled(correlated(30)), [0], expert=2)
    stream = io.BytesIO()
    torch.save(statistics.state_dict(), stream)
    stream.seek(0)
    other = fitted(make(method), *[correlated(5)] * 4)
    other.load_state_dict(torch.load(stream, weights_only=True))
    assert other.classes == (0, 1)
    assert other.bytes == statistics.bytes
    for one, same in zip(
        statistics.sample([1, 0], 50, generator()), other.sample([1, 0], 50, generator()), strict=True
    ):
        assert torch.equal(one, same)


# ---- mistakes


def test_values_out_of_range_are_named(make):
    with pytest.raises(UserError, match=r"'covarance' are unknown, did you mean 'covariance'\?"):
        make("covarance")
    with pytest.raises(UserError, match="centroids=0"):
        make("multi-centroid", centroids=0)
    with pytest.raises(UserError, match=r"ridge=0\b"):
        make("variance", ridge=0)


def test_bad_features_are_named_and_change_nothing(make):
    statistics = fitted(make("covariance"), correlated(20), correlated(20))
    before = statistics.sample([0, 1], 5, generator())[0]
    with pytest.raises(UserError, match="class 2 has no sample on any rank"):
        statistics.fit(*labelled(correlated(10) + 50), [0, 2])
    with pytest.raises(UserError, match="class 1 are not finite"):
        statistics.fit(*labelled(correlated(10), correlated(10) * float("nan")), [0, 1])
    assert torch.equal(before, statistics.sample([0, 1], 5, generator())[0])


def test_ranks_with_different_bits_are_named(make, comm, monkeypatch):
    statistics = make("variance")
    monkeypatch.setattr(
        comm, "allgather_object", lambda value, name: [value, value, "other"] if "sum" in name else [value]
    )
    with pytest.raises(RuntimeError, match=r"of rank 2 differ from rank 0's \(expert 0, classes \[0\]\)"):
        statistics.fit(*labelled(correlated(10)), [0])
    assert statistics.classes == ()


def test_a_ridge_that_rounding_swallows_is_named(make):
    rows = torch.tensor([[1e6] * D, [-1e6] * D])
    with pytest.raises(UserError, match=r"ridge=1e-08 is lost beside the variance of class 0"):
        fitted(make("covariance", ridge=1e-8), rows)


def test_state_of_another_method_is_refused(make):
    state = fitted(make("variance"), correlated(10)).state_dict()
    with pytest.raises(UserError, match="'variance', here they are 'covariance'"):
        make("covariance").load_state_dict(state)


def test_classes_that_come_again_one_by_one_leave_nothing_behind(make):
    statistics = make("variance")
    statistics.fit(*labelled(correlated(20, 1), correlated(20, 2)), [0, 1])
    size = statistics.bytes
    for seed in (3, 4):
        for label in (0, 1):
            rows = correlated(20, seed + label)
            statistics.fit(rows, torch.full((20,), label), [label])
            np.testing.assert_allclose(statistics.mean(label), rows.double().mean(dim=0), rtol=1e-12)
    assert statistics.bytes == size
    assert len(statistics._shelves) == 2
    with pytest.raises(KeyError, match="no statistics of class 2"):
        statistics.mean(2)
    with pytest.raises(KeyError, match="no statistics of class 0 under expert 5"):
        statistics.mean(0, expert=5)
