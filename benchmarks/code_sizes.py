"""Test MSE over code sizes: PCA, `symmetric` and `tuned`. From which code size on is an autoencoder worth it?

Writes code_size.json and code_size.png. Finished runs in the output folder are used as they are.
"""

from pathlib import Path

from autoencoders.data.sets import DATASETS, load_images
from autoencoders.evaluation.pca import fit_pca
from autoencoders.recipes import RECIPES
from autoencoders.reproduction.runs import Setup, machine_name, make_training
from autoencoders.runtime import cli
from autoencoders.runtime.device import keep_freed_memory, pick_device
from autoencoders.runtime.files import locked, write_atomic, write_json
from benchmarks.figures import code_size_curves


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--code-sizes", type=cli.items(cli.integer(1)), action=cli.ListAction, metavar="N",
                        default=(2, 4, 8, 16, 32, 64, 128, 256), help="numbers of the code")  # fmt: skip
    parser.add_argument("--recipes", type=cli.items(cli.one_of(RECIPES)), action=cli.ListAction, metavar="NAME",
                        default=("symmetric", "tuned"), help="what to train")  # fmt: skip
    parser.add_argument("--dataset", choices=DATASETS, default="mnist", help="a small set is a smoke test")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where the images are")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/code_sizes"), help="where the results go")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    keep_freed_memory()
    images, sizes = load_images(args.dataset, args.data_root), args.code_sizes
    pca = fit_pca(images)
    setup = Setup(images, pca, args.output_dir, pick_device(args.device))
    with locked(args.output_dir):
        errors: dict[str, dict[int, float]] = {name: {} for name in args.recipes}
        for name, points in errors.items():
            for size in sizes:
                run = make_training((name, "--code-size", str(size)), 0, setup)
                run.train()
                points[size] = run.measured("metrics.test_mse_unit")
        curve = {size: pca.test_mse(images.test_images, size) for size in range(min(sizes), max(sizes) + 1)}
        count, title = pca.components_for(0.95), f"{images.title}: test MSE by code size"
        write_json(args.output_dir / "code_size.json", {
            "dataset": images.title, "fingerprint": images.fingerprint, "machine": machine_name(),
            "components_95": count, "test_mse_unit": errors | {"pca": {size: curve[size] for size in sizes}},
        })  # fmt: skip
        write_atomic(args.output_dir / "code_size.png", code_size_curves(curve, errors, count, title))
    rows = [[str(size), *(f"{points[size]:.6f}" for points in (curve, *errors.values()))] for size in sizes]
    print(cli.format_table(("code size", "PCA", *errors), rows))
    for name, points in errors.items():
        ahead = ", ".join(str(size) for size in sizes if points[size] < curve[size])
        print(f"{name} is ahead of PCA at the code sizes {ahead or 'none'}")
    print(f"Test MSE per pixel in [0, 1]. Wrote code_size.png and code_size.json into {args.output_dir}")


if __name__ == "__main__":
    cli.run(main)
