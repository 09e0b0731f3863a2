"""The tests of a chapter's checks, made from two tables: right answers, and wrong ones with what is to be said of them.

    RIGHT = [(check, answer), ...]
    WRONG = [(check, answer, cause), ...]       cause: a pattern for the message; None: the answer is still open

    test_right_answers_pass = accepts(RIGHT)
    test_wrong_answers_are_named = rejects(RIGHT, WRONG)
    test_every_check_is_tested_both_ways = complete(RIGHT, WRONG)

An answer that takes a while to build, such as a network, is a `functools.partial`, called when its turn comes.
"""

from functools import partial
from inspect import isfunction

import pytest
import torch

from segformer_lite.course import checks


def stub(*arguments):
    raise NotImplementedError


def nothing(*arguments):
    return None


def built(answer):
    torch.manual_seed(0)
    return answer() if isinstance(answer, partial) else answer


def title(value) -> str:
    return getattr(value, "__name__", str(value))[:24]


def accepts(right: list[tuple]):
    """Each right answer passes, and is told so once."""

    @pytest.mark.parametrize(("check", "answer"), right, ids=title)
    def test(check, answer, capsys):
        check(built(answer))
        assert capsys.readouterr().out.count("correct") == 1

    return test


def rejects(right: list[tuple], wrong: list[tuple]):
    """Each wrong answer is refused for its cause, in one line; so are a function's open stub and forgotten `return`."""
    of_functions = dict.fromkeys(check for check, answer in right if isfunction(answer))
    unfinished = [row for check in of_functions for row in ((check, stub, None), (check, nothing, "return"))]

    @pytest.mark.parametrize(("check", "answer", "cause"), unfinished + wrong, ids=title)
    def test(check, answer, cause):
        answer = built(answer)
        with pytest.raises(AssertionError if cause else NotImplementedError, match=cause) as caught:
            check(answer)
        assert "\n" not in str(caught.value)

    return test


def complete(right: list[tuple], wrong: list[tuple]):
    """No check of the chapter is left out: each has a right answer and at least two wrong ones."""

    def test():
        [chapter] = {check.__module__ for check, _ in right}
        every = {check for check in map(vars(checks).get, checks.__all__) if check.__module__ == chapter}
        assert every == {check for check, _ in right}
        assert all(sum(check is other for other, _, cause in wrong if cause) >= 2 for check in every)

    return test
