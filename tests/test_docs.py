"""What the README and the other pages show is there, can be typed, and stands in both languages. Nothing is run."""

import importlib
import re
import shlex
import shutil
import subprocess
from itertools import chain
from pathlib import Path

import pytest
from conftest import ROOT

from autoencoders.recipes import recipe_of
from autoencoders.runtime import cli
from autoencoders.runtime.errors import UsageError

ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

_FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"(?:^|/|\s)python3? (?:(\S+\.py)|-m (benchmarks\.\w+))(?!\S)(.*)")


def blocks(text):
    """The code blocks, without their comments, which are translated, nor the space before those."""
    return [re.sub(r"[ \t]*(?<!\S)#.*", "", block) for block in _FENCE.findall(text)]


def prose(text):
    return _FENCE.sub("", text)


def commands(text):
    """(script, its words) of every `python X.py` and `python -m benchmarks.X`, in code blocks and in the text."""
    lines = chain.from_iterable(block.replace("\\\n", " ").splitlines() for block in blocks(text))
    for line in [*lines, *re.findall(r"`([^`]+)`", prose(text))]:
        for script, module, rest in _COMMAND.findall(re.split(r" (?:\\?\||&&|;|>) ", line)[0]):
            yield script or module.replace(".", "/") + ".py", shlex.split(rest)


def tables(text):
    """Every table as rows of cells, without the line under its head."""
    rows = re.findall(r"(?:^\|.*\|\n)+", prose(text), re.MULTILINE)
    return [
        [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in table.splitlines()
            if "---" not in line
        ]
        for table in rows
    ]


def numbers(cell):
    return sorted(re.findall(r"\d(?:[\d.,]*\d)?", cell))


def same_name(ours, theirs):
    """Whether the first cells of two rows name the same: a name as it is; in a phrase the code, links and numbers."""
    code = r"`[^`]*`|\]\([^)]*\)"
    phrase = re.search(r"\s|\(", re.sub(code, "", ours))
    return ours == theirs or bool(
        phrase and re.findall(code, ours) == re.findall(code, theirs) and numbers(ours) == numbers(theirs)
    )


def links(text):
    """The targets of all links and pictures, in Markdown or HTML."""
    return re.findall(r"""\]\(<?([^)\s>]+)|^\[[^]]+\]: *(\S+)|(?:href|src)="([^"]+)""", prose(text), re.MULTILINE)


