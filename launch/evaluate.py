"""Measures a trained model under a protocol, and writes the values as JSON; compares two of them.

  python -m launch.evaluate --checkpoint=runs/shapes --num_samples=64 --out=F.json
  python -m launch.evaluate --checkpoint=W --protocol=reference --real=DIR --i3d=F --out=F.json
  python -m launch.evaluate --checkpoint=W --protocol=ucf101 --real=UCF-101 \\
      --split=trainlist01.txt --i3d=F --c3d=F --c3d_mean=F --inception=F --out=F.json
  python -m launch.evaluate --checkpoint=W --protocol=msrvtt --real=DIR \\
      --captions=test_videodatainfo.json --i3d=F --clip=F --merges=F --out=F.json
  python -m launch.evaluate --compare=A.json,B.json

--protocol  samples                                  compared with
shapes      --num_samples captions that training     1,024 videos of the same world; the oracle
            showed, and as many held out             reads the captions' facts from the pixels
reference   the captions of your own folder          its videos, cut as in training
ucf101      10,000 prompts of classes, as frequent   the training split, 16 frames of each
            as in the split
msrvtt      every test caption                       the test videos, 16 frames of each

What has its weights is measured: FVD (--i3d), FID (--inception), CLIP-FID (--clip) and CLIPSIM
(--clip and --merges), inception score (--c3d and --c3d_mean); and always what needs none: distances
of random features, flicker, smoothness, speed, dynamic degree, and on captioned real videos the
denoising loss by noise level. docs/evaluate.md says where the files come from.

A command that was stopped goes on where it was when it is given again, and ends with the same bits.
All devices of all hosts take part. Statistics of the real videos stay in --cache for all later
runs. The result holds every choice that decides a value, and their hash, the protocol's id: two
results are compared where all choices are alike, else what differs is said.

Several settings of the sampler are swept, from the same prompts and noise, and on shapes drawn:

  python -m launch.evaluate --checkpoint=runs/shapes --guidance=0,0.5,1,2,4 --out=F.json \\
      --plot=F.png
  python -m launch.evaluate --checkpoint=models/shapes --solver=heun,dpmpp_2m --steps=2,4,8,16 \\
      --guidance_sigma_max=1e6,10 --batch_size=32 --out=F.json --plot=F.png

The file then is the first one's result, and its `sweep` has a row of values for each, with how
often a video went through the network and, of several batches, the seconds that a video took in the
fastest. A plot of several solvers or intervals is over these two.
--sheet=FILE.png draws the shapes, each marked right or wrong.
Exit codes: 0 done, 2 bad flags or unlike results, 3 bad videos, text or weights, 5 storage.
"""

import dataclasses
import functools
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch import entry, number_flags, screen
from snapvideo_jax import build, fields, storage
from snapvideo_jax.data.world import World
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.evaluation import evaluate, extractors, metrics, plots, result, sets, values
from snapvideo_jax.evaluation.evaluate import Evaluation, Setting
from snapvideo_jax.evaluation.metrics import Extractor
from snapvideo_jax.evaluation.sets import UCF101_SIZE, Sets
from snapvideo_jax.files import video
from snapvideo_jax.generator import SamplerSettings
from snapvideo_jax.kinds import Several, Whole
from snapvideo_jax.sampling import stage
from snapvideo_jax.sampling.stage import Stage

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "Folder of a run (its --workdir), or an exported one."
)
STEP = number_flags.define("step", None, fields.STEP, "Which checkpoint; default: the newest.")
UPSAMPLER = flags.DEFINE_string("upsampler", "", "Folder of the run of an upsampler.")
T5 = flags.DEFINE_string("t5", "", "Folder of the T5 encoder, as for launch.sample.")
PROTOCOL = flags.DEFINE_enum(
    "protocol",
    "shapes",
    ["shapes", "reference", "ucf101", "msrvtt"],
    "What is sampled, and what it is compared with.",
)
NUM = number_flags.define(
    "num_samples", None, Whole(1, 1_000_000), "Videos; of shapes, of each kind of prompt (64)."
)
OUT = entry.define_file("out", "JSON file to write.")
REAL = flags.DEFINE_string("real", "", "Folder of the real videos.")
SPLIT = flags.DEFINE_string("split", "", "UCF-101's list of training videos, trainlist01.txt.")
CLASS_PROMPTS = flags.DEFINE_string(
    "class_prompts", "", "File of 'Biking: a man is riding a bicycle', a line a class of UCF-101."
)
CAPTIONS = flags.DEFINE_string("captions", "", "MSR-VTT's JSON, or a text file of captions.")
I3D = flags.DEFINE_string("i3d", "", "Weights of I3D, for FVD.")
INCEPTION = flags.DEFINE_string("inception", "", "Weights of Inception-v3, for FID.")
CLIP = flags.DEFINE_string("clip", "", "Weights of CLIP, for CLIP-FID.")
MERGES = flags.DEFINE_string("merges", "", "CLIP's vocabulary, for CLIPSIM.")
C3D = flags.DEFINE_string("c3d", "", "Weights of C3D, for the inception score.")
C3D_MEAN = flags.DEFINE_string("c3d_mean", "", "Mean clip of C3D.")
CACHE = flags.DEFINE_string(
    "cache", "", "Folder for statistics of real videos, shared by all hosts; default: ~/.cache."
)
SHEET = entry.define_file("sheet", "PNG file for a contact sheet of shapes.")
SEED = number_flags.define("seed", 0, Whole(0, 2**30), "Chooses prompts and noise.")
BATCH = number_flags.define("batch_size", 64, Whole(1, 65_536), "Videos a host makes at a time.")
PLOT = entry.define_file("plot", "PNG file for the scores of a sweep of shapes.")


