"""The page over HTTP: whom it answers, what it refuses, and what it says while a video is made."""

import json
import os
import re
import socket
from pathlib import Path

import pytest

import snapvideo_jax.page
from snapvideo_jax.errors import ConfigError, StorageError
from snapvideo_jax.page.server import HEADERS, MOST_BYTES, Server
from tests.page import served
from tests.page.served import VALUES

STATIC = Path(snapvideo_jax.page.__file__).parent / "static"


@pytest.fixture
def client(tmp_path):
    with served.page(tmp_path) as client:
        yield client


@pytest.fixture(scope="module")
def with_video(tmp_path_factory):
    """A page that has made one video, and its file."""
    folder = tmp_path_factory.mktemp("gallery")
    with served.page(folder) as client:
        client.video()
        yield client, (folder / "00000" / "00000.mp4").read_bytes()


def test_it_listens_on_127_0_0_1_alone(client):
    new = [row for row in served.listening(os.getpid()) if row.endswith(f":{client.port:04X}")]
    assert new == [f"0100007F:{client.port:04X}"]


@pytest.mark.parametrize(
    "host", ["127.0.0.1:{port}", "localhost:{port}", "localhost", "localhost:1"]
)
def test_it_answers_to_the_names_of_this_machine(client, host):
    assert client.request("GET", "/", Host=host.format(port=client.port))[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example",
        "127.0.0.1:{port}@evil.example", "0.0.0.0:{port}", "[::1]:{port}", "10.0.0.1", "", None,
        ["127.0.0.1", "127.0.0.1"], "127.0.0.1:x", "127.0.0.1 evil",
    ],
)  # fmt: skip
@pytest.mark.parametrize("target", ["/", "/api/job", "/videos/00000.mp4"])
def test_it_answers_to_no_other_name(client, host, target):
    host = host.format(port=client.port) if isinstance(host, str) else host
    status, _, body = client.request("GET", target, Host=host)
    assert status == 403 and "has no other name" in json.loads(body)["message"]


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example", "null", "https://{own}", "http://127.0.0.1:1", "http://localhost:{port}",
        "http://{own}.evil.example", "", ["http://{own}", "http://evil.example"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("method, target", [("GET", "/api/job"), ("POST", "/api/jobs")])
def test_it_takes_no_requests_of_other_pages(client, origin, method, target):
    fill = lambda text: text.format(own=client.own, port=client.port)
    origins = list(map(fill, origin)) if isinstance(origin, list) else fill(origin)
    body = json.dumps(VALUES).encode()
    typed = {"Content_Type": "application/json", "Content_Length": str(len(body))}
    status, headers, content = client.request(method, target, body, Origin=origins, **typed)
    assert status == 403 and "no requests of other pages" in json.loads(content)["message"]
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert client.get("/api/job")[1] is None


def test_it_takes_requests_of_its_own_page(client):
    own = f"http://{client.own}"
    assert client.request("GET", "/api/job", Origin=own)[0] == 200
    typed = {"Content_Type": "application/json; charset=utf-8", "Content_Length": "2"}
    assert client.request("POST", "/api/jobs", b"{}", Origin=own, **typed)[0] == 400  # no values


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", None]
)
def test_a_content_type_that_any_site_may_send_is_refused(client, kind):
    body = json.dumps(VALUES).encode()
    typed = {"Content_Type": kind, "Content_Length": str(len(body))}
    assert client.request("POST", "/api/jobs", body, **typed)[0] == 415
    assert client.get("/api/job")[1] is None


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Content_Length": str(MOST_BYTES + 1)}, 413),
        ({"Content_Length": "9" * 18}, 413),
        ({}, 411),
        ({"Transfer_Encoding": "chunked"}, 411),
        ({"Content_Length": "-1"}, 411),
        ({"Content_Length": "2_0"}, 411),
        ({"Content_Length": ["2", "20"]}, 411),
    ],
)
def test_a_body_without_a_proper_length_is_not_read(client, headers, status):
    kind = {"Content_Type": "application/json"}
    assert client.request("POST", "/api/jobs", **kind, **headers)[0] == status


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 10_000, b'{"prompt":' * 1500, b'"\\ud800"']
)
def test_a_body_that_is_no_object_is_one_line(client, body):
    typed = {"Content_Type": "application/json", "Content_Length": str(len(body))}
    status, _, content = client.request("POST", "/api/jobs", body, **typed)
    assert status == 400 and re.fullmatch("this is .*", json.loads(content)["message"])


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"])
def test_other_methods_are_refused(client, method):
    status, headers, _ = client.request(method, "/api/jobs", Origin="http://evil.example")
    assert status == 501
    assert not [name for name in headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize("line", [b"\r\n", b"GET\r\n\r\n", b"\xff\xfe\r\n\r\n", b"G" * 70_000])
def test_what_is_no_request_ends_and_the_page_goes_on(client, line):
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        try:
            while connection.recv(4096):
                pass
        except ConnectionResetError:
            pass
    assert client.get("/api/job") == (200, None)


@pytest.mark.parametrize("target", ["/", "/api/form", "/nothing", "/videos/00000.mp4"])
def test_every_answer_says_that_nothing_comes_from_elsewhere(client, target):
    _, headers, _ = client.request("GET", target)
    assert HEADERS.items() <= dict(headers).items()
    assert headers["Content-Security-Policy"].startswith("default-src 'self';")


def test_the_page_names_no_address_but_its_own(client):
    for path in STATIC.iterdir():
        text = path.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "//" not in re.sub(r"(^|\s)//.*", "", text), path.name  # comments
        for address in re.findall(r'(?:src|href)="([^"]*)"', text):
            assert address[0] in "/#"
            assert address[0] == "#" or client.request("GET", address)[0] == 200


@pytest.mark.parametrize(
    "target",
    [
        "/videos/../samples.json", "/videos/..%2f..%2fetc%2fpasswd.mp4", "/../../etc/passwd",
        "//etc/passwd", "/static/page.js", "/page.js/", "/api", "/videos/00000", "/videos/0.mp4",
        "/videos/99999.mp4", "/videos/.unfinished.mp4", "/videos/00000.mp4/../../lock", "/%00",
        "/videos/" + "9" * 5000 + ".mp4", "http://evil.example/nothing",
    ],
)  # fmt: skip
def test_there_is_nothing_at_other_addresses(with_video, target):
    client, _ = with_video
    assert client.request("GET", target)[0] == 404


@pytest.mark.parametrize(
    "name, entry, says",
    [
        ("prompt", "", "must say what to show"),
        ("prompt", " \n\t", "must say what to show"),
        ("prompt", None, "must be a text of at most 1,000 characters"),
        ("prompt", 3, "must be a text of at most 1,000 characters"),
        ("prompt", "a" * 1001, "must be a text of at most 1,000 characters"),
        ("seed", "", "must be a whole number from 0 to 2,147,483,647"),
        ("seed", "-1", "must be a whole number"),
        ("seed", "2147483648", "must be a whole number"),
        ("seed", "1.5", "must be a whole number"),
        ("seed", True, "must be a whole number"),
        ("seed", "9" * 5000, "must be a whole number"),
        ("steps", "0", "must be a whole number from 1 to 100,000"),
        ("steps", "many", "must be a whole number"),
        ("steps", [3], "must be a whole number"),
        ("guidance", "nan", "must be a number from 0 to 1,000"),
        ("guidance", "inf", "must be a number from 0 to 1,000"),
        ("guidance", "1,5", "must be a number from 0 to 1,000"),
        ("frame_rate", "-8", "must be a number from 0.001 to 1,000, or 0"),
        ("frame_rate", {}, "must be a number"),
        ("colour", "red", "is no field of this page"),
    ],
)
def test_a_wrong_value_is_said_beside_its_field_and_starts_nothing(client, name, entry, says):
    status, content = client.post("/api/jobs", VALUES | {name: entry})
    key = name if name in VALUES else f"'{name}'"
    assert status == 400 and list(content["problems"]) == [key]
    assert content["problems"][key].startswith(says)
    assert client.get("/api/job")[1] is None


def test_all_wrong_values_are_said_at_a_time(client):
    _, content = client.post("/api/jobs", {"prompt": " ", "seed": "x", "steps": "3"})
    assert sorted(content["problems"]) == ["frame_rate", "guidance", "prompt", "seed"]


def test_values_are_read_as_a_person_types_them(client):
    typed = {"prompt": " a\tred  drum\n", "seed": " 7 ", "steps": "3", "guidance": "1e0"}
    _, job = client.post("/api/jobs", typed | {"frame_rate": "0"})
    expected = {"prompt": "a red drum", "seed": 7, "steps": 3, "guidance": 1.0, "frame_rate": 0.0}
    assert job["values"] == expected
    job = client.wait(lambda job: job["stage"])
    assert job["notes"] == ["no caption of training has the word drum"]


def test_a_job_says_how_far_it_is_and_how_long_it_takes(client):
    _, job = client.post("/api/jobs", VALUES | {"steps": 4})
    assert (job["number"], job["state"], job["of"], job["seconds_left"]) == (1, "running", 0, None)
    client.maker.calls.release()
    job = client.wait(lambda job: job["done"] == 1)
    assert (job["of"], job["stage"], job["seconds_left"]) == (4, 1, None)  # the first call compiled
    client.maker.calls.release()
    job = client.wait(lambda job: job["done"] == 2)
    assert 0 < job["seconds_left"] < 60 and 0 < job["seconds"] < 60
    for _ in range(2):
        client.maker.calls.release()
    assert client.wait(lambda job: job["state"] == "done")["video"] == "00000"


def test_one_video_is_made_at_a_time_and_can_be_cancelled(client):
    _, first = client.post("/api/jobs", VALUES)
    status, content = client.post("/api/jobs", VALUES)
    assert status == 409 and "another video is being made" in content["message"]
    assert client.post("/api/cancel", {"number": 99})[1]["state"] == "running"  # another one
    assert client.post("/api/cancel", {"number": first["number"]})[1]["state"] == "cancelling"
    assert client.post("/api/jobs", VALUES)[0] == 409  # it still computes
    client.maker.calls.release()
    job = client.wait(lambda job: job["state"] != "cancelling")
    assert (job["state"], job["done"], job["video"]) == ("cancelled", 1, "")
    assert client.get("/api/videos")[1]["videos"] == []
    assert client.video()["number"] == 2
    assert client.post("/api/cancel", {"number": 2})[1]["state"] == "done"  # too late


@pytest.mark.parametrize("number", [None, "1", -1, 1.5, True])
def test_a_number_that_is_none_cancels_nothing(client, number):
    status, content = client.post("/api/cancel", {"number": number})
    assert status == 400 and content["message"].startswith("number must be a whole number")


@pytest.mark.parametrize(
    "error, message",
    [
        (StorageError("cannot write x:\nno space"), "cannot write x: no space"),
        (RuntimeError("RESOURCE_EXHAUSTED:\n out"), "RuntimeError: RESOURCE_EXHAUSTED: out"),
    ],
)
def test_a_video_that_fails_is_one_line_and_the_next_one_is_made(client, error, message):
    client.maker.error = error
    client.post("/api/jobs", VALUES)
    client.maker.calls.release()
    job = client.wait(lambda job: job["state"] == "failed")
    assert (job["message"], job["video"]) == (message, "")
    client.maker.error = None
    assert client.video()["state"] == "done"


@pytest.mark.parametrize(
    "ranges, status, first, end",
    [
        (None, 200, 0, None), ("bytes=0-", 206, 0, None), ("bytes=0-0", 206, 0, 1),
        ("bytes=5-9", 206, 5, 10), ("bytes=5-999999", 206, 5, None), ("bytes=-7", 206, -7, None),
        ("bytes=-999999", 206, 0, None), ("bytes=-", 200, 0, None), ("bytes=0-1,5-6", 200, 0, None),
        ("lines=1-2", 200, 0, None),
    ],
)  # fmt: skip
def test_a_player_gets_the_part_of_a_video_that_it_seeks(with_video, ranges, status, first, end):
    client, whole = with_video
    answer = client.request("GET", "/videos/00000.mp4", Range=ranges)
    assert answer[0] == status and answer[2] == whole[first:end]
    assert (answer[1]["Content-Type"], answer[1]["Accept-Ranges"]) == ("video/mp4", "bytes")
    if status == 206:
        start = first % len(whole)
        last = start + len(answer[2]) - 1
        assert answer[1]["Content-Range"] == f"bytes {start}-{last}/{len(whole)}"


@pytest.mark.parametrize("ranges", ["bytes=999999-", "bytes=9-5", "bytes=-0"])
def test_a_part_that_is_not_there_is_refused(with_video, ranges):
    client, _ = with_video
    assert client.request("GET", "/videos/00000.mp4", Range=ranges)[0] == 416


def test_a_gallery_that_has_gone_is_one_line(client, tmp_path):
    tmp_path.rmdir()
    status, content = client.get("/api/videos")
    assert status == 500 and content["message"].startswith("FileNotFoundError: No such file")


def test_a_port_in_use_is_one_line(client):
    with pytest.raises(ConfigError, match=rf"^--port={client.port} of 127.0.0.1 is in use; give"):
        Server(client.port)
