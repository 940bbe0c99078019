"""How many dimensions does 95 % of the variance need?

Fits PCA on the training images and writes n_components_95.txt, pca.npz and pca_cumulative_variance.png
into the output folder.
"""

from pathlib import Path

import ae_cli
import ae_parallel
from ae_data import load_images, would_download
from ae_files import hold_folder
from ae_linear import PCA_FILE, count_file, fit_pca, write_pca


# fmt: off
def parser() -> ae_cli.Parser:
    parser = ae_cli.Parser(__doc__)
    data, output = parser.add_argument_group("data"), parser.add_argument_group("output")
    ae_cli.add_data_flags(data, stream=True)
    data.add_argument("--max-samples", type=ae_cli.integer(2), default=60_000,
                      help="training images to fit on, a seeded random subset when fewer than all "
                      "(default: %(default)s)")
    data.add_argument("--variance", type=ae_cli.number(0, 1, above=True), default=0.95,
                      help="share of the variance to explain, up to 1 (default: %(default)s)")
    data.add_argument("--seed", type=ae_cli.integer(0), default=0, help="draws the subset (default: %(default)s)")
    data.add_argument("--workers", type=ae_cli.integer(0), default=0,
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
    ae_parallel.join()
    images, folder = load_images(**ae_cli.data_flags(args)), args.output_dir
    if args.dry_run:
        names = f"{count_file(folder, args.variance).name}, {PCA_FILE} and the curve"
        count = min(args.max_samples, len(images.train_images))
        print(f"Would fit PCA on {count:,} of {len(images.train_images):,} images of {images.title}, seed {args.seed}")
        print(f"Would write {names} into {folder}")
        return
    with hold_folder(folder):
        pca = fit_pca(images, args.max_samples, args.seed)
        if not ae_parallel.is_first():
            return
        count = write_pca(folder, pca, args.variance, images.title)
    print(f"Number of components to explain {100 * args.variance:.10g}% variance: {count}")
    print(f"{images.title}, {pca.samples} training images: wrote {count_file(folder, args.variance)}")


if __name__ == "__main__":
    ae_cli.run(main)