def _define_swept(field: str, text: str, most: int = 64) -> flags.FlagHolder:
    """Defines the flag of a field of `sampling` that takes several values."""
    kind = Several(fields.FIELDS[f"sampling.{field}"], 1, most)
    return number_flags.define(field, None, kind, text)


STEPS = _define_swept("steps", "Steps of the sampler.")
GUIDANCE = _define_swept("guidance", "Weight w; 0 is no guidance.")
SOLVER = _define_swept("solver", "As for launch.sample.", most=3)
GUIDANCE_MIN = _define_swept("guidance_sigma_min", "Guidance at noise levels above this alone.")
GUIDANCE_MAX = _define_swept("guidance_sigma_max", "Guidance at noise levels up to this alone.")
OSCILLATE = flags.DEFINE_bool("oscillate", None, "Whether the weight oscillates.")
COMPARE = flags.DEFINE_list("compare", [], "Two results, A.json,B.json: a table, or what differs.")

ONLY_FOR = {"shapes": (SHEET, PLOT), "ucf101": (SPLIT, CLASS_PROMPTS), "msrvtt": (CAPTIONS,)}
NEEDS = {"shapes": (), "reference": (REAL,), "ucf101": (REAL, SPLIT), "msrvtt": (REAL, CAPTIONS)}
NETWORKS = {"i3d": I3D, "inception": INCEPTION, "clip": CLIP, "c3d": C3D}
SWEPT = (SOLVER, GUIDANCE_MIN, GUIDANCE_MAX, STEPS, GUIDANCE)  # the last changes first
SHAPES_SAMPLES = 64  # of each kind


def run() -> None:
    """Compares two results, or measures a model."""
    if COMPARE.value:
        compare(COMPARE.value)
        return
    check_flags()
    stages = load()
    shown = world(stages[-1])
    chosen = protocol(stages, shown)
    settings = sweep(stages[0], shown)
    networks = extractors.without_weights(shown, settings[0].frame_interval) | with_weights()
    frames = stages[-1].trained.denoiser.video_shape[0]
    networks = extractors.usable(networks, chosen, frames, screen.say)
    evaluated = [
        evaluate.evaluate(
            [dataclasses.replace(stages[0], settings=each), *stages[1:]],
            chosen,
            networks,
            setting(f"{number} of {len(settings)}" if len(settings) > 1 else ""),
            shown,
        )
        for number, each in enumerate(settings, start=1)
    ]
    if evaluations := [each for each in evaluated if each is not None]:
        write(evaluations, settings, chosen.samples.prompts)


def compare(paths: Sequence[str]) -> None:
    """Prints the values of two results beside each other; raises ConfigError if they are unlike."""
    if len(paths) != 2:
        raise ConfigError("--compare needs two results: --compare=A.json,B.json")
    a, b = map(result.read, paths)
    screen.say(f"A is {paths[0]}, B is {paths[1]}\n{result.comparison(a, b)}")


def check_flags() -> None:
    """Raises ConfigError for flags that are missing, or that nothing would read."""
    name = PROTOCOL.value
    for needed in ("checkpoint", "out", *(holder.name for holder in NEEDS[name])):
        if not flags.FLAGS[needed].value:
            raise ConfigError(f"--{needed} is required for --protocol={name}")
    for other, holders in ONLY_FOR.items():
        if other != name:
            entry.refuse_unread(f"--protocol={other}", *holders)
    if name == "shapes":
        entry.refuse_unread("another protocol than shapes", REAL)
    if PLOT.value and max(len(flag.value or ()) for flag in SWEPT) < 2:
        raise ConfigError("--plot draws a sweep; give several --steps=N,N,.. or --guidance=W,W,..")
    for flag, needs in ((C3D_MEAN, C3D), (C3D, C3D_MEAN), (MERGES, CLIP)):
        if flag.value and not needs.value:
            raise ConfigError(f"--{flag.name} does nothing here: it needs --{needs.name}")


