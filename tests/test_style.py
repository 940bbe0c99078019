"""The style: colours that differ for every reader, and letters of every language that the machine has a font for."""

import itertools
import logging
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.font_manager import get_font_names

from autoencoders import style

# Linear RGB as a reader without red, green or blue cones sees it (Machado et al. 2009).
DEFICIENCIES = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def draw(title):
    with style.styled_figure(title) as figure:
        return style.png(figure)


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colour_blind_readers_can_tell_the_named_colours_apart(deficiency):
    colours = np.array([style.colours(style.MAX_NAMED)(i)[:3] for i in range(style.MAX_NAMED)])
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(DEFICIENCIES[deficiency]).T, 0, 1) ** (1 / 2.2)
    assert (
        min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 0.15
    )  # of matplotlib's own ten it is 0.05


@pytest.mark.parametrize("count", [1, 2, 10, 14, 100])
def test_every_label_has_a_colour_of_its_own(count):
    assert len({style.colours(count)(number) for number in range(count)}) == count == style.colours(count).N


def test_only_fonts_that_are_installed_are_asked_for():
    families = style.font_families()
    assert families[0] == "DejaVu Sans" and set(families) <= set(get_font_names())


def test_letters_of_any_language_draw_without_a_word_from_matplotlib(caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        draw("\u56fe\u7247 \u30ab\u30ca \ud55c\uad6d\uc5b4 \U00010900")  # the last is Phoenician: no font has it
    assert not caplog.records


@pytest.mark.skipif(len(style.font_families()) == 1, reason="no font with Chinese letters is installed")
def test_a_chinese_letter_is_drawn_with_a_font_that_has_it(monkeypatch):
    with_font = draw("\u56fe"), draw("\u7247")
    monkeypatch.setattr(style, "font_families", lambda: ["DejaVu Sans"])
    boxes = draw("\u56fe"), draw("\u7247")
    assert with_font[0] != with_font[1] and boxes[0] == boxes[1]


def test_the_settings_of_the_caller_do_not_reach_a_picture():
    def picture():
        with style.styled_figure("title") as figure:
            figure.add_subplot().imshow([[0, 1], [1, 1]])
            return style.png(figure)

    plain = picture()
    with matplotlib.rc_context(
        {"image.origin": "lower", "image.cmap": "gray", "savefig.facecolor": "red", "font.size": 30}
    ):
        assert picture() == plain
