"""Train one recipe ten times, each time without one digit, and print how well it is detected: a Markdown table.

Every number is from the evaluation.json that ae_eval.py wrote; a finished run is not repeated. The last column is the
same digit detected by a model that was trained on all digits.
"""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from autoencoders.runtime import cli
from benchmarks.common import run_python

HEAD = ("left out", "AUROC, error", "SAP", "NAP", "NAP, hidden", "found at 95% specificity", "PCA's error",
        "trained on it, error")  # fmt: skip


def detect(run: Path, digit: int, output: Path, images: list[Any]) -> dict[str, Any]:
    """The `outliers` part of the evaluation of a run that looks for `digit`."""
    run_python("ae_eval.py", "--run", run, *images, "--leave-out", digit, "--output-dir", output)
    outliers: dict[str, Any] = json.loads((output / "evaluation.json").read_text())["outliers"]
    return outliers


def format_row(name: str, values: list[float]) -> list[str]:
    return [
        name,
        *(f"{value:.1%}" if head.startswith("found") else f"{value:.4f}" for head, value in zip(HEAD[1:], values)),
    ]


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--recipe", default="symmetric", help="what to train")
    parser.add_argument("--dataset", default="mnist", help="image set")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where the images are")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/leave_out"), help="where the runs go")
    parser.add_argument("flags", nargs="*", help="after --: more flags of ae_train.py")
    return parser


def main() -> None:
    args = parser().parse_args()
    folder, rows, found = args.output_dir, [], []
    images = ["--dataset", args.dataset, "--data-root", args.data_root]
    train = ["ae_train.py", "--recipe", args.recipe, *images, "--resume", *args.flags]
    run_python(*train, "--output-dir", folder / "all")
    for digit in range(10):
        run = folder / f"without_{digit}"
        run_python(*train, "--leave-out", digit, "--output-dir", run)
        unseen = detect(run, digit, run, images)
        seen = detect(folder / "all", digit, folder / "all" / f"find_{digit}", images)
        model = unseen["model"]
        scores = (unseen[f"auroc_{score}"] for score in ("error", "sap", "nap", "nap_hidden"))
        found.append([*scores, model["sensitivity"], unseen["pca"]["auroc"], seen["model"]["auroc"]])
        rows.append(format_row(str(digit), found[-1]))
        cli.log.info(" ".join(rows[-1]))
    rows.append(format_row("mean", [fmean(column) for column in zip(*found)]))
    print(cli.format_table(HEAD, rows, markdown=True))


if __name__ == "__main__":
    cli.run(main)
