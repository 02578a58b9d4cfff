import pytest

from tests.blank_pictures import draw_none


@pytest.fixture(autouse=True, scope="module")
def _blank_pictures():
    with pytest.MonkeyPatch.context() as patch:
        draw_none(patch)
        yield
