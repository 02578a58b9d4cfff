"""What the runs of several strategies share."""

import pytest

from hsdlab import FullDepth
from hsdlab.errors import RunError
from hsdlab.runs.strategies import strategy_result
from tests.modules.test_decode import module


def test_a_run_that_decoded_nothing_is_an_error(tmp_path):
    with pytest.raises(RunError, match=r"predictions\.jsonl holds no prediction: nothing was decoded"):
        strategy_result(module(), FullDepth(), {}, tmp_path / "predictions.jsonl")
