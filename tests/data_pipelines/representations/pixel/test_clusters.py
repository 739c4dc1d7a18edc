"""Colour clusters: k-means as scikit-learn's, exact nearest centres, and their file."""

import io

import numpy as np
import pytest
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from data_pipelines.representations.pixel import clusters
from data_pipelines.representations.pixel.clusters import Centres
from tests.data_pipelines.representations.pixel.pictures import noise, pixels_of, trained


def file_of(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(("channels", "count"), [(1, 9), (3, 40)])
def test_the_nearest_centre_is_the_one_that_scikit_learn_predicts(channels, count, monkeypatch):
    centres = trained(channels, count)
    pixels = pixels_of(noise(70, 50, "RGB" if channels == 3 else "L", seed=1))
    model = KMeans(count, n_init=1, max_iter=1).fit(centres.colours.astype(float))
    model.cluster_centers_ = centres.colours.astype(float)
    nearest = centres.nearest(pixels)
    np.testing.assert_array_equal(nearest, model.predict(pixels.astype(float)))
    monkeypatch.setattr(clusters, "_AT_ONCE", 3 * count)
    np.testing.assert_array_equal(centres.nearest(pixels), nearest)


def test_of_equally_near_centres_the_first_is_taken():
    centres = Centres.of(np.array([[10], [20], [30]], np.uint8))
    found = centres.nearest(np.array([[0], [15], [16], [25], [255]], np.uint8))
    assert found.tolist() == [0, 0, 1, 1, 2]


def test_training_finds_the_clusters_that_are_there():
    rng = np.random.default_rng(0)
    true = np.array([[20, 20, 20], [200, 30, 40], [90, 220, 60], [240, 240, 240]])
    which = rng.choice(4, 3000, p=[0.7, 0.1, 0.1, 0.1])
    pixels = (true[which] + rng.integers(-5, 6, (3000, 3))).astype(np.uint8)
    found = clusters.train(pixels, 4)
    assert np.abs(found.colours.astype(int) - true).max() <= 1
    assert found.nearest(pixels).tolist() == which.tolist(), "sorted by brightness"


def test_training_depends_on_no_order_and_no_number_of_threads():
    pixels = pixels_of(noise(60, 60))
    with threadpool_limits(1):
        first = clusters.train(pixels, 32)
    assert clusters.train(pixels[::-1], 32) == first
    assert hash(first) == hash(clusters.train(pixels, 32))
    assert clusters.train(pixels, 32, seed=1) != first


def test_centres_stay_distinct_when_rounding_makes_some_equal():
    levels = np.arange(200, 231, dtype=np.uint8)
    pixels = np.repeat(levels, 1 + 50 * (levels % 2))[:, None]
    for count in (20, 30, 31):
        found = clusters.train(pixels, count)
        assert len(np.unique(found.colours)) == count
    assert found.colours.ravel().tolist() == levels.tolist()


def test_fewer_colours_than_clusters_are_refused():
    pixels = np.repeat(np.arange(5, dtype=np.uint8), 9)[:, None]
    with pytest.raises(ValueError, match="5 distinct colours.*clusters=6.*tokenizer_documents"):
        clusters.train(pixels, 6)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "cannot be read"),
        (b"no array at all", "cannot be read"),
        (file_of(np.zeros((4, 3), np.uint8))[:-1], "cannot be read"),
        (file_of(np.array([{}, {}])), "cannot be read"),
        (file_of(np.linspace(-1, 1, 12).reshape(4, 3)), "are float64"),
        (file_of(np.arange(8, dtype=np.uint8).reshape(4, 2)), r"shape \(4, 2\)"),
        (file_of(np.arange(8, dtype=np.uint8)), r"shape \(8,\)"),
        (file_of(np.zeros((4, 3), np.uint8)), "two of the 4"),
    ],
    ids=["empty", "text", "cut", "objects", "float", "channels", "flat", "equal"],
)
def test_other_files_are_refused(content, named):
    with pytest.raises(ValueError, match=f"{named}.*expected an .npy file of distinct centres"):
        Centres(content)
