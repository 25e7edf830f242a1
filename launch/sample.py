"""Samples videos for prompts from a trained run.

  python -m launch.sample --checkpoint=runs/shapes --prompt="a red circle moves left" --out=samples

Eight samples of each line of a file, as GIF, led away from another text:

  python -m launch.sample --checkpoint=runs/shapes --prompts=prompts.txt --num=8 --out=samples \\
      --format=gif --guidance=3 --negative_prompt="a blue circle"

Of another frame rate, and as if cut down from a large source:

  python -m launch.sample --checkpoint=W --prompt="a red fox in snow" --out=samples \\
      --frame_rate=6 --source_height=1080 --source_width=1920

Exact pixels, for a program that reads them (arrays `video` and `frame_rate`; png: frames):

  python -m launch.sample --checkpoint=W --prompts=prompts.txt --out=samples --format=npz

From a picture, which becomes the first frame (or --init_video=FILE --known_frames=0,1,2):

  python -m launch.sample --checkpoint=runs/shapes --prompt="a red circle moves left" \\
      --init_image=first.png --out=samples

Longer and faster than the model's frames, made first at 6, then at 12, then at 24 per second:

  python -m launch.sample --checkpoint=W --prompt="a red fox in snow" --out=samples \\
      --duration=10 --frame_rates=6,12,24

Two stages, the second of which enlarges what the first one makes:

  python -m launch.sample --checkpoint=W1 --upsampler=W2 --prompt="a red fox in snow" --out=samples

(with --duration it enlarges as many frames at a time as it has, each time led by the last one).

Writes 00000.mp4, 00001.mp4, ... (one for each prompt and seed), a contact sheet of the first 32,
sheet.png, and samples.json, which says how to make each again. --num=4 draws seeds seed .. seed + 3
for each prompt; a seed gives the same pixels whatever the batch size. Batches split over all
devices, and are cut in half where their memory does not hold one. A command that was stopped goes
on where it was when it is given again; other settings need another --out. What is not set is that
of the run's config.
Exit codes: 0 done, 2 bad flags, 3 bad data, 5 no usable checkpoint or --out cannot be written.
"""

import dataclasses
from typing import Any

import jax
from absl import flags
from jax.experimental import multihost_utils

from launch import entry, number_flags, screen
from snapvideo_jax import fields, storage
from snapvideo_jax.data.choice import Framing
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.generator import KnownFrames
from snapvideo_jax.kinds import Real, Several, Whole
from snapvideo_jax.parallel import hosts
from snapvideo_jax.sampling import known_frames, output_folder, stage
from snapvideo_jax.sampling.long_video import Span
from snapvideo_jax.sampling.stage import Stage, work_share
from snapvideo_jax.units import count_text

MOST_SAMPLES = 1_000_000  # of a command
MOST_FRAMES = 100_000  # of a video


def define_setting(name: str, text: str) -> flags.FlagHolder:
    """Defines a flag that takes what the config's field of the sampler takes."""
    kind = fields.FIELDS[f"sampling.{name.removeprefix('upsampler_')}"]
    return number_flags.define(name, None, kind, text)


def define_solver(name: str, text: str) -> flags.FlagHolder:
    """Defines a flag that takes a solver."""
    return flags.DEFINE_enum(name, None, fields.FIELDS["sampling.solver"].words, text)


CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Folder of a run (its --workdir), or an exported one.", required=True
)
T5 = flags.DEFINE_string(
    "t5", None, "Folder of the T5 encoder, for prompts of a model trained on stored states."
)
UPSAMPLER = flags.DEFINE_string("upsampler", None, "Folder of the run of an upsampler.")
STEP = number_flags.define("step", None, fields.STEP, "Which checkpoint; default: the newest.")
UPSAMPLER_STEP = number_flags.define("upsampler_step", None, fields.STEP, "As --step.")
PROMPT = flags.DEFINE_multi_string("prompt", [], "What to show; may be given several times.")
PROMPTS = flags.DEFINE_string(
    "prompts", None, "Text file of more prompts, a line each, and # comments."
)
NEGATIVE = flags.DEFINE_string("negative_prompt", None, "What guidance leads away from.")
OUT = entry.define_folder("out", "Folder for the videos; made where there is none.")
FORMAT = flags.DEFINE_enum("format", "mp4", list(output_folder.FORMATS), "Of the videos.")
SEED = number_flags.define("seed", 0, fields.SEED, "Seed of the first sample of each prompt.")
NUM = number_flags.define("num", 1, Whole(1, MOST_SAMPLES), "Samples of each prompt.")
BATCH = number_flags.define(
    "batch_size", 16, Whole(1, 65_536), "Videos a host makes at a time, at most; rounded to split."
)
STEPS = define_setting("steps", "Steps of the sampler.")
GUIDANCE = define_setting("guidance", "Weight w; 0 is no guidance.")
UPSAMPLER_STEPS = define_setting("upsampler_steps", "As --steps.")
UPSAMPLER_GUIDANCE = define_setting("upsampler_guidance", "As --guidance.")
AUGMENTATION = define_setting("augmentation", "Level of noise on what the upsampler enlarges.")
FRAME_RATE = define_setting("frame_rate", "Frames per second; 0: still.")
THRESHOLD = define_setting("threshold", "Percentile; 0: no thresholding.")
OSCILLATE = flags.DEFINE_bool("oscillate", None, "Whether the weight oscillates.")
SOLVER = define_solver("solver", "Second order: heun (2 N - 1 calls), dpmpp_2m (N); first: euler.")
UPSAMPLER_SOLVER = define_solver("upsampler_solver", "As --solver.")
GUIDANCE_MIN = define_setting("guidance_sigma_min", "Guidance at noise levels above this alone.")
GUIDANCE_MAX = define_setting("guidance_sigma_max", "Guidance at noise levels up to this alone.")
CHURN = define_setting("S_churn", "Noise added on the way, as EDM's.")
DURATION = number_flags.define("duration", None, Real(0.001, 86_400.0), "Seconds of a long video.")
FRAME_RATES = number_flags.define(
    "frame_rates", None, Several(fields.RATE, 1, 16), "Of its levels, rising; the last is its own."
)
INIT_IMAGE = flags.DEFINE_string("init_image", None, "Picture that frame 0 shows.")
INIT_VIDEO = flags.DEFINE_string("init_video", None, "Video whose frames are known.")
KNOWN = number_flags.define(
    "known_frames",
    None,
    Several(Whole(0, MOST_FRAMES), 1, 4096),
    "Which frames of --init_video are known; default: the first half.",
)
SIDE = Whole(0, 1_000_000)
HEIGHT = number_flags.define(
    "source_height", None, SIDE, "Pixels of the source as the model is told; 0: unknown."
)
WIDTH = number_flags.define("source_width", None, SIDE, "As --source_height.")


