"""The documentation as a site: it builds without a warning, and no link of it is dead."""

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from tests.test_architecture import GROUND, ROOMS

ROOT = Path(__file__).parent.parent
DOCS, PACKAGE = ROOT / "docs", ROOT / "snapvideo_jax"
LOADED = {"script", "img", "source", "iframe", "video"}, {"stylesheet", "icon", "preload"}
BUILDERS = "zensical", "mkdocstrings"


class Page(HTMLParser):
    """What a page of the site links to, loads, and can be linked at."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.ids = set(), set(), set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids.add(attributes.get("id"))
        if tag == "a" and attributes.get("href"):
            self.links.add(attributes["href"])
        if tag in LOADED[0] and attributes.get("src"):
            self.loads.add(attributes["src"])
        if tag == "link" and LOADED[1] & set(attributes.get("rel", "").split()):
            self.loads.add(attributes["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built from a copy of what it is made of."""
    if not all(map(importlib.util.find_spec, BUILDERS)):
        pytest.skip("pip install -r requirements-docs.txt")
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    shutil.copytree(DOCS, folder / "docs")
    shutil.copytree(PACKAGE, folder / "snapvideo_jax", ignore=shutil.ignore_patterns("*.pyc"))
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "No issues" in output and "griffe" not in output, output  # which warns of docstrings
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site):
    """Path of each page -> the page."""
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_page_of_docs_is_in_the_site(pages, site):
    names = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")}
    built = {path.relative_to(site).with_suffix("").as_posix() for path in pages}
    assert built == {name.replace("README", "index") for name in names}


def test_every_page_of_docs_has_its_place_in_the_navigation():
    places = re.findall(
        r"^ +- (?:\w[\w' ]*: )?([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M
    )
    assert len(places) == len(set(places))
    assert set(places) == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    rooms = [place[4:-3] for place in places if place.startswith("api/")]
    assert rooms == ["index", *(room for room in ROOMS if room not in GROUND), "ground"]


def test_no_link_is_dead(pages, site):
    for path, page in pages.items():
        for link in (each for each in page.links | page.loads if "://" not in each):
            file, _, anchor = unquote(link).partition("#")
            there = (path.parent / file).resolve() if file else path
            assert there.is_file() and there.is_relative_to(site), f"{path.name}: {link}"
            anchor_there = not anchor or there.suffix != ".html" or anchor in pages[there].ids
            assert anchor_there, f"{path.name}: {link}"


def test_nothing_is_loaded_from_other_hosts(pages, site):
    for path, page in pages.items():
        assert not [each for each in page.loads if "//" in each], path.name
    for path in site.rglob("*.css"):
        assert not re.search(r"@import|url\(['\"]?(https?:)?//", path.read_text()), path.name


def public(path):
    """The public functions and classes of a module that have a docstring."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if ast.get_docstring(node):
                yield node.name


def test_the_reference_has_every_public_function_and_class(pages, site):
    ids = {name for path, page in pages.items() if path.parent == site / "api" for name in page.ids}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if not module.startswith("snapvideo_jax.build."):  # whose room is a single namespace
            for name in public(path):
                assert f"{module}.{name}" in ids, f"{module}.{name}"


def test_fields_of_modules_and_shapes_of_arrays_can_be_read_in_signatures(site):
    text = re.sub(r"<[^>]*>", "", (site / "api" / "models.html").read_text())
    signature = re.search(r"FITBlock\(.*?\)\n", unescape(text), re.S)[0]
    assert "    head_channels: tuple[int, int],\n" in signature
    assert 'tuple[Float[Array, "B N C"], Float[Array, "B M D"]]' in unescape(text)


def test_the_gallery_shows_every_prompt_in_motion():
    page, folder = (DOCS / "gallery.md").read_text(), DOCS / "gallery"
    prompts = (folder / "prompts.txt").read_text().splitlines()
    for place, prompt in enumerate(prompts):
        name = f"{place:05}.gif"
        assert f"| {prompt} | ![](gallery/first/{name}) | ![](gallery/both/{name}) |" in page
    pictures = sorted(folder.rglob("*.gif"))
    assert len(pictures) == 2 * len(prompts) + 4 * 3
    for path in pictures:
        assert f"](gallery/{path.relative_to(folder).as_posix()})" in page
        with Image.open(path) as picture:
            assert picture.n_frames == 8
    assert sum(path.stat().st_size for path in pictures) < 1_500_000
