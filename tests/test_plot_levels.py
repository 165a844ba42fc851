"""Rows of levels: what is drawn and said are the levels that were given."""

import pytest
import torch

from quantlab import plot
from quantlab.floats import FP8_E5M2


def test_each_level_is_drawn_once_in_the_row_of_its_name():
    picture = plot.level_lines({"thirds": [-1, 0, 0, 1], "halves": torch.tensor([0.0, 0.5, 1.0])})
    rows = [c.get_segments() for c in picture.figure.axes[0].collections]
    assert [[line[0][0] for line in row] for row in rows] == [[-1, 0, 1], [0, 0.5, 1]]
    assert [row[0][:, 1].mean() for row in rows] == [0, 1]
    labels = [text.get_text() for text in picture.figure.axes[0].get_yticklabels()]
    assert labels == ["thirds", "halves"]


def test_the_sentence_counts_finite_levels_and_names_the_gaps():
    picture = plot.level_lines({"E5M2": FP8_E5M2.values(), "one": [3.0]})
    assert picture.sentence == (
        "Levels: E5M2 247 from -57,344 to 57,344, gaps 1.53e-05 to 8,192; "
        "one 1 from 3 to 3, gaps 0 to 0."
    )


def test_the_same_levels_give_the_same_bytes():
    first, second = (plot.level_lines({"a": [0, 1, 4]}).png() for _ in range(2))
    assert first == second


def test_a_list_without_a_number_is_refused_by_name():
    with pytest.raises(ValueError, match="no levels to draw; pass at least one"):
        plot.level_lines({})
    with pytest.raises(ValueError, match="empty holds no finite value"):
        plot.level_lines({"empty": [float("nan")]})
