"""The page at `/` in headless Chromium (Debian's chromium and chromium-driver) over the shipped model."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("selenium")

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = pytest.mark.extras

KEY = "sk-page"
PICTURE = Path("docs/images/page.png")
PATIENCE_S = 60


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    command = [str(Path(sys.executable).with_name("quire")), "serve", "--port", "0", "--disable-access-log"]
    given = {**os.environ, "QUIRE_SERVER__API_KEY": KEY}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=given) as server:
        assert server.stdout is not None
        try:
            found = next(filter(None, (re.search(r"ready at\s+(\S+)", line) for line in server.stdout)))
            yield found.group(1)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,960"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options, Service("/usr/bin/chromedriver"))
    yield found
    found.quit()


def test_a_reader_talks_with_the_model(url: str, browser: webdriver.Chrome) -> None:
    browser.get(url)
    wait = WebDriverWait(browser, PATIENCE_S)

    def text(name: str) -> str:
        return browser.find_element(By.ID, name).text

    # Without a key the page says what is missing, and shows nothing.
    wait.until(lambda _: "API key" in text("notice"))
    assert text("running") == "–"
    field = browser.find_element(By.ID, "key")
    field.send_keys(KEY)
    browser.execute_script("arguments[0].dispatchEvent(new Event('change'))", field)
    wait.until(lambda _: "tokens of context" in text("model"))

    browser.find_element(By.ID, "temperature").send_keys("0.7")
    browser.find_element(By.ID, "seed").send_keys("11")
    browser.find_element(By.ID, "max_tokens").send_keys("200")
    browser.find_element(By.ID, "prompt").send_keys("Tell me a <b>story</b> about the sea.\n")
    wait.until(lambda _: text("send") == "Stop")
    wait.until(lambda _: text("pace") not in ("–", "0"))
    wait.until(lambda _: text("send") == "Send")
    said = browser.find_elements(By.CSS_SELECTOR, "#talk .text")
    assert [len(said), said[0].text] == [2, "Tell me a <b>story</b> about the sea."]
    assert len(said[1].text) > 20
    assert re.fullmatch(r"\d+ ms", text("first"))

    # A second turn, stopped in the middle: what came stays, and the conversation goes on.
    browser.find_element(By.ID, "max_tokens").clear()
    browser.find_element(By.ID, "prompt").send_keys("And then?\n")
    wait.until(lambda _: len(browser.find_elements(By.CSS_SELECTOR, "#talk .assistant")) == 2)
    browser.find_element(By.ID, "send").click()
    wait.until(lambda _: text("send") == "Send")
    wait.until(lambda _: text("running") == "0")
    assert not browser.find_elements(By.CSS_SELECTOR, "#talk .failed")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    browser.execute_script("document.querySelector('aside').scrollTop = 0")
    browser.save_screenshot(str(PICTURE))

    # The 401s from before the key are the only thing that the console may hold.
    complaints = [entry["message"] for entry in browser.get_log("browser")]
    assert [line for line in complaints if "401" not in line] == []
