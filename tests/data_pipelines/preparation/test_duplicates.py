"""Byte-identical images: one of each group is kept, across splits and shards."""

import pytest

from data_pipelines.preparation import duplicates, finish, job
from data_pipelines.shards.reader import Shards
from data_pipelines.utils.files import read_json_lines
from tests.data_pipelines.preparation.helpers import keys, make_photos, png, run


@pytest.fixture
def repeated(tmp_path):
    """40 images, of which c/* and d/* repeat some."""
    folder = tmp_path / "repeated"
    folder.mkdir()
    make_photos(folder, 40)
    for name in ("c", "d"):
        (folder / name).mkdir()
        for number in range(0, 40, 4):
            (folder / name / f"{number}.png").write_bytes(png(number))
    return folder


def test_the_smallest_key_of_equal_files_is_kept_across_splits(repeated, tmp_path):
    out = run(repeated, tmp_path / "out", eval_fraction=0.4, drop_duplicates=True, copies=1)
    kept = keys(out)[::2] + keys(out, "eval")
    assert sorted(kept) == sorted(key for key in kept if key[0] in "ab")
    assert len(kept) == 40
    lines = read_json_lines((tmp_path / "out" / finish.DUPLICATES).read_bytes())
    assert len(lines) == 20
    for line in lines:
        assert (repeated / line["key"]).read_bytes() == (repeated / line["kept"]).read_bytes()
        assert line["kept"] < line["key"]
    train = Shards(out)
    for number, tokens in enumerate(train.read(range(len(train)))):
        assert len(tokens) == train.lengths[number]
        assert train.find(train.key(number), train.copy(number)) == number
    with pytest.raises(KeyError, match="duplicate"):
        Shards(out, lines[0]["shard"].split("-")[0]).find(lines[0]["key"])


def test_dropped_images_do_not_depend_on_the_number_of_shards(repeated, tmp_path):
    dropped = [
        sorted(keys(run(repeated, tmp_path / str(n), num_shards=n, drop_duplicates=True)))
        for n in (1, 7)
    ]
    assert dropped[0] == dropped[1]
    assert len(dropped[0]) == 40


def test_duplicates_do_not_depend_on_the_size_of_slices(repeated, tmp_path):
    out = run(repeated, tmp_path / "out")
    names = [name for _, name in job.read_job(out).names()]
    whole = duplicates.find(out, names, 60)
    sliced = duplicates.find(out, names, 60, images_at_once=7)
    assert len(whole.lines) == 20
    assert whole.lines == sliced.lines
    assert {n: rows.tolist() for n, rows in whole.images.items()} == {
        n: rows.tolist() for n, rows in sliced.images.items()
    }


def test_without_the_option_duplicates_are_kept(repeated, tmp_path):
    assert len(keys(run(repeated, tmp_path / "out"))) == 60
