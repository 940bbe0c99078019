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
