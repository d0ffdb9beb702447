"""One program that forks ranks for all tests of a module."""

import pytest
from group import Group


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    made = Group(tmp_path_factory.mktemp("ranks"))
    yield made
    made.close()
