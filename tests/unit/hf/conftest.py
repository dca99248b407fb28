"""Fixtures shared with tests/unit/model."""

from tests.unit.model.conftest import alone  # noqa: F401
