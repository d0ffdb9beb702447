"""The playground in a browser: by keyboard, wide and narrow, without errors."""

import os
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
SHOTS = os.environ.get("LLMREC_SHOTS")  # a folder to look at what was seen


def tab_to(browser, condition):
    """Press Tab until what has the focus fulfils a condition."""
    for _ in range(40):
        if browser.js(f"(() => {{ const e = document.activeElement; return {condition}; }})()"):
            return
        browser.key("Tab")
    raise AssertionError(f"not reached by Tab: {condition}")


@pytest.mark.parametrize("width", [1200, 420])
def test_a_history_is_built_and_answered_by_keyboard_alone(browser, address, answers, width):
    browser.open(address, width)
    browser.until("document.querySelectorAll('#systems input').length")
    assert browser.js("document.querySelectorAll('#systems input').length") == len(answers.systems)
    tab_to(browser, "e.id === 'words'")
    for words, down, title in [("man", 1, "The Man II"), ("lov", 0, "Love")]:
        browser.type(words)
        browser.until("document.querySelectorAll('#found li').length")
        for _ in range(down):
            browser.key("ArrowDown")
        browser.key("Enter", "\r")
        last = "document.querySelector('#history li:last-child .name')?.textContent"
        browser.until(f"({last} || '').startsWith({title!r})")
    tab_to(browser, "e.getAttribute('aria-label') === 'Love: earlier'")
    browser.key("Enter", "\r")
    first = "document.querySelector('#history .name').textContent"
    assert browser.js(first).startswith("Love")
    tab_to(browser, "e.type === 'checkbox' && e.value === 'tuned_guided'")
    browser.key(" ", " ")
    browser.key("Enter", ctrl=True)
    browser.until("document.querySelectorAll('#tree li').length")
    cards = browser.js("[...document.querySelectorAll('.answer h3')].map(h => h.textContent)")
    assert cards == ["tuned", "popularity", "tuned_guided"]
    shown = browser.js(
        "[...document.querySelectorAll('.answer:first-child .name')].map(e => e.title)"
    )
    recommender = answers._of("tuned")
    assert shown == recommender.recommend([["i7", "i1"]], 10)["item_id"].to_pylist()
    tokens = browser.js("document.querySelectorAll('#tokens .token').length")
    titles = browser.js(
        "[...document.querySelectorAll('#tokens .title')].map(e => e.textContent).join('')"
    )
    assert tokens > 10
    assert titles.replace(" ", "") == "LoveTheManII"
    assert browser.js("document.documentElement.scrollWidth") <= width
    if SHOTS:
        browser.shot(Path(SHOTS) / f"playground-{width}.png")
    tab_to(browser, "e.getAttribute('aria-label') === 'Remove Love'")
    browser.key("Enter", "\r")
    assert browser.js("document.activeElement.getAttribute('aria-label')") == "Remove The Man II"
    assert browser.js("document.querySelectorAll('#history li').length") == 1
    assert not browser.errors


def test_a_system_without_a_prompt_says_so_and_a_refused_request_is_shown(browser, address):
    browser.open(address, 800)
    browser.until("document.querySelectorAll('#systems input').length")
    browser.js(
        "document.querySelectorAll('#systems input')"
        ".forEach(e => { e.checked = e.value === 'markov'; })"
    )
    browser.js("document.getElementById('ask').click()")
    said = browser.until("document.getElementById('how-said').textContent.includes('scores every')")
    assert said
    assert browser.js("document.getElementById('tree-part').hidden")
    browser.js("document.querySelector('#systems input').value = 'nonsense'")
    browser.js("document.querySelector('#systems input').checked = true")
    browser.js("document.getElementById('ask').click()")
    browser.until("document.getElementById('said').textContent.includes('1 of 2 answered')")
    assert "there is no 'nonsense'" in browser.js("document.querySelector('.answer p').textContent")
    browser.errors.clear()  # the refusal itself, which the browser logs


def test_titles_are_text_and_no_html(browser, address, answers, monkeypatch):
    evil = {"item_id": "i7", "title": "<img src=x onerror=document.title='run'>"}
    monkeypatch.setattr(answers, "search", lambda words, limit: [evil])
    browser.open(address, 800)
    browser.js("document.getElementById('words').focus()")
    browser.type("x")
    browser.until("document.querySelectorAll('#found li').length")
    browser.key("Enter", "\r")
    browser.until("document.querySelectorAll('#history li').length")
    assert evil["title"] in browser.js("document.getElementById('history').textContent")
    assert browser.js("document.querySelectorAll('img').length") == 0
    assert browser.js("document.title") == "llmrec playground"
