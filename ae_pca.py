"""How many dimensions does 95 % of the variance need?

Fits PCA on the training images and writes n_components_95.txt, pca.npz and pca_cumulative_variance.png
into the output folder.
"""

from pathlib import Path

from autoencoders.data.sets import load_images, would_download
from autoencoders.evaluation.pca import PCA_FILE, count_file, fit_pca, write_pca
from autoencoders.runtime import cli, processes
from autoencoders.runtime.files import hold_folder


# fmt: off
def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    data, output = parser.add_argument_group("data"), parser.add_argument_group("output")
    cli.add_data_flags(data, stream=True)
    data.add_argument("--max-samples", type=cli.integer(2), default=60_000,
                      help="training images to fit on, a seeded random subset when fewer than all "
                      "(default: %(default)s)")
    data.add_argument("--variance", type=cli.number(0, 1, above=True), default=0.95,
                      help="share of the variance to explain, up to 1 (default: %(default)s)")
    data.add_argument("--seed", type=cli.integer(0), default=0, help="draws the subset (default: %(default)s)")
    data.add_argument("--workers", type=cli.integer(0), default=0,
                      help="taken for the sake of old command lines: the images are read in one go "
                      "and need no worker (default: %(default)s)")
    output.add_argument("--output-dir", type=Path, default=Path("outputs"),
                        help="where results go (default: %(default)s)")
    return parser
# fmt: on


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    if args.dry_run and (first := would_download(args.dataset, args.data_root)):
        print(first)
        return
    processes.join()
    images, folder = load_images(**cli.data_flags(args)), args.output_dir
    if args.dry_run:
        names = f"{count_file(folder, args.variance).name}, {PCA_FILE} and the curve"
        count = min(args.max_samples, len(images.train_images))
        print(f"Would fit PCA on {count:,} of {len(images.train_images):,} images of {images.title}, seed {args.seed}")
        print(f"Would write {names} into {folder}")
        return
    with hold_folder(folder):
        pca = fit_pca(images, args.max_samples, args.seed)
        if not processes.is_first():
            return
        count = write_pca(folder, pca, args.variance, images.title)
    print(f"Number of components to explain {100 * args.variance:.10g}% variance: {count}")
    print(f"{images.title}, {pca.samples} training images: wrote {count_file(folder, args.variance)}")


if __name__ == "__main__":
    cli.run(main)