def run() -> None:
    """Makes the videos that the flags ask for."""
    check_flags()
    shown = prompts()
    work = output_folder.work_list(shown, SEED.value, NUM.value)
    stages = load()
    for line in stage.unseen(stages[0], shown):
        screen.say(f"note: {line}")
    share = work_share(stages)
    out = storage.make_folder(OUT.value)
    folder = output_folder.OutputFolder(out, stage.record(stages, FORMAT.value), work, share)
    if folder.done:
        screen.say(f"{len(folder.done)} of {len(work)} videos are in {out} already")
    batch_size = min(BATCH.value, -(-len(work) // share.count))

    missing = len(folder.missing())
    rounds = max(hosts.gather(-(-missing // batch_size)))
    progress, done, rows = screen.progress("videos"), 0, batch_size
    for batch in folder.batches(batch_size, rounds):
        # A process that lacks nothing any more computes along with those that do.
        samples = batch or work[:1]
        texts, seeds = [s.prompt for s in samples], [s.seed for s in samples]
        videos, rows = stage.cascade_in_memory(
            stages, texts, seeds, rows, screen.progress, screen.say
        )
        for sample, frames in zip(batch, videos, strict=False):
            if share.writes:
                folder.add(sample, frames)
        if batch:
            done += len(batch)
            progress(done, missing)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("all samples are written")
    if jax.process_index() == 0:
        folder.finish()
    screen.say(f"{count_text(len(work), 'video')}, sheet.png and samples.json in {out}")


def check_flags() -> None:
    """Raises ConfigError for flags that exclude each other, or that nothing would read."""
    if INIT_IMAGE.value and INIT_VIDEO.value:
        raise ConfigError("give --init_image or --init_video, not both")
    if (DURATION.value is None) != (FRAME_RATES.value is None):
        raise ConfigError(
            "a long video needs both --duration=SECONDS and --frame_rates=LOW,..,HIGH"
        )
    if not INIT_VIDEO.value:
        entry.refuse_unread("--init_video=FILE", KNOWN)
    if not UPSAMPLER.value:
        of_upsampler = UPSAMPLER_STEP, UPSAMPLER_STEPS, UPSAMPLER_GUIDANCE, UPSAMPLER_SOLVER
        entry.refuse_unread("--upsampler=FOLDER", *of_upsampler, AUGMENTATION)
    if FRAME_RATES.value is not None:
        entry.refuse_unread("a short video; a long one has --frame_rates", FRAME_RATE)


def prompts() -> list[str]:
    """Returns those of --prompt, then those of the file; ConfigError if there are none."""
    if SEED.value + NUM.value > 2**31:
        raise ConfigError(f"--seed={SEED.value} is too large; the last seed must be below 2**31")
    from_file = output_folder.read_prompts(PROMPTS.value) if PROMPTS.value else []
    if not PROMPT.value and not from_file:
        raise ConfigError("there is nothing to show; give --prompt=TEXT or --prompts=FILE")
    texts = [*PROMPT.value, *from_file]
    if len(texts) * NUM.value > MOST_SAMPLES:
        raise ConfigError(
            f"--num={NUM.value} samples of {len(texts):,} prompts are more than {MOST_SAMPLES:,}; "
            "give a smaller --num, or a part of the prompts at a time"
        )
    return texts


def load() -> list[Stage]:
    """Loads the first stage, and the upsampler if the flags name one."""
    span = long_span()
    first = load_stage(
        CHECKPOINT.value,
        STEP.value,
        steps=STEPS.value,
        guidance=GUIDANCE.value,
        frame_rate=span.frame_rates[-1] if span else FRAME_RATE.value,
        threshold=THRESHOLD.value,
        oscillate=OSCILLATE.value,
        solver=SOLVER.value,
        guidance_sigma_min=GUIDANCE_MIN.value,
        guidance_sigma_max=GUIDANCE_MAX.value,
        S_churn=CHURN.value,
    )
    first = dataclasses.replace(first, span=span, known=known(first, span))
    if not first.settings.guidance:
        of_guidance = NEGATIVE, OSCILLATE, GUIDANCE_MIN, GUIDANCE_MAX
        entry.refuse_unread("--guidance=W above 0", *of_guidance)
    stages = [first]
    if UPSAMPLER.value:
        stages.append(upsampler_stage(first))
    if all(stage.trained.denoiser.text_encoder is not None for stage in stages):
        entry.refuse_unread("a model that was trained on stored text states", T5)
    return stages


def upsampler_stage(first: Stage) -> Stage:
    """Loads the upsampler, which makes videos as long and as fast as the first stage's."""
    second = load_stage(
        str(UPSAMPLER.value),
        UPSAMPLER_STEP.value,
        steps=UPSAMPLER_STEPS.value,
        guidance=UPSAMPLER_GUIDANCE.value,
        solver=UPSAMPLER_SOLVER.value,
        augmentation=AUGMENTATION.value,
        frame_rate=first.settings.frame_rate,
    )
    return dataclasses.replace(second, span=first.span)


def load_stage(folder: str, step: int | None, **changes: Any) -> Stage:
    """Loads the checkpoint of `folder`; its config's sampler settings take those `changes`."""
    loaded = stage.load(folder, step, T5.value, screen.say, **changes)
    height, width = loaded.source_size
    return dataclasses.replace(
        loaded,
        source_size=(
            height if HEIGHT.value is None else HEIGHT.value,
            width if WIDTH.value is None else WIDTH.value,
        ),
        negative=NEGATIVE.value,
    )


def long_span() -> Span | None:
    """Returns the span of a long video; None for a short one."""
    if DURATION.value is None or FRAME_RATES.value is None:
        return None
    if DURATION.value * FRAME_RATES.value[-1] > MOST_FRAMES:
        raise ConfigError(
            f"--duration={DURATION.value:g} at {FRAME_RATES.value[-1]:g} frames per second is more "
            f"than {MOST_FRAMES:,} frames; make a shorter video"
        )
    return Span(DURATION.value, tuple(FRAME_RATES.value))


def known(first: Stage, span: Span | None) -> KnownFrames | None:
    """Reads the frames of --init_image or --init_video, of as many as a sample has."""
    image, clip = INIT_IMAGE.value, INIT_VIDEO.value
    num_frames, height, width = first.trained.denoiser.video_shape
    size = {"frames": span.frames if span else num_frames, "height": height, "width": width}
    framing = Framing(first.trained.config.data.aspect)
    if image:
        return known_frames.from_image(image, **size, framing=framing)
    if clip:
        rate = first.settings.frame_rate
        return known_frames.from_video(clip, KNOWN.value, **size, frame_rate=rate, framing=framing)
    return None


if __name__ == "__main__":
    entry.run(run)