def load() -> list[Stage]:
    """Loads the model, and the upsampler if the flags name one."""
    folders = [(CHECKPOINT.value, STEP.value)] + [(UPSAMPLER.value, None)] * bool(UPSAMPLER.value)
    stages = []
    for folder, step in folders:
        loaded = stage.load(folder, step, T5.value, screen.say)
        if PROTOCOL.value == "ucf101":
            loaded = dataclasses.replace(loaded, source_size=UCF101_SIZE)
        stages.append(loaded)
    return stages


def world(last: Stage) -> World | None:
    """Returns what the last stage of the protocol "shapes" was trained on; None for the others."""
    if PROTOCOL.value != "shapes":
        return None
    if last.trained.config.data.source != "shapes":
        raise ConfigError(
            "--protocol=shapes, the default, scores runs that were trained on shapes; compare this "
            "one with videos of your own: --protocol=reference --real=DIR"
        )
    return build.world(last.trained.config)


def protocol(stages: Sequence[Stage], shown: World | None) -> Sets:
    """Returns what is sampled, and what it is compared with."""
    name, num, seed = PROTOCOL.value, NUM.value, SEED.value
    if shown is not None:
        return sets.of_shapes(shown, shown.frame_rates[0], num or SHAPES_SAMPLES, seed)
    if name == "ucf101":
        return sets.of_ucf101(REAL.value, SPLIT.value, CLASS_PROMPTS.value, num, seed)
    if name == "msrvtt":
        return sets.of_msrvtt(REAL.value, CAPTIONS.value, num, seed)
    last, rate = stages[-1].trained, stages[0].settings.frame_rate
    aspect = last.config.data.aspect
    return sets.of_reference(REAL.value, last.denoiser.video_shape, rate, num, seed, aspect)


def sweep(first: Stage, shown: World | None) -> list[SamplerSettings]:
    """Combines the values of the swept flags; takes the config's where a flag is missing."""
    rate = shown.frame_rates[0] if shown is not None else None
    settings = functools.partial(
        build.sampler_settings, first.trained.config, frame_rate=rate, oscillate=OSCILLATE.value
    )
    names = [flag.name for flag in SWEPT]
    combinations = itertools.product(*(flag.value or [None] for flag in SWEPT))
    return [settings(**dict(zip(names, values, strict=True))) for values in combinations]


def title(settings: SamplerSettings) -> str:
    """Returns what a column of a sweep is called."""
    low, high = settings.guidance_sigma_min, settings.guidance_sigma_max
    weight = f"w {settings.guidance:g}"
    if settings.guidance and not settings.guides_everywhere:
        weight += f" at {low:g} to {high:g}"
    solver = "" if settings.solver == "heun" else f"{settings.solver}, "
    return f"{solver}{settings.steps} steps, {weight}"


def with_weights() -> dict[str, Extractor]:
    """Loads the networks whose weights the flags name, each with its usual preprocessing."""
    return {
        name: metrics.load(
            name,
            metrics.VARIANTS[name][0],
            weights=flag.value,
            mean=C3D_MEAN.value,
            merges=MERGES.value,
        )
        for name, flag in NETWORKS.items()
        if flag.value
    }


def setting(part: str) -> Setting:
    """Returns where the evaluation writes; `part` says which of a sweep it is."""
    return Setting(
        folder=parts(),
        cache=storage.make_folder(CACHE.value or entry.cache_folder() / "real"),
        batch_size=BATCH.value,
        progress=lambda things: screen.progress(f"{things}, {part}" if part else things),
    )


def parts() -> Path:
    """Returns the folder of what is measured so far, beside --out."""
    out = Path(OUT.value)
    return out.with_name(f"{out.name}.parts")


def write(
    evaluations: Sequence[Evaluation], settings: Sequence[SamplerSettings], prompts: Sequence[str]
) -> None:
    """Writes the values to --out and the screen, and the pictures that the flags ask for."""
    first, rows, columns = evaluations[0], [], {}
    for each, of in zip(settings, evaluations, strict=True):
        how = {flag.name: getattr(each, flag.name) for flag in SWEPT}
        how |= {"evaluations": each.num_evaluations, "seconds": of.seconds}
        rows.append(how | {"values": of.result.fields()["values"]} | of.result.details)
        columns[title(each)] = of.result.values
    details = first.result.details | ({"sweep": rows} if len(rows) > 1 else {})
    result.write(OUT.value, dataclasses.replace(first.result, details=details))
    screen.say(result.table(columns | values.chance(first.result)))
    if SHEET.value and first.videos is not None:
        half = len(prompts) // 2
        clips, right = list(first.videos[:half]), first.right[:half]
        video.write_png(SHEET.value, video.contact_sheet(clips, prompts[:half], marks=right))
    if PLOT.value:
        storage.write(PLOT.value, plots.png(rows))
    shutil.rmtree(parts())


if __name__ == "__main__":
    entry.run(run)
