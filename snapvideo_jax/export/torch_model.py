"""Snap Video in PyTorch: text -> video from an exported folder, in which this file lies.

    import torch_model
    model = torch_model.load("exported")                       # or device="cuda"
    batch = model.request(["a red circle moves left"])
    video = model.sample(batch, model.noise(seeds=[7]))        # uint8 [1, T, H, W, 3]

It needs torch, numpy and safetensors, and sentencepiece where texts are cut into tokens. The
parameters have the names and layouts of the files: `network/up/kernel` [inputs, outputs] is
`network.up.kernel` here, and `blocks`, stacked in the file, are a list. Half precision is what it
is for every model: `load("exported", dtype=torch.bfloat16)`, `model.half()` or torch.autocast;
sums of the residual stream, norms, noise levels and the sampler stay in float32.

Dimensions: B batch, T frames, H W pixels, h w low resolution, G groups, m latents a group, K text
tokens, E channels. A batch is a dictionary of
    frame_interval  float32 [B], seconds, 0 for a still     source_size  int [B, 2], pixels
    text_ids        int [B, K], or text, states [B, K, E]   text_mask    bool [B, K]
and for an upsampler
    low_res         uint8 [B, T, h, w, 3]                   low_res_noise  float32, of its shape
    augmentation    float32 [B], the level of that noise, 0 to 1
"""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

SCALE = {
    "c_noise": 1000.0,
    "frame_interval": 1000.0,
    "source_height": 1.0,
    "source_width": 1.0,
    "augmentation": 1000.0,
}
END = 1  # the id at the end of a text
SOLVERS = ("heun", "euler", "dpmpp_2m")
SETTINGS = (
    "steps", "solver", "guidance", "oscillate", "guidance_low", "guidance_sigma_min",
    "guidance_sigma_max", "threshold", "sigma_min", "sigma_max", "rho",
)  # fmt: skip


def load(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> "SnapVideo":
    """Loads the model of an exported folder; its parameters become `dtype`."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())["config"]
    parameters = {}
    for file in sorted(folder.glob("*.safetensors")):
        parameters.update(load_file(file))
    # The stack of blocks, [blocks, ...] in the file, is a list of modules here.
    tensors = {}
    for name, tensor in parameters.items():
        name = name.replace("/", ".")
        if name.startswith("network.blocks."):
            rest = name.removeprefix("network.blocks.")
            tensors.update({f"network.blocks.{i}.{rest}": t for i, t in enumerate(tensor)})
        else:
            tensors[name] = tensor
    model = SnapVideo(config, tensors, folder)
    model.load_state_dict(tensors, strict=True)
    return model.to(device, dtype).eval()


class Dense(nn.Module):
    """x kernel + bias, in the dtype of the kernel; kernel [inputs, outputs]."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Projects the last axis."""
        return F.linear(x.to(self.kernel.dtype), self.kernel.T, self.bias)


class LayerNorm(nn.Module):
    """Layer norm with scale and bias, in float32."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Norms the last axis."""
        return F.layer_norm(x.float(), x.shape[-1:], self.scale.float(), self.bias.float(), 1e-6)


class RMSNorm(nn.Module):
    """x scale / sqrt(mean x^2), in float32."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Norms the last axis."""
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale.float()


def attend(
    q: Tensor, k: Tensor, v: Tensor, head_channels: int, mask: Tensor | None = None
) -> Tensor:
    """Returns softmax(q k^T / sqrt(d)) v of [..., tokens, heads * d]; mask [B, tokens]."""
    heads = lambda t: t.unflatten(-1, (-1, head_channels)).transpose(-2, -3)
    allowed = None if mask is None else mask[:, None, None, :]
    out = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), attn_mask=allowed)
    return out.transpose(-2, -3).flatten(-2)


