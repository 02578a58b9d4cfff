import pytest

from tests.blank_pictures import draw_again, draw_none


@pytest.fixture(autouse=True, scope="module")
def _blank_pictures():
    with pytest.MonkeyPatch.context() as patch:
        draw_none(patch)
        yield


@pytest.fixture
def drawn_pictures(monkeypatch):
    """Draw the pictures of this test."""
    draw_again(monkeypatch)
