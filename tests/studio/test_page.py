"""The page in a real browser: the whole test by keyboard, and by mouse, with what a listener does besides."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from etude.studio.options import Options
from etude.studio.results import Answer, Results
from tests.studio.browser import ENTER, LEFT, RIGHT, Browser, browser, programs
from tests.studio.conftest import served

pytestmark = pytest.mark.skipif(programs() is None, reason="needs Chromium: apt-get install chromium chromium-driver")


@pytest.fixture
def window(tmp_path: Path) -> Iterator[Browser]:
    with browser(tmp_path / "profile") as opened:
        yield opened
        said = [entry["message"] for entry in opened.ask("POST", "/se/log", type="browser")]
        assert not [line for line in said if "ERR_CONNECTION" not in line and "ERR_EMPTY_RESPONSE" not in line]


def heard(window: Browser) -> None:
    """Waits until the question may be answered."""
    window.until(lambda: window.run("return players.every((own) => own.heard)"), "the music to be heard")


def answered(window: Browser, count: int, *, of: int) -> None:
    """Waits until so many questions are answered, and the next one can be heard."""
    page, line = ("end", "") if count == of else ("question", f"Question {count + 1} of {of}")
    window.until(lambda: window.run("return !busy && document.body.dataset.page") == page, f"the page {page}")
    window.until(lambda: not line or window.text("#count") == line, line)


def answers(options: Options) -> list[Answer]:
    return Results(options.results_file).answers()


def test_the_whole_test_by_keyboard(options: Callable[..., Options], tmp_path: Path, window: Browser) -> None:
    asked = options(name="Ann")
    with served(asked, tmp_path / "sounds") as server:
        window.open(server.address)
        window.shows("start")
        window.press("a", " ", "1", ENTER)  # letters of the name, not answers
        window.shows("question")
        window.press("1", ENTER)  # not before it was heard
        assert window.text("#hint") == "Listen first, please." and not answers(asked)
        window.press(" ")
        window.until(lambda: window.run("return players[0].audio.currentTime > 0.2"), "the sound to play")
        window.press(" ")
        assert window.run("return players[0].audio.paused")
        window.press(" ")
        heard(window)
        window.press("1", "2", ENTER)  # the last choice counts
        answered(window, 1, of=4)
        assert [(each.listener, each.answer) for each in answers(asked)] == [("Anna 1", "generated")]
        window.press("u")
        answered(window, 0, of=4)
        assert answers(asked) == []
        for number, key in enumerate(("1", "2", LEFT, RIGHT)):
            window.press(" ")
            heard(window)
            window.press(key, ENTER)
            answered(window, number + 1, of=4)
        window.press("u")
        answered(window, 3, of=4)
        window.press(" ")
        heard(window)
        window.press(LEFT, ENTER)
        window.shows("end")
        window.press(ENTER)
        window.shows("result")
        given = answers(asked)
        assert [each.answer for each in given] == ["real", "generated", "real", "real"]
        assert all(0.5 < each.seconds_taken < 60 for each in given)
        right = sum(each.is_right for each in given)
        assert window.text("#score") == f"{right} of 4 right" and "too few to say anything" in window.text("#sentences")
        assert window.run("return document.querySelectorAll('#list .right').length") == right
        window.press("u")  # answers stay as they are
        window.press(ENTER)
        window.shows("start")
    assert len(answers(asked)) == 4


def test_a_closed_tab_and_an_ended_server_lose_nothing(options: Callable[..., Options], tmp_path: Path, window: Browser) -> None:
    asked = options(mode="pairs", questions=3)
    with served(asked, tmp_path / "one") as server:
        window.open(server.address)
        window.shows("start")
        window.press("B", "o", ENTER)
        window.shows("question")
        window.press(" ")  # both, one after the other
        heard(window)
        window.press("2", ENTER)
        answered(window, 1, of=3)
        address = window.run("return location.href")
        window.open("about:blank")
        window.open(address)
        answered(window, 1, of=3)
        window.press("a")
        window.until(lambda: window.run("return players[0].heard"), "A")
        window.press("b")
        heard(window)
    window.press("1", ENTER)
    window.until(lambda: "it was ended" in window.text("#error"), "the message")
    with served(asked, tmp_path / "two") as server:
        window.open(server.address)
        window.shows("start")
        window.press("B", "o", ENTER)
        window.until(lambda: "You have answered 1 of 3 questions" in window.text("#start"), "the offer to go on")
        window.press(ENTER)
        answered(window, 1, of=3)
    assert [each.answer for each in answers(asked)] == ["second"]


def test_a_field_that_is_no_longer_shown_takes_no_key(options: Callable[..., Options], tmp_path: Path, window: Browser) -> None:
    with served(options(), tmp_path / "sounds") as server:
        window.open(server.address)
        window.shows("start")
        focus = "document.activeElement.tagName"
        assert window.run(f"return {focus}") == "INPUT"
        assert window.run(f"show('question'); return {focus}") == "BODY"  # at once, not after the next frame


def test_everything_is_reachable_by_mouse_on_a_phone(options: Callable[..., Options], tmp_path: Path, window: Browser) -> None:
    asked = options(questions=2)

    def click(selector: str) -> None:
        box = f"const box = document.querySelector('{selector}').getBoundingClientRect();"
        centre = "box.x + box.width / 2, box.y + box.height / 2"
        found = window.run(f"{box} return [{centre}, box.height, document.documentElement.scrollWidth]")
        assert found[2] >= 40 and found[3] <= 360  # large enough for a finger; nothing sticks out
        steps = [{"type": "pointerMove", "x": round(found[0]), "y": round(found[1])}, {"type": "pointerDown", "button": 0},
                 {"type": "pointerUp", "button": 0}]  # fmt: skip
        window.ask("POST", "/actions", actions=[{"type": "pointer", "id": "mouse", "actions": steps}])

    with served(asked, tmp_path / "sounds") as server:
        window.size(360, 740)
        window.open(server.address)
        window.shows("start")
        window.press("C", "y")
        click("#begin")
        window.shows("question")
        for number, selector in enumerate(("#one", "#two")):
            click(".player")
            heard(window)
            click(selector)
            click("#confirm")
            answered(window, number + 1, of=2)
        click("#back")
        answered(window, 1, of=2)
        click(".player")
        heard(window)
        click("#one")
        window.press(ENTER)  # the clicked button has no focus any more
        window.shows("end")
        click("#show")
        window.shows("result")
        window.run("window.scrollTo(0, 0)")
        click(".replays button")
        window.until(lambda: window.run("return players.length === 1 && players[0].audio.currentTime > 0.2"), "the replay")
    assert [each.answer for each in answers(asked)] == ["real", "real"]
