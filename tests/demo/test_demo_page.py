"""The page in a browser: type, press, see, download, load in PEFT."""

import json
import runpy
import shutil
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the page is not installed: pip install 'tagi[demo]'")

from modeling_tagi import TagiAdapter  # noqa: E402
from modeling_tagi.commands.main import main  # noqa: E402
from modeling_tagi.demo.answers import WAYS, Shown  # noqa: E402
from modeling_tagi.demo.page import distance_of, launch, make_page, table_of  # noqa: E402
from modeling_tagi.function import Answer  # noqa: E402


@pytest.fixture(scope="module")
def model(make_model, tokenizer):
    made = make_model("t5", "none")
    made.tokenizer = tokenizer
    return made


@pytest.fixture(scope="module")
def url(model):
    page = make_page(model, "user/<b>generator</b>")
    yield launch(page, "127.0.0.1", None)
    page.close()


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="there is no playwright to drive a browser with")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_a_visitor_types_presses_sees_and_downloads(model, url, browser, tmp_path):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.fill("#instruction textarea", "say ab")
    page.fill("#inputs textarea", "ab\n\n<i>c</i>")
    page.fill("#options input, #options textarea", "yes, no")
    page.click("#answer")
    page.wait_for_selector("#answers td.own")
    own = model.function("say ab", ["yes", "no"])
    assert page.locator("#answers td.own").all_inner_texts() == own(["ab", "<i>c</i>"])
    assert page.locator("#answers tbody tr").nth(1).locator("td").first.inner_text() == "<i>c</i>"
    page.wait_for_selector("#changes img")
    with page.expect_download() as download:
        page.click("#peft")
    download.value.save_as(tmp_path / "adapter.zip")
    zipfile.ZipFile(tmp_path / "adapter.zip").extractall(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    again = TagiAdapter.from_pretrained(tmp_path / "adapter")
    assert again.provenance[0]["instruction"] == "say ab"
    # what is too much is told, and the answers before stay
    page.fill("#inputs textarea", "\n".join(["ab"] * 33))
    page.click("#answer")
    page.wait_for_selector("text=There are 33 inputs")
    # on a phone nothing is wider than the screen
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert all(address.startswith((url, "data:", "blob:")) for address in asked), asked
    page.close()


def test_programs_get_the_same_answers(model, url):
    from gradio_client import Client

    client = Client(url, verbose=False)
    own = model.function("say ab", ["yes", "no"])
    assert client.predict("say ab", ["ab", "c"], ["yes", "no"], 4, api_name="/answer") == own(["ab", "c"])
    with pytest.raises(Exception, match="There is no input"):
        client.predict("say ab", [], None, 4, api_name="/answer")


def test_a_space_without_a_checkpoint_says_what_to_set(monkeypatch):
    monkeypatch.delenv("CHECKPOINT", raising=False)
    with pytest.raises(SystemExit, match="set the Space's variable CHECKPOINT"):
        runpy.run_path(str(Path(__file__).parents[2] / "hub_configs" / "space" / "app.py"))


def test_texts_are_shown_and_not_run():
    answers = {way: [Answer("<script>1</script>", {"<b>": -1.0}, "adapter")] for way in WAYS}
    found = Shown("x", ["<img src=x>"], answers, None, "far", ["[a](b) <i>"])
    assert "<script" not in table_of(found) and "<img" not in table_of(found) and "<b>" not in table_of(found)
    assert distance_of(found) == "This instruction is far.\n* near: \\[a\\](b) \\<i\\>"


@pytest.mark.parametrize("words, message", [
    (["demo", "nowhere/at/all"], "there is no folder nowhere/at/all"), (["demo", "x", "--port", "70000"], "no port"),
])  # fmt: skip
def test_what_cannot_be_offered_is_refused_in_one_line(words, message, capsys):
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    assert code in (1, 2) and message in capsys.readouterr().err.splitlines()[-1]
