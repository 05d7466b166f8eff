"""The documents as a site. Rule: built as `make docs` builds it, warnings as errors; read as HTML, and in a
browser that is watched.
"""

from __future__ import annotations

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import browser as chromium
import pytest
from conftest import PROJECT, require_program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest.importorskip("material")
pytest.importorskip("mkdocstrings")

#: attributes that make a browser ask for something while it shows a page; <a href> asks only when followed
_ASKING = ("src", "srcset", "data", "poster", "action", "background", "xlink:href")
_ASKED_LINKS = (
    "stylesheet",
    "icon",
    "preload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "modulepreload",
    "manifest",
)


class Asked(HTMLParser):
    """What a page would ask for, and what it links to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.asked += [given[name] for name in _ASKING if name in given]
        if "id" in given:
            self.ids.add(given["id"])
        if tag == "link" and set(given.get("rel", "").split()) & set(_ASKED_LINKS):
            self.asked.append(given.get("href", ""))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])


def build(to: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(to)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def pages(site: Path) -> list[Path]:
    found = sorted(site.rglob("*.html"))
    assert len(found) > 10
    return found


def test_every_document_is_a_page(site: Path) -> None:
    wanted = {path.stem for path in (PROJECT / "docs").glob("*.md")}
    assert wanted == {path.stem for path in pages(site)} - {"404"}


def test_no_page_asks_another_host(site: Path) -> None:
    for page in pages(site):
        read = Asked(page.read_text())
        assert read.asked
        assert [url for url in read.asked if re.match(r"(?i)\s*(\w+:)?//", url)] == [], page.name


def test_no_style_asks_another_host(site: Path) -> None:
    sheets = [*site.rglob("*.css"), *pages(site)]
    for sheet in sheets:
        asked = re.findall(r"""(?:@import\s+|url\()\s*["']?((?:\w+:)?//[^"')\s]*)""", sheet.read_text())
        assert asked == [], sheet.name


def test_links_within_the_site_lead_to_their_anchors(site: Path) -> None:
    read = {page: Asked(page.read_text()) for page in pages(site) if page.stem != "404"}
    for page, found in read.items():
        for link in found.links:
            if re.match(r"\w+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path not in ("", ".") else page
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), (page.name, link)
            if anchor and not anchor.startswith("__"):
                assert anchor in read[target].ids, (page.name, link)


def test_the_reference_has_the_docstrings(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "api.html").read_text())
    assert "Reads captures, flow files or folders of them" in text
    assert re.findall(r":(?:func|class|data|meth):", text) == []


def test_a_fault_in_a_document_ends_the_build(tmp_path: Path) -> None:
    """The switch that makes warnings errors is on, whoever builds."""
    for name in ("analyzer", "docs", "mkdocs.yml"):
        (tmp_path / name).symlink_to(PROJECT / name)
    (tmp_path / "docs").unlink()
    (tmp_path / "docs").mkdir()
    for path in (PROJECT / "docs").iterdir():
        if path.is_file():
            (tmp_path / "docs" / path.name).write_bytes(path.read_bytes())
    with (tmp_path / "docs" / "index.md").open("a") as index:
        index.write("\n[nowhere](nowhere.md)\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr


# ---- in a browser ----


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """No line for each request."""


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """The site over loopback, as a server would give it."""
    handler = functools.partial(_Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_reader_asks_no_other_host_and_finds_by_search(
    address: str, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_program(chromium.PROGRAM)
    only_here = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    monkeypatch.setattr(chromium, "_OPTIONS", (*chromium._OPTIONS, only_here))
    with chromium.running() as running:
        tab = chromium.Page(running)
        for page in (path for path in pages(site) if path.stem != "404"):
            tab.call("Page.navigate", url=f"{address}/{page.name}")
            tab.until(f"location.pathname === '/{page.name}' && document.readyState === 'complete'")
        tab.click(".md-search__input")
        tab.until("document.activeElement.matches('.md-search__input')")
        tab.type("wrong-pair")
        tab.until("document.querySelectorAll('.md-search-result__item a[href*=verdicts]').length > 0", 30)
        asked = [event["request"]["url"] for event in tab.events("Network.requestWillBeSent")]
        assert len(asked) > len(pages(site))
        assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
        assert [e["entry"] for e in tab.events("Log.entryAdded") if e["entry"]["level"] == "error"] == []
        assert tab.events("Runtime.exceptionThrown") == []
