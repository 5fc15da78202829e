"""Labels: one rule for every format, and no guess where two readings differ."""

import numpy as np
import pytest

from dfolora.data.labels import check_labels, read_labels
from dfolora.errors import UserError

STARS = ("1", "2", "3")


@pytest.mark.parametrize(
    ("classes", "spellings"),
    [
        (("no", "yes"), [[1, 0], ["1", "0"], [1.0, 0.0], ["yes", "no"], np.array([1, 0])]),
        (("0", "1"), [[1, 0], ["1", "0"], ["1.0", "0.0"]]),  # both readings are the same
        (("false", "true"), [[True, False], ["true", "false"], ["True", "False"], [1, 0]]),
        (("False", "True"), [[True, False], np.array([True, False]), ["true", "false"]]),
        (("0.5", "1.5"), [[1.5, 0.5], ["1.5", "0.5"]]),
    ],
)
def test_one_label_is_the_same_class_however_it_is_written(classes, spellings):
    for column in spellings:
        assert read_labels(column, classes, "here") == [1, 0]


@pytest.mark.parametrize("kind", [int, str, float])
@pytest.mark.parametrize(
    ("classes", "column", "expected"),
    [
        (STARS, [3, 1, 2], [2, 0, 1]),  # 3 is no position
        (STARS, [2, 0, 1], [2, 0, 1]),  # 0 is no name
        (("0", "1"), [0, 1, -1], [0, 1, -1]),
        (("-1", "1"), [0, 1], [0, 1]),
        (("-1", "0", "1"), [2, 0, 1], [2, 0, 1]),
    ],
)
def test_a_part_is_read_in_the_one_way_in_which_all_of_it_can_be(kind, classes, column, expected):
    assert read_labels([kind(value) for value in column], classes, "here") == expected


@pytest.mark.parametrize("kind", [int, str, float])
@pytest.mark.parametrize(
    ("classes", "column", "message"),
    [
        (("1", "0"), [0, 1], r"0 is class '0' by name and class '1' by position"),
        (STARS, [1, 2], r"1 is class '1' by name and class '2' by position.*\[1,2,3\] for names, "),
        (("-1", "1"), [1, -1], r"-1 is class '-1' by name and no label by position"),
        (("-1", "0", "1"), [1, 0, -1], r"data\.labels=\[-1,0,1\] for names, .*\[0,1,2\] for pos"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_with_both(kind, classes, column, message):
    given = [kind(value) for value in column]
    with pytest.raises(UserError, match=rf"^here has labels that can be read in .*{message}"):
        read_labels(given, classes, "here")
    labels = [kind(name) for name in classes]
    named = read_labels(given, classes, "here", labels)
    assert [classes[label] for label in named] == [str(value) for value in column]


def test_names_and_positions_are_not_mixed():
    with pytest.raises(UserError, match=r"two kinds: 'yes' is the name of a class, '0' the pos"):
        read_labels(["yes", 0], ("no", "yes"), "here")


@pytest.mark.parametrize("none", ["-", "-1", -1, -1.0])
def test_no_label_is_none_unless_a_class_is_called_so(none):
    assert read_labels([none, 1], ("no", "yes"), "here") == [-1, 1]
    assert read_labels([none, "yes"], ("no", "yes"), "here") == [-1, 1]
    assert read_labels([none, "+"], (str(none), "+"), "here") == [0, 1]
    assert read_labels([none, "+"], ("no", "yes"), "here", [none, "+"]) == [0, 1]


def test_labels_that_are_told_are_the_only_ones():
    assert read_labels(["2", 1, -1], ("no", "yes"), "here", (1, 2)) == [1, 0, -1]
    with pytest.raises(UserError, match=r"first in row 2: 0 \(1 rows\)\. Known: 1 no, 2 yes"):
        read_labels([1, 0], ("no", "yes"), "here", (1, 2))
    with pytest.raises(UserError, match=r"1 labels outside .*as for labels from 1: .*=\[1,2\]"):
        read_labels([1, 2], ("no", "yes"), "here")


@pytest.mark.parametrize("value", [True, False])
def test_truth_values_are_no_positions(value):
    """JSON's true would be class 1, which a table's True is not, and may mean the other."""
    with pytest.raises(UserError, match="1 labels outside the task's classes"):
        read_labels([value], ("entailment", "not_entailment"), "here")
    assert read_labels([value], ("entailment", "other"), "here", [True, False]) == [not value]


@pytest.mark.parametrize(
    "labels", ["ab", [1], [1, 2, 3], [1, None], [1, [2]], {1: 2}, 3, [1, float("nan")]]
)
def test_labels_are_one_for_each_class(labels):
    with pytest.raises(UserError, match=r"data\.labels=.* must be a list of what stands for each"):
        check_labels(labels, ("no", "yes"))


def test_labels_are_not_the_same_twice():
    with pytest.raises(UserError, match="has two of the same spelling"):
        check_labels([1, "1.0"], ("no", "yes"))
