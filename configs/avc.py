"""AVC-LM: a Llama on the bytes of H.264 clips. `--config=configs/avc.py:PRESET`

  tiny   (default) moving handwritten digits on a laptop's CPU, in minutes
  small  64x64 clips of your own videos on one GPU, a few hours
  7b     the paper's model: 256x144 clips of 5 seconds, 6.5 billion parameters, a pod

Any value can be changed on the command line: `--config.optimizer.learning_rate=1e-3`.
"""

from ml_collections import ConfigDict, config_dict

from configs import jpeg


def get_config(preset: str = "tiny") -> ConfigDict:
    """The configuration of a preset. Raises ValueError for a name that is not one."""
    if preset not in PRESETS:
        raise ValueError(f"configs/avc.py has no preset {preset!r}; it has {', '.join(PRESETS)}")
    config = base()
    config.preset = preset
    PRESETS[preset](config)
    return config


def base() -> ConfigDict:
    """The defaults of all presets: the paper's representation; other options as for images."""
    config = jpeg.base()
    config.representation = ConfigDict(
        dict(
            name="avc",
            size=(256, 144),  # pixels; videos are scaled to fit and padded
            fps=3,  # frames per second
            frames=15,  # per clip
            min_frames=config_dict.placeholder(int),  # of a clip, or it is rejected; None: frames
            qp=37,
            slice_mbs=1,  # macroblocks per slice; 0: one slice per frame
            strip="none",  # constant parts that are not tokens: none, or headers (parameter sets)
            tokenizer="bytes",  # or "codewords", or the path of a SentencePiece model
            places=False,  # code words also say which block of the macroblock they are of
        )
    )
    return config


def tiny(c: ConfigDict) -> None:
    """Trains on clips of handwritten digits that move and bounce: no download, no accelerator.

    python -m jpeglm_jax.train --config=configs/avc.py

    Tokens are code words that say where they stand, merged by BPE (docs/video.md). Hardware: two
    CPU cores. Time: 9 minutes 16 seconds. Result: 124 bits per clip of the eval split, where the
    stream takes 1,063; of 200 clips from a label 91.5 % are valid, in 97 % the digit of the first
    frame is recognised and in 84 % that of the last (docs/experiments.md, 2026-11-26).
    """
    c.steps, c.batch_size, c.seq_len = 2300, 8, 224
    c.representation.update(size=(48, 48), fps=4, frames=5, qp=43, slice_mbs=0, strip="headers")
    c.representation.places = True
    c.data.update(source="moving_digits:16000", conditional=True, eval_fraction=0.02)
    c.data.train_tokenizer.update(vocab_size=4608, kind="codewords", documents=3000)
    c.model.update(layers=4, width=128, heads=4, kv_heads=4, head_dim=32, ffn=384)
    c.model.update(dtype="float32", remat="none", scan_unroll=4)
    c.optimizer.update(learning_rate=5e-3, warmup_steps=100, final_fraction=0.02)
    c.mesh.update(replica=-1, fsdp=1)
    c.checkpoint.every = 500
    c.log.every = 20
    c.evaluate.every = 1000
    c.sample.update(every=1000, num=20, batch_size=20, temperature=0.2)


def small(c: ConfigDict) -> None:
    """Clips of 64x64 pixels, 2 seconds at 4 frames: 85 million parameters on your own videos.

    python -m data_pipelines.prepare --config=configs/avc.py:small --source=folder:VIDEOS \
        --out=SHARDS
    python -m jpeglm_jax.train --config=configs/avc.py:small --config.data.shards=SHARDS

    Hardware: one data-centre GPU. Time and result: not yet measured.
    """
    c.steps, c.batch_size, c.seq_len = 20_000, 32, 4096
    c.representation.update(size=(64, 64), fps=4, frames=8, strip="headers")
    c.data.update(eval_fraction=0.02)
    c.model.update(layers=12, width=768, heads=12, kv_heads=12, head_dim=64, ffn=2048)
    c.model.update(remat="minimal", qk_norm=True)
    c.optimizer.update(learning_rate=6e-4, warmup_steps=500, ema=0.999)
    c.evaluate.batches = 50
    c.sample.update(num=16, batch_size=16)


def paper(c: ConfigDict) -> None:
    """The paper's AVC-LM (Han et al., arXiv 2408.08459): Llama-2 7B at a sequence length of 32K.

    python -m data_pipelines.prepare --config=configs/avc.py:7b --source=tar:gs://VIDEOS/*.tar \
        --out=gs://SHARDS
    python -m jpeglm_jax.train --config=configs/avc.py:7b --config.data.shards=gs://SHARDS \
        --workdir=gs://RUN

    6.5 billion parameters, 1,024 BPE tokens, 2 million clips of 15 frames, 42 billion tokens per
    epoch, two epochs. The paper reports the learning rate of JPEG-LM; batch size, schedule and
    decay, which it does not report, are Llama-2's. The result of the paper is qualitative: 5 frames
    generated after a prompt of 10. Hardware: a pod of 256 TPU v5e (docs/parallelism.md) or better.
    """
    c.steps, c.batch_size, c.seq_len = 20_000, 128, 32_768
    c.mesh.update(sequence=2)  # two chips per sequence: 128 sequences on a pod of 256
    c.data.update(eval_fraction=0.0005)
    c.data.train_tokenizer.vocab_size = 1024
    c.evaluate.batches = 8
    c.sample.update(every=5000, num=4, batch_size=4, top_p=0.9, top_k=50)


PRESETS = {"tiny": tiny, "small": small, "7b": paper}
