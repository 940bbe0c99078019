"""How many dimensions does 95% of the variance need?

Fits PCA on the training images and writes n_components_95.txt, pca.npz and pca_cumulative_variance.png into the output
folder.
"""

import argparse

from autoencoders.data.sets import add_data_flags, data_arguments, load_images
from autoencoders.runtime import cli
from autoencoders.runtime.files import locked


# fmt: off
def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    data, output = parser.add_argument_group("data"), parser.add_argument_group("output")
    add_data_flags(data, stream=True)
    data.add_argument("--max-samples", type=cli.integer(2), default=60_000,
                      help="training images to fit on, a seeded random subset when fewer than all")
    data.add_argument("--variance", type=cli.number(0, 1, exclusive=True), default=0.95,
                      help="share of the variance to explain, up to 1")
    data.add_argument("--seed", type=cli.integer(0), default=0, help="seed of the subset")
    data.add_argument("--workers", type=cli.integer(0), default=0, help=argparse.SUPPRESS)  # no effect
    output.add_argument("--output-dir", type=cli.path, default="outputs", help="where results go")
    return parser
# fmt: on


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    if args.workers:
        cli.log.info(cli.NO_WORKERS)

    from autoencoders.evaluation.pca import fit_pca, n_components_file, write_pca  # imports matplotlib

    images, folder = load_images(**data_arguments(args)), args.output_dir
    with locked(folder):
        pca = fit_pca(images, args.max_samples, args.seed)
        count = write_pca(folder, pca, args.variance, images.title)
    print(f"Number of components to explain {100 * args.variance:.10g}% variance: {count}")
    print(f"{images.title}, {pca.samples} training images: wrote {n_components_file(folder, args.variance)}")


def command() -> None:
    cli.run(main)


if __name__ == "__main__":
    command()
