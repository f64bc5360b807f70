"""The site: built strictly of docs/, with a page for all that pages link to, and nothing fetched from elsewhere."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in ("material", "mkdocstrings_handlers")),
    reason='the site needs the extra: pip install -e ".[docs]"')  # fmt: skip
FETCHED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//|"
                     r"<link\b[^>]*\brel=[\"']?(?:stylesheet|preconnect|preload)[^>]*\bhref=[\"']?(?:https?:)?//|"
                     r"(?:@import|url\()\s*[\"']?(?:https?:)?//")  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def text(site, page):
    return re.sub(r"<[^>]+>", "", (site / page).read_text(encoding="utf-8"))


def test_every_page_of_the_repository_is_in_it(site):
    pages = {page.relative_to(ROOT / "docs").with_suffix("") for page in (ROOT / "docs").rglob("*.md")}
    pages = {page for page in pages if page.name != "README"} | {Path("contributing"), Path("changelog")}
    assert not [page for page in pages if not (site / page / "index.html").is_file()]
    assert "You can say what you want from a language model" in text(site, "index.html")


def test_the_reference_has_what_users_call(site):
    model, function = (text(site, f"reference/{page}/index.html") for page in ("model", "function"))
    assert all(f"{name}(" in model for name in ("from_backbone", "generate_adapter", "function", "generate"))
    assert all(f"{name}(" in function for name in ("load_function", "__call__", "scores", "call_async", "save"))
    assert "[Answer]" not in function


def test_a_link_to_code_leads_to_a_page_that_shows_it(site):
    assert 'href="../source/modeling_tagi/lora.py/' in (site / "method" / "index.html").read_text(encoding="utf-8")
    assert (ROOT / "modeling_tagi" / "lora.py").read_text(encoding="utf-8").splitlines()[0][3:60] in text(
        site, "source/modeling_tagi/lora.py/index.html")  # fmt: skip


def test_lists_and_the_blocks_in_them_are_read_as_such(site):
    pages = [page for page in site.rglob("*.html") if "source" not in page.parts]
    outside = {page: re.sub(r"<pre.*?</pre>", "", page.read_text(encoding="utf-8"), flags=re.S) for page in pages}
    assert pages and not [page for page, html in outside.items() if "```" in html or re.search(r"^\* ", html, re.M)]


def test_nothing_is_fetched_from_elsewhere(site):
    files = [file for pattern in ("*.html", "*.css") for file in site.rglob(pattern)]
    assert files and not [file for file in files if FETCHED.search(file.read_text(encoding="utf-8"))]
    assert FETCHED.search('<link rel="stylesheet" href="https://fonts.example.org/css">')
