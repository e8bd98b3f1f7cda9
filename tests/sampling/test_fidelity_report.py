"""The table of a fidelity report."""

import pytest

from jaxval.sampling.fidelity_report import print_table

LONG = "bm25:depth=100+dense:depth=100+random:size=123456+run:depth=100@" + "x" * 200


def estimate(value):
    return {"value": value, "low": value, "high": value}


def row(strategy, rho=0.5, same_best=True):
    agreement = {
        "tau": {"value": 0.9, "low": 0.8, "high": 1.0},
        "rho": estimate(rho),
        "best": 1,
        "same_best": same_best,
        "regret": estimate(0.01),
        "optimism": estimate(None),
    }
    return {
        "strategy": strategy,
        "passages": 1234567,
        "share_of_tokens": 0.25,
        "share_of_time": 0.5,
        "seconds": {"total": 12.34},
        "agreement": {"RR@10": agreement, "[bold]nDCG": agreement},
    }


@pytest.fixture
def printed(capsys):
    """The printed lines, each without the blanks around it."""
    report = {
        "measures": ["RR@10", "[bold]nDCG"],
        "steps": [0, 100],
        "queries": 4,
        "strategies": [row("full"), row(LONG, rho=None, same_best=False)],
    }
    print_table(report)
    return [line.strip() for line in capsys.readouterr().out.splitlines()]


def test_a_row_has_every_value_and_is_one_line(printed):
    cells = ["1,234,567", "25.0%", "50.0%", "12.3", "0.900 [0.800, 1.000]"]
    regret = "0.010 [0.010, 0.010]"
    rows = [line for line in printed if line.startswith(("full", LONG))]
    assert [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in rows] == [
        ["full", *cells, "0.500", "= 100", regret, "-"],
        [LONG, *cells, "-", "≠ 100", regret, "-"],
    ] * 2


def test_a_title_names_the_measure_as_it_is(printed):
    over = "over 2 checkpoints and 4 queries [95% of resampled queries]"
    assert f"RR@10 {over}" in printed
    assert f"[bold]nDCG {over}" in printed
