"""README and docs/: their commands parse, their links lead somewhere, their pages stay short."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from launch import entry, prepare
from snapvideo_jax import build

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "snapvideo_jax"
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]  # docs/history/ is a diary
ALL = [*PAGES, *sorted((ROOT / "docs" / "history").glob("*.md"))]
MAX_LINES, MAX_COLUMNS = 120, 100
SEPARATORS = {"&&", "||", "|", ";", "&", ">"}


def bash_lines(page):
    """The lines of the page's ```bash blocks, joined where they go on."""
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.M | re.S):
        yield from block.replace("\\\n", " ").splitlines()


def words(line):
    """The line as the shell splits it, without comments."""
    return shlex.split(line, comments=True)


def commands(line):
    """(X, arguments) of every `python -m launch.X ...` in a line, also quoted or by launch/pods."""
    tokens = words(line)
    for place, token in enumerate(tokens):
        if token.startswith("launch/pods/") and "--" in tokens:
            yield "train", tokens[tokens.index("--") + 1 :]
        if " -m launch." in token:
            yield from commands(token)
        if token == "-m" and tokens[place + 1].startswith("launch."):
            rest = tokens[place + 2 :]
            end = next((i for i, word in enumerate(rest) if word in SEPARATORS), len(rest))
            yield tokens[place + 1].removeprefix("launch."), rest[:end]


def examples():
    """Every command of every page, each once, with the page's name."""
    unique = {}
    for page in PAGES:
        for line in bash_lines(page):
            for name, arguments in commands(line):
                unique.setdefault((name, *arguments), page.name)
    return [
        pytest.param(name, arguments, id=f"{page}-{name}-{number}")
        for number, ((name, *arguments), page) in enumerate(unique.items())
    ]


def parse(name, arguments):
    """Reads the flags as the command does, config included; raises where it would refuse them."""
    before = set(flags.FLAGS)
    module = f"launch.{name}"
    try:
        importlib.import_module(module)
        rest = flags.FLAGS([name, *arguments])[1:]
        assert not rest, f"unexpected {rest}"
        config = flags.FLAGS.config.copy_and_resolve_references() if "config" in flags.FLAGS else {}
        configs = list(flags.FLAGS.configs) if "configs" in flags.FLAGS else []
        return config, [entry.load_config(path) for path in configs]
    finally:  # commands share names of flags, so only one at a time can have them
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)
        flags.FLAGS.unparse_flags()
        sys.modules.pop(module, None)


@pytest.mark.parametrize("name, arguments", examples())
def test_every_command_has_the_flags_and_fields_that_it_is_shown_with(name, arguments, monkeypatch):
    if name == "prepare":
        command, *arguments = arguments
        assert command in prepare.COMMANDS
        name = f"prepare_{command}"
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [name, *arguments])  # where fields of a config are looked for
    config, _ = parse(name, arguments)
    if name == "train":  # a run that would end with an error before its first step is no example
        build.check(config)


def test_commands_are_there():
    names = {example.values[0] for example in examples()}
    assert names == {path.stem for path in (ROOT / "launch").glob("*.py")} & names
    assert names >= {"train", "sample", "evaluate", "plan", "benchmark", "scaling", "export"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_script_is_there_and_is_bash(page):
    for line in bash_lines(page):
        tokens = words(line)
        if tokens[:1] == ["bash"]:
            script = ROOT / tokens[1]
            assert script.is_file(), line
            subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in target:
            file, _, anchor = target.partition("#")
            there = (page.parent / file) if file else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target


def anchors(page):
    """The names by which GitHub links to the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_short(page):
    lines = page.read_text().splitlines()
    assert len(lines) <= MAX_LINES
    wide = [number for number, line in enumerate(lines, 1) if len(line) > MAX_COLUMNS]
    assert not wide, f"lines {wide} have more than {MAX_COLUMNS} columns"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_files_and_functions_that_exist(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for span in re.findall(r"`([^`]+)`", text):
        path, _, name = span.partition(": ")
        if re.fullmatch(r"[\w/]+\.(py|sh)", path) and path != "FILE.py":
            there = locate(path)
            assert there, f"`{span}`: there is no such file"
            names = re.findall(r"\w+(?:\.\w+)*", name)
            for each in names:
                assert defines(there, each.split(".")[-1]), f"`{span}`: {path} has no {each}"


def locate(path):
    """The file of the project that a page means, in the package or beside it; None if none."""
    if "/" in path:
        return next((base / path for base in (ROOT, PACKAGE) if (base / path).exists()), None)
    folders = "configs", "launch", "snapvideo_jax", "tests"
    return next((file for each in folders for file in (ROOT / each).rglob(path)), None)


def defines(file, name):
    """Whether a Python file has a function, a class or a value of that name."""
    return re.search(rf"^\s*(def|class) {name}\b|^\s*{name}\b.*=", file.read_text(), re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_in_the_present_tense_of_the_code(page):
    assert "(before)" not in page.read_text()


def test_code_names_pages_that_exist():
    folders = "configs", "launch", "snapvideo_jax", "tests"
    for file in (path for each in folders for path in (ROOT / each).rglob("*.py")):
        for page in re.findall(r"docs/[\w/]+\.md", file.read_text()):
            assert (ROOT / page).is_file(), f"{file.relative_to(ROOT)} names {page}"
