"""JPEG-LM: a Llama on the bytes of JPEG files. `--config=configs/jpeg.py:PRESET`

  digits      (default) handwritten digits on a laptop's CPU, in minutes
  cifar10     32x32 photos on one GPU, about a quarter of an hour
  imagenet64  64x64 photos on one node of eight GPUs or a TPU slice, about a day
  7b          the paper's model: 256x256 photos, 6.5 billion parameters, a pod
  7b_v5e256, 7b_v5p128, 7b_v6e256, 7b_h100x8, 7b_h100x32, 7b_h200x8
              the same, keeping as much of each layer as the memory of these pods, and of eight or
              32 of these GPUs, allows

Any value is changed on the command line: `--config.optimizer.learning_rate=1e-3`.
"""

from ml_collections import ConfigDict


def get_config(preset: str = "digits") -> ConfigDict:
    """The configuration of a preset. Raises ValueError for a name that is not one."""
    if preset not in PRESETS:
        raise ValueError(f"configs/jpeg.py has no preset {preset!r}; it has {', '.join(PRESETS)}")
    config = base()
    config.preset = preset
    PRESETS[preset](config)
    return config


def base() -> ConfigDict:
    """What all presets share: the paper's representation, the Llama-2 train_step."""
    return ConfigDict(
        dict(
            preset="",
            seed=0,
            steps=0,  # optimiser steps
            batch_size=0,  # rows of all devices together
            seq_len=0,  # places (tokens) of a row: the context
            init_from="",  # workdir of a run whose weights to start from
            representation=dict(
                name="jpeg",
                size=256,
                mode="RGB",
                quality=25,
                subsampling="4:2:0",
                restart_interval=1,  # MCUs between restart markers; 0: none
                strip="tables",  # what of the constant header is left out: none, tables, header
                tokenizer="bytes",  # or the path of a SentencePiece model
            ),
            data=dict(
                shards="",  # prepared folder, or "A,B"; empty: prepare `source` into the workdir
                mixture_weights=(),  # of several folders: see docs/data.md; (): each document once an epoch
                on_damage="stop",  # a stored document is not as it was written: stop or skip
                source="",  # digits, folder:PATH, tar:GLOB, tfds:NAME, parquet:GLOB
                conditional=False,  # documents start with the token of their label ...
                label_dropout=0.1,  # ... but for this share, which start with BOS
                copies=0,  # augmented copies of every training image
                augment=dict(),  # fields of data_pipelines.augment.Augment
                eval_fraction=0.02,  # share of the images kept from training, by a hash of the key
                packing="pack",  # whole documents; "concat": concatenate and cut, as in the paper
                too_long="drop",  # documents longer than a row: drop (counted) or cut
            ),
            model=dict(
                layers=32,
                width=4096,
                heads=32,
                kv_heads=32,
                head_dim=128,
                ffn=11008,
                norm_eps=1e-5,
                rope_theta=1e4,
                qk_norm=False,
                tied=False,
                dtype="auto",  # compute type: bfloat16 where the device has it, else float32
                remat="full",  # what the backward pass keeps of a layer: see REMAT_POLICIES
                attention="auto",
                max_documents=0,  # of a row, padding counted as one; 0: what packing allows
                scan_unroll=1,
            ),
            optimizer=dict(
                learning_rate=3e-4,
                schedule="cosine",  # or "wsd": warm-up, stable, decay
                warmup_steps=2000,
                decay_steps=0,  # wsd: steps of the final decay
                final_fraction=0.1,  # of the learning rate, at the end
                b1=0.9,
                b2=0.95,
                eps=1e-8,
                weight_decay=0.1,
                clip_norm=1.0,
                grad_accum_steps=1,  # parts a batch is split into, one after the other
                z_loss=0.0,
                ema=0.0,  # decay of an average of the weights; 0: none
                skip_spikes=0.0,  # skip steps with so many times the average gradient norm; 0: none
            ),
            mesh=dict(slices=1, replica=1, fsdp=-1, sequence=1, tensor=1),
            cpu_devices=0,  # on a CPU: devices to split it into; 0: one a core
            watchdog=1800,  # seconds without a finished step that end a hung run; 0: none
            compilation_cache="auto",  # folder; auto: WORKDIR/compiled, but none on a CPU; "": none
            checkpoint=dict(every=1000, keep=2, keep_every=0),
            log=dict(every=50, tensorboard=True),
            evaluate=dict(every=1000, batches=0),  # held-out batches; 0: all
            sample=dict(
                every=2000,
                num=16,
                batch_size=64,
                prefix_ratio=0.0,  # part of a held-out document that is given; 0: its label alone
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_p=0.0,
                guidance=1.0,
            ),
        )
    )


