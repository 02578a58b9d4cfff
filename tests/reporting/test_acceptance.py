"""What became of drafts: shares by hand, notes and the picture of a comparison."""

from dataclasses import replace

import numpy as np

from hsdlab.reporting.acceptance import acceptance_figure, acceptance_notes, accepted_by_place
from hsdlab.reporting.comparison import comparison_markdown, write_comparison
from tests.results import compared, example, with_cost


def verified(result):
    """The result as that of a strategy that verified drafts: 3 of 4, 0 of 4 and 2 of 2 were accepted."""
    examples = (
        replace(result.examples[0], drafts=((4, 3), (4, 0))),
        replace(result.examples[1], drafts=((2, 2),)),
    )
    drafted = {"verifications": 3, "draft_tokens": 10, "accepted_drafts": 5}
    return replace(with_cost(result, **drafted), examples=examples, name="Verified(draft=HSD())")


def test_the_share_of_each_place_is_of_the_drafts_that_reached_it(hsd):
    shares = accepted_by_place(verified(hsd).examples)
    np.testing.assert_allclose(shares, [2 / 3, 2 / 3, 1 / 2, 0])


def test_without_drafts_there_is_nothing(hsd, full_depth):
    assert len(accepted_by_place([example("a", 0.5, 2, 3)])) == 0
    comparison = compared(full_depth, hsd)
    assert acceptance_notes(comparison.rows) == []
    assert acceptance_figure(comparison.rows, [full_depth, hsd]) is None


def test_a_comparison_says_and_draws_it(hsd, full_depth, tmp_path):
    results = [full_depth, verified(hsd)]
    comparison = compared(*results)
    assert [row.verifies for row in comparison.rows] == [False, True]
    note, explained = acceptance_notes(comparison.rows)
    assert "50% of the drafted tokens were accepted" in note
    assert "33.33 tokens per verification" in note
    assert "rejected ones too" in explained
    assert not comparison.rows[1].faster_than_its_layers
    figure = acceptance_figure(comparison.rows, results)
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [2 / 3, 2 / 3, 1 / 2, 0])
    write_comparison(comparison, results, tmp_path)
    assert (tmp_path / "acceptance.png").stat().st_size > 1000
    assert "](acceptance.png)" in comparison_markdown(comparison)
    write_comparison(compared(full_depth, hsd), [full_depth, hsd], tmp_path / "other")
    assert not (tmp_path / "other" / "acceptance.png").exists()
