"""What published files of T5 encoders call each parameter, and which they hold transposed."""

from collections.abc import Iterator

from snapvideo_jax.files.t5_config import T5Config

HUGGING_FACE, T5X = 0, 1  # columns of the tables below

# Parameter of models.t5.T5Encoder -> its name in Hugging Face's files, and in T5X's trees.
NAMES = {
    "token_table/embedding": ("shared.weight", "token_embedder/embedding"),
    "position_bias": (
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder/relpos_bias/rel_embedding",  # [A, buckets], ours is [buckets, A]
    ),
    "final_norm/scale": ("encoder.final_layer_norm.weight", "encoder/encoder_norm/scale"),
}
# The parameters of layer {}. In the files, LAYERS stands before each of these names.
LAYERS = ("encoder.block.{}.layer.", "encoder/layers_{}/")
LAYER = {
    "attention{}/norm/scale": ("0.layer_norm.weight", "pre_attention_layer_norm/scale"),
    "attention{}/q/kernel": ("0.SelfAttention.q.weight", "attention/query/kernel"),
    "attention{}/k/kernel": ("0.SelfAttention.k.weight", "attention/key/kernel"),
    "attention{}/v/kernel": ("0.SelfAttention.v.weight", "attention/value/kernel"),
    "attention{}/o/kernel": ("0.SelfAttention.o.weight", "attention/out/kernel"),
    "feed_forward{}/norm/scale": ("1.layer_norm.weight", "pre_mlp_layer_norm/scale"),
    "feed_forward{}/down/kernel": ("1.DenseReluDense.wo.weight", "mlp/wo/kernel"),
}
UNGATED = {"feed_forward{}/up/kernel": ("1.DenseReluDense.wi.weight", "mlp/wi/kernel")}
GATED = {
    "feed_forward{}/gate/kernel": ("1.DenseReluDense.wi_0.weight", "mlp/wi_0/kernel"),
    "feed_forward{}/up/kernel": ("1.DenseReluDense.wi_1.weight", "mlp/wi_1/kernel"),
}


def names(config: T5Config, column: int) -> Iterator[tuple[str, str]]:
    """Yields every parameter and its name in the files, layer by layer."""
    yield from ((name, row[column]) for name, row in NAMES.items())
    layer = LAYER | (GATED if config.gated else UNGATED)
    for i in range(config.layers):
        for name, row in layer.items():
            yield name.format(i), LAYERS[column].format(i) + row[column]


def is_transposed(name: str, column: int) -> bool:
    """Returns whether the files hold the transpose of a parameter."""
    # Hugging Face's kernels are [out, in].
    return name == "position_bias" if column == T5X else name.endswith("kernel")
