"""Stores the text states of a data set's captions, so that training never runs the T5 encoder.

  python -m launch.prepare embed --config=configs/fit_500m.py --config.data.path=DIR \\
      --t5=T5 --out=STATES

--t5 is the folder of a published encoder, version 1.0 (the paper's T5-11B) or 1.1, in either form:

  Hugging Face  config.json and model.safetensors, or model.safetensors.index.json and its shards.
                A folder of pickles (pytorch_model.bin) is refused; write it as safetensors once:
                T5EncoderModel.from_pretrained("T5").save_pretrained("T5"), with transformers.
  T5X           a folder that Orbax saved (with _METADATA).

--tokenizer is its sentencepiece model; by default spiece.model in that folder.

The encoder is split over all devices, and so is each batch; products run in --config.model.dtype.
States are bfloat16, of real tokens alone: 2 KB a token for T5-11B. Ctrl-C loses at most the
batch in work; the same command goes on, and adds the captions that a grown data set has got since.
Train with --config.model.text_encoder.source=stored --config.data.text_states=STATES.
Exit codes: 0 done, 2 bad flags or config, 3 bad data or weights, 5 --out cannot be written.
"""

import contextlib
from collections.abc import Sequence

import jax
from absl import flags

from launch import entry, number_flags, screen
from snapvideo_jax import build, storage
from snapvideo_jax.data.embeddings_writer import Writer
from snapvideo_jax.files import t5_weights
from snapvideo_jax.kinds import Whole
from snapvideo_jax.sampling import prompt_encoder

entry.define_config()
T5 = flags.DEFINE_string("t5", None, "Folder of the T5 encoder's weights.", required=True)
TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "Its sentencepiece model; default: spiece.model in the folder --t5."
)
OUT = entry.define_folder("out", "Folder for the states; created if absent.")
BATCH = number_flags.define("batch_size", 64, Whole(1, 65_536), "Captions encoded at a time.")


def run() -> None:
    """Stores the states of the captions that --config names."""
    for path in (T5.value, TOKENIZER.value):
        storage.refuse_remote(path or "")
    config = flags.FLAGS.config
    config.data.text_states = OUT.value  # training reads what this writes
    build.check(config)
    captions = build.source(config, lambda path, why: screen.say(f"{path}: {why}")).captions()
    t5_weights.open_weights(T5.value)  # checks the files, and loading takes long
    storage.make_folder(OUT.value)
    devices = f"{jax.device_count()} {jax.devices()[0].platform} device(s)"
    screen.say(f"loading {T5.value} onto {devices}")
    length = config.data.text_length
    encoder = prompt_encoder.load(T5.value, TOKENIZER.value, length, config.model.dtype)
    writer = Writer(
        OUT.value, encoder=encoder.fingerprint, channels=encoder.channels, text_length=length
    )
    with contextlib.closing(writer):
        store(writer, captions, encoder, BATCH.value)


def store(
    writer: Writer,
    captions: Sequence[str],
    encode: prompt_encoder.Encoder,
    batch_size: int,
) -> None:
    """Encodes and commits, a batch at a time, the captions that are not stored yet."""
    missing, report = writer.embeddings.missing(captions), screen.progress("captions")
    screen.say(f"{len(missing)} captions to encode, {writer.embeddings.count} are stored")
    for start in range(0, len(missing), batch_size):
        batch = missing[start : start + batch_size]
        # The last batch is filled up, so that one program encodes them all.
        states, mask = encode([*batch, *[""] * (batch_size - len(batch))])
        writer.add(batch, states[: len(batch)], mask[: len(batch)])
        writer.commit()
        report(start + len(batch), len(missing))
    screen.say(f"done: {writer.embeddings.count + len(missing)} captions in {writer.folder}")


if __name__ == "__main__":
    entry.run(run)
