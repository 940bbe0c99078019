import http.server
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

SUITE = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def command(folder, *flags, suite=SUITE):
    chosen = () if "--study" in flags else ("--only", "bce")
    script = str(suite / "ae_reproduce.py")
    return [sys.executable, script, "--dataset", "digits", *chosen, "--output-dir", str(folder), *flags]


def reproduce(folder, *flags, suite=SUITE):
    return subprocess.run(command(folder, *flags, suite=suite), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduction")
    return folder, reproduce(folder)


def test_on_other_images_every_claim_is_marked_as_not_applicable(done):
    folder, result = done
    assert result.returncode == 0, result.stderr
    report = json.loads((folder / "reproduction.json").read_text())
    assert {row["verdict"] for row in report["rows"]} == {"not applicable"}
    assert (folder / "reproduction.md").read_text().strip() in result.stdout
    assert all(row["claim"] in result.stdout for row in report["rows"]) and len(report["rows"]) == 4


def test_what_stands_already_is_not_trained_again(done):
    folder, _ = done
    weights = folder / "digits" / "bce" / "seed-42" / "mnist_bce.pt"
    before = weights.stat().st_mtime_ns
    again = reproduce(folder)
    assert again.returncode == 0 and "stands already" in again.stderr
    assert weights.stat().st_mtime_ns == before


def test_a_history_that_was_changed_is_not_believed(done):
    folder, _ = done
    path = folder / "digits" / "bce" / "seed-42" / "history.csv"
    before = path.read_text()
    path.write_text(before.replace("1,", "1,0", 1))
    again = reproduce(folder)
    assert again.returncode == 0 and "stands already" not in again.stderr
    losses = [line.split(",")[:3] for line in before.splitlines()]
    assert [line.split(",")[:3] for line in path.read_text().splitlines()] == losses


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


def planted(folder, claim, model=""):
    """A copy of the suite with one claim about the digits, and with its reconstructions spoilt when asked for."""
    folder.mkdir()
    for path in SUITE.glob("*.py"):
        shutil.copy(path, folder)
    shutil.copytree(SUITE / "autoencoders", folder / "autoencoders")
    with open(folder / "autoencoders/recipes.py", "a") as file:
        file.write(f"\nRECIPES['bce'] = dataclasses.replace(RECIPES['bce'], claims=({claim},))\n")
    if model:
        good = "logits: Tensor = self.decoder[:-1](code)"
        source = (folder / "ae_models.py").read_text()
        assert good in source
        (folder / "ae_models.py").write_text(source.replace(good, good + model))
    return folder


def test_a_wrong_claim_and_a_broken_model_are_said_and_end_with_status_1(tmp_path):
    right = "Claim('planted', '1.test_loss', 540.0, relation='<', dataset='digits')"
    wrong = "Claim('planted', '1.test_loss', 1.0, rounding=0.5, dataset='digits')"
    sound = reproduce(tmp_path / "runs", suite=planted(tmp_path / "sound", right))
    assert sound.returncode == 0 and "| reproduced |" in sound.stdout, sound.stderr
    lying = reproduce(tmp_path / "runs", suite=planted(tmp_path / "lying", wrong))
    broken = reproduce(tmp_path / "broken runs", suite=planted(tmp_path / "broken", right, " * 0"))
    for result in (lying, broken):
        assert result.returncode == 1 and "| not reproduced |" in result.stdout
        assert re.fullmatch(r"error: 1 of 1 claims not reproduced.*: planted\n", result.stderr.splitlines(True)[-1])


def test_a_stopped_reproduction_takes_its_run_along_and_goes_on_later(tmp_path):
    with subprocess.Popen(command(tmp_path), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / ".lock").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130 and said.splitlines()[-1].startswith("error: stopped")
    assert reproduce(tmp_path).returncode == 0


@pytest.mark.parametrize(
    "flags",
    [
        ["--only", "nothing"],
        ["--only", ""],
        ["--seeds", "0"],
        ["--study", "width"],
        ["--device", "bogus"],
        ["--study", "code-size", "--seeds", "3"],
        ["--study", "code-size", "--code-sizes", ""],
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(tmp_path, flags):
    result = reproduce(tmp_path / "new", *flags)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_the_study_puts_pca_beside_two_autoencoders_and_the_page_takes_it_up(done):
    folder, _ = done
    result = reproduce(folder, "--study", "code-size", "--code-sizes", "2,64")
    assert result.returncode == 0, result.stderr
    errors = json.loads((folder / "code_size.json").read_text())["test_mse_unit"]
    assert {tuple(points) for points in errors.values()} == {("2", "64")} and len(errors) == 3
    assert all(points["64"] < points["2"] for points in errors.values())
    assert reproduce(folder).returncode == 0  # stands already; the page is made anew
    assert "over code sizes" in (folder / "reproduction.html").read_text()