def digits(c: ConfigDict) -> None:
    """Trains on scikit-learn's 1,797 handwritten digits: no download, no accelerator.

    python -m jpeglm_jax.train --config=configs/jpeg.py

    Hardware: two CPU cores. Time: 5 to 10 minutes, preparation of 101,637 images included; the
    first loss after 10 to 30 seconds. Result: 50.6 bits a held-out image where the file takes
    221.6, and of 1,000 digits asked for 98.7 % strictly valid and 98.2 % recognised
    (docs/experiments.md, 2026-11-25).
    """
    c.steps, c.batch_size, c.seq_len = 4000, 16, 120
    c.representation.update(size=16, mode="L", quality=5, strip="header")
    c.data.update(source="digits", conditional=True, copies=64, eval_fraction=0.15)
    c.data.augment = dict(rotation=8.0, shift=0.04, scale=0.08, shear=0.08)
    c.model.update(layers=4, width=128, heads=4, kv_heads=4, head_dim=32, ffn=384)
    c.model.update(dtype="float32", remat="none", scan_unroll=4)
    c.optimizer.update(learning_rate=3e-3, warmup_steps=100, final_fraction=0.02)
    c.mesh.update(replica=-1, fsdp=1)
    c.checkpoint.every = 500
    c.log.every = 20
    c.evaluate.every = 500
    c.sample.update(every=1000, num=100, batch_size=100, temperature=0.6)


def cifar10(c: ConfigDict) -> None:
    """Class-conditional 32x32 photos: 25 million parameters on the bytes of CIFAR-10.

    python -m jpeglm_jax.train --config=configs/jpeg.py:cifar10 \
        --config.data.source=folder:CIFAR10   # one folder a class; or tfds:cifar10:train

    Hardware: one data-centre GPU. Hours: 0.25 at 15 % of an H100's peak, for 1.4e17 operations;
    an estimate by the formula in flops.py, not yet a measurement. Result: not yet measured. To be
    expected is a held-out likelihood below the file's own code, 1,660 bits an image (207 bytes, the
    mean of the first thousand test images).
    """
    c.steps, c.batch_size, c.seq_len = 6000, 128, 1024
    c.representation.update(size=32, quality=50, strip="header")
    c.data.update(conditional=True, copies=1, eval_fraction=0.02)
    c.data.augment = dict(rotation=0.0, shift=0.03, scale=0.0, shear=0.0, flip=True)
    c.data.augment.update(border="mirror", oversample=2)
    c.model.update(layers=8, width=512, heads=8, kv_heads=8, head_dim=64, ffn=1408)
    c.model.update(remat="none", qk_norm=True)
    c.optimizer.update(learning_rate=1e-3, warmup_steps=300, ema=0.999)
    c.checkpoint.every, c.evaluate.every = 1000, 500
    c.sample.update(every=2000, num=100, batch_size=100)


def imagenet64(c: ConfigDict) -> None:
    """Class-conditional 64x64 photos: 300 million parameters on ImageNet, 20 epochs.

    python -m data_pipelines.prepare --config=configs/jpeg.py:imagenet64 \
        --source=tfds:imagenet2012:train --out=SHARDS
    python -m jpeglm_jax.train --config=configs/jpeg.py:imagenet64 --config.data.shards=SHARDS

    Hardware: one node of eight H100, or a TPU slice of the same peak. Hours: 2.3 at 45 % of the
    node's peak, for 2.9e19 operations; an estimate by the formula in flops.py, not yet a
    measurement. Result: not yet measured. To be expected is a held-out likelihood below the file's
    own code, which `data_pipelines.describe` tells of the shards (about 3,300 bits for photos).
    """
    c.steps, c.batch_size, c.seq_len = 26_000, 256, 2048
    c.representation.update(size=64, quality=25, strip="header")
    c.data.update(conditional=True, eval_fraction=0.01)
    c.model.update(layers=24, width=1024, heads=16, kv_heads=16, head_dim=64, ffn=2816)
    c.model.update(remat="minimal", qk_norm=True)
    c.optimizer.update(learning_rate=6e-4, warmup_steps=1000, ema=0.9999)
    c.evaluate.batches = 50
    c.sample.update(num=64)


