"""The web server of the listening test: the page and its requests, on this machine alone.

Answers to requests carry nothing that tells real from generated music: names are random, all sounds have the same number of
bytes, and there are no dates.
"""

import errno
import json
import sqlite3
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from etude.studio.sessions import ListeningTest, NotFound, Refused

HOST = "127.0.0.1"
LOCAL = ("127.0.0.1", "localhost", "[::1]")  # a page of another host must not ask, even if its name leads here
PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("listen.html", "text/html"),
    "/listen.css": ("listen.css", "text/css"),
    "/listen.js": ("listen.js", "text/javascript"),
}
SECURITY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; media-src blob:; img-src data:"
MOST_BYTES = 10_000  # of a request
IDLE_SECONDS = 60.0  # after which a connection that asks nothing is closed


class ListeningServer(ThreadingHTTPServer):
    """Serves one listening test, `test`, which must be set before; each request has a thread of its own.

    Args:
        port: 0 for any free one.

    Raises: ValueError if the port is in use, or not allowed.
    """

    daemon_threads = True
    test: ListeningTest

    def __init__(self, port: int) -> None:
        self.changing = Lock()  # held while a request is answered that changes something; `finish` waits for it
        self.ended = False
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            what = "is in use" if error.errno == errno.EADDRINUSE else f"can't be used ({error.strerror})"
            raise ValueError(f"port={port} {what}; give another one, or port=0 for any free one") from error

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def finish(self) -> None:
        """Closes the server after the change that is being saved, if there is one."""
        with self.changing:
            self.ended = True
            self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing where a browser has closed its connection; other errors are shown as usual."""
        import sys

        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of the page."""

    server: ListeningServer
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        """Answers with a file of the page, a sound, or the state of a session."""
        path, test = urlsplit(self.path).path, self.server.test
        parts = path.strip("/").split("/")
        if not self._is_open():
            return
        if path in FILES:
            name, kind = FILES[path]
            self._send((PAGE / name).read_bytes(), f"{kind}; charset=utf-8")
        elif parts[0] == "sounds" and len(parts) == 2:
            self._told(lambda: test.sound(parts[1]), kind="audio/wav")
        elif parts == ["test"]:
            self._told(test.about)
        elif parts[0] == "sessions" and len(parts) == 2:
            self._told(lambda: test.state(parts[1]))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:
        """Changes a session."""
        parts, test = urlsplit(self.path).path.strip("/").split("/"), self.server.test
        body = self._body()
        if body is None or not self._is_open():
            return
        if parts == ["sessions"]:
            choice = body.get("choice")
            self._told(lambda: test.begin(str(body.get("name", "")), None if choice is None else str(choice)), changes=True)
        elif parts[0] == "sessions" and len(parts) == 3 and parts[2] in ("answers", "undo", "result"):
            ask = {
                "answers": lambda: test.answer(parts[1], body.get("number"), body.get("answer"), body.get("seconds")),
                "undo": lambda: test.undo(parts[1]),
                "result": lambda: test.result(parts[1]),
            }
            self._told(ask[parts[2]], changes=True)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such request")

    def _told(self, ask: Any, *, kind: str = "application/json", changes: bool = False) -> None:
        """Sends what `ask` returns; what can't be done is a message for the listener."""
        try:
            if changes:
                with self.server.changing:
                    if not self._is_open():
                        return
                    found = ask()
            else:
                found = ask()
        except NotFound:
            self._refuse(HTTPStatus.NOT_FOUND, "this session is not open any more; begin again with the same name to go on")
        except Refused as error:
            self._refuse(HTTPStatus.CONFLICT, str(error))
        except (sqlite3.Error, OSError) as error:  # a full disk, for example; the page keeps the answer
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"this could not be saved ({error}); try again")
        else:
            self._send(found if isinstance(found, bytes) else json.dumps(found).encode(), kind)

    def _body(self) -> dict[str, Any] | None:
        """Returns the JSON object of a request; refuses anything else."""
        try:
            length = int(self.headers.get("Content-Length", "0"))
            if not 0 <= length <= MOST_BYTES:
                raise ValueError
            found = json.loads(self.rfile.read(length) or b"{}")
            if not isinstance(found, dict) or "json" not in self.headers.get("Content-Type", ""):
                raise ValueError
        except (ValueError, RecursionError):  # JSON and UTF-8 raise subclasses of it
            self.close_connection = True
            self._refuse(HTTPStatus.BAD_REQUEST, f"not a JSON object of at most {MOST_BYTES} bytes")
            return None
        return found

    def _is_open(self) -> bool:
        """Refuses requests that other pages in the browser could make; after the end it closes the connection."""
        if self.server.ended:
            self.close_connection = True
            return False
        host = self.headers.get("Host", "").lower()
        origin = self.headers.get("Origin")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name in LOCAL and origin in (None, f"http://{host}"):
            return True
        self._refuse(HTTPStatus.FORBIDDEN, f"this page is open to this machine alone, at {self.server.address}")
        return False

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self._send(json.dumps({"error": message}).encode(), "application/json", status=status)

    def _send(self, data: bytes, kind: str, *, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response_only(status)
        for name, value in (
            ("Content-Type", kind), ("Content-Length", str(len(data))), ("Cache-Control", "no-store"),
            ("Content-Security-Policy", SECURITY), ("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer"),
        ):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing: the terminal is for the operator, who may be the listener."""
