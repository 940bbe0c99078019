"""Checks of what was read from a file, which may hold anything: each returns the value, or raises ValueError.

The caller turns the error into a RunError that names the file. `printable` makes text from a file fit to be shown.
"""

from typing import Any


def printable(text: str, limit: int = 2000) -> str:
    """Text as one line of visible characters, at most `limit` of them: the middle of a longer one is left out.

    Control characters (ESC starts a terminal's commands) and invisible ones (U+202E reverses the reading order)
    become question marks.
    """
    text = " ".join(text.encode(errors="backslashreplace").decode().split())
    if len(text) > limit:
        text = f"{text[: limit - limit // 2 - 3]}...{text[-(limit // 2) :]}"
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def text(value: Any, limit: int = 100) -> str:
    """A string, made printable."""
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} where text was expected")
    return printable(value, limit)


def number(value: Any, low: float = -1e30, high: float = 1e30) -> Any:
    """A number from `low` to `high`; NaN is in no range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        span = "finite number" if high == 1e30 else f"number from {low:g} to {high:g}"
        raise ValueError(f"{printable(str(value), 40)} where a {span} was expected")
    return value


def integer(value: Any, low: int, high: int) -> int:
    """A whole number from `low` to `high`."""
    if not isinstance(number(value, low, high), int):
        raise ValueError(f"{value} where a whole number was expected")
    return int(value)


def metric(value: Any, members: int = 0) -> Any:
    """A number, or a list with a number for each of an ensemble's members; 0 for any number of them."""
    return like(value, [0.0] * (members or max(len(value), 1))) if isinstance(value, list) else number(value)


def array(value: Any, kind: str, low: float, high: float) -> Any:
    """A NumPy array whose dtype is of this kind, such as `f` for floats, with all entries from `low` to `high`."""
    if value.dtype.kind != kind or value.dtype.itemsize > 8 or not ((value >= low) & (value <= high)).all():
        raise ValueError(f"an array of {value.dtype} where {kind} from {low:g} to {high:g} was expected")
    return value


def like(value: Any, template: Any, name: str = "it") -> Any:
    """A value built as `template` is: the same types, keys, lengths, shapes and dtypes, and every number finite."""
    if hasattr(template, "layout"):  # a tensor: strided, with memory of its own for every number
        found, wanted = ([getattr(t, key, None) for key in ("is_nested", "dtype", "layout")] for t in (value, template))
        plain = found == wanted and value.shape == template.shape and not value.is_meta and value.is_contiguous()
        if not (plain and value.isfinite().all()):
            raise ValueError(f"{name} is not a finite {template.dtype} tensor of shape {tuple(template.shape)}")
    elif isinstance(template, float):
        number(value, -1.7e308, 1.7e308)
    elif type(value) is not type(template):
        raise ValueError(f"{name} is not a {type(template).__name__}")
    elif isinstance(template, dict):
        if value.keys() != template.keys():
            wrong = min(map(str, value.keys() ^ template.keys()))
            raise ValueError(f"{name} should not have, or lacks, {printable(wrong, 40)}")
        for key in template:
            like(value[key], template[key], f"{name} {key}")
    elif isinstance(template, list | tuple):
        if len(value) != len(template):
            raise ValueError(f"{name} has {len(value)} entries, expected {len(template)}")
        for each, wanted in zip(value, template):
            like(each, wanted, name)
    return value
