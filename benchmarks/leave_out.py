"""Train one recipe ten times, each time without one digit, and print how well each is found: a Markdown table.

Every number comes out of the evaluation.json that ae_eval.py wrote; a run that is finished already is not repeated.
Beside it stands the same digit looked for by a model that was trained on all of them.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def script(name: str, *arguments: Any) -> None:
    """A script of the suite in a process of its own, its output on our stderr."""
    command = [sys.executable, str(Path(__file__).resolve().parent.parent / name), *map(str, arguments)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def found(folder: Path, digit: int, output: Path) -> dict[str, Any]:
    script("ae_eval.py", "--run", folder, "--leave-out", digit, "--output-dir", output)
    outliers: dict[str, Any] = json.loads((output / "evaluation.json").read_text())["outliers"]
    return outliers


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="symmetric")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/leave_out"))
    return parser


def main() -> None:
    args, more = parser().parse_known_args()  # the rest goes to ae_train.py
    train = ("--recipe", args.recipe, "--dataset", args.dataset, "--data-root", args.data_root, *more, "--resume")
    all_digits = args.output_dir / "all"
    script("ae_train.py", *train, "--output-dir", all_digits)
    print("| left out | AUROC | average precision | found at 95 % specificity | PCA, AUROC | trained on it, AUROC |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for digit in range(10):
        folder = args.output_dir / f"without_{digit}"
        script("ae_train.py", *train, "--leave-out", digit, "--output-dir", folder)
        never, seen = found(folder, digit, folder), found(all_digits, digit, all_digits / f"find_{digit}")
        model = never["model"]
        print(
            f"| {digit} | {model['auroc']:.4f} | {model['average_precision']:.4f} | {model['sensitivity']:.1%} "
            f"| {never['pca']['auroc']:.4f} | {seen['model']['auroc']:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
