"""The server of the listening test: nothing that it sends tells real from generated music, and no answer is lost."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from etude.studio.options import Options
from etude.studio.results import Results
from etude.studio.server import PAGE, ListeningServer
from tests.studio.conftest import served

Asked = Callable[..., Any]


def ask(server: ListeningServer, path: str, code: int = 200, **body: Any) -> Any:
    """Returns the JSON, or the bytes of a sound, with which the server answers; sends a POST where there is a body."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.address}{path}", json.dumps(body).encode() if body else None, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.status == code
            return json.load(answer) if answer.headers["Content-Type"] == "application/json" else answer.read()
    except urllib.error.HTTPError as error:
        with error:
            found = json.load(error)
        assert error.code == code, found
        return found


def answer_all(server: ListeningServer, state: dict[str, Any], answer: str = "real") -> dict[str, Any]:
    while state["answered"] < state["questions"]:
        state = ask(server, f"sessions/{state['session']}/answers", number=state["answered"], answer=answer, seconds=1.5)
    return state


@pytest.mark.parametrize("mode", ["single", "pairs"])
def test_nothing_that_is_sent_before_the_end_tells_real_from_generated(
    options: Callable[..., Options], tmp_path: Path, mode: str
) -> None:
    with served(options(mode=mode), tmp_path / "sounds") as server:
        state, sent, sizes, heads, names = ask(server, "sessions", name="Ann"), "", set(), set(), []
        while state["answered"] < 4:
            sent += json.dumps(state)
            for name in state["clips"]:
                connection = HTTPConnection("127.0.0.1", server.server_address[1])
                connection.request("GET", f"/sounds/{name}")
                answer = connection.getresponse()
                heads.add(tuple(answer.getheaders()))
                data = answer.read()
                connection.close()
                sizes.add((len(data), data[:44]))
                names.append(name)
            answer_name = "real" if mode == "single" else "first"
            state = ask(server, f"sessions/{state['session']}/answers", number=state["answered"], answer=answer_name, seconds=1)
        assert len(sizes) == len(heads) == 1  # the same length, format and headers, without dates or names
        assert not {name for name, _ in next(iter(heads))} & {"Date", "Last-Modified", "ETag", "Content-Disposition", "Server"}
        assert len(set(names)) == len(names) == (4 if mode == "single" else 8)
        assert all(re.fullmatch(r"[\w-]{22}", name) for name in names)
        assert not re.search(r"real|generated|folk|jazz|\.mid|samples|sha", sent)
        other = ask(server, "sessions", name="Ben")
        assert not {*other["clips"], *other["next"]} & {*names}  # they are new in every session


def test_the_result_comes_only_when_all_is_answered_and_then_answers_stay(
    options: Callable[..., Options], tmp_path: Path
) -> None:
    with served(options(), tmp_path / "sounds") as server:
        state = ask(server, "sessions", name="Ann")
        place = f"sessions/{state['session']}"
        assert ask(server, f"{place}/result", 409, x=0) == {"error": "4 questions are still open"}
        state = answer_all(server, state)
        assert (state["answered"], state["clips"], state["finished"]) == (4, [], False)
        assert ask(server, f"{place}/undo", x=0)["answered"] == 3
        answer_all(server, ask(server, place))
        result = ask(server, f"{place}/result", x=0)
        assert (result["right"], result["questions"]) == (2, 4)  # half of them are real
        assert [given["clips"][0]["was"] for given in result["answers"]] == [given["right"] for given in result["answers"]]
        assert "the answers stay as they are" in ask(server, f"{place}/undo", 409, x=0)["error"]
        assert ask(server, place)["finished"]
        assert all(ask(server, f"sounds/{each['clip']}")[:4] == b"RIFF" for given in result["answers"] for each in given["clips"])


