"""README.md and docs/: links lead somewhere, the site builds and needs no other host, the generated page is current."""

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import write_configuration_docs

from reprise.train import options

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]

CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)|<(?:img|a)\s[^>]*?(?:src|href)=\"([^\"]+)\"")
OTHER_HOST = re.compile(r"(?:[a-z]+:)?//", re.IGNORECASE)
IN_CSS = re.compile(r"(?:@import\s+(?:url\()?|url\()\s*['\"]?([^'\")\s]+)")


def prose(page: Path) -> str:
    """A page without its code, in which brackets are no links and '#' is no heading."""
    return re.sub(r"`[^`\n]*`", "", CODE.sub("", page.read_text("utf-8")))


def links(page: Path) -> list[str]:
    return [target for pair in LINK.findall(prose(page)) for target in pair if target]


def anchors(page: Path) -> set[str]:
    """The anchors that code hosts give to the headings of a page."""
    headings = re.findall(r"^#+ +(.+?) *$", CODE.sub("", page.read_text("utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"(?:https?:|mailto:)", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link} does not exist"
        assert ROOT in target.parents, f"{page.name}: {link} is outside the repository"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}: there are {sorted(anchors(target))}"


def test_links_and_anchors_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '# A b-c, `--d`\n[x](a.md#b) ![y](c.png) <img src="d.png" width="3"> `[no](no.md)`\n```\n# no\n[no](no)\n```\n'
    )
    assert links(page) == ["a.md#b", "c.png", "d.png"]
    assert anchors(page) == {"a-b-c---d"}


# ---- the site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """--strict: a page that is not in the navigation, a broken link and a broken anchor are errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(ROOT / "mkdocs.yml"), "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Fetched(HTMLParser):
    """Collects what a browser fetches for a page by itself; what a link leads to is not fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_style = tag == "style"
        for name, value in attrs:
            if value and (name in ("src", "srcset", "data", "poster") or (name == "href" and tag not in ("a", "area"))):
                self.addresses.append(value)
            elif value and name == "style":
                self.addresses += IN_CSS.findall(value)

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.addresses += IN_CSS.findall(data)


def fetched(file: Path) -> list[str]:
    text = file.read_text("utf-8")
    if file.suffix == ".css":
        return IN_CSS.findall(text)
    page = Fetched()
    page.feed(text)
    return page.addresses


def from_other_hosts(folder: Path) -> Iterator[str]:
    for file in sorted(path for path in folder.rglob("*") if path.suffix in (".html", ".css")):
        for address in fetched(file):
            if OTHER_HOST.match(address.strip()):
                yield f"{file.relative_to(folder)}: {address}"


def test_the_site_has_every_page_and_needs_no_other_host(site: Path) -> None:
    assert {page.stem for page in site.glob("*.html")} >= {page.stem for page in DOCS.glob("*.md")}
    assert list(from_other_hosts(site)) == []


def test_what_comes_from_other_hosts_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="https://b.org"></a><script src="//c.org/x.js"></script><img src="d.png"><link href="http://e.org/y.css">'
        "<style>@import 'https://f.org/z.css';</style><p style=\"background: url(https://g.org/p.png)\">https://h.org</p>"
    )
    (tmp_path / "a.css").write_text("@font-face {src: url('https://i.org/f.woff'), url(fonts/f.woff)}")
    hosts = [found.rpartition("//")[2].partition("/")[0] for found in from_other_hosts(tmp_path)]
    assert hosts == ["i.org", "c.org", "e.org", "f.org", "g.org"]


# ---- docs/configuration.md


def test_the_configuration_page_is_what_the_code_says() -> None:
    remedy = "docs/configuration.md is out of date; run: .venv/bin/python scripts/write_configuration_docs.py"
    assert write_configuration_docs.PAGE.read_text("utf-8") == write_configuration_docs.page(), remedy


def test_the_configuration_page_has_every_flag_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options.parse(["--help"])
    flags = set(re.findall(r"^  (--[a-z0-9-]+)", capsys.readouterr().out, flags=re.MULTILINE)) - {"--version"}
    page = write_configuration_docs.PAGE.read_text("utf-8")
    assert len(flags) > 30
    assert flags == set(re.findall(r"^\| `(--[a-z0-9-]+)` \|", page, flags=re.MULTILINE))
