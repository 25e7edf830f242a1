"""Every field of a configuration, once: its default, its unit, and where the default comes from.

Tables are the paper's (Snap Video, CVPR 2024); "open" marks what the paper leaves open. The other
files of this folder start from here and change fields of a locked copy, so a misspelt field is
refused. Any field can be set on the command line: --config.training.steps=1000.
"""

from ml_collections import ConfigDict

# Meshes by name: --config=configs/fit_3b9_upsampler.py:groups lays that model over groups. Sizes
# can still be set one by one (--config.mesh.group=4). When to use which: docs/shard.md.
MESHES = {
    "replicas": dict(data=-1, fsdp=1, group=1, tensor=1),
    "fsdp": dict(data=1, fsdp=-1, group=1, tensor=1),
    "tensor": dict(data=1, fsdp=-1, group=1, tensor=4),
    "groups": dict(data=1, fsdp=-1, group=8, tensor=1),
}


def get_config(mesh: str = "replicas") -> ConfigDict:
    """The defaults: stage 1 at 16 x 36 x 64 pixels; a variant names its model and optimizer.

    mesh: a name of MESHES.
    """
    if mesh not in MESHES:
        raise ValueError(f"there is no mesh {mesh!r}; after the colon choose {', '.join(MESHES)}")
    config = ConfigDict()
    config.seed = 0  # of everything random: initialization, noise, order of the data

    config.data = ConfigDict()
    # "folder" (video files in path), "tfds" (a build of tensorflow-datasets), or "shapes" (drawn)
    config.data.source = "folder"
    # Folder of videos, each with its caption beside it, or a manifest.jsonl; or of the build, which
    # may also be name/config:version.
    config.data.path = ""
    # More data sets, each (source, path, images, videos): how many rows of each batch are from it.
    # The one above has the rest.
    config.data.mixture = ()
    config.data.num_frames = 16  # T, Table 8
    config.data.height = 36  # pixels, before padding, Table 8
    config.data.width = 64  # pixels, Table 8
    # Frames of another shape: "crop" scales them to cover it and cuts, "pad" leaves bars of black.
    config.data.aspect = "crop"  # open
    config.data.random_crop = False  # cuts anywhere, the same place for a clip; else in the middle
    config.data.random_flip = False  # half of the clips: left and right change places
    config.data.pad_rows = 4  # rows of value 0 below the picture, so that the height is 40; open
    config.data.frame_rates = (4.0, 8.0, 12.0, 24.0)  # frames per second, one drawn a clip; open
    config.data.image_fraction = 0.5  # of each batch, shown as videos that stand still, Table 9
    config.data.text_length = 128  # tokens a caption is padded or cut to; open
    config.data.vocabulary = ""  # sentencepiece model; empty: made from the captions at the start
    config.data.text_states = ""  # folder that launch.prepare embed made, where states are stored
    config.data.low_res = ()  # (height, width) that an upsampler starts from; (): stage 1
    config.data.workers = 2  # threads that draw examples, each with a process that decodes
    config.data.prefetch = 2  # batches made ahead
    config.data.decode_seconds = 60.0  # that one file may take; then it counts as bad
    config.data.max_bad_fraction = 0.01  # of the last 1,000 files read; above it the run ends
    config.data.stall_seconds = 300.0  # that a batch may be waited for; then the run ends

    # What source "tfds" reads. Features matter for builds that launch.prepare pack did not make.
    config.data.tfds = ConfigDict()
    config.data.tfds.split = "train"  # may be a slice: train[:90%]
    config.data.tfds.images = "images"  # split of pictures, where the build has it
    config.data.tfds.video = "video"  # feature: frames, a picture, or the bytes of a video file
    config.data.tfds.caption = "caption"  # feature: text, several texts, or a class
    config.data.tfds.frame_rate = "frame_rate"  # feature, or the number of frames per second

    # The world of source "shapes"; pixels, pixels per second, gray level in [-1, 1].
    config.data.shapes = ConfigDict()
    config.data.shapes.radius = 6.0
    config.data.shapes.shapes = ("circle", "square", "triangle")
    config.data.shapes.colors = ("red", "green", "blue", "yellow")
    config.data.shapes.directions = ("left", "right", "up", "down")
    config.data.shapes.speeds = (("slowly", 8.0), ("quickly", 16.0))
    config.data.shapes.background = -0.8
    config.data.shapes.spread = 1.0  # share of the legal start positions, around their middle

    config.model = ConfigDict()
    config.model.name = "fit"  # "fit", "unet" or "dit": which of those below is built
    config.model.conditioning_channels = 768  # Tables 7 and 8, FIT 500M
    # FIT: global layers' hidden units; U-Net: residual blocks; DiT: all hidden units.
    config.model.dropout = 0.1
    # Computed again in the backward pass: nothing ("none"), what is cheap ("dots"; "offload" too,
    # and the rest waits in the host's memory), or a whole block ("block").
    config.model.remat = "none"
    config.model.dtype = "float32"  # of matrix products: "float32" or "bfloat16"; open
    # "fastest", by a kernel of the devices where they have one that fits, or "plain".
    config.model.attention = "fastest"

    config.model.fit = ConfigDict()
    config.model.fit.patch = 4  # pixels a side; a patch spans one frame, Table 8
    config.model.fit.group = (16, 5, 4)  # patches in a group: frames, rows, columns, Table 8
    config.model.fit.patch_channels = 768  # Table 8, FIT 500M
    config.model.fit.latents = 512  # latent tokens, all groups together, Table 8
    config.model.fit.latent_channels = 1024  # Table 8
    config.model.fit.blocks = 6  # Table 8
    config.model.fit.global_layers = 4  # self-attention layers a block, Table 8
    config.model.fit.patch_head_channels = 48  # Table 8
    config.model.fit.latent_head_channels = 64  # Table 8
    config.model.fit.table_std = 0.02  # of the initial position and latent tables; FIT's, open
    config.model.fit.write_scale = 1.0  # of write's initial output kernels, Glorot's x this; open
    # Blocks in one turn of training's loop over them; all, and there is no loop: faster, as nothing
    # is stacked up for the backward pass, but longer to compile.
    config.model.fit.unroll = 1

    config.model.unet = ConfigDict()
    config.model.unet.channels = 192  # Table 7, U-Net 284M
    config.model.unet.multipliers = (1, 2, 3, 4)  # of the channels, by level, Table 7
    config.model.unet.residual_blocks = 2  # a level, Table 7
    config.model.unet.attention_levels = (2, 4, 8)  # downsampling factors; "32, 16, 8" of Table 7
    config.model.unet.head_channels = 64  # Table 7

    config.model.dit = ConfigDict()  # no model of the paper; the sizes are ours
    config.model.dit.patch = 4  # pixels a side; a patch spans one frame, as FIT's
    config.model.dit.channels = 1024
    config.model.dit.blocks = 30
    config.model.dit.head_channels = 64
    config.model.dit.factorised = False  # attention over space, then time, for that over both
    config.model.dit.unroll = 1  # as FIT's

    # The text that the network reads: states of a T5 encoder.
    config.model.text_encoder = ConfigDict()
    config.model.text_encoder.source = "trained"  # "trained" along, or "stored" in data.text_states
    config.model.text_encoder.channels = 512  # width of the states; T5-11B's is 1024
    config.model.text_encoder.heads = 8  # this and the rest: of the encoder that is trained along
    config.model.text_encoder.head_channels = 64
    config.model.text_encoder.hidden = 1024
    config.model.text_encoder.layers = 6

    config.diffusion = ConfigDict()
    config.diffusion.sigma_data = 1.0  # 3.2
    config.diffusion.sigma_in = 4.0  # sqrt(16 frames) at 64 pixels, 3.2
    config.diffusion.image_sigma_in = 0.0  # of images, as one frame each; 0: they are videos, 3.3
    config.diffusion.P_mean = -1.2  # of ln sigma in training, EDM's value kept, 3.2
    config.diffusion.P_std = 1.2  # likewise
    config.diffusion.label_dropout = 0.1  # text dropped, Table 8
    config.diffusion.self_conditioning = 0.9  # examples that start from latents, Table 8

    config.optimizer = ConfigDict()
    config.optimizer.name = "lamb"  # "lamb" (FIT) or "adam" (U-Net), Table 9
    config.optimizer.learning_rate = 5e-3  # Table 9
    config.optimizer.warmup_steps = 10_000  # linear from 0, then a cosine to 0, Table 9
    config.optimizer.b1 = 0.9  # Table 9
    config.optimizer.b2 = 0.99  # Table 9
    config.optimizer.eps = 1e-6  # open: optax.lamb's
    config.optimizer.weight_decay = 0.01  # Table 9; kernels and tables only
    config.optimizer.clip_norm = 1.0  # global norm of the gradient; the paper gives no value

    config.training = ConfigDict()
    config.training.steps = 550_000  # Table 9
    config.training.batch_size = 4096  # examples a step over all devices, Table 9
    config.training.accumulate = 1  # micro-batches a step, for memory; their gradients' mean
    config.training.ema_half_life = 6000.0  # steps, Table 9
    config.training.ema_ramp = 0.05  # half-life of at most this fraction of the steps done, EDM
    config.training.start_from = ""  # run of a first stage whose EMA an upsampler starts from, 3.5
    config.training.max_skipped = 10  # steps in a row with a non-finite loss before giving up

    config.sampling = ConfigDict()
    config.sampling.steps = 256  # N, 3.6
    # "heun": second order, 2 N - 1 calls, 3.6. "euler": first order, N. "dpmpp_2m": second, N.
    config.sampling.solver = "heun"
    config.sampling.guidance = 7.5  # w in D = D_c + w (D_c - D_u); 0 is none; open
    config.sampling.guidance_low = 1.0  # w at every other step, where it oscillates; open
    config.sampling.guidance_sigma_min = 0.0  # guidance only at noise levels above this
    config.sampling.guidance_sigma_max = 1e6  # and up to this one; elsewhere calls cost half
    config.sampling.oscillate = True  # 3.6: from a tenth of the steps on
    config.sampling.threshold = 0.995  # percentile of dynamic thresholding, 3.6; 0 is none; open
    config.sampling.reconstruction = 1.0  # weight of known frames, App. C.5; open
    config.sampling.S_churn = 0.0  # noise added on the way, EDM's names; 0: deterministic, 3.6
    config.sampling.S_min = 0.0
    config.sampling.S_max = 1e6
    config.sampling.S_noise = 1.0
    config.sampling.sigma_min = 0.002  # EDM's, 3.2
    config.sampling.sigma_max = 80.0  # likewise
    config.sampling.rho = 7.0  # likewise
    config.sampling.augmentation = 0.3  # level of noise on an upsampler's low resolution; open
    config.sampling.frame_rate = 24.0  # frames per second of samples, 3.6

    # Devices along each axis; -1 takes all that are left. data: replicas. fsdp: parameters,
    # optimizer state and EMA are split. group: FIT's patch groups are split. tensor: heads and
    # feed-forward width are split.
    config.mesh = ConfigDict(MESHES[mesh])

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 1000
    config.checkpoint.keep_last = 3  # checkpoints kept beside those of keep_every
    config.checkpoint.keep_every = 0  # steps; a checkpoint at each multiple stays; 0: none

    config.log = ConfigDict()
    config.log.every_seconds = 5.0  # between lines on the screen
    config.log.metrics_every = 10  # steps between lines of metrics.jsonl
    config.log.samples_every = 0  # steps between sample grids in TensorBoard; 0: none
    config.log.sample_prompts = ()  # what those grids show
    config.log.evaluate_every = 0  # steps between evaluations of the EMA, docs/evaluate.md; 0: none
    config.log.evaluate_samples = 64  # videos of each; of shapes, of each kind of prompt
    config.log.evaluate_path = ""  # folder of captioned videos to compare with; shapes need none
    return config
