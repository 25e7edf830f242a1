"""launch.page as a user starts it: where it listens, what it serves, and how it ends."""

import json
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from tests.launch.test_entry import ENVIRONMENT, ROOT, launch
from tests.launch.test_signals import hear_interrupts  # noqa: F401  which the tests here need too
from tests.page.served import Client, listening

ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)/")


@contextmanager
def command(*flags, seconds=300):
    """Runs `python -m launch.page FLAGS` on a free port; yields its process and the port."""
    words = [sys.executable, "-m", "launch.page", "--port=0", *map(str, flags)]
    pipe = subprocess.PIPE
    options = dict(cwd=ROOT, env=ENVIRONMENT, text=True, stdout=pipe, stderr=pipe)
    with subprocess.Popen(words, **options) as process:
        limit = threading.Timer(seconds, process.kill)
        limit.start()
        try:
            addresses = (ADDRESS.search(line) for line in process.stdout)
            address = next(filter(None, addresses), None)
            assert address, process.stderr.read()
            yield process, int(address[1])
        finally:
            limit.cancel()
            process.kill()


@pytest.mark.parametrize(
    "number, word, code",
    [
        (signal.SIGTERM, "terminated", 143),
        pytest.param(signal.SIGINT, "stopped", 130, marks=pytest.mark.slow),
    ],
)
def test_it_serves_this_machine_alone_until_a_signal(trained_folder, tmp_path, number, word, code):
    out = tmp_path / "videos"
    with command(f"--checkpoint={trained_folder}", f"--out={out}") as (process, port):
        assert listening(process.pid) == [f"0100007F:{port:04X}"]
        client = Client(port, maker=None)
        assert b"<title>Text to video</title>" in client.request("GET", "/")[2]
        assert client.request("GET", "/", Host="evil.example")[0] == 403
        _, form = client.get("/api/form")
        assert form["model"]["names"] == [f"{trained_folder.name}, step 3"]
        assert form["values"] | {"prompt": ""} == {
            "prompt": "", "seed": 0, "steps": 3, "guidance": 1.0, "frame_rate": 4.0,
        }  # fmt: skip
        assert form["values"]["prompt"] in form["model"]["prompts"]
        process.send_signal(number)
        assert (process.wait(30), process.stderr.read()) == (code, f"{word}\n")


@pytest.mark.slow
def test_a_video_under_way_does_not_hold_up_the_end_and_leaves_the_folder_as_it_was(
    trained_folder, tmp_path
):
    flags = f"--checkpoint={trained_folder}", f"--out={tmp_path / 'videos'}"
    with command(*flags) as (process, port):
        refused = launch("page", *flags, "--port=0")
        line = f"error: {tmp_path}/videos is in use by another process; wait for its end\n"
        assert (refused.returncode, refused.stderr) == (2, line)
        client = Client(port, maker=None)
        values = client.get("/api/form")[1]["values"]
        client.post("/api/jobs", values)
        client.wait(lambda job: job["state"] == "done")
        client.post("/api/jobs", values | {"steps": 50_000})
        client.wait(lambda job: job["done"] > 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    with command(*flags) as (process, port):
        videos = Client(port, maker=None).get("/api/videos")[1]["videos"]
        assert [video["name"] for video in videos] == ["00000"]
        assert json.loads(json.dumps(videos[0]["values"])) == values
        process.send_signal(signal.SIGTERM)
