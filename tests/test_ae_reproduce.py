"""The reproduction from its command line: a smoke test on the digits, with claims about them made by these tests."""

import http.server
import json
import re
import shutil
import subprocess
import threading
from argparse import ArgumentTypeError
from functools import partial

import pytest
from conftest import call_script, is_one_error_line, run_script

import ae_reproduce
from autoencoders.evaluation.pca import fit_pca
from autoencoders.reproduction.claims import CLAIMS, OUR_WAY, THEIR_WAY, Claim

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--dataset", "digits", "--only", "bce", "--device", "cpu")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(folder, finished process) of a reproduction on images without claims; for looking at, not for writing into."""
    folder = tmp_path_factory.mktemp("reproduction")
    return folder, run_script("ae_reproduce.py", *FLAGS, "--output-dir", folder)


@pytest.fixture
def copied(done, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(done[0], tmp_path / "copy")


def reproduce(capsys, folder, *claims, seeds=1):
    """(status, stdout, stderr, report) of a reproduction under claims about the digits."""
    main = partial(ae_reproduce.main, claims={"bce": claims}, claimed_for="digits")
    result = call_script(capsys, main, *FLAGS, "--seeds", seeds, "--output-dir", folder)
    return *result, json.loads((folder / "reproduction.json").read_text())


def test_on_other_images_every_claim_is_marked_as_not_applicable(done):
    folder, result = done
    assert result.returncode == 0, result.stderr
    report = json.loads((folder / "reproduction.json").read_text())
    assert {row["verdict"] for row in report["rows"]} == {"not applicable"}
    assert (folder / "reproduction.md").read_text().strip() in result.stdout
    assert all(row["claim"] in result.stdout for row in report["rows"]) and len(report["rows"]) == 4
    assert "bce, seed 42" in result.stderr


def test_a_finished_run_is_not_trained_again_and_a_changed_csv_is_not_believed(copied, capsys):
    run = copied / "digits" / "bce" / "seed-42"
    weights, csv = run / "mnist_bce.pt", run / "history.csv"
    before, losses = weights.read_bytes(), csv.read_text()
    csv.write_text(re.sub(r"(\n1,)", r"\g<1>0", losses))
    status, *_, report = reproduce(capsys, copied, Claim("a loss", "1.train_loss", 1.0))
    assert status == 1 and weights.read_bytes() == before and csv.read_text() == losses
    assert report["rows"][0]["mean"] == pytest.approx(float(losses.splitlines()[1].split(",")[1]))


def test_a_wrong_claim_and_a_model_that_does_not_learn_are_reported_with_status_1(copied, capsys, digits):
    sound = Claim("sound", "1.test_loss", 540.0, relation="<")
    wrong = Claim("wrong", "1.test_loss", 1.0, rounding=0.5)
    broken = Claim("broken", "1.test_loss", 540.0, relation="<", flags=("--lr", "1e-9"))
    miss = fit_pca(digits).components_for(0.95)
    known = Claim("known", "pca.components", 1, rounding=0.5, expected_miss=miss, reason="these are digits")
    status, out, _, report = reproduce(capsys, copied, sound)
    assert status == 0 and "| reproduced |" in out and report["rows"][0]["verdict"] == "reproduced"
    status, out, err, report = reproduce(capsys, copied, sound, wrong, broken, known)
    verdicts = ["reproduced", "not reproduced", "not reproduced", "not reproduced (known)"]
    assert status == 1 and [row["verdict"] for row in report["rows"]] == verdicts
    assert re.fullmatch(r"error: 2 of 4 claims not reproduced.*: wrong; broken\n", err.splitlines(True)[-1])


def test_over_seeds_the_mean_and_its_spread_are_judged_and_a_baseline_takes_part(copied, capsys):
    wide = ("bce", "--hidden-sizes", "64")
    claim = Claim("ahead", "metrics.test_mse", relation="<", baseline=wide)
    status, _, _, report = reproduce(capsys, copied, claim, seeds=2)
    row = report["rows"][0]
    assert len(row["measured"]) == 2 and row["measured"][0] != row["measured"][1]
    assert row["mean"] == pytest.approx(sum(row["measured"]) / 2) and row["spread"] > 0
    assert row["against"] == " ".join(wide) and row["difference"] == pytest.approx(row["mean"] - row["reference"])
    assert status == (0 if row["mean"] < row["reference"] else 1) and report["seeds"] == 2


def test_a_dry_run_distinguishes_finished_runs_from_missing_ones(done, capsys, tmp_path):
    for folder, answer in ((done[0], "Finished"), (tmp_path / "new", "Would train")):
        status, out, _ = call_script(capsys, ae_reproduce.main, *FLAGS, "--dry-run", "--output-dir", folder)
        assert status == 0 and out.startswith(f"{answer}: python ae_train.py --recipe bce")
    assert not (tmp_path / "new").exists()


def test_a_mistake_is_one_line_and_leaves_no_folder(capsys, tmp_path):
    for flags in (("--only", "nothing"), ("--device", "bogus")):
        status, _, err = call_script(capsys, ae_reproduce.main, *FLAGS, *flags, "--output-dir", tmp_path / "new")
        assert status == 2 and is_one_error_line(err) and not (tmp_path / "new").exists()


def test_recipes_are_listed_by_name_in_the_order_of_the_claims():
    assert ae_reproduce.recipe_names("vae, bce") == ("bce", "vae")
    assert ae_reproduce.recipe_names(",".join(CLAIMS)) == tuple(CLAIMS)
    for text in ("", "bce,", "tuned"):
        with pytest.raises(ArgumentTypeError):
            ae_reproduce.recipe_names(text)


def test_recipes_of_the_papers_need_literature_and_the_others_do_not_take_it(capsys, tmp_path):
    for flags in (("--only", "hinton"), ("--only", "bce", "--literature")):
        arguments = ("--dataset", "digits", *flags, "--output-dir", tmp_path / "new")
        status, _, err = call_script(capsys, ae_reproduce.main, *arguments)
        assert status == 2 and is_one_error_line(err) and not (tmp_path / "new").exists()
    arguments = (
        "--dataset",
        "digits",
        "--literature",
        "--only",
        "hinton",
        "--dry-run",
        "--output-dir",
        tmp_path / "new",
    )
    status, out, _ = call_script(capsys, ae_reproduce.main, *arguments)
    assert status == 0 and "Would train: python ae_train.py --recipe hinton" in out and not (tmp_path / "new").exists()


def test_a_dry_run_downloads_no_set_that_only_a_recipe_names(fake_mnist, capsys, tmp_path):
    root, out = fake_mnist[0], tmp_path / "out"
    flags = ("--literature", "--only", "vae_static", "--dry-run", "--data-root", root, "--output-dir", out)
    status, text, _ = call_script(capsys, ae_reproduce.main, *flags)
    assert status == 0 and "binarized-mnist is not in" in text and "would be downloaded" in text
    assert not out.exists() and [path.name for path in root.iterdir()] == ["MNIST"]


def test_a_paper_s_number_that_is_not_reached_is_status_1_and_its_source_is_on_the_page(copied, capsys):
    claims = {"bce": [
        Claim("near", "image_error.test_mse_unit", 784.0, relation="<", kind=THEIR_WAY, source="https://example.org/near"),
        Claim("far", "-1.test_loss", 1.0, relation="<", kind=OUR_WAY, source="https://example.org/far"),
    ]}  # fmt: skip
    main = partial(ae_reproduce.main, claims=claims, claimed_for="digits")
    status, out, err = call_script(capsys, main, *FLAGS, "--output-dir", copied)
    assert status == 1 and "not reached" in err and "1 of 1 papers' numbers in their setting reached" in out
    page = (copied / "reproduction.html").read_text(encoding="utf-8")
    assert 'class="not-reached"' in page and "https://example.org/near" in page


PROBE = """<!doctype html><iframe src="reproduction.html"></iframe><script>
onload = () => {
  const page = frames[0].document, pictures = [...page.images];
  document.title = JSON.stringify({
    rows: page.querySelectorAll("tbody tr").length, heading: page.querySelector("h1").textContent,
    loaded: pictures.filter(p => p.complete && p.naturalWidth > 0 && p.alt).length, pictures: pictures.length,
    scripts: page.scripts.length, wide: page.documentElement.scrollWidth - page.documentElement.clientWidth,
  });
};
</script>"""


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here")
def test_the_page_opens_in_a_browser_with_its_table_and_pictures_and_an_empty_console(done, tmp_path):
    folder, _ = done
    shutil.copy(folder / "reproduction.html", tmp_path)
    (tmp_path / "probe.html").write_text(PROBE)
    asked = []

    class Server(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
                   f"--user-data-dir={tmp_path / 'profile'}", "--window-size=400,800", "--timeout=60000",
                   "--dump-dom", f"http://127.0.0.1:{server.server_port}/probe.html"]  # fmt: skip
        result = subprocess.run(browser, capture_output=True, text=True, timeout=120)
        server.shutdown()
    seen = json.loads(re.search("<title>(.*?)</title>", result.stdout)[1])
    assert seen["rows"] == 4 and seen["scripts"] == 0 and seen["heading"]
    assert seen["pictures"] == seen["loaded"] >= 2
    assert seen["wide"] <= 0  # on a phone only the table scrolls sideways
    assert "CONSOLE" not in result.stderr
    assert set(asked) <= {"/probe.html", "/reproduction.html", "/favicon.ico"}
