"""Bad input in every shape: the first cases of the row of benchmarks/fuzz.py, and that its judge sees what is wrong."""

import os
import sys
from collections import Counter
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
CASES = 200


@pytest.fixture(scope="module")
def fuzz():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import fuzz

        yield fuzz
        sys.modules.pop("fuzz")


@pytest.fixture(scope="module")
def stock(fuzz, tmp_path_factory):
    return fuzz.make_stock(tmp_path_factory.mktemp("fuzz") / "stock")


@pytest.mark.parametrize("part", range(4))
def test_bad_input_is_taken_or_refused_in_one_line(fuzz, stock, part):
    results = [(number, *fuzz.run_case(number, stock)) for number in range(part * CASES // 4, (part + 1) * CASES // 4)]
    wrong = [result for result in results if result[3] not in ("accepted", "refused")]
    assert not wrong, f"{len(wrong)} of {len(results)}; alone: fuzz.py --count 1 --start {wrong[0][0]}: {wrong[0]}"
    seen = Counter(kind for _, kind, *_ in results)
    assert set(seen) == set(fuzz.KINDS)
    refused = {kind for _, kind, _, outcome, _ in results if outcome == "refused"}
    assert len(refused) >= 6, f"hardly any damage was noticed: {refused}"


def judge(fuzz, stock, monkeypatch, act):
    monkeypatch.setattr(fuzz, "KINDS", {"planted": lambda stock, here, rng: ("planted", lambda: act(here))})
    return fuzz.run_case(0, stock)[2]


def test_the_judge_sees_what_may_not_happen(fuzz, stock, monkeypatch):
    def raises(error):
        def act(here):
            raise error
        return act

    def half(here):
        (here / "out").mkdir()
        (here / "out" / "mask.png").write_bytes(b"\x89PNG half")

    def lose(here):
        (stock / "own" / "val.txt").unlink()

    def silent(here):
        raise AssertionError("other numbers than were saved, and not a word")

    for act, outcome in ((lambda here: None, "accepted"), (raises(ValueError("one line")), "refused"),
                         (raises(ValueError("two\nlines")), "traceback"), (raises(ValueError("")), "traceback"),
                         (raises(KeyError("a")), "traceback"), (raises(RecursionError()), "traceback"),
                         (lambda here: (here / "x.part").write_bytes(b""), "half-written"), (half, "half-written"),
                         (silent, "silent")):
        assert judge(fuzz, stock, monkeypatch, act) == outcome
    kept = (stock / "own" / "val.txt").read_bytes()
    assert judge(fuzz, stock, monkeypatch, lose) == "lost"
    (stock / "own" / "val.txt").write_bytes(kept)


def test_a_command_may_end_in_two_ways_only(fuzz, monkeypatch):
    def ends(status, line=""):
        def main(argv):
            if line:
                print(line, file=sys.stderr)
            return status
        return main

    for main, wrong in ((ends(0), None), (ends(2, "segformer-lite: no"), ValueError), (ends(1), AssertionError),
                        (ends(2), AssertionError), (ends(0, "Traceback"), AssertionError),
                        (ends(2, "warning\nsegformer-lite: no"), AssertionError)):
        monkeypatch.setattr(fuzz, "cli", main)
        if wrong is None:
            fuzz.command(["predict"])
        else:
            with pytest.raises(wrong):
                fuzz.command(["predict"])


def test_the_cases_are_a_function_of_their_number(fuzz, stock):
    for number in (0, 2, 3):
        assert fuzz.run_case(number, stock)[:3] == fuzz.run_case(number, stock)[:3]
    assert os.listdir(stock.parent) == ["stock"]  # nothing is left behind
