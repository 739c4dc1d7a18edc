"""Distances have known values, independent of order, blocks and number of images."""

import importlib.util

import numpy as np
import pytest
import scipy.linalg

from data_pipelines.utils.npz import NpzError
from evals.distances import kernels
from evals.distances.frechet import (
    frechet,
    frechet_of_features,
    inception_score,
    trace_of_root,
)
from evals.distances.kernels import kid, mmd_gaussian
from evals.distances.neighbours import density_coverage, precision_recall
from evals.distances.statistics import Statistics, check_features, disjoint
from evals.features.base import FeatureError
from tests.evals.reference import GOLDEN, golden_module


def gaussian(n, d, seed=0, mean=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(mean, scale, (n, d)).astype(np.float32)


def correlated(n, d, seed=0):
    """Like Inception's: non-negative, correlated, with very different scales."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / np.sqrt(d)
    return (np.maximum(mixed + 0.3, 0) * np.geomspace(1e-3, 1, d)).astype(np.float32)


def random_covariance(d, seed):
    factor = np.random.default_rng(seed).normal(size=(d, 2 * d))
    return factor @ factor.T / (2 * d)


def by_square_root(a, b):
    """The definition, by SciPy's matrix square root."""
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    difference = a.mean - b.mean
    return difference @ difference + np.trace(a.covariance + b.covariance - 2 * root.real)


def test_with_equal_covariances_the_distance_is_that_of_the_means():
    covariance = random_covariance(20, 0)
    first, second = gaussian(2, 20)
    a, b = Statistics(first, covariance), Statistics(second, covariance)
    expected = np.square(np.float64(first) - second).sum()
    assert frechet(a, b) == pytest.approx(expected, rel=1e-12)


def test_with_commuting_covariances_the_distance_is_that_of_root_eigenvalues():
    rotation = np.linalg.qr(gaussian(20, 20).astype(np.float64))[0]
    ours, theirs = np.random.default_rng(1).uniform(0.1, 5, (2, 20))
    a = Statistics(np.zeros(20), rotation * ours @ rotation.T)
    b = Statistics(np.zeros(20), rotation * theirs @ rotation.T)
    expected = np.square(np.sqrt(ours) - np.sqrt(theirs)).sum()
    assert frechet(a, b) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n", [200, 30])
def test_the_trace_term_is_that_of_the_matrix_square_root(n):
    a, b = Statistics.of(correlated(n, 40, 1)), Statistics.of(correlated(n + 7, 40, 2))
    assert frechet(a, b) == pytest.approx(by_square_root(a, b), rel=1e-5 if n < 40 else 1e-9)


def test_the_trace_term_is_not_that_of_the_symmetrised_product():
    """`eigvalsh(S1 @ S2)` reads one triangle of a product that is not symmetric."""
    a = Statistics(np.zeros(8), random_covariance(8, 1))
    b = Statistics(np.zeros(8), random_covariance(8, 2))
    wrong = np.sqrt(np.abs(np.linalg.eigvalsh(a.covariance @ b.covariance))).sum()
    right = scipy.linalg.sqrtm(a.covariance @ b.covariance).trace()
    assert trace_of_root(a, b) == pytest.approx(right, rel=1e-10)
    assert abs(wrong - right) > 1e-3


@pytest.mark.parametrize(("n", "d"), [(100, 30), (20, 50)])
def test_a_set_is_at_distance_zero_from_itself_and_from_its_permutation(n, d):
    features = correlated(n, d)
    shuffled = features[np.random.default_rng(0).permutation(n)]
    scale = np.trace(Statistics.of(features).covariance)
    assert abs(frechet(Statistics.of(features), Statistics.of(features))) < 1e-9 * scale
    assert abs(frechet(Statistics.of(features), Statistics.of(shuffled))) < 1e-9 * scale


@pytest.mark.parametrize("sizes", [(80, 90), (12, 90), (80, 9), (12, 9)])
def test_the_distance_is_symmetric(sizes):
    a, b = Statistics.of(correlated(sizes[0], 40, 1)), Statistics.of(correlated(sizes[1], 40, 2))
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-9)