def anchors(text):
    """The names by which GitHub links to the headings of a page, and those that the page gives itself."""
    names = []
    for heading in re.findall(r"^#+ +(.*?) *#*$", prose(text), re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        names.append(f"{name}-{names.count(name)}" if name in names else name)
    return {*names, *re.findall(r"""<\w+ (?:id|name)="([^"]+)""", text)}


def dead_links(page, root):
    """The relative links of a page to no file or heading. A link out of the project is to a page of its host."""
    dead = []
    for target in map("".join, links(page.read_text(encoding="utf-8"))):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if re.match(r"\w+:", target) or not file.is_relative_to(root):
            continue
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            dead.append(target)
    return dead


@every_page
def test_no_relative_link_is_dead(page):
    assert dead_links(page, ROOT) == []


def test_dead_links_to_files_and_headings_are_found(tmp_path):
    (tmp_path / "b.md").write_text('# On `this`, that\n## Twice\n## Twice\n```\n# no heading\n```\n<a id="own"></a>\n')
    good = ["b.md", "b.md#on-this-that", "b.md#twice-1", "#mine", "https://x.org/none#a", "../../actions", "b.md#own"]
    bad = ["c.md", "b.md#that", "b.md#twice-2", "b.md#no-heading", "#none", "./none.png"]
    text = "# Mine\n" + "\n".join(f'[a]({t}) ![b]({t}) <img src="{t}">\n\n[c]: {t}\n' for t in good + bad)
    (tmp_path / "a.md").write_text(text)
    assert dead_links(tmp_path / "a.md", tmp_path) == [target for target in bad for _ in range(4)]


@every_page
def test_every_command_shown_is_one_that_its_script_takes(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    refused = []
    for script, words in commands(page.read_text(encoding="utf-8")):
        assert (ROOT / script).exists(), f"{page.name}: {script}"
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        for word in words:  # the reader's own images
            if word.endswith(".npy"):
                Path(word).touch()
            elif word.endswith("/") and not word.startswith("/"):
                Path(word).mkdir(exist_ok=True)
        try:
            args = module.parser().parse_args(words)
            if script == "ae_train.py":
                recipe_of(args)  # are they flags of that recipe?
        except (SystemExit, UsageError) as stop:
            if getattr(stop, "code", 2):  # --help ends well
                refused.append(f"{script} {shlex.join(words)}: {capsys.readouterr().err or stop}")
    assert refused == []


def test_the_commands_of_every_page_are_found():
    assert len(list(commands(ENGLISH.read_text(encoding="utf-8")))) > 10
    for name in ("symmetric", "simple", "conv", "denoising", "bce", "vae", "sparse", "tuned"):
        found = list(commands((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")))
        assert any("--recipe" in words and name in words for _, words in found), name


def test_both_readmes_have_the_same_code_blocks():
    assert blocks(CHINESE.read_text(encoding="utf-8")) == blocks(ENGLISH.read_text(encoding="utf-8"))


def test_both_readmes_have_the_same_headings_level_by_level():
    english, chinese = (
        re.findall(r"^#+(?= )", prose(page.read_text(encoding="utf-8")), re.MULTILINE) for page in (ENGLISH, CHINESE)
    )
    assert chinese == english


def test_both_readmes_have_the_same_tables_row_by_row():
    english, chinese = (tables(page.read_text(encoding="utf-8")) for page in (ENGLISH, CHINESE))
    assert [len(table) for table in chinese] == [len(table) for table in english]
    for (head, *rows), (their_head, *their_rows) in zip(english, chinese):
        assert len(their_head) == len(head)
        for row, theirs in zip(rows, their_rows):
            assert same_name(row[0], theirs[0]), f"{row[0]}: {theirs[0]}"
            assert [numbers(cell) for cell in theirs] == [numbers(cell) for cell in row], row[0]


def test_the_locked_packages_are_those_of_the_requirements_each_with_its_hashes():
    text = (ROOT / "requirements-lock.txt").read_text()
    locked = re.findall(r"^(\S+==\S+) \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
    pinned = {line for path in ROOT.glob("requirements*.txt") if "lock" not in path.name
              for line in path.read_text().splitlines() if line[0] not in "#-"}  # fmt: skip
    assert pinned and pinned <= set(locked)
    options = [line for line in text.splitlines() if line and line[0] not in "# " and not line.endswith("\\")]
    assert options == [] and len(locked) == len(re.findall("==", text))


def test_the_release_is_the_same_in_the_code_the_changelog_and_the_citation():
    changelog, citation = ((ROOT / name).read_text(encoding="utf-8") for name in ("CHANGELOG.md", "CITATION.cff"))
    released = re.findall(r"^## \[(\d[\d.]*)\] - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE)
    assert "## [Unreleased]" in changelog and released[0][0] == cli.VERSION
    for line in (f"version: {cli.VERSION}", f'date-released: "{released[0][1]}"'):
        assert line in citation.splitlines()


def test_the_workflow_calls_targets_of_the_makefile():
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    targets = set(re.findall(r"^ +- run: make (\w+)", workflow, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert {"lint", "test"} <= targets <= set(re.findall(r"^(\w+):", makefile, re.MULTILINE))


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_finds_the_scripts_of_an_environment_on_windows():
    for system, folder in (("Windows_NT", ".venv/Scripts/"), ("", ".venv/bin/")):
        command = ["make", "-n", "run", f"OS={system}"]
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert f"{folder}python ae_train.py" in shown


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_takes_a_path_with_spaces():
    names = {"DATASET": "my pics", "DATA_ROOT": "my data", "OUTPUT_DIR": "my results"}
    flags = [f"{name}={value}" for name, value in names.items()]
    shown = subprocess.run(["make", "-n", "run", *flags], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    commands = [shlex.split(line) for line in shown.splitlines() if ".py" in line]
    assert len(commands) == 2 and all(set(names.values()) <= set(words) for words in commands)
