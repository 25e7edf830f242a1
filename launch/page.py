"""Opens a page that makes videos, for a browser on this machine.

  python -m launch.page

loads the model in models/shapes and says where the page is: http://127.0.0.1:8000/. Another model,
with an upsampler; another folder and port:

  python -m launch.page --checkpoint=runs/shapes
  python -m launch.page --checkpoint=W1 --upsampler=W2 --t5=T5 --out=mine --port=8080

The page has the prompt, seed, steps, guidance and frame rate, shows how far a video is, cancels it,
plays it, and gives its settings to copy: the command of launch.sample that makes the same pixels,
and JSON. One video is made at a time. All of them stay in --out, each in a folder as launch.sample
writes it, and the page shows them again when it is started again.

It listens on 127.0.0.1 alone and loads nothing from elsewhere. From another machine:
ssh -L 8000:127.0.0.1:8000 MACHINE, then the same address. Ctrl-C ends it; a video that is not ready
by then is lost.
Exit codes: 2 bad flags, a port or folder in use, 3 bad data, 5 no usable checkpoint or --out cannot
be written, 130 Ctrl-C, 143 SIGTERM.
"""

from pathlib import Path
from typing import Any

from absl import flags

from launch import entry, number_flags, screen
from snapvideo_jax import build, storage
from snapvideo_jax.build import Config
from snapvideo_jax.data import shapes
from snapvideo_jax.data.world import compositions
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.kinds import Whole
from snapvideo_jax.page import form
from snapvideo_jax.page.gallery import Gallery
from snapvideo_jax.page.jobs import Jobs
from snapvideo_jax.page.maker import VideoMaker
from snapvideo_jax.page.routes import Routes
from snapvideo_jax.page.server import Server
from snapvideo_jax.sampling import stage
from snapvideo_jax.sampling.stage import Stage

SHIPPED = Path(__file__).parent.parent / "models" / "shapes"
EXAMPLES = 12  # prompts that the page offers

CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "Folder of a run, or an exported one; default: models/shapes.",
)
UPSAMPLER = flags.DEFINE_string("upsampler", None, "Folder of the run of an upsampler.")
T5 = flags.DEFINE_string("t5", None, "Folder of the T5 encoder, as for launch.sample.")
OUT = entry.define_folder("out", "Folder for the videos; made where there is none.", "gallery")
PORT = number_flags.define("port", 8000, Whole(0, 65_535), "Of this machine; 0: any that is free.")


def run() -> None:
    """Serves the page until a signal ends it."""
    with Server(PORT.value) as server:
        screen.say("loading the model")
        stages = load()
        serve(server, stages)


def serve(server: Server, stages: list[Stage]) -> None:
    """Makes the videos that the page is asked for, into the folder of --out."""
    folder = storage.make_folder(OUT.value)
    with storage.lock(folder):
        encoders = {each.trained.text.encoder: T5.value for each in stages if T5.value}
        gallery = Gallery(folder, encoders)
        jobs = Jobs(VideoMaker(stages, gallery))
        server.routes = Routes(describe(stages), defaults(stages), jobs, gallery)
        screen.say(f"the page is at {server.url} (Ctrl-C ends it)")
        server.serve_forever()


def load() -> list[Stage]:
    """Loads the model that the flags name, or the one of the repository; and the upsampler."""
    if CHECKPOINT.value is None and not SHIPPED.is_dir():
        raise ConfigError("--checkpoint is required: there is no models/shapes here")
    folders = [CHECKPOINT.value or str(SHIPPED), *([UPSAMPLER.value] if UPSAMPLER.value else [])]
    stages = [stage.load(folder, t5=T5.value, log=screen.say) for folder in folders]
    if all(each.trained.denoiser.text_encoder is not None for each in stages):
        entry.refuse_unread("a model that was trained on stored text states", T5)
    return stages


def defaults(stages: list[Stage]) -> form.Values:
    """Returns what the form holds at first: what the models' configs say."""
    settings = form.of_stages([vars(each.settings) for each in stages])
    prompts = examples(stages[0].trained.config)
    return {"prompt": prompts[0] if prompts else "", "seed": 0, **settings}


def describe(stages: list[Stage]) -> dict[str, Any]:
    """Returns what the page says of the model."""
    config, frames = stages[0].trained.config, stages[-1].trained.denoiser.video_shape
    return {
        "names": [f"{Path(each.folder).name}, step {each.trained.step:,}" for each in stages],
        "video": frames,
        "frame_rates": build.frame_rates(config),
        "prompts": examples(config),
    }


def examples(config: Config) -> list[str]:
    """Returns prompts to begin with: those of the run's sheets, or captions of moving shapes."""
    prompts = list(config.log.sample_prompts)
    if not prompts and config.data.source == "shapes":
        prompts = [shapes.caption(each) for each in compositions(build.world(config), False)]
    return prompts[:: max(1, len(prompts) // EXAMPLES)][:EXAMPLES]


if __name__ == "__main__":
    entry.run(run, joins=lambda: False)