def test_with_fewer_images_than_dimensions_roots_equal_full_covariances():
    x, y = correlated(30, 64, 1), correlated(25, 64, 2)
    few, other = Statistics.of(x), Statistics.of(y)
    assert few.root is not None
    full = Statistics(few.mean, np.cov(x.T.astype(np.float64)), n=30)
    assert frechet(few, other) == pytest.approx(by_square_root(full, other), rel=1e-4)
    assert frechet(full, other) == pytest.approx(frechet(few, other), rel=1e-6)


def test_features_far_from_zero_keep_their_accuracy():
    """In float32, or without centring, the covariance would be noise."""
    features = gaussian(500, 10, scale=1e-3).astype(np.float64) + 1e3
    expected = np.cov(features.T)
    np.testing.assert_allclose(Statistics.of(features).covariance, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("n", [25, 9000])
def test_statistics_in_blocks_equal_those_of_all_features(n):
    features = correlated(n, 40)
    found = Statistics.of(features)
    np.testing.assert_allclose(found.mean, features.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(
        found.covariance, np.cov(features.T.astype(np.float64)), rtol=1e-9, atol=1e-14
    )


def test_without_undoes_merged():
    x, y = correlated(100, 20, 1), correlated(50, 20, 2)
    both = Statistics.of(x).merged(Statistics.of(y))
    left = both.without(Statistics.of(y))
    np.testing.assert_allclose(left.mean, Statistics.of(x).mean, rtol=1e-10)
    np.testing.assert_allclose(left.covariance, Statistics.of(x).covariance, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("n", "d"), [(400, 10), (60, 100)])
def test_the_standard_error_is_the_deviation_over_other_samples(n, d):
    references = Statistics.of(gaussian(4 * n, d, 99, mean=0.5))
    estimates = [frechet_of_features(gaussian(n, d, seed), references) for seed in range(20)]
    spread = np.std([estimate.value for estimate in estimates], ddof=1)
    stated = np.mean([estimate.standard_error for estimate in estimates])
    assert 0.5 * spread < stated < 2 * spread
    plain = frechet(Statistics.of(gaussian(n, d, 0)), references)
    assert estimates[0].value == pytest.approx(plain, rel=1e-10)


def test_too_few_images_have_a_distance_but_no_standard_error():
    estimate = frechet_of_features(gaussian(5, 3), Statistics.of(gaussian(50, 3, 1)))
    assert np.isfinite(estimate.value) and np.isnan(estimate.standard_error)


def brute_force_mmd(x, y, kernel):
    x, y = x.astype(np.float64), y.astype(np.float64)
    own = [kernel(z, z) for z in (x, y)]
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in own]
    return sum(within) - 2 * kernel(x, y).mean()


@pytest.mark.parametrize("sizes", [(60, 60), (60, 41), (5, 7), (2, 3)])
def test_kid_is_the_unbiased_mmd(sizes):
    x, y = gaussian(sizes[0], 8, 1), gaussian(sizes[1], 8, 2, mean=0.2)
    assert kid(x, y).value == pytest.approx(brute_force_mmd(x, y, kernels.polynomial), rel=1e-9)
    assert kid(x, y).value == pytest.approx(kid(y, x).value, rel=1e-9)


def test_kid_of_many_images_is_averaged_over_groups(monkeypatch):
    monkeypatch.setattr(kernels, "GROUP_SIZE", 50)
    x, y = gaussian(200, 8, 1), gaussian(150, 8, 2, mean=0.5)
    whole, grouped = brute_force_mmd(x, y, kernels.polynomial), kid(x, y)
    assert grouped.value != pytest.approx(whole, rel=1e-9)
    assert abs(grouped.value - whole) < 4 * grouped.standard_error


def test_kids_standard_error_is_its_deviation():
    estimates = [
        kid(gaussian(200, 8, seed), gaussian(200, 8, seed + 100, mean=0.3)) for seed in range(20)
    ]
    spread = np.std([estimate.value for estimate in estimates], ddof=1)
    assert 0.5 * spread < np.mean([e.standard_error for e in estimates]) < 2 * spread


def test_the_gaussian_mmd_is_that_of_unit_vectors():
    x, y = gaussian(40, 8, 1), gaussian(50, 8, 2, mean=0.4)
    units = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y)]
    expected = 1000 * brute_force_mmd(*units, kernels.gaussian(10.0))
    assert mmd_gaussian(x, y).value == pytest.approx(expected, rel=1e-4)