def sinusoid(x: Tensor, width: int) -> Tensor:
    """Returns sin and cos of x [B] at width / 2 rates from 1 to 1e-4, standardized."""
    steps = torch.arange(width // 2, device=x.device, dtype=torch.float32)
    angles = x.float()[:, None] * 10_000.0 ** (-steps / (width // 2))
    features = torch.cat([angles.sin(), angles.cos()], -1)
    centered = features - features.mean(-1, keepdim=True)
    return centered / torch.sqrt(centered.square().mean(-1, keepdim=True) + 1e-12)


class ScalarEmbedding(nn.Module):
    """A number -> sinusoid, Dense, SiLU, Dense."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.width = width
        self.up, self.down = Dense(width, outputs), Dense(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Embeds x [B], already scaled."""
        return self.down(F.silu(self.up(sinusoid(x, self.width))))


class ConditioningTokens(nn.Module):
    """Noise level and conditions -> tokens [B, 4 or 5 + K, E], and which may be seen."""

    def __init__(self, channels: int, text_channels: int, upsampler: bool):
        super().__init__()
        self.names = [name for name in SCALE if upsampler or name != "augmentation"]
        for name in self.names:
            self.add_module(name, ScalarEmbedding(channels, channels))
        self.text = Dense(text_channels, channels)

    def forward(self, c_noise: Tensor, conditions: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the tokens of the numbers, always visible, then those of the text."""
        height, width = conditions["source_size"].unbind(-1)
        numbers = conditions | {"c_noise": c_noise, "source_height": height, "source_width": width}
        scalars = [getattr(self, name)(SCALE[name] * numbers[name]) for name in self.names]
        tokens = torch.cat([torch.stack(scalars, 1), self.text(conditions["text"])], 1)
        visible = torch.ones(len(tokens), len(scalars), dtype=torch.bool, device=tokens.device)
        return tokens, torch.cat([visible, conditions["text_mask"]], 1)


class FeedForward(nn.Module):
    """x + Dense(gelu(Dense(LN(x)))), 4x wide."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = LayerNorm(channels)
        self.up, self.down = Dense(channels, 4 * channels), Dense(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x and what the layer adds."""
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Attention(nn.Module):
    """x + MHA(LN(x), LN(context)), of each group of tokens to its own; without context, to x."""

    def __init__(self, channels: int, context: int | None, heads: int, head_channels: int):
        super().__init__()
        self.head_channels, width = head_channels, heads * head_channels
        self.norm = LayerNorm(channels)
        if context is not None:
            self.context_norm = LayerNorm(context)
        self.q, self.o = Dense(channels, width), Dense(width, channels)
        self.k, self.v = (Dense(context or channels, width) for _ in "kv")

    def forward(
        self, x: Tensor, context: Tensor | None, mask: Tensor | None, groups: int
    ) -> Tensor:
        """Attends where `mask` is True. Tokens stand in a row, group by group."""
        queries = self.norm(x)
        keys = queries if context is None else self.context_norm(context)
        split = lambda t: t.unflatten(1, (groups, -1)) if groups > 1 else t
        q, k, v = split(self.q(queries)), split(self.k(keys)), split(self.v(keys))
        out = attend(q, k, v, self.head_channels, mask)
        return x + self.o(out.flatten(1, 2) if groups > 1 else out)


class AttentionBlock(nn.Module):
    """Attention, then a feed-forward."""

    def __init__(self, channels: int, context: int | None, heads: int, head_channels: int):
        super().__init__()
        self.attention = Attention(channels, context, heads, head_channels)
        self.feed_forward = FeedForward(channels)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        groups: int = 1,
    ) -> Tensor:
        """Returns x after both."""
        return self.feed_forward(self.attention(x, context, mask, groups))


class FITBlock(nn.Module):
    """Latents attend to conditions and patches, then to each other; patches to latents."""

    def __init__(self, fit: dict[str, Any], conditioning: int):
        super().__init__()
        C, D = fit["patch_channels"], fit["latent_channels"]
        patch_heads, heads = C // fit["patch_head_channels"], D // fit["latent_head_channels"]
        fewer = min(patch_heads, heads)
        shape = fewer, min(C, D) // fewer
        self.attend_conditioning = AttentionBlock(D, conditioning, *shape)
        self.read = AttentionBlock(D, C, *shape)
        self.layers = fit["global_layers"]
        for i in range(self.layers):
            layer = AttentionBlock(D, None, heads, fit["latent_head_channels"])
            self.add_module(f"global{i}", layer)
        self.write = AttentionBlock(C, D, *shape)

    def forward(
        self, patches: Tensor, latents: Tensor, tokens: Tensor, mask: Tensor, groups: int
    ) -> tuple[Tensor, Tensor]:
        """Returns patches and latents."""
        latents = self.attend_conditioning(latents, tokens, mask)
        latents = self.read(latents, patches, groups=groups)
        for i in range(self.layers):
            latents = getattr(self, f"global{i}")(latents)
        return self.write(patches, latents, groups=groups), latents


class FIT(nn.Module):
    """F and the latents for the next call, from the scaled video, conditions and latents."""

    def __init__(self, config: dict[str, Any], text_channels: int):
        super().__init__()
        data, fit = config["data"], config["model"]["fit"]
        E, upsampler = config["model"]["conditioning_channels"], bool(data["low_res"])
        self.patch, self.group = fit["patch"], tuple(fit["group"])
        rows = data["height"] + data["pad_rows"]
        sizes = data["num_frames"], rows // self.patch, data["width"] // self.patch
        self.grid = tuple(size // part for size, part in zip(sizes, self.group, strict=True))
        groups, C, D = math.prod(self.grid), fit["patch_channels"], fit["latent_channels"]
        self.latent_shape = (groups, fit["latents"] // groups, D)
        self.tokens = ConditioningTokens(E, text_channels, upsampler)
        self.positions = nn.Parameter(torch.empty(math.prod(self.group), C))
        self.stem = Dense(self.patch**2 * (6 if upsampler else 3), C)
        self.stem_norm = LayerNorm(C)
        self.latent_table = nn.Parameter(torch.empty(self.latent_shape))
        self.self_conditioning = FeedForward(D)
        self.self_conditioning_norm = LayerNorm(D)
        self.blocks = nn.ModuleList(FITBlock(fit, E) for _ in range(fit["blocks"]))
        self.head_norm, self.head = LayerNorm(C), Dense(C, self.patch**2 * 3)

    def forward(
        self, x: Tensor, c_noise: Tensor, conditions: dict[str, Tensor], latents: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Takes and returns latents [B, G, m, D]; zeros are none."""
        conditioning = self.tokens(c_noise, conditions)
        if "enlarged" in conditions:
            x = torch.cat([x, conditions["enlarged"]], -1)
        patches = self.stem_norm(self.stem(self.patchify(x))) + self.positions
        h = self.self_conditioning_norm(self.self_conditioning(latents.float()))
        patches, h = patches.flatten(1, 2), (self.latent_table + h).flatten(1, 2)
        for block in self.blocks:
            patches, h = block(patches, h, *conditioning, self.latent_shape[0])
        out = self.head(self.head_norm(patches))
        return self.unpatchify(out.float()), h.reshape(latents.shape).float()

    def patchify(self, x: Tensor) -> Tensor:
        """Cuts x [B, T, H, W, C] into tokens [B, G, n, patch * patch * C]."""
        (a, b, c), (gt, gh, gw), p = self.grid, self.group, self.patch
        x = x.reshape(len(x), a, gt, b, gh, p, c, gw, p, -1)
        x = x.permute(0, 1, 3, 6, 2, 4, 7, 5, 8, 9)
        return x.reshape(len(x), a * b * c, gt * gh * gw, -1)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """Inverts `patchify`, from tokens in a row, [B, G * n, patch * patch * C]."""
        (a, b, c), (gt, gh, gw), p = self.grid, self.group, self.patch
        x = tokens.reshape(len(tokens), a, b, c, gt, gh, gw, p, p, -1)
        x = x.permute(0, 1, 4, 2, 5, 7, 3, 6, 8, 9)
        return x.reshape(len(tokens), a * gt, b * gh * p, c * gw * p, -1)


class Conv(nn.Module):
    """A convolution of frames [N, C, H, W] that keeps their size; kernel [rows, columns, C, D]."""

    def __init__(self, inputs: int, outputs: int, size: int = 3):
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(size, size, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Returns [N, D, H, W]."""
        kernel = self.kernel.permute(3, 2, 0, 1)
        return F.conv2d(x.to(kernel.dtype), kernel, self.bias, padding="same")


class GroupNorm(nn.Module):
    """Group norm of 32 groups over a frame [N, C, H, W], in float32."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Norms each group of channels."""
        return F.group_norm(x.float(), 32, self.scale.float(), self.bias.float(), 1e-5)


class ResidualBlock(nn.Module):
    """x + conv(silu(GN(conv(silu(GN(x)))) (1 + scale) + shift)), resampled before the first."""

    def __init__(self, inputs: int, outputs: int, embedding: int, resample: str):
        super().__init__()
        self.resample = resample
        self.input_norm, self.input_conv = GroupNorm(inputs), Conv(inputs, outputs)
        self.output_norm, self.output_conv = GroupNorm(outputs), Conv(outputs, outputs)
        self.scale_shift = Dense(embedding, 2 * outputs)
        if inputs != outputs:
            self.skip = Conv(inputs, outputs, size=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Takes frames [B * T, C, H, W] and the embedding [B, e] of the noise level."""
        h = F.silu(self.input_norm(x))
        if self.resample == "halve":
            x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)
        elif self.resample == "double":
            x, h = (F.interpolate(t, scale_factor=2, mode="nearest") for t in (x, h))
        h = self.output_norm(self.input_conv(h))
        scale_shift = self.scale_shift(F.silu(embedding)).float()
        scale_shift = scale_shift.repeat_interleave(len(h) // len(embedding), 0)[:, :, None, None]
        scale, shift = scale_shift.chunk(2, 1)
        h = F.silu(h * (1 + scale) + shift)
        x = self.skip(x) if hasattr(self, "skip") else x
        return x + self.output_conv(h)


class MultiHeadAttention(nn.Module):
    """MHA(x, context), without norm and residual."""

    def __init__(self, channels: int, context: int, head_channels: int):
        super().__init__()
        self.head_channels = head_channels
        self.q, self.o = Dense(channels, channels), Dense(channels, channels)
        self.k, self.v = Dense(context, channels), Dense(context, channels)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attends where `mask` is True."""
        q, k, v = self.q(x), self.k(context), self.v(context)
        return self.o(attend(q, k, v, self.head_channels, mask))


class FrameAttention(nn.Module):
    """x + MHA over the pixels of a frame, the conditioning tokens, or the frames of a place."""

    def __init__(self, over: str, channels: int, context: int, head_channels: int):
        super().__init__()
        self.over, self.norm = over, GroupNorm(channels)
        self.attention = MultiHeadAttention(channels, context, head_channels)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Takes and returns frames [B * T, C, H, W]."""
        (N, C, H, W), B = x.shape, len(tokens)
        h = self.norm(x).flatten(2).transpose(1, 2)  # [B * T, H * W, C]
        if self.over == "space":
            out = self.attention(h, h)
        elif self.over == "text":
            out = self.attention(h.reshape(B, -1, C), tokens, mask)
        else:
            h = h.reshape(B, N // B, H * W, C).transpose(1, 2).flatten(0, 1)
            h = h + sinusoid(torch.arange(N // B, device=x.device), C)
            out = self.attention(h, h).reshape(B, H * W, N // B, C).transpose(1, 2)
        return x + out.reshape(N, H * W, C).transpose(1, 2).reshape(x.shape)


class UNetBlock(nn.Module):
    """A residual block and, at some levels, attention over space, text and time."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        attention: tuple[int, int] | None = None,
        resample: str = "",
    ):
        super().__init__()
        self.residual = ResidualBlock(inputs, outputs, embedding, resample)
        if attention:
            head_channels, conditioning = attention
            self.space = FrameAttention("space", outputs, outputs, head_channels)
            self.text = FrameAttention("text", outputs, conditioning, head_channels)
            self.time = FrameAttention("time", outputs, outputs, head_channels)

    def forward(self, x: Tensor, embedding: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Takes and returns frames [B * T, C, H, W]."""
        x = self.residual(x, embedding)
        for name in ("space", "text", "time"):
            if hasattr(self, name):
                x = getattr(self, name)(x, tokens, mask)
        return x


class UNet(nn.Module):
    """F from the scaled video and conditions; it has no latents."""

    latent_shape = None

    def __init__(self, config: dict[str, Any], text_channels: int):
        super().__init__()
        model, upsampler = config["model"], bool(config["data"]["low_res"])
        unet, E = model["unet"], model["conditioning_channels"]
        widths = [multiplier * unet["channels"] for multiplier in unet["multipliers"]]
        self.tokens = ConditioningTokens(E, text_channels, upsampler)
        self.sigma = ScalarEmbedding(unet["channels"], 4 * unet["channels"])
        self.stem = Conv(6 if upsampler else 3, widths[0])
        heads = unet["head_channels"], E

        def add(name: str, level: int, inputs: int, attention: bool, resample: str = "") -> None:
            block = UNetBlock(
                inputs=inputs,
                outputs=widths[level],
                embedding=4 * unet["channels"],
                attention=heads if attention else None,
                resample=resample,
            )
            self.add_module(name, block)

        self.down, self.up, skips = [], [], [widths[0]]
        width = widths[0]
        for level in range(len(widths)):
            attends = 2**level in unet["attention_levels"]
            if level:
                self.down.append(f"encoder{level - 1}_downsample")
                add(self.down[-1], level - 1, width, attention=False, resample="halve")
                skips.append(width := widths[level - 1])
            for i in range(unet["residual_blocks"]):
                self.down.append(f"encoder{level}_{i}")
                add(self.down[-1], level, width, attends)
                skips.append(width := widths[level])
        add("middle0", len(widths) - 1, width, attention=True)
        add("middle1", len(widths) - 1, width, attention=False)
        for level in reversed(range(len(widths))):
            attends = 2**level in unet["attention_levels"]
            for i in range(unet["residual_blocks"] + 1):
                self.up.append(f"decoder{level}_{i}")
                add(self.up[-1], level, width + skips.pop(), attends)
                width = widths[level]
            if level:
                self.up.append(f"decoder{level}_upsample")
                add(self.up[-1], level, width, attention=False, resample="double")
        self.head_norm, self.head = GroupNorm(widths[0]), Conv(widths[0], 3)

    def forward(
        self, x: Tensor, c_noise: Tensor, conditions: dict[str, Tensor], latents: Any
    ) -> tuple[Tensor, Any]:
        """Returns F, and `latents` as they came."""
        context = self.sigma(SCALE["c_noise"] * c_noise), *self.tokens(c_noise, conditions)
        frames = torch.cat([x, conditions["enlarged"]], -1) if "enlarged" in conditions else x
        h = self.stem(frames.flatten(0, 1).permute(0, 3, 1, 2))
        skips = [h]
        for name in self.down:
            h = getattr(self, name)(h, *context)
            skips.append(h)
        for name in ("middle0", "middle1"):
            h = getattr(self, name)(h, *context)
        for name in self.up:
            h = h if name.endswith("upsample") else torch.cat([h, skips.pop()], 1)
            h = getattr(self, name)(h, *context)
        out = self.head(F.silu(self.head_norm(h))).float()
        return out.permute(0, 2, 3, 1).reshape(x.shape), latents


class MLP(nn.Module):
    """Dense(gelu(Dense(x))), 4x wide, without norm and residual."""

    def __init__(self, channels: int):
        super().__init__()
        self.up, self.down = Dense(channels, 4 * channels), Dense(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns what the layer adds."""
        return self.down(F.gelu(self.up(x)))


class DiTBlock(nn.Module):
    """Self-attention, attention to the conditions, feed-forward; all but the second modulated."""

    def __init__(self, dit: dict[str, Any], frames: int, conditioning: int):
        super().__init__()
        C, d = dit["channels"], dit["head_channels"]
        self.frames = frames
        self.names = ("space", "time") if dit["factorised"] else ("joint",)
        self.modulation_table = nn.Parameter(torch.empty(len(self.names) + 1, 3, C))
        for name in self.names:
            self.add_module(name, MultiHeadAttention(C, C, d))
        self.text, self.feed_forward = Attention(C, conditioning, C // d, d), MLP(C)

    def forward(self, x: Tensor, shared: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Takes and returns tokens in a row [B, T * S, C]; shared: modulation [B, L, 3, C]."""
        *attentions, feed_forward = (shared + self.modulation_table).unbind(1)
        for name, vectors in zip(self.names, attentions, strict=True):
            shift, scale, gate = vectors[:, :, None].unbind(1)
            out = self.attend_over(name, modulate(x, shift, scale))
            x = x + gate * out
        x = self.text(x, tokens, mask, groups=1)
        shift, scale, gate = feed_forward[:, :, None].unbind(1)
        return x + gate * self.feed_forward(modulate(x, shift, scale))

    def attend_over(self, name: str, h: Tensor) -> Tensor:
        """Attends over the whole video, over each frame, or over the frames of each place."""
        attention, (B, N, C) = getattr(self, name), h.shape
        if name == "joint":
            return attention(h, h)
        parts = h.unflatten(1, (self.frames, -1))
        parts = parts.transpose(1, 2) if name == "time" else parts
        rows = parts.flatten(0, 1)
        out = attention(rows, rows).reshape(parts.shape)
        return (out.transpose(1, 2) if name == "time" else out).reshape(B, N, C)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Returns LN(x) (1 + scale) + shift, in float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class DiT(nn.Module):
    """F from the scaled video and conditions; it has no latents."""

    latent_shape = None

    def __init__(self, config: dict[str, Any], text_channels: int):
        super().__init__()
        data, dit = config["data"], config["model"]["dit"]
        E, upsampler = config["model"]["conditioning_channels"], bool(data["low_res"])
        rows, self.patch, C = data["height"] + data["pad_rows"], dit["patch"], dit["channels"]
        self.grid = data["num_frames"], rows // self.patch, data["width"] // self.patch
        self.tokens = ConditioningTokens(E, text_channels, upsampler)
        layers = 3 if dit["factorised"] else 2
        self.modulation = Dense(E, (3 * layers + 2) * C)
        self.stem = Dense(self.patch**2 * (6 if upsampler else 3), C)
        self.blocks = nn.ModuleList(DiTBlock(dit, self.grid[0], E) for _ in range(dit["blocks"]))
        self.head = Dense(C, self.patch**2 * 3)

    def forward(
        self, x: Tensor, c_noise: Tensor, conditions: dict[str, Tensor], latents: Any
    ) -> tuple[Tensor, Any]:
        """Returns F, and `latents` as they came."""
        tokens, mask = self.tokens(c_noise, conditions)
        scalars = tokens[:, : -conditions["text"].shape[1]].sum(1)
        C = self.head.kernel.shape[0]
        modulation = self.modulation(F.silu(scalars)).float().unflatten(1, (-1, C))
        shared = modulation[:, :-2].unflatten(1, (-1, 3))
        if "enlarged" in conditions:
            x = torch.cat([x, conditions["enlarged"]], -1)
        row = self.stem(self.patchify(x)) + self.positions(x.device)
        for block in self.blocks:
            row = block(row, shared, tokens, mask)
        shift, scale = modulation[:, -2:, None].unbind(1)
        return self.unpatchify(self.head(modulate(row, shift, scale)).float()), latents

    def positions(self, device: torch.device) -> Tensor:
        """Returns sinusoids of frame, row and column side by side, [T * rows * columns, C]."""
        C = self.head.kernel.shape[0]
        side = C // 6 * 2
        axes = [torch.arange(size, device=device) for size in self.grid]
        places = torch.cartesian_prod(*axes).unbind(1)
        widths = C - 2 * side, side, side
        return torch.cat([sinusoid(p, w) for p, w in zip(places, widths, strict=True)], 1)

    def patchify(self, x: Tensor) -> Tensor:
        """Cuts x [B, T, H, W, C] into a row of tokens [B, T * S, patch * patch * C]."""
        (T, H, W), p = self.grid, self.patch
        x = x.reshape(len(x), T, H, p, W, p, -1).transpose(3, 4)
        return x.reshape(len(x), T * H * W, -1)

    def unpatchify(self, row: Tensor) -> Tensor:
        """Inverts `patchify`."""
        (T, H, W), p = self.grid, self.patch
        x = row.reshape(len(row), T, H, W, p, p, -1).transpose(3, 4)
        return x.reshape(len(row), T, H * p, W * p, -1)


class T5Attention(nn.Module):
    """x + MHA(RMSNorm(x)) with a bias on the logits, which are not scaled."""

    def __init__(self, channels: int, heads: int, head_channels: int):
        super().__init__()
        self.head_channels, width = head_channels, heads * head_channels
        self.norm = RMSNorm(channels)
        self.q, self.k, self.v = (Dense(channels, width, bias=False) for _ in "qkv")
        self.o = Dense(width, channels, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Takes bias [B, heads, K, K], in which padded keys are very low."""
        h = self.norm(x)
        heads = lambda t: t.unflatten(-1, (-1, self.head_channels)).transpose(1, 2)
        q, k, v = heads(self.q(h)), heads(self.k(h)), heads(self.v(h))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
        return x + self.o(out.transpose(1, 2).flatten(2))


class T5FeedForward(nn.Module):
    """x + Dense(gelu(a) * b), a and b Dense of RMSNorm(x)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.norm = RMSNorm(channels)
        self.gate, self.up = (Dense(channels, hidden, bias=False) for _ in "ab")
        self.down = Dense(hidden, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x and what the layer adds."""
        h = self.norm(x)
        return x + self.down(F.gelu(self.gate(h), approximate="tanh") * self.up(h))


class TokenTable(nn.Module):
    """Ids -> rows of a table, in float32."""

    def __init__(self, rows: int, channels: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(rows, channels))

    def forward(self, ids: Tensor) -> Tensor:
        """Looks up ids of any shape."""
        return self.embedding[ids.long()].float()


class T5Encoder(nn.Module):
    """Ids -> states [B, K, channels]; the small encoder that a run trains along."""

    def __init__(self, text: dict[str, Any], rows: int):
        super().__init__()
        channels, heads = text["channels"], text["heads"]
        self.layers = text["layers"]
        self.token_table = TokenTable(rows, channels)
        self.position_bias = nn.Parameter(torch.empty(32, heads))
        for i in range(self.layers):
            attention = T5Attention(channels, heads, text["head_channels"])
            self.add_module(f"attention{i}", attention)
            self.add_module(f"feed_forward{i}", T5FeedForward(channels, text["hidden"]))
        self.final_norm = RMSNorm(channels)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encodes ids [B, K]; states of padded positions mean nothing."""
        x = self.token_table(ids)
        places = torch.arange(ids.shape[1], device=ids.device)
        bias = self.position_bias.float()[bucket(places[None] - places[:, None])].permute(2, 0, 1)
        bias = bias[None].masked_fill(~mask[:, None, None, :], -1e4)
        for i in range(self.layers):
            x = getattr(self, f"attention{i}")(x, bias)
            x = getattr(self, f"feed_forward{i}")(x)
        return self.final_norm(x)


def bucket(distance: Tensor) -> Tensor:
    """Sorts key minus query positions into 32 buckets: half a sign, exact below 8, log-spaced."""
    growth = 16.0 ** (np.arange(1, 8) / 8)
    firsts = torch.tensor(np.ceil(8 * growth - 1e-9), device=distance.device)
    size = distance.abs()
    far = 8 + (size[..., None] >= firsts).sum(-1)
    return 16 * (distance > 0) + torch.where(size < 8, size, far)


class SnapVideo(nn.Module):
    """The network, the text encoder where a run trained one, the noise law and the sampler."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, Tensor], folder: Path):
        super().__init__()
        self.config, self.folder = config, folder
        model = config["model"]
        text_channels = tensors["network.tokens.text.kernel"].shape[0]
        network = {"fit": FIT, "unet": UNet, "dit": DiT}[model["name"]]
        self.network = network(config, text_channels)
        if model["text_encoder"]["source"] == "trained":
            rows = len(tensors["text_encoder.token_table.embedding"])
            self.text_encoder = T5Encoder(model["text_encoder"], rows)
        data = config["data"]
        rows = data["height"] + data["pad_rows"]
        self.video_shape = data["num_frames"], data["height"], data["width"], 3
        self.x_shape = data["num_frames"], rows, data["width"], 3

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def request(self, prompts: Sequence[str], frame_rate: float | None = None) -> dict[str, Tensor]:
        """Returns the batch of prompts; an upsampler's needs its low resolution beside it.

        Raises ValueError for a model that reads stored states, which need their own encoder.
        """
        if self.config["model"]["text_encoder"]["source"] != "trained":
            raise ValueError("this model reads stored states: put text and text_mask in the batch")
        import sentencepiece

        rate = self.config["sampling"]["frame_rate"] if frame_rate is None else frame_rate
        vocabulary = sentencepiece.SentencePieceProcessor(str(self.folder / "vocabulary.model"))
        B, K = len(prompts), self.config["data"]["text_length"]
        ids = torch.zeros(B, K, dtype=torch.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            pieces = vocabulary.encode(" ".join(prompt.split()))
            if pieces:
                row[: min(len(pieces) + 1, K)] = torch.tensor([*pieces[: K - 1], END])
        size = torch.tensor([self.video_shape[1:3]]).expand(B, 2)
        batch = {
            "text_ids": ids,
            "text_mask": ids > 0,
            "frame_interval": torch.full((B,), 1 / rate if rate else 0.0),
            "source_size": size,
        }
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Draws unit noise of the shape of x for each seed; not the noise of another framework."""
        draw = lambda seed: torch.randn(self.x_shape, generator=torch.Generator().manual_seed(seed))
        return torch.stack([draw(seed) for seed in seeds]).to(self.device)

    def conditions(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns what the network reads: encodes ids, noises and enlarges a low resolution."""
        conditions = dict(batch)
        if "text_ids" in batch:
            conditions["text"] = self.text_encoder(batch["text_ids"], batch["text_mask"])
        if self.config["data"]["low_res"]:
            low_res = batch["low_res"].float() / 127.5 - 1
            angle = (math.pi / 2 * batch["augmentation"])[:, None, None, None, None]
            noised = angle.cos() * low_res + angle.sin() * batch["low_res_noise"]
            frames = noised.flatten(0, 1).permute(0, 3, 1, 2)
            size = self.video_shape[1:3]
            large = F.interpolate(frames, size, mode="bilinear", antialias=True).permute(0, 2, 3, 1)
            large = large.unflatten(0, low_res.shape[:2])
            padding = (0, 0, 0, 0, 0, self.config["data"]["pad_rows"])
            conditions["enlarged"] = F.pad(large, padding)
        return conditions

    def no_latents(self, batch_size: int) -> Any:
        """Returns the latents before the first call: zeros, or () for a U-Net."""
        shape = self.network.latent_shape
        return () if shape is None else torch.zeros(batch_size, *shape, device=self.device)

    def denoise(
        self, x_sigma: Tensor, sigma: float, conditions: dict[str, Tensor], latents: Any
    ) -> tuple[Tensor, Any]:
        """Returns D = c_skip x_sigma + c_out F, the estimate of x, and the next call's latents."""
        diffusion = self.config["diffusion"]
        sd, si = diffusion["sigma_data"], diffusion["sigma_in"]
        c_in = 1 / math.sqrt((sd / si) ** 2 + sigma**2)
        c_skip = si * sd**2 / (si * sigma**2 + sd**2)
        c_out = -si * sigma * sd * math.sqrt(sigma**2 + sd**2) / (sd**2 + si * sigma**2)
        c_noise = torch.full(x_sigma.shape[:1], math.log(sigma) / 4, device=x_sigma.device)
        out, latents = self.network(c_in * x_sigma, c_noise, conditions, latents)
        return c_skip * x_sigma + c_out * out.float(), latents

    @torch.no_grad()
    def sample(self, batch: dict[str, Tensor], noise: Tensor, **changes: Any) -> Tensor:
        """Runs the deterministic sampler from unit noise [B, T, rows, W, 3]; returns pixels.

        changes: those of SETTINGS that differ from the config's `sampling`. Its S_churn is not
            read: nothing is drawn on the way.
        """
        if unknown := set(changes) - set(SETTINGS):
            raise ValueError(f"{unknown} are no settings of the sampler; those are {SETTINGS}")
        settings = self.config["sampling"] | changes
        if settings["solver"] not in SOLVERS:
            raise ValueError(f"solver={settings['solver']!r} must be one of {SOLVERS}")
        if settings["solver"] == "dpmpp_2m" and settings["oscillate"] and settings["guidance"]:
            raise ValueError("oscillate=True: solver=dpmpp_2m extrapolates; give oscillate=False")
        sigma_in = self.config["diffusion"]["sigma_in"]
        levels, weights = noise_levels(settings), guidance_weights(settings)
        ahead = extrapolation_weights(levels, settings["solver"])
        conditions = self.conditions(batch)
        both = doubled(conditions) if settings["guidance"] else None
        latents = self.no_latents(len(noise))

        def guided(x: Tensor, sigma: float, weight: float, latents: Any) -> tuple[Tensor, Any]:
            inside = settings["guidance_sigma_min"] < sigma <= settings["guidance_sigma_max"]
            if both is None or not inside:
                D, latents = self.denoise(x, sigma, conditions, latents)
            else:
                twice = () if isinstance(latents, tuple) else torch.cat([latents, latents])
                D, twice = self.denoise(torch.cat([x, x]), sigma, both, twice)
                with_text, without = D.chunk(2)
                D = with_text + weight * (with_text - without)
                latents = () if isinstance(twice, tuple) else twice.chunk(2)[0]
            if settings["threshold"]:
                D = thresholded(D, settings["threshold"])
            return D, latents

        x, D = levels[0] * noise.float(), torch.zeros_like(noise, dtype=torch.float32)
        for i, (sigma, below) in enumerate(itertools.pairwise(levels)):
            D_before, weight = D, weights[i]
            D, latents = guided(x, sigma, weight, latents)
            D_mid = D + ahead[i] * (D - D_before)
            slope = (x - D_mid / sigma_in) / sigma
            point = x + (below - sigma) * slope
            if settings["solver"] == "heun" and below:
                D_point, latents = guided(point, below, weight, latents)
                at_point = (point - D_point / sigma_in) / below
                point = x + (below - sigma) * (slope + at_point) / 2
            x = point
        D = D[:, :, : self.video_shape[1]]
        return ((D.clip(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def noise_levels(settings: dict[str, Any]) -> list[float]:
    """Returns sigma_max > ... > sigma_min > 0, one for each step and the end."""
    rho, N = settings["rho"], settings["steps"]
    top, bottom = settings["sigma_max"] ** (1 / rho), settings["sigma_min"] ** (1 / rho)
    fraction = np.arange(N) / max(N - 1, 1)
    grid = np.append((top + fraction * (bottom - top)) ** rho, 0.0)
    return grid.astype(np.float32).tolist()


def extrapolation_weights(levels: list[float], solver: str) -> list[float]:
    """Returns how far each step of DPM-Solver++(2M) takes D on to its middle; 0 for the others.

    The first step and the last, to 0, have nothing to take it from, or no middle.
    """
    N = len(levels) - 1
    if solver != "dpmpp_2m" or N < 3:
        return [0.0] * N
    h = -np.diff(np.log(levels[:-1]))
    return [0.0, *(h[1:] / h[:-1] / 2).tolist(), 0.0]


def guidance_weights(settings: dict[str, Any]) -> list[float]:
    """Returns each step's weight; after a tenth of them the low one at every other step."""
    N = settings["steps"]
    falls = lambda i: settings["oscillate"] and i / N >= 0.1 and i % 2 == 0
    return [settings["guidance_low" if falls(i) else "guidance"] for i in range(N)]


def doubled(conditions: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the conditions [2 B, ...]: with the text, then without."""
    none = {name: torch.zeros_like(conditions[name]) for name in ("text", "text_mask")}
    without = conditions | none
    return {name: torch.cat([conditions[name], without[name]]) for name in conditions}


def thresholded(D: Tensor, percentile: float) -> Tensor:
    """Returns clip(D, -s, s) / s, s the percentile of each video's |D|, at least 1."""
    ordered = D.abs().flatten(1).sort(1).values
    place = percentile * (ordered.shape[1] - 1)
    low = math.floor(place)
    high = min(low + 1, ordered.shape[1] - 1)
    s = torch.lerp(ordered[:, low], ordered[:, high], place - low)
    s = s.clip(min=1)[:, None, None, None, None]
    return D.clip(-s, s) / s
