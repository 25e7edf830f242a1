"""Samples videos for prompts from a trained run.

  python -m launch.sample --checkpoint=runs/shapes --prompt="a red circle moves left" --out=samples

Two stages, the second of which enlarges what the first one makes:

  python -m launch.sample --checkpoint=W1 --upsampler=W2 --prompt="a red fox in snow" --out=samples

Writes 00000.mp4, 00001.mp4, ... (one for each --prompt and seed), a contact sheet sheet.png and
samples.json into --out. The same seed gives the same pixels; --num=4 draws seeds seed .. seed + 3
for each prompt. Steps, guidance and frame rate default to those of the run's config.
Exit codes: 0 done, 2 bad flags, 3 bad data, 5 no usable checkpoint or --out cannot be written.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from launch import main
from snapvideo_jax import sample, storage, video_io
from snapvideo_jax.errors import ConfigError

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Folder of a run (its --workdir), or an exported one.", required=True
)
T5 = flags.DEFINE_string(
    "t5", None, "Folder of the T5 encoder, for prompts of a model trained on stored states."
)
UPSAMPLER = flags.DEFINE_string("upsampler", None, "Folder of the run of an upsampler.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint of the run; default: the newest.")
PROMPTS = flags.DEFINE_multi_string(
    "prompt", None, "What to show; may be given several times.", required=True
)
OUT = flags.DEFINE_string(
    "out", None, "Folder for the videos; made where there is none.", required=True
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the first sample.", lower_bound=0)
NUM = flags.DEFINE_integer("num", 1, "Samples of each prompt.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch_size", 16, "Videos made at a time.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", None, "Steps of the sampler.", lower_bound=1)
GUIDANCE = flags.DEFINE_float("guidance", None, "Weight w; 0 is no guidance.", lower_bound=0)
UPSAMPLER_STEPS = flags.DEFINE_integer("upsampler_steps", None, "As --steps.", lower_bound=1)
UPSAMPLER_GUIDANCE = flags.DEFINE_float("upsampler_guidance", None, "As --guidance.", lower_bound=0)
AUGMENTATION = flags.DEFINE_float(
    "augmentation", None, "Level of noise on what the upsampler enlarges.", 0, 1
)
FRAME_RATE = flags.DEFINE_float("frame_rate", None, "Frames per second; 0: still.", lower_bound=0)


def run() -> None:
    """Flags in, videos out."""
    if SEED.value + NUM.value > 2**31:
        raise ConfigError(f"--seed={SEED.value} is too large; the last seed must be below 2**31")
    t5 = Path(T5.value) if T5.value else None
    trained = sample.load(Path(CHECKPOINT.value), STEP.value, t5, main.say)
    plan = sample.plan_from(
        trained.config, steps=STEPS.value, guidance=GUIDANCE.value, frame_rate=FRAME_RATE.value
    )
    prompts = [prompt for prompt in PROMPTS.value for _ in range(NUM.value)]
    seeds = [SEED.value + i for _ in PROMPTS.value for i in range(NUM.value)]
    out = storage.make_folder(OUT.value)
    batch = min(BATCH.value, len(prompts))
    videos = sample.generate(trained, plan, prompts, seeds, batch, main.progress("videos"))
    how = {"checkpoint_step": trained.step, **vars(plan)}
    if UPSAMPLER.value:
        videos, how["upsampler"] = upsample(plan, prompts, seeds, videos)
    write(out, plan.frame_rate, how, prompts, seeds, videos)


def upsample(plan: sample.Plan, prompts, seeds, videos) -> tuple[np.ndarray, dict]:
    """The second stage's videos, and how they were made."""
    t5 = Path(T5.value) if T5.value else None
    trained = sample.load(Path(UPSAMPLER.value), t5=t5, log=main.say)
    plan = sample.plan_from(
        trained.config,
        steps=UPSAMPLER_STEPS.value,
        guidance=UPSAMPLER_GUIDANCE.value,
        augmentation=AUGMENTATION.value,
        frame_rate=plan.frame_rate,
    )
    progress = main.progress("videos upsampled")
    batch = min(BATCH.value, len(prompts))
    videos = sample.generate(trained, plan, prompts, seeds, batch, progress, low_res=videos)
    return videos, {"checkpoint_step": trained.step, **vars(plan)}


def write(out: Path, frame_rate: float, how: dict, prompts, seeds, videos) -> None:
    """One mp4 a sample, the contact sheet, and how each can be made again."""
    rows = []
    for i, (prompt, seed, video) in enumerate(zip(prompts, seeds, videos, strict=True)):
        name = f"{i:05d}.mp4"
        video_io.write_mp4(out / name, video, frame_rate or 1)
        rows.append({"file": name, "prompt": prompt, "seed": seed})
    video_io.write_png(out / "sheet.png", video_io.contact_sheet(videos, prompts))
    how = how | {"samples": rows}
    storage.write(out / "samples.json", json.dumps(how, indent=2).encode() + b"\n")
    main.say(f"{len(rows)} videos, sheet.png and samples.json in {out}")


if __name__ == "__main__":
    main.run(run)