def test_repeating_one_good_image_gives_precision_without_recall():
    """Precision and recall are easily swapped."""
    references = gaussian(300, 4, 1)
    collapsed = references[:1] + gaussian(300, 4, 2, scale=1e-3)
    found = precision_recall(collapsed, references)
    assert found.precision == 1.0 and found.recall < 0.05
    spread = precision_recall(gaussian(300, 4, 3, scale=5), references)
    assert spread.precision < 0.5 < spread.recall
    assert density_coverage(collapsed, references).coverage < 0.05
    assert density_coverage(gaussian(300, 4, 3), references).coverage > 0.9


def test_density_is_one_for_samples_of_the_same_distribution():
    found = density_coverage(gaussian(1500, 4, 1), gaussian(1500, 4, 2))
    assert 0.9 < found.density < 1.1


def test_precision_density_and_coverage_equal_their_definition():
    x, y = gaussian(50, 3, 1), gaussian(60, 3, 2)
    to = np.linalg.norm(x[:, None].astype(np.float64) - y[None], axis=2)
    radii = np.sort(np.linalg.norm(y[:, None].astype(np.float64) - y[None], axis=2), axis=1)
    found = precision_recall(x, y, k=3)
    assert found.precision == np.mean((to <= radii[:, 3]).any(1))
    density = density_coverage(x, y, k=5)
    assert density.density == pytest.approx((to <= radii[:, 5]).sum() / (5 * 50))
    assert density.coverage == np.mean(to.min(0) <= radii[:, 5])


def test_inception_score_of_certain_balanced_classes_is_their_number():
    logits = np.tile(np.eye(10) * 50, (100, 1))
    assert inception_score(logits, splits=1).value == pytest.approx(10, rel=1e-9)
    assert 9 < inception_score(logits).value < 10  # parts are not quite balanced
    assert inception_score(np.zeros((100, 10))).value == pytest.approx(1, abs=1e-12)


def test_features_that_are_not_finite_are_rejected_with_their_number():
    features = gaussian(20, 4)
    features[7, 2] = np.nan
    for use in (Statistics.of, lambda x: kid(x, x), lambda x: precision_recall(x, x)):
        with pytest.raises(FeatureError, match="1 of 20 feature vectors hold NaN.*number 7"):
            use(features)


def test_too_few_images_are_rejected():
    with pytest.raises(FeatureError, match=r"found features of shape \(1, 4\)"):
        Statistics.of(gaussian(1, 4))
    with pytest.raises(FeatureError, match="found 3 images, expected more than 3"):
        precision_recall(gaussian(9, 4), gaussian(3, 4))
    with pytest.raises(FeatureError, match="of 4 and of 5 dimensions"):
        frechet(Statistics.of(gaussian(9, 4)), Statistics.of(gaussian(9, 5)))


METADATA = {"extractor": "digits", "main": "hidden", "settings": {"resize": "clean"}}


@pytest.mark.parametrize(("n", "d"), [(50, 10), (10, 50)])
def test_saved_statistics_give_the_same_distance(tmp_path, n, d):
    ours, theirs = Statistics.of(correlated(n, d, 1)), Statistics.of(correlated(n, d, 2))
    ours.save(tmp_path / "stats.npz", METADATA)
    loaded, about = Statistics.load(tmp_path / "stats.npz")
    assert about == METADATA and loaded.n == n
    assert frechet(loaded, theirs) == frechet(ours, theirs)


def test_statistics_of_other_tools_are_read(tmp_path):
    ours = Statistics.of(correlated(50, 10))
    np.savez_compressed(tmp_path / "theirs.npz", mu=ours.mean, sigma=ours.covariance)
    loaded, about = Statistics.load(tmp_path / "theirs.npz")
    assert (loaded.n, about) == (None, {})
    np.testing.assert_array_equal(loaded.covariance, ours.covariance)


def test_other_tools_read_ours(tmp_path):
    """pytorch-fid: `f["mu"][:], f["sigma"][:]`."""
    ours = Statistics.of(correlated(10, 50))
    ours.save(tmp_path / "stats.npz", {})
    with np.load(tmp_path / "stats.npz") as file:
        np.testing.assert_array_equal(file["mu"][:], ours.mean)
        np.testing.assert_array_equal(file["sigma"][:], ours.covariance)


