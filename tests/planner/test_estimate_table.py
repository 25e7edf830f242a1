"""A plan as people read it: the answer first, and no figure of a toy rounded to nothing."""

import dataclasses

from snapvideo_jax.planner import estimate_table, predict, topology
from snapvideo_jax.planner.estimate import Estimate
from snapvideo_jax.planner.hlo import Collective
from snapvideo_jax.planner.residuals import Buffer

TOY = Estimate(
    fits=True,
    chips=1,
    chip="TPU v5 lite",
    mesh=dict(data=1, fsdp=1, group=1, tensor=1),
    parameters=3_235_840,
    limit=16_911_433_728,
    total=89_609_216,
    memory={"parameters": 12_943_360, "ema": 12_943_360, "text": 320, "gradients": 0},
    model_flops=1_146_486_784,
    flops=1_146_486_784,
    videos=8,
    calls=1,
    collectives=(),
    seconds=predict.Seconds(
        compute=2.032e-3, kernels=0.0, waiting=0.0, overlapped=0.0, fast=6.32e-5, slow=2.032e-3
    ),
    compile_seconds=29.9,
)
UPSAMPLER = dataclasses.replace(
    TOY,
    chips=16,
    mesh=dict(data=1, fsdp=8, group=2, tensor=1),
    total=14_800_000_000,
    memory={"parameters": 1_000_000_000, "activations": 12_000_000_000},
    model_flops=36 * 10**15,
    flops=45 * 10**15,
    videos=320,
    collectives=(Collective("all-gather", 40, 10**9, (), "", (0, 2, 4), True),),
    seconds=predict.Seconds(
        compute=15.2, kernels=2.1, waiting=5.3, overlapped=3.0, fast=13.7, slow=22.6
    ),
)


def lines(estimate, monkeypatch):
    monkeypatch.setattr(topology, "version", lambda: "libtpu 0")
    return estimate_table.text(estimate).splitlines()


def test_the_first_lines_are_the_answer(monkeypatch):
    fit, time, blank, *_ = lines(UPSAMPLER, monkeypatch)
    assert fit == "16 x TPU v5 lite, fsdp 8 x group 2: fits, 2.11 GB to spare a chip"
    assert time == (
        "about 22.6 s a step, predicted; between 13.7 s (data sheet) and 22.6 s (compiler's cycles)"
    )
    assert blank == ""


def test_the_parts_of_the_time_have_the_names_that_json_has(monkeypatch):
    text = lines(UPSAMPLER, monkeypatch)
    parts = estimate_table.tree(UPSAMPLER)["predicted_step_seconds_parts"]
    for name, seconds in (("compute", "15.2"), ("kernels", "2.10"), ("waiting", "5.30")):
        assert parts[name] == float(seconds)
        assert [line for line in text if line.split()[:3] == [name, seconds, "s"]]
    (overlap,) = (line for line in text if line.startswith("  overlapped"))
    assert overlap.endswith("3.00 s  exchanges beside compute and kernels, at no cost")
    assert max(map(len, text)) <= 100
    assert "Work of all chips: 36.0 PFLOP of the model, 25% more computed again" in text
    assert "Videos a second: 14.2 at the slow end, 0.885 a chip" in text
    (sent,) = (line for line in text if line.startswith("  all-gather"))
    assert " ".join(sent.split()) == "all-gather fsdp 40 x, 40.0 GB a chip, the largest 1.00 GB"


def test_exchanges_that_outlast_the_work_beside_them_do_not_come_at_no_cost(monkeypatch):
    seconds = predict.Seconds(
        compute=1.0, kernels=0.5, waiting=0.0, overlapped=2.0, fast=1.0, slow=2.0
    )
    text = "\n".join(lines(dataclasses.replace(UPSAMPLER, seconds=seconds), monkeypatch))
    assert "2.00 s  exchanges, which outlast the compute and kernels beside them" in text


def test_a_toys_figures_are_not_zero(monkeypatch):
    text = lines(TOY, monkeypatch)
    assert "between 63.2 us (data sheet) and 2.03 ms (compiler's cycles)" in text[1]
    assert "Work of all chips: 1.15 GFLOP of the model" in text
    assert "MFU: 0.29% at the slow end, 9.2% at the fast end" in text
    assert "  text              320 B   <0.1%" in text
    assert not [
        line for line in text if " 0.0" in line.replace("0.0632", "").replace("0.00582", "")
    ]
    assert not [line for line in text if "gradients" in line or "kernels" in line]


def test_a_sampler_says_what_a_whole_video_takes(monkeypatch):
    seconds = predict.Seconds(
        compute=0.04, kernels=0.0, waiting=0.0, overlapped=0.0, fast=0.04, slow=0.04
    )
    sampler = dataclasses.replace(TOY, videos=4, calls=127, seconds=seconds)
    _, call, video, *_ = lines(sampler, monkeypatch)
    assert call == "about 40.0 ms a denoiser call, predicted"  # both ends are the same
    assert video == "about 5.08 s to sample 4 videos, in 127 denoiser calls"


def test_what_does_not_fit_shows_what_fills_the_memory_and_no_time(monkeypatch):
    refusal = dataclasses.replace(
        TOY,
        fits=False,
        total=20 * 10**9,
        seconds=None,
        residuals=[Buffer("global layer 0", 7 * 10**9), Buffer("stem", 10**9)],
    )
    fit, blank, *rest = lines(refusal, monkeypatch)
    assert fit == "1 x TPU v5 lite: does not fit, 3.09 GB too much for a chip" and blank == ""
    assert "Activations held for the backward pass: 8.00 GB a chip, by the trace" in rest
    assert "    7.00 GB  global layer 0" in rest
    assert not [line for line in rest if line.startswith("Time")]
