"""The reproduction as a Markdown table and as one self-contained page: pictures inside, nothing fetched, no script."""

import base64
import json
import re
from html import escape
from pathlib import Path
from typing import Any

HEAD = ("recipe", "claim", "published", "measured", "difference", "verdict", "training", "command")
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --paper: #fff; --line: #d5d9df; --good: #1a7f37; --bad: #c0392b; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --paper: #16181d; --line: #3a3f47; --good: #4cc26a; --bad: #ff7b6b; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 72rem;
       margin: 0 auto; padding: 1rem; }
h1, h2 { line-height: 1.2; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { border-bottom: 1px solid var(--line); padding: .4rem .6rem; text-align: left; vertical-align: top; }
td.number { white-space: nowrap; font-variant-numeric: tabular-nums; }
code { font-size: .85em; }
.reproduced { color: var(--good); font-weight: 600; } .not-reproduced { color: var(--bad); font-weight: 600; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; margin: .4rem 0; }
"""


def _number(value: float) -> str:
    return f"{value:.7g}" if abs(value) >= 1 else f"{value:.4g}"


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the report as texts, in the order of HEAD."""
    relation = "" if row["relation"] == "=" else f"{row['relation']} "
    reference = row.get("reference", row["published"])
    published = "" if reference is None else f"{relation}{_number(reference)} {row['unit']}".strip()
    if row.get("against"):
        published += f" ({row['against']})"
    measured, difference = "", ""
    if "mean" in row:
        measured = _number(row["mean"]) + (f" ± {row['spread']:.2g}" if row["spread"] is not None else "")
        difference = f"{row['difference']:+.3g}"
        if row["tolerance"] is not None:
            difference += f" (tolerance {row['tolerance']:.2g})"
    verdict = row["verdict"] + (f": {row['why']}" if row["why"] else "")
    claim = row["claim"] if row["source"] == "published" else f"{row['claim']} ({row['source']})"
    return [row["recipe"], claim, published, measured, difference, verdict, f"{row['seconds']:.0f} s", row["command"]]


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table, with what it was measured on."""
    lines = [f"| {' | '.join(HEAD)} |", "| --- |" + " --- |" * (len(HEAD) - 1)]
    for row in report["rows"]:
        *texts, command = cells(row)
        lines.append(f"| {' | '.join(texts)} | `{command}` |")
    return "\n".join([*lines, "", _measured_on(report)])


def _measured_on(report: dict[str, Any]) -> str:
    seeds = "1 seed" if report["seeds"] == 1 else f"{report['seeds']} seeds, mean ± standard deviation"
    minutes = sum(system["seconds"] for system in report["systems"]) / 60
    return (
        f"{report['dataset']}, {report['machine']}, {report['precision']}, {seeds}; {minutes:.0f} minutes of training."
    )


def page(report: dict[str, Any], folder: Path) -> str:
    """The report as HTML, with every picture of the runs' folders below `folder`."""
    verdicts = [row["verdict"] for row in report["rows"] if row["verdict"] != "not applicable"]
    heading = f"{verdicts.count('reproduced')} of {len(verdicts)} claims reproduced"
    parts = [
        f"<h1>{heading if verdicts else 'Nothing was published about these images'}</h1>",
        f"<p>{escape(_measured_on(report))}</p>",
        '<div class="wide"><table><thead><tr>',
        *(f"<th>{name}</th>" for name in HEAD),
        "</tr></thead><tbody>",
        *(_row(row) for row in report["rows"]),
        "</tbody></table></div>",
    ]
    shown = {"code_size.png": "PCA and the autoencoders over code sizes"} if _studied(report, folder) else {}
    for name, heading in {**shown, "loss_curves.png": "Losses"}.items():
        parts.append(f"<h2>{heading}</h2>{_picture(folder / name, heading)}")
    for system in report["systems"]:
        parts.append(f"<h2>{escape(system['name'])}: {escape(system['summary'])}</h2>")
        parts.append(f"<p><code>{escape(system['command'])}</code>, {system['seconds']:.0f} s of training</p>")
        pictures = [
            path for path in sorted((folder / system["folder"]).glob("*.png")) if not re.search("loss|epoch", path.stem)
        ]
        parts += [_picture(path, f"{system['name']}: {path.stem.replace('_', ' ')}") for path in pictures]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Claimed beside measured</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _studied(report: dict[str, Any], folder: Path) -> bool:
    """Whether the study of code sizes in `folder` was made of the same images."""
    path = folder / "code_size.json"
    return path.exists() and bool(json.loads(path.read_text())["fingerprint"] == report["fingerprint"])


def _row(row: dict[str, Any]) -> str:
    *texts, command = (escape(text) for text in cells(row))
    classes = {3: "number", 6: "number", 5: row["verdict"].split(" (")[0].replace(" ", "-")}
    filled = [f'<td class="{classes.get(place, "")}">{text}</td>' for place, text in enumerate(texts)]
    return f"<tr>{''.join(filled)}<td><code>{command}</code></td></tr>"


def _picture(path: Path, text: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">'
