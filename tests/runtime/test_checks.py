import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoencoders.runtime import checks

ANY = st.text(st.characters(exclude_categories=()), max_size=80)


@settings(deadline=None)
@given(ANY, st.integers(10, 60))
def test_printable_text_is_one_line_that_can_be_printed_encoded_and_drawn(text, limit):
    shown = checks.printable(text, limit)
    assert len(shown) <= limit and shown.isprintable() and shown.encode().decode() == shown
    assert checks.printable(shown, limit) == shown


def test_printable_text_keeps_letters_of_any_script_and_both_ends():
    assert checks.printable("图片 Ünï\n  ok") == "图片 Ünï ok"
    assert checks.printable("\x1b[2J\x07\u202eevil") == "?[2J??evil"
    assert checks.printable("first" + "x" * 8000 + "last", 30).startswith("firstx")
    assert checks.printable("first" + "x" * 8000 + "last", 30).endswith("xlast")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "3", None, [1], 10**40])
def test_only_finite_numbers_are_numbers(value):
    with pytest.raises(ValueError):
        checks.number(value)
    with pytest.raises(ValueError):
        checks.integer(value, 0, 5)


def test_a_range_has_both_its_ends():
    assert [checks.integer(value, 2, 4) for value in (2, 4)] == [2, 4]
    for value in (1, 5, 3.0):
        with pytest.raises(ValueError):
            checks.integer(value, 2, 4)


TEMPLATE = {"weight": torch.zeros(3, 2), "rows": [{"epoch": 1, "loss": 0.5}], "pair": (0.9, 0.999), "name": None}


def test_a_value_built_as_the_template_is_returned():
    value = {"weight": torch.ones(3, 2), "rows": [{"epoch": 7, "loss": 2}], "pair": (0.0, 0.1), "name": None}
    assert checks.like(value, TEMPLATE) is value


WRONG = {
    "missing": {k: v for k, v in TEMPLATE.items() if k != "name"},
    "more": {**TEMPLATE, "else": 1},
    "shape": {**TEMPLATE, "weight": torch.zeros(2, 3)},
    "dtype": {**TEMPLATE, "weight": torch.zeros(3, 2).double()},
    "sparse": {**TEMPLATE, "weight": torch.ones(3, 2).to_sparse()},
    "meta": {**TEMPLATE, "weight": torch.zeros(3, 2, device="meta")},
    "one number for all": {**TEMPLATE, "weight": torch.zeros(1).expand(3, 2)},
    "nan": {**TEMPLATE, "weight": torch.full((3, 2), torch.nan)},
    "no tensor": {**TEMPLATE, "weight": [[0.0, 0.0]] * 3},
    "rows": {**TEMPLATE, "rows": []},
    "number": {**TEMPLATE, "rows": [{"epoch": 1, "loss": math.nan}]},
    "kind": {**TEMPLATE, "pair": [0.9, 0.999]},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_value_built_otherwise_is_refused(name):
    with pytest.raises(ValueError):
        checks.like(WRONG[name], TEMPLATE)
