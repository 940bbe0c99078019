"""How often does ae_search.py distinguish two candidates that are the same model, but for one hidden unit of 65?

Many small searches on the digits, each with its own seed. At 95%, about one in twenty should. Finished folds in the
output folder are used as they are.
"""

from pathlib import Path

from autoencoders.runtime import cli
from benchmarks.common import run_python

SEARCH = ("ae_search.py", "--dataset", "digits", "--hidden-sizes", 64, 65, "--code-sizes", 16, "--folds", 5,
          "--epochs", 6, "--device", "cpu")  # fmt: skip


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--searches", type=cli.integer(1), default=40, metavar="N", help="with the seeds 0 .. N-1")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/search_verdicts"), help="where results go")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    distinguished = 0
    for seed in range(args.searches):
        search = run_python(*SEARCH, "--seed", seed, "--output-dir", args.output_dir / str(seed))
        verdict = next(line for _, line in search.lines if line.startswith("Best: "))
        distinguished += "too little to distinguish" not in verdict
        cli.log.info(f"seed {seed}: {verdict.strip()}")
    print(f"distinguished in {distinguished} of {args.searches} searches")


if __name__ == "__main__":
    cli.run(main)
