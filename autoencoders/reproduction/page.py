"""The report of a reproduction as a Markdown table, and as a self-contained HTML page (page.html)."""

import base64
from pathlib import Path
from typing import Any

import jinja2

from autoencoders.reproduction.claims import (
    NOT_APPLICABLE,
    OUR_WAY,
    OURS,
    PUBLISHED,
    REACHED,
    REFERENCE,
    REPRODUCED,
    THEIR_WAY,
)
from autoencoders.runtime.cli import format_table
from autoencoders.runtime.files import read_bytes
from autoencoders.training.report import PICTURES

HEAD = ("recipe", "claim", "published", "measured", "difference", "verdict", "training", "command")


_KINDS = {REFERENCE: " (reference value)", OURS: " (our comparison)", OUR_WAY: " (our way)"}
_GOOD = {PUBLISHED: REPRODUCED, REFERENCE: REPRODUCED, OURS: REPRODUCED, THEIR_WAY: REACHED, OUR_WAY: REACHED}
_PICTURES = ("reconstructions", *PICTURES, "latent_map")


def _format_number(value: float) -> str:
    return f"{value:.7g}" if abs(value) >= 1 else f"{value:.4g}"


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the report as texts, in the order of HEAD."""
    relation = "" if row["relation"] == "=" else f"{row['relation']} "
    reference = row.get("reference", row["published"])
    published = "" if reference is None else f"{relation}{_format_number(reference)} {row['unit']}".strip()
    if row.get("against"):
        published += f" ({row['against']})"
    measured, difference = "", ""
    if "mean" in row:
        measured = _format_number(row["mean"]) + (f" ± {row['spread']:.2g}" if row["spread"] is not None else "")
        if row["verdict"] != NOT_APPLICABLE:
            difference = f"{row['difference']:+.3g}"
            if row["tolerance"] is not None:
                difference += f" (tolerance {row['tolerance']:.2g})"
    verdict = row["verdict"] + (f": {row['why']}" if row["why"] else "")
    claim = row["claim"] + _KINDS.get(row["kind"], "")
    return [row["recipe"], claim, published, measured, difference, verdict, f"{row['seconds']:.0f} s", row["command"]]


def format_counts(report: dict[str, Any]) -> str:
    """How many claims of each kind are reproduced; empty where none could be judged."""
    judged = [(row["kind"], row["verdict"]) for row in report["rows"] if row["verdict"] != NOT_APPLICABLE]
    counts = [f"{judged.count((kind, good))} of {sum(kind == k for k, _ in judged)} {kind} {good}"
              for kind, good in _GOOD.items() if kind in dict(judged)]  # fmt: skip
    return ", ".join(counts)


def format_conditions(report: dict[str, Any]) -> str:
    """Images, machine, precision, seeds and time of the report, in a line."""
    seeds = "1 seed" if report["seeds"] == 1 else f"{report['seeds']} seeds, mean ± standard deviation"
    seconds = sum(system["seconds"] for system in report["systems"])
    time = f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"
    return f"{report['dataset']}, {report['machine']}, {report['precision']}, {seeds}; {time} of training."


def format_markdown(report: dict[str, Any]) -> str:
    """The report as a Markdown table, with its conditions below."""
    if not report["rows"]:
        names = ", ".join(system["name"] for system in report["systems"])
        return f"The sources print no number about {names}. {format_conditions(report)}"
    rows = [[*texts, f"`{command}`"] for *texts, command in map(cells, report["rows"])]
    counts = format_counts(report)
    return f"{format_table(HEAD, rows, markdown=True)}\n\n{counts}{'. ' * bool(counts)}{format_conditions(report)}"


def format_page(report: dict[str, Any], folder: Path) -> str:
    """The report as HTML, with the pictures of the runs below `folder` inside."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                     trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    environment.filters["png"] = lambda path: base64.b64encode(read_bytes(path, "delete it")).decode()
    pictures = {
        system["name"]: [path for path in (folder / system["folder"] / f"{name}.png" for name in _PICTURES)
                         if path.is_file() and not path.is_symlink()]  # a link could lead to any file
        for system in report["systems"]
    }  # fmt: skip
    return environment.get_template("page.html").render(
        report=report, conditions=format_conditions(report), head=HEAD, cells=cells, losses=folder / "loss_curves.png",
        pictures=pictures, counts=format_counts(report),
    )  # fmt: skip
