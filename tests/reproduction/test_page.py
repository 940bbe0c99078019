"""The report as Markdown and as a page: nothing is fetched, nothing runs, every text is escaped."""

import base64
import os
from html.parser import HTMLParser

import pytest

from autoencoders.reproduction.page import HEAD, format_markdown, format_page

PNG = b"\x89PNG a picture"
ROW = {
    "recipe": "bce", "claim": "loss < 1 & <b>more</b>", "published": None, "relation": "<", "unit": "nats",
    "kind": "published claims", "command": "python ae_reproduce.py --only bce", "seconds": 61.0, "against": "simple",
    "reference": 1234.56789, "mean": 0.123456, "spread": 0.0123, "difference": -1.5, "tolerance": 0.25,
    "verdict": "not reproduced (known)", "why": "a reason",
}  # fmt: skip


@pytest.fixture
def report():
    system = {"name": "bce", "summary": "a <summary>", "source": "https://example.org/<a>",
              "command": "python ae_train.py --recipe bce", "folder": "bce",
              "seconds": 120.0}  # fmt: skip
    return {"dataset": "MNIST", "machine": "a machine", "precision": "float32", "seeds": 3, "rows": [ROW],
            "systems": [system]}  # fmt: skip


@pytest.fixture
def page(report, tmp_path):
    (tmp_path / "bce").mkdir()
    for name in ("loss_curves.png", "bce/training_loss.png", "bce/reconstructions.png", "bce/samples.png"):
        (tmp_path / name).write_bytes(PNG)
    return format_page(report, tmp_path)


def test_the_table_has_every_number_with_its_spread_and_tolerance(report):
    head, _, row, _, conditions = format_markdown(report).splitlines()
    assert head == f"| {' | '.join(HEAD)} |"
    assert row == (
        "| bce | loss < 1 & <b>more</b> | < 1234.568 nats (simple) | 0.1235 ± 0.012 | -1.5 (tolerance 0.25) "
        "| not reproduced (known): a reason | 61 s | `python ae_reproduce.py --only bce` |"
    )
    assert "3 seeds" in conditions and "2 minutes" in conditions


def test_the_page_is_self_contained_and_escapes_every_text(page):
    class Reader(HTMLParser):
        def __init__(self):
            super().__init__()
            self.tags, self.links, self.text = [], [], ""

        def handle_starttag(self, tag, attributes):
            self.tags.append(tag)
            self.links += [value for name, value in attributes if name in ("src", "href")]
            assert tag != "img" or dict(attributes)["alt"]

        def handle_data(self, data):
            self.text += data

    reader = Reader()
    reader.feed(page)
    assert page.startswith("<!doctype html>") and not {"script", "b", "summary"} & set(reader.tags)
    (source,) = [link for link in reader.links if not link.startswith("data:")]
    assert source.startswith("https://example.org/") and "url(" not in page
    assert reader.tags.count("img") == 3  # the losses, and a run's pictures but that of its loss
    assert "loss < 1 & <b>more</b>" in reader.text and "a <summary>" in reader.text
    assert '<td class="not-reproduced">' in page and "0 of 1 published claims reproduced" in reader.text


def test_the_page_follows_the_colours_of_the_reader_and_fits_a_phone(page):
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page


def test_without_claims_about_these_images_the_page_says_so(report, tmp_path):
    report["rows"] = [ROW | {"verdict": "not applicable", "why": "published for mnist"}]
    report["systems"] = []
    (tmp_path / "loss_curves.png").write_bytes(PNG)
    assert "<h1>Nothing was published about these images</h1>" in format_page(report, tmp_path)


def test_only_the_pictures_of_a_run_are_shown_and_no_link_is_followed(report, tmp_path):
    folder = tmp_path / "bce"
    folder.mkdir()
    for path in (tmp_path / "loss_curves.png", folder / "reconstructions.png"):
        path.write_bytes(PNG)
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "samples.png").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "latent_map.png")
    (folder / "\x1b[31mother.png").write_bytes(b"other")
    page = format_page(report, tmp_path)
    assert page.count("<img") == 2 and "\x1b" not in page
    assert not any(base64.b64encode(data).decode() in page for data in (b"secret", b"other"))