def test_unusable_files_of_statistics_are_rejected(tmp_path):
    path = tmp_path / "stats.npz"
    with pytest.raises(NpzError, match="stats.npz"):
        Statistics.load(path)
    path.write_bytes(b"PK\x03\x04 truncated")
    with pytest.raises(NpzError, match="stats.npz"):
        Statistics.load(path)
    np.savez(path, arr_0=np.zeros(3))
    with pytest.raises(FeatureError, match="expected the arrays mu and sigma"):
        Statistics.load(path)
    np.savez(path, mu=np.zeros(3), sigma=np.zeros((4, 4)))
    with pytest.raises(FeatureError, match=r"mean of shape \(3,\)"):
        Statistics.load(path)
    np.savez(path, mu=np.full(3, np.nan), sigma=np.eye(3))
    with pytest.raises(FeatureError, match="not finite"):
        Statistics.load(path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"sigma": np.diag([1.0, 1.0, -5.0])}, r"stats\.npz: sigma has the eigenvalue -5"),
        ({"sigma": np.triu(np.ones((3, 3)))}, r"stats\.npz: sigma is not symmetric"),
        ({"sigma": np.full((3, 3), np.inf)}, r"stats\.npz: .*not finite"),
        ({"mu": np.array(["a", "b", "c"])}, r"stats\.npz: mu is of type <U1"),
        ({"sigma": np.eye(3) * 1j}, r"stats\.npz: sigma is of type complex128"),
        ({"n": np.array([3, 4])}, r"stats\.npz: n is \[3, 4\]"),
        ({"n": np.array(2.5)}, r"stats\.npz: n is 2\.5"),
    ],
)
def test_statistics_that_are_none_are_refused_by_the_name_of_their_file(tmp_path, arrays, message):
    path = tmp_path / "stats.npz"
    np.savez(path, **{"mu": np.zeros(3), "sigma": np.eye(3), **arrays})
    with pytest.raises(FeatureError, match=message):
        Statistics.load(path)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_and_other_tools_metadata_are_accepted(tmp_path, dtype):
    features = gaussian(20, 40).astype(dtype)  # fewer than dimensions: singular
    sigma = np.cov(features.T).astype(dtype)
    assert np.linalg.eigvalsh(sigma)[0] < 1e-6
    path = tmp_path / "stats.npz"
    np.savez(path, mu=features.mean(0), sigma=sigma, metadata=np.array("FFHQ"))
    found, metadata = Statistics.load(path)
    assert (found.n, metadata) == (None, {})


def test_a_pickle_in_a_file_of_statistics_is_not_loaded(tmp_path):
    path = tmp_path / "stats.npz"
    np.savez(path, mu=np.array([{"an": "object"}], dtype=object), sigma=np.eye(1))
    with pytest.raises(NpzError, match="allow_pickle"):
        Statistics.load(path)


def test_parts_are_disjoint_and_nearly_equal():
    parts = disjoint(23, 5)
    assert sorted(np.concatenate(parts).tolist()) == list(range(23))
    assert {len(part) for part in parts} == {4, 5}
    assert check_features(np.ones((2, 1))).shape == (2, 1)


def check_metrics(theirs):
    generated, references, logits = golden_module("weights").features()
    statistics = Statistics.of(references)
    found = {
        "fid": frechet(Statistics.of(generated), statistics),
        "kid": kid(generated, references).value,
        "inception_score": inception_score(logits).value,
        **precision_recall(generated, references)._asdict(),
    }
    assert 0 < theirs["recall"] != theirs["precision"] < 1  # the values distinguish the two
    for name, value in found.items():
        assert value == pytest.approx(float(theirs[name]), abs=1e-6, rel=1e-6), name


def test_metrics_equal_those_of_torch_fidelity_and_pytorch_fid():
    with np.load(GOLDEN / "golden.npz") as arrays:
        metrics = {
            name.removeprefix("metric_"): arrays[name]
            for name in arrays.files
            if name.startswith("metric_")
        }
    assert len(metrics) == 5
    check_metrics(metrics)


@pytest.mark.parity
@pytest.mark.skipif(
    any(importlib.util.find_spec(n) is None for n in ("torch", "torch_fidelity", "pytorch_fid")),
    reason="needs torch, torch-fidelity and pytorch-fid, see tests/golden/inception/reference.py",
)
def test_parity_of_metrics():
    check_metrics(golden_module("reference").metrics(*golden_module("weights").features()))
