from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from test_figures import check_picture

from autoencoders.data.images import MappedImages
from autoencoders.evaluation.pca import (
    PCA_FILE,
    fit_pca,
    load_or_fit_pca,
    moments,
    n_components_file,
    read_pca,
    variance_curve,
    write_pca,
)
from autoencoders.runtime.errors import RunError, UsageError


@pytest.fixture(scope="module")
def pca(digits):
    return fit_pca(digits)


@pytest.fixture(scope="module")
def train(digits):
    return digits.train_images / 255


@pytest.fixture(scope="module")
def eigen(train):
    """(variances, directions as columns) of the training images, largest first, by the definition of PCA."""
    variances, directions = np.linalg.eigh(np.cov(train, rowvar=False))
    return variances[::-1], directions[:, ::-1]


def projection_error(x, basis, mean):
    """Mean squared error per pixel of x (n, 784) projected on the orthonormal columns of `basis`."""
    centred = x - mean
    return np.mean((centred - centred @ basis @ basis.T) ** 2)


def test_the_explained_variance_is_that_of_the_covariances_eigenvalues(pca, eigen):
    variances, _ = eigen
    assert np.allclose(pca.cumulative_variance, np.cumsum(variances) / variances.sum(), rtol=1e-12)


def test_the_components_are_the_covariances_eigenvectors_up_to_sign(pca, eigen):
    overlap = np.abs(pca.components[:20] @ eigen[1][:, :20])
    assert np.allclose(overlap, np.eye(20), atol=1e-6)


def test_the_mean_is_the_mean_image_and_the_components_are_orthonormal(pca, train):
    assert np.allclose(pca.mean, train.mean(axis=0), atol=1e-7)
    assert np.allclose(pca.components @ pca.components.T, np.eye(784), atol=1e-4)


def test_fewer_images_than_pixels_give_the_same_pca_by_the_other_solver(digits):
    pca = fit_pca(digits, max_samples=300)
    chosen = np.sort(np.random.default_rng(0).choice(1500, 300, replace=False))
    variances = np.linalg.eigvalsh(np.cov(digits.train_images[chosen] / 255, rowvar=False))[::-1]
    assert pca.samples == 300
    assert np.allclose(pca.cumulative_variance[:299], (np.cumsum(variances) / variances.sum())[:299], rtol=1e-12)


def test_the_order_of_the_images_changes_no_bit(pca, digits):
    order = np.random.default_rng(0).permutation(len(digits.train_images))
    again = fit_pca(replace(digits, train_images=digits.train_images[order]))
    assert np.array_equal(again.components, pca.components)
    assert np.array_equal(again.cumulative_variance, pca.cumulative_variance)


def test_images_that_stay_in_their_file_give_the_same_bits(digits, tmp_path):
    np.save(tmp_path / "all.npy", digits.train_images.reshape(-1, 28, 28))
    rows = np.delete(np.arange(1500), np.s_[::10])
    mapped = replace(digits, train_images=MappedImages(tmp_path / "all.npy", rows, 784))
    for samples in (60_000, 900, 300):  # all, a subset, and fewer images than pixels
        one, other = (
            fit_pca(images, samples) for images in (mapped, replace(digits, train_images=digits.train_images[rows]))
        )
        assert np.array_equal(one.components, other.components) and np.array_equal(one.mean, other.mean)
    assert one.test_mse(mapped.train_images, 5) == one.test_mse(digits.train_images[rows], 5)


def test_images_of_the_largest_values_are_counted_without_rounding():
    images = np.full((100_000, 2), 255, np.uint8)
    sums, products = moments(images)
    assert (sums == 255 * 100_000).all() and (products == 255**2 * 100_000).all()


def test_one_and_the_same_image_has_no_variance_to_explain(digits):
    with pytest.raises(UsageError, match="all training images are the same"):
        fit_pca(replace(digits, train_images=np.full((900, 784), 7, np.uint8)))


def test_full_rank_pca_is_exact(pca, digits):
    assert pca.test_mse(digits.test_images, 784) < 1e-6


@pytest.mark.parametrize("code_size", [1, 25, 154])
def test_the_error_formula_agrees_with_reconstructing_every_image(pca, digits, eigen, train, code_size):
    direct = projection_error(digits.test_images / 255, eigen[1][:, :code_size], train.mean(axis=0))
    assert pca.test_mse(digits.test_images, code_size) == pytest.approx(direct, rel=1e-3)


def test_more_components_never_reconstruct_worse(pca, digits):
    errors = [pca.test_mse(digits.test_images, k) for k in range(1, 100, 7)]
    assert all(b < a for a, b in pairwise(errors))


