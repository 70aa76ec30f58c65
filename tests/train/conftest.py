import os

import pytest


@pytest.fixture(scope="module", autouse=True)
def _elsewhere(tmp_path_factory):
    """A run without `out` lies in `runs`; a caller's own runs there are no concern."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)
