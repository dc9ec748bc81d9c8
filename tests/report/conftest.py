"""One run on the drawn dataset, and its page, for all tests that leave them as they are."""

from pathlib import Path

import pytest
from drawn_run import make_data, make_page, make_run


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def page(data, tmp_path_factory) -> Path:
    return make_page(make_run(data, tmp_path_factory.mktemp("run")))
