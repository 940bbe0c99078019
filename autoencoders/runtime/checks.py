"""Text from files, made fit to be shown."""


def printable(text: str, limit: int = 2000) -> str:
    """Text as one line of visible characters, at most `limit` of them: the middle of a longer one is left out.

    Control characters (ESC starts a terminal's commands) and invisible ones (U+202E reverses the reading order)
    become question marks.
    """
    text = " ".join(text.encode(errors="backslashreplace").decode().split())
    if len(text) > limit:
        text = f"{text[: limit - limit // 2 - 3]}...{text[-(limit // 2) :]}"
    return "".join(letter if letter.isprintable() else "?" for letter in text)