def test_a_session_goes_on_after_the_server_was_ended(options: Callable[..., Options], tmp_path: Path) -> None:
    with served(options(), tmp_path / "one") as server:
        state = ask(server, "sessions", name=" Ann ")
        ask(server, f"sessions/{state['session']}/answers", number=0, answer="real", seconds=2)
        clips = [ask(server, f"sounds/{name}") for name in ask(server, f"sessions/{state['session']}")["clips"]]
    with served(options(), tmp_path / "two") as server:
        assert ask(server, f"sessions/{state['session']}", 404)["error"].startswith("this session is not open any more")
        assert ask(server, "sessions", name="Ann") == {"unfinished": {"answered": 1, "questions": 4}}
        again = ask(server, "sessions", name="Ann", choice="continue")
        assert (again["session"], again["answered"]) == (state["session"], 1)
        assert [ask(server, f"sounds/{name}") for name in again["clips"]] == clips  # the same music under other names
        answer_all(server, again)
        new = ask(server, "sessions", name="Ann", choice="new")
        assert new["session"] != again["session"] and new["answered"] == 0
    assert [each.number for each in Results(options().results_file).answers(again["session"])] == [0, 1, 2, 3]
    with served(options(seed=1), tmp_path / "three") as server:  # another test
        assert ask(server, "sessions", name="Ann")["answered"] == 0


def test_two_listeners_and_two_windows_do_not_disturb_each_other(options: Callable[..., Options], tmp_path: Path) -> None:
    with served(options(), tmp_path / "sounds") as server:
        ann, ben = (ask(server, "sessions", name=name) for name in ("Ann", "Ben"))
        assert ann["session"] != ben["session"] and not set(ann["clips"]) & set(ben["clips"])
        for state, answer in ((ann, "real"), (ben, "generated")):
            ask(server, f"sessions/{state['session']}/answers", number=0, answer=answer, seconds=1)
        second = ask(server, f"sessions/{ann['session']}/answers", 409, number=0, answer="generated", seconds=1)
        assert second["error"].startswith("this question was answered in another window")
        answers = {(each.listener, each.answer) for each in server.test.results.answers()}
        assert answers == {("Ann", "real"), ("Ben", "generated")}


def test_what_is_not_right_is_refused_and_saves_nothing(options: Callable[..., Options], tmp_path: Path) -> None:
    with served(options(), tmp_path / "sounds") as server:
        state = ask(server, "sessions", name="Ann")
        place = f"sessions/{state['session']}/answers"
        for wrong in (
            {"number": 0, "answer": "first", "seconds": 1}, {"number": "0", "answer": "real", "seconds": 1},
            {"number": 0, "answer": "real", "seconds": -1}, {"number": 0, "answer": "real", "seconds": "1"},
            {"number": 0, "answer": ["real"], "seconds": 1}, {"number": 0, "answer": "real", "seconds": float("nan")},
            {"answer": "real"}, {"number": 9, "answer": "real", "seconds": 1},
        ):  # fmt: skip
            assert "error" in ask(server, place, 409, **wrong)
        assert "give a name or a nickname" in ask(server, "sessions", 409, name="\n ")["error"]
        for path in ("sounds/../../etc/passwd", "sounds/x", "sessions/x", "nothing", "page/listen.js", "sounds/"):
            assert "error" in ask(server, path, 404)
        assert server.test.results.answers() == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Content-Type": "text/plain"}, 400),
        ({"Content-Length": "99999999"}, 400),
        ({"Content-Length": "x"}, 400),
        ({"Host": "localhost:9"}, 409),  # a tunnel to this machine: only the name is missing
    ],
)
def test_pages_of_other_hosts_can_not_ask(
    options: Callable[..., Options], tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    with served(options(), tmp_path / "sounds") as server:
        connection = HTTPConnection("127.0.0.1", server.server_address[1])
        connection.request("POST", "/sessions", b'{"name": ""}', {"Content-Type": "application/json", **headers})
        assert connection.getresponse().status == status
        connection.close()


def test_the_page_needs_nothing_from_elsewhere(options: Callable[..., Options], tmp_path: Path) -> None:
    with served(options(name="Ann"), tmp_path / "sounds") as server:
        assert ask(server, "test") == {"mode": "single", "questions": 4, "seconds": 1.5, "name": "Ann"}
        for path in ("", "listen.css", "listen.js"):
            assert ask(server, path) == (PAGE / (path or "listen.html")).read_bytes()
        assert server.server_address[0] == "127.0.0.1"
    for file in PAGE.iterdir():
        assert not re.search(r"(https?:)?//\w|@import|url\(", re.sub(r"(?m)^\s*//.*|; // .*$", "", file.read_text()))


def test_a_port_in_use_is_told(options: Callable[..., Options], tmp_path: Path) -> None:
    with served(options(), tmp_path / "sounds") as server, pytest.raises(ValueError, match="is in use; give another one"):
        ListeningServer(int(server.server_address[1]))
