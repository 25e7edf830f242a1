"""A page with a maker of its own, and requests as a browser or as someone else sends them."""

import http.client
import json
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from snapvideo_jax.page.gallery import Gallery
from snapvideo_jax.page.jobs import Jobs
from snapvideo_jax.page.routes import Routes
from snapvideo_jax.page.server import Server

VALUES = {"prompt": "a red circle", "seed": 7, "steps": 3, "guidance": 1.5, "frame_rate": 8.0}
LISTENING = "0A"  # in /proc/net/tcp


def settings(values, **changes):
    """What samples.json holds beside prompt and seed."""
    names = "steps", "guidance", "frame_rate"
    of_model = {"checkpoint": "/models/shapes", "checkpoint_step": 9000, "text_encoder": "abc"}
    of_sampler = {name: values[name] for name in names}
    return {**of_model, **of_sampler, "format": "mp4", "upsampler": None} | changes


class Maker:
    """Takes a call of a model for each step; `calls` says how many it may make."""

    def __init__(self, gallery):
        self.gallery, self.calls, self.error = gallery, threading.Semaphore(0), None

    def notes(self, values):
        return ["no caption of training has the word drum"] if "drum" in values["prompt"] else []

    def make(self, values, progress):
        report = progress("calls")
        for done in range(1, values["steps"] + 1):
            assert self.calls.acquire(timeout=60)
            if self.error:
                raise self.error
            report(done, values["steps"])
        frames = np.full((2, 16, 16, 3), values["seed"] % 256, np.uint8)
        return self.gallery.add(values["prompt"], values["seed"], frames, settings(values))


class Client:
    """Sends requests to a page, as its own page would where nothing else is said."""

    def __init__(self, port, maker):
        self.port, self.maker = port, maker
        self.own = f"127.0.0.1:{port}"

    def request(self, method, target, body=None, **headers):
        """Returns (status, headers, body); leaves out headers that are None, repeats a list's."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, values in ({"Host": self.own} | headers).items():
            for value in values if isinstance(values, list) else [values]:
                if value is not None:
                    connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, response.headers, content

    def get(self, target):
        """Returns (status, what its JSON says)."""
        status, _, content = self.request("GET", target)
        return status, json.loads(content)

    def post(self, target, entries):
        """Returns (status, what its JSON says)."""
        body = json.dumps(entries).encode()
        headers = {"Content_Type": "application/json", "Content_Length": str(len(body))}
        status, _, content = self.request("POST", target, body, **headers)
        return status, json.loads(content)

    def wait(self, condition):
        """Returns the job as soon as `condition` holds for it."""
        for _ in range(3000):
            job = self.get("/api/job")[1]
            if condition(job):
                return job
            time.sleep(0.01)
        raise AssertionError(job)

    def video(self, **changes):
        """Makes a video and returns its job."""
        status, job = self.post("/api/jobs", VALUES | changes)
        assert status == 202, job
        for _ in range(job["values"]["steps"]):
            self.maker.calls.release()
        return self.wait(lambda job: job["state"] == "done")


@contextmanager
def page(folder):
    """Serves a page whose videos go into `folder`."""
    gallery = Gallery(folder)
    maker = Maker(gallery)
    model = {"names": ["shapes"], "video": (2, 16, 16), "frame_rates": (8.0,), "prompts": []}
    with Server(0) as server:
        server.routes = Routes(model, VALUES, Jobs(maker), gallery)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield Client(server.server_address[1], maker)
        finally:
            server.shutdown()
            thread.join()


def listening(pid):
    """Returns the addresses, as the kernel writes them, on which a process takes connections."""
    sockets = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # of the folder that is being listed
            sockets.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
    rows = []
    for table in ("tcp", "tcp6"):
        lines = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        rows += [line.split() for line in lines]
    return [row[1] for row in rows if row[3] == LISTENING and row[9] in sockets]