def paper(c: ConfigDict) -> None:
    """The paper's JPEG-LM (Han et al., arXiv 2408.08459): Llama-2 7B at a context of 12,288.

    python -m data_pipelines.prepare --config=configs/jpeg.py:7b --source=tar:gs://PHOTOS/*.tar \
        --train_tokenizer=320 --out=gs://SHARDS
    python -m jpeglm_jax.train --config=configs/jpeg.py:7b --config.data.shards=gs://SHARDS \
        --workdir=gs://RUN

    6.5 billion parameters, 320 BPE tokens, 23 million images of about 5,000 tokens, two epochs.
    The paper gives the learning rate; batch, schedule and decay are Llama-2's, which it does not
    report. Hardware: a pod of 256 TPU v5e or 128 v5p, or 32 A100. Hours: 138 on the v5e or 119 on
    the v5p at 45 % of their peak, for 1.1e22 operations by the formula in flops.py, estimates; the
    paper took a month on 32 A100. Result: the paper's, not yet repeated here: FID of a completed
    half image 123.1 on ImageNet and 27.2 on FFHQ.
    """
    c.steps, c.batch_size, c.seq_len = 74_000, 256, 12_288
    c.data.update(eval_fraction=0.0005)
    c.evaluate.batches = 8
    c.sample.update(every=5000, num=16, top_p=0.9, top_k=50)


def paper_v5e256(c: ConfigDict) -> None:
    """The paper's model on a v5e-256: a row a chip, and as much of each layer kept as fits.

    python -m jpeglm_jax.compile --config=configs/jpeg.py:7b_v5e256 --topology=v5e:16x16 \
        --vocab_size=320

    What is kept was chosen by that command and its like, see docs/parallelism.md.
    """
    paper(c)
    c.model.remat = "save_attention"


def paper_v5p128(c: ConfigDict) -> None:
    """The paper's model on a v5p-128: 64 chips, which take the batch in four parts.

    python -m jpeglm_jax.compile --config=configs/jpeg.py:7b_v5p128 --topology=v5p:4x4x4 \
        --vocab_size=320
    """
    paper(c)
    c.optimizer.grad_accum_steps = 4
    c.model.remat = "minimal_with_attention"


def paper_v6e256(c: ConfigDict) -> None:
    """The paper's model on a v6e-256: a row a chip.

    python -m jpeglm_jax.compile --config=configs/jpeg.py:7b_v6e256 --topology=v6e:16x16 \
        --vocab_size=320
    """
    paper(c)
    c.model.remat = "save_qkv_attention"


def paper_h100x8(c: ConfigDict) -> None:
    """The paper's model on a machine of eight H100: a row per GPU, the batch in 32 parts.

    python -m jpeglm_jax.compile --config=configs/jpeg.py:7b --topology=h100:8 --vocab_size=320 \
        --search

    What is kept was chosen by that command and its like, see docs/parallelism.md.
    """
    paper(c)
    c.optimizer.grad_accum_steps = 32
    c.model.remat = "minimal_with_attention"


def paper_h100x32(c: ConfigDict) -> None:
    """The paper's model on four machines of eight H100: a row per GPU, the batch in 8 parts.

    python -m jpeglm_jax.compile --config=configs/jpeg.py:7b --topology=h100:4x8 --vocab_size=320 \
        --search
    """
    paper(c)
    c.optimizer.grad_accum_steps = 8
    c.model.remat = "minimal_with_attention"


def paper_h200x8(c: ConfigDict) -> None:
    """The paper's model on a machine of eight H200: two rows per GPU, the batch in 16 parts.

    python -m jpeglm_jax.compile --config=configs/jpeg.py:7b --topology=h200:8 --vocab_size=320 \
        --search
    """
    paper(c)
    c.optimizer.grad_accum_steps = 16
    c.model.remat = "minimal_with_attention"


PRESETS = {
    "digits": digits,
    "cifar10": cifar10,
    "imagenet64": imagenet64,
    "7b": paper,
    "7b_v5e256": paper_v5e256,
    "7b_v5p128": paper_v5p128,
    "7b_v6e256": paper_v6e256,
    "7b_h100x8": paper_h100x8,
    "7b_h100x32": paper_h100x32,
    "7b_h200x8": paper_h200x8,
}