def test_no_linear_autoencoder_beats_pca_of_its_width_on_the_images_it_was_fitted_to(pca, digits, train, eigen):
    random = np.random.default_rng(1)
    best = pca.test_mse(digits.train_images, 10)
    for near in (0.0, 0.5, 0.95, 0.999):  # from any directions at all to almost those of PCA
        basis, _ = np.linalg.qr(near * eigen[1][:, :10] + (1 - near) * random.normal(size=(784, 10)) / 28)
        assert projection_error(train, basis, train.mean(axis=0)) > best
    assert projection_error(train, eigen[1][:, :10], train.mean(axis=0) + 0.01) > best


@pytest.mark.parametrize("variance", [0.01, 0.5, 0.9, 0.95, 0.999, 1.0])
def test_the_count_is_the_smallest_that_reaches_the_variance(pca, variance):
    count = pca.components_for(variance)
    reached = np.concatenate(([0.0], pca.cumulative_variance))
    wanted = min(variance, reached[-1])  # the curve ends at 1 up to rounding
    assert reached[count] >= wanted > reached[count - 1]


def test_a_subset_is_drawn_by_its_seed(digits):
    one, again, other = (fit_pca(digits, 100, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.components, again.components)
    assert not np.array_equal(one.mean, other.mean)


def test_a_written_pca_is_read_back_whole(pca, digits, tmp_path):
    count = write_pca(tmp_path, pca, 0.95, "digits")
    back = read_pca(tmp_path, digits)
    assert (tmp_path / "n_components_95.txt").read_text().strip() == str(count) == str(pca.components_for(0.95))
    for name, value in vars(pca).items():
        assert np.array_equal(getattr(back, name), value) and type(getattr(back, name)) is type(value), name


@pytest.mark.parametrize(("variance", "name"), [(0.95, "95"), (0.57, "57"), (0.9, "90"), (0.999, "99.9"), (1, "100")])
def test_the_n_components_file_carries_its_percentage(tmp_path, variance, name):
    assert n_components_file(tmp_path, variance) == tmp_path / f"n_components_{name}.txt"


def test_no_pca_file_is_no_pca(tmp_path, digits):
    assert read_pca(tmp_path, digits) is None


def test_a_pca_of_other_images_is_refused_with_the_command_that_mends_it(pca, few, tmp_path):
    write_pca(tmp_path, pca, 0.95, "digits")
    with pytest.raises(UsageError, match=r"pca\.npz.*run ae_pca\.py"):
        read_pca(tmp_path, few)


def _flip(data):
    data = bytearray(data)
    data[len(data) // 2] ^= 1
    return bytes(data)


def _npy(data):
    return (
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }".ljust(117)
        + b"\n"
        + bytes(8)
    )


@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: b"text", lambda d: d[: len(d) // 2], _flip, _npy])
def test_a_damaged_pca_file_is_a_fault_that_names_it(pca, digits, tmp_path, damage):
    write_pca(tmp_path, pca, 0.95, "digits")
    path = tmp_path / PCA_FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError, match=r"pca\.npz"):
        read_pca(tmp_path, digits)


def test_an_npz_without_our_arrays_is_a_fault(digits, tmp_path):
    np.savez(tmp_path / PCA_FILE, mean=np.zeros(3))
    with pytest.raises(RunError, match=r"pca\.npz"):
        read_pca(tmp_path, digits)


def test_95_percent_of_mnists_variance_takes_154_components_which_leave_the_published_error(mnist):
    pca = fit_pca(mnist)
    assert pca.samples == 60_000
    assert pca.components_for(0.95) == 154
    assert 4 * pca.test_mse(mnist.test_images, 154) == pytest.approx(0.01321, abs=5e-6)


def test_a_stored_pca_is_used_unless_it_is_too_small_or_damaged(digits, tmp_path):
    write_pca(tmp_path, fit_pca(digits, 300), 0.95, "digits")
    assert load_or_fit_pca(tmp_path, digits, 300).samples == 300
    assert load_or_fit_pca(tmp_path, digits, 301).samples == len(digits.train_images)
    (tmp_path / PCA_FILE).write_bytes(b"text")
    assert load_or_fit_pca(tmp_path, digits, 300).samples == len(digits.train_images)


def test_the_variance_curve_passes_through_the_chosen_number_of_components(figures):
    cumulative = 1 - 0.9 ** np.arange(1, 101)  # 29 components for 95%
    picture = variance_curve(cumulative, 0.95, 29, "$et")
    check_picture(picture, figures[0], ("29 components explain 95% of the variance", "k = 29", "number of components"))
    curve, horizontal, vertical, _ = figures[0].axes[0].lines
    assert dict(zip(curve.get_xdata(), curve.get_ydata()))[29] == cumulative[28]
    assert set(horizontal.get_ydata()) == {0.95} and set(vertical.get_xdata()) == {29}
