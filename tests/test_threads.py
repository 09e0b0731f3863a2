"""Items made ahead by threads: in order, a few at a time, errors where the item would have come."""

import time

import pytest

from segformer_lite import threads
from segformer_lite.threads import in_threads


@pytest.mark.parametrize("at_once", [None, 1, 5])
def test_items_come_in_order_and_only_a_few_wait(at_once, monkeypatch):
    monkeypatch.setattr(threads, "AT_ONCE", 3)
    made = []

    def load(place):
        time.sleep(0.01 * (place % 3))
        made.append(place)
        return -place

    for number, item in enumerate(in_threads(load, range(20), at_once)):
        assert item == -number and len(made) <= number + (at_once or 3)
    assert sorted(made) == list(range(20)) and list(in_threads(load, [])) == []


def test_an_error_comes_after_the_items_before_it():
    items = in_threads(lambda place: 6 // place, [3, 2, 0, 1])
    assert [next(items), next(items)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(items)
