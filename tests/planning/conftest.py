"""What most tests of planning plan with."""

from __future__ import annotations

import pytest
from recipes import models_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three llamas of four layers; see :func:`recipes.models_folder`."""
    return models_folder(tmp_path_factory.mktemp("models"))
