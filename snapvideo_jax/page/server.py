"""The page's web server: for this machine alone, and for its own page alone.

It listens on 127.0.0.1. Another site that is open in the same browser can send requests there too.
They are refused by what the browser says of them: a Host that is no name of this machine (DNS
rebinding), an Origin that is not the page, a content type that a form of any site could send.
"""

import errno
import re
import socketserver
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler

from snapvideo_jax.errors import ConfigError, reason
from snapvideo_jax.page.routes import Response, Routes, problem

ADDRESS = "127.0.0.1"
HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")  # any port: ssh -L may lead here
MOST_BYTES = 16_384  # of a request's body
TIMEOUT = 30  # seconds without a byte, after which a request is dropped
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Connection": "close",
}


class Server(socketserver.ThreadingTCPServer):
    """Listens on a port of this machine; 0 takes any that is free.

    It answers as soon as `routes` is set and `serve_forever` runs. Raises ConfigError where the
    port cannot be had.
    """

    allow_reuse_address = True  # so that it can be started again at once
    daemon_threads = True
    request_queue_size = 64
    routes: Routes

    def __init__(self, port: int):
        try:
            super().__init__((ADDRESS, port), Handler)
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"fails: {reason(error)}"
            raise ConfigError(
                f"--port={port} of {ADDRESS} {why}; give another, or 0 for any that is free"
            ) from error

    @property
    def url(self) -> str:
        """Where a browser finds the page."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Prints a line; a browser that goes away while it is answered is no error."""
        error = sys.exception()
        if error and not isinstance(error, ConnectionError | TimeoutError):
            print(f"page: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


class Handler(BaseHTTPRequestHandler):
    """One request; its connection ends with it."""

    server: Server
    server_version, sys_version = "snapvideo_jax", ""
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT

    def do_GET(self) -> None:  # noqa: N802
        """Answers a GET."""
        self._send(
            self._sender_refusal()
            or _answered(lambda: self.server.routes.get(self.path, self.headers["Range"]))
        )

    def do_POST(self) -> None:  # noqa: N802
        """Answers a POST."""
        self._send(
            self._sender_refusal()
            or self._body_refusal()
            or _answered(lambda: self.server.routes.post(self.path, self._body()))
        )

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers what is no GET and no POST, or no request at all."""
        status = HTTPStatus(code)
        self._send(problem(status, message or status.phrase))

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing: the page says what there is to say."""

    def _sender_refusal(self) -> Response | None:
        """Returns the answer to a request that another machine or another page has sent."""
        hosts, origins = self.headers.get_all("Host", []), self.headers.get_all("Origin", [])
        if len(hosts) != 1 or not HOST.fullmatch(hosts[0]):
            message = f"this page is at {self.server.url} and has no other name"
            return problem(HTTPStatus.FORBIDDEN, message)
        if any(origin != f"http://{hosts[0]}" for origin in origins):
            return problem(HTTPStatus.FORBIDDEN, "this page takes no requests of other pages")
        return None

    def _body_refusal(self) -> Response | None:
        """Returns the answer to a POST whose body is not read."""
        lengths = self.headers.get_all("Content-Length", [])
        if self.headers.get_content_type() != "application/json":
            message = "the content type must be application/json"
            return problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message)
        if len(lengths) != 1 or not re.fullmatch(r"\d{1,18}", lengths[0]):
            return problem(HTTPStatus.LENGTH_REQUIRED, "there must be one Content-Length")
        if int(lengths[0]) > MOST_BYTES:
            message = f"a request has at most {MOST_BYTES:,} bytes"
            return problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        return None

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        lengths = {"Content-Type": response.kind, "Content-Length": str(len(response.body))}
        for name, value in (HEADERS | lengths | dict(response.headers)).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(response.body)


def _answered(respond: Callable[[], Response]) -> Response:
    """Returns the answer, or one that says why there is none."""
    try:
        return respond()
    except ConnectionError:
        raise
    except Exception as error:  # the page goes on
        message = f"{type(error).__name__}: {reason(error)[:400]}"
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, message)
