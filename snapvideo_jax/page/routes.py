"""What each address of the page answers."""

import importlib.resources
import json
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from snapvideo_jax.kinds import Whole
from snapvideo_jax.page import form
from snapvideo_jax.page.gallery import Gallery
from snapvideo_jax.page.jobs import Busy, Jobs

STATIC = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
VIDEO = re.compile(r"/videos/(\d+)\.mp4")
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
NUMBER = Whole(0, 999_999_999)  # of a job or a video


class Response(NamedTuple):
    """What goes back. headers: those beside the type and the length."""

    status: HTTPStatus
    kind: str
    body: bytes
    headers: Mapping[str, str] = {}


class Routes:
    """The addresses of a page.

    model: what the page says of the model. defaults: what the form holds at first.
    """

    def __init__(
        self, model: Mapping[str, Any], defaults: form.Values, jobs: Jobs, gallery: Gallery
    ):
        self._model, self._defaults, self._jobs, self._gallery = model, defaults, jobs, gallery
        self._gets: dict[str, Callable[[dict], Response]] = {
            "/api/form": self._form,
            "/api/job": lambda query: answer(self._jobs.describe()),
            "/api/videos": self._videos,
        }
        self._posts: dict[str, Callable[[dict], Response]] = {
            "/api/jobs": self._start,
            "/api/cancel": self._cancel,
        }

    def get(self, target: str, ranges: str | None) -> Response:
        """Answers a GET of `target`, path and query. ranges: the request's Range, if it has one."""
        address = urlsplit(target)
        if address.path in STATIC:
            return static(*STATIC[address.path])
        if video := VIDEO.fullmatch(address.path):
            path = self._gallery.path(video[1])
            return part(path, ranges) if path else problem(HTTPStatus.NOT_FOUND, "no such video")
        if respond := self._gets.get(address.path):
            return respond(parse_qs(address.query))
        return problem(HTTPStatus.NOT_FOUND, "there is nothing at this address")

    def post(self, target: str, body: bytes) -> Response:
        """Answers a POST of an object of JSON."""
        respond = self._posts.get(target)
        if respond is None:
            return problem(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        try:
            entries = json.loads(body.decode())
        except (ValueError, RecursionError):
            return problem(HTTPStatus.BAD_REQUEST, "this is not valid JSON")
        if not isinstance(entries, dict):
            return problem(HTTPStatus.BAD_REQUEST, "this is not an object of JSON")
        return respond(entries)

    def _form(self, query: dict) -> Response:
        return answer({"model": self._model, "values": self._defaults})

    def _videos(self, query: dict) -> Response:
        before = [NUMBER.read(text) for text in query.get("before", [])]
        if len(before) > 1 or not all(map(NUMBER.holds, before)):
            return problem(HTTPStatus.BAD_REQUEST, f"before must be {NUMBER}")
        return answer(self._gallery.newest(*before))

    def _start(self, entries: dict) -> Response:
        try:
            job = self._jobs.start(form.read(entries, list(self._defaults)))
        except form.BadFields as error:
            return answer({"problems": error.problems}, HTTPStatus.BAD_REQUEST)
        except Busy:
            message = "another video is being made; wait for it or cancel it"
            return problem(HTTPStatus.CONFLICT, message)
        return answer(job.describe(), HTTPStatus.ACCEPTED)

    def _cancel(self, entries: dict) -> Response:
        if not NUMBER.holds(entries.get("number")):
            return problem(HTTPStatus.BAD_REQUEST, f"number must be {NUMBER}")
        self._jobs.cancel(entries["number"])
        return answer(self._jobs.describe())


def answer(content: Any, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """Returns `content` as JSON."""
    return Response(status, "application/json", json.dumps(content).encode())


def problem(status: HTTPStatus, message: str) -> Response:
    """Returns a line that says what was wrong with a request."""
    return answer({"message": message}, status)


def static(name: str, kind: str) -> Response:
    """Returns a file of this package."""
    file = importlib.resources.files("snapvideo_jax.page") / "static" / name
    return Response(HTTPStatus.OK, kind, file.read_bytes())


def part(path: Path, ranges: str | None) -> Response:
    """Returns a video, or the one part of it that `ranges` names; players that seek need that."""
    content = path.read_bytes()
    headers = {"Accept-Ranges": "bytes"}
    match = RANGE.fullmatch(ranges or "")
    if match is None or match[0] == "bytes=-":  # as if there were none (RFC 9110, 14.2)
        return Response(HTTPStatus.OK, "video/mp4", content, headers)
    size = len(content)
    if match[1]:
        first, end = int(match[1]), min(int(match[2] or size) + 1, size)
    else:
        first, end = max(0, size - int(match[2])), size
    if first >= end:
        headers["Content-Range"] = f"bytes */{size}"
        return Response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "video/mp4", b"", headers)
    headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
    return Response(HTTPStatus.PARTIAL_CONTENT, "video/mp4", content[first:end], headers)
