"""A bucket on the local disk."""

import pytest


@pytest.fixture
def bucket(tmp_path):
    """`gs://bucket`, stored in a local folder."""
    from etils.epath import testing

    def local(path):
        return str(path).replace("gs://bucket", str(tmp_path), 1)

    def remote(path):
        return str(path).replace(str(tmp_path), "gs://bucket", 1)

    def listed(original, path, **options):
        for top, folders, names in original(local(path), **options):
            yield remote(top), folders, names

    with testing.mock_epath(
        open=lambda original, path, mode: original(local(path), mode),
        exists=lambda original, path: original(local(path)),
        isdir=lambda original, path: original(local(path)),
        glob=lambda original, path: [remote(found) for found in original(local(path))],
        walk=listed,
    ):
        yield tmp_path
