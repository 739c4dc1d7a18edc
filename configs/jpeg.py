"""JPEG-LM: a Llama on the bytes of JPEG files. `--config=configs/jpeg.py:PRESET`

  digits      (default) handwritten digits on a laptop's CPU, in minutes
  cifar10     32x32 photos on one GPU, about a quarter of an hour
  imagenet64  64x64 photos on one node of eight GPUs or a TPU slice, about a day
  7b          the paper's model: 256x256 photos, 6.5 billion parameters, a pod
  7b_codewords
              the same on tokens of whole code words
  7b_v5e256, 7b_v5p128, 7b_v6e256, 7b_h100x8, 7b_h100x32, 7b_h200x8
              the same, with as many saved activations as the memory of these pods and GPUs allows

Any value can be changed on the command line: `--config.optimizer.learning_rate=1e-3`.
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
    """The defaults of all presets: the paper's representation, Llama-2 7B and its optimizer."""
    return ConfigDict(
        dict(
            preset="",
            seed=0,
            steps=0,  # optimiser steps
            batch_size=0,  # sequences per step, of all devices together
            seq_len=0,  # sequence length in tokens
            init_from="",  # workdir of a run whose weights initialise this one
            representation=dict(
                name="jpeg",
                size=256,
                mode="RGB",
                quality=25,
                subsampling="4:2:0",
                restart_interval=1,  # MCUs between restart markers; 0: no markers
                strip="tables",  # constant parts that are not tokens: none, tables or header
                tokenizer="bytes",  # or the path of a SentencePiece model
            ),
            data=dict(
                shards="",  # prepared folders, "A,B"; "": prepare `source` into the workdir
                mixture_weights=(),  # of the folders; (): by size, each document once per epoch
                on_damage="stop",  # if a checksum of a shard does not match: stop or skip
                source="",  # digits, folder:PATH, tar:GLOB, tfds:NAME, parquet:GLOB
                conditional=False,  # documents start with the token of their label
                label_dropout=0.1,  # share of them that start with BOS instead
                copies=0,  # augmented copies per training image
                augment=dict(),  # fields of data_pipelines.media.augment.Augment
                eval_fraction=0.02,  # share of the images in the eval split, by a hash of the key
                train_tokenizer=dict(  # by preparation, on a sample of the training images
                    vocab_size=0,  # entries; 0: none is trained
                    kind="bpe",  # on bytes; or "codewords"
                    documents=10_000,
                ),
                packing="pack",  # whole documents; or "concat": concatenate and cut, as the paper
                too_long="drop",  # documents longer than the sequence length: drop or cut
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
                qk_norm=False,  # norm of queries and keys
                tied=False,  # head tied to the embedding
                dtype="auto",  # compute type: bfloat16 on TPUs and GPUs, float32 on CPUs
                remat="full",  # saved activations of a layer: see model.config.REMAT_POLICIES
                attention="auto",  # see model.attention.IMPLEMENTATIONS
                max_documents=0,  # of a row, padding counted as one; 0: as many as packing allows
                scan_unroll=1,  # layers per iteration of the scan
            ),
            optimizer=dict(
                learning_rate=3e-4,
                schedule="cosine",  # or "wsd": warm-up, stable, decay
                warmup_steps=2000,
                decay_steps=0,  # wsd: steps of the final decay
                final_fraction=0.1,  # of the learning rate, at the last step
                b1=0.9,
                b2=0.95,
                eps=1e-8,
                weight_decay=0.1,
                clip_norm=1.0,
                grad_accum_steps=1,  # parts of a batch, computed one after the other
                z_loss=0.0,  # weight of the squared log normaliser in the loss
                ema=0.0,  # decay of the moving average of the weights; 0: none
                skip_spikes=0.0,  # skip steps over this many times the mean gradient norm; 0: none
            ),
            mesh=dict(slices=1, replica=1, fsdp=-1, sequence=1, tensor=1),
            cpu_devices=0,  # devices to split a CPU into; 0: one per core
            watchdog=1800,  # seconds without a heartbeat that end a hung run; 0: no watchdog
            compilation_cache="auto",  # folder; auto: WORKDIR/compiled, none on a CPU; "": none
            # Kept are the newest `keep` checkpoints and one per `keep_every` steps; 0: none.
            checkpoint=dict(every=1000, keep=2, keep_every=0),
            log=dict(every=50, tensorboard=True),
            evaluate=dict(every=1000, batches=0),  # batches of the eval split; 0: all
            sample=dict(
                every=2000,
                num=16,
                batch_size=64,
                prefix_ratio=0.0,  # part of an eval document used as the prompt; 0: only a label
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

    Tokens are whole Huffman code words, merged by BPE (docs/codewords.md). Hardware: two CPU cores.
    Time: 5 to 10 minutes, preparation of 101,637 images included. Result: 134.2 bits per image of
    the eval split, where the file takes 368.5; of 1,000 sampled digits 99.6 % are strictly valid
    and 98.8 % are recognised (docs/experiments.md, 2026-11-26).
    """
    c.steps, c.batch_size, c.seq_len = 3000, 16, 160
    c.representation.update(size=16, mode="L", quality=20, strip="header")
    c.data.update(source="digits", conditional=True, copies=64, eval_fraction=0.15)
    c.data.augment = dict(rotation=6.0, shift=0.01, scale=0.03, shear=0.06)
    c.data.train_tokenizer.update(vocab_size=1024, kind="codewords")
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
        --config.data.source=folder:CIFAR10   # one folder per class; or tfds:cifar10:train

    Hardware: one data-centre GPU. Hours: 0.25 at 15 % of an H100's peak, for 1.4e17 operations;
    an estimate by the formula in flops.py, not yet measured. Result: not yet measured; expected are
    fewer bits per image of the eval split than the file takes, 1,660 (207 bytes, the mean of the
    first thousand test images).
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
    node's peak, for 2.9e19 operations; an estimate by the formula in flops.py, not yet measured.
    Result: not yet measured; expected are fewer bits per image of the eval split than the file
    takes, which `data_pipelines.describe` reports for the shards (about 3,300 for photos).
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
    """The paper's JPEG-LM (Han et al., arXiv 2408.08459): Llama-2 7B, sequence length 12,288.

    python -m data_pipelines.prepare --config=configs/jpeg.py:7b --source=tar:gs://PHOTOS/*.tar \
        --out=gs://SHARDS
    python -m jpeglm_jax.train --config=configs/jpeg.py:7b --config.data.shards=gs://SHARDS \
        --workdir=gs://RUN

    6.5 billion parameters, 320 BPE tokens, 23 million images of about 5,000 tokens, two epochs.
    The paper reports the learning rate; batch size, schedule and decay, which it does not report,
    are Llama-2's. Hardware: a pod of 256 TPU v5e or 128 v5p, or 32 A100. Hours: 138 on the v5e or
    119 on the v5p at 45 % of their peak, for 1.1e22 operations by the formula in flops.py,
    estimates; the paper took a month on 32 A100. Result of the paper, not yet reproduced here: FID
    of completed half images 123.1 on ImageNet and 27.2 on FFHQ.
    """
    c.steps, c.batch_size, c.seq_len = 74_000, 256, 12_288
    c.data.update(eval_fraction=0.0005)
    c.data.train_tokenizer.vocab_size = 320
    c.evaluate.batches = 8
    c.sample.update(every=5000, num=16, top_p=0.9, top_k=50)


def paper_codewords(c: ConfigDict) -> None:
    """The paper's model on tokens of whole code words (docs/codewords.md): shorter documents.

    python -m data_pipelines.prepare --config=configs/jpeg.py:7b_codewords \
        --source=tar:gs://PHOTOS/*.tar --out=gs://SHARDS
    python -m jpeglm_jax.train --config=configs/jpeg.py:7b_codewords \
        --config.data.shards=gs://SHARDS --workdir=gs://RUN

    4,096 entries: about 3,700 tokens for an image that takes 5,000 in `7b`. The sequence length is
    chosen by what 99 % of photos need, the steps by the paper's 46 million images seen.
    """
    paper(c)
    c.steps, c.seq_len = 81_000, 8192
    c.data.train_tokenizer.update(vocab_size=4096, kind="codewords")


def paper_v5e256(c: ConfigDict) -> None:
    """The paper's model on a v5e-256: one sequence per chip, as many saved activations as fit.

    python -m jpeglm_jax.compile --config=configs/jpeg.py:7b_v5e256 --topology=v5e:16x16

    The remat policy was chosen with that command for each policy, see docs/parallelism.md.
    """
    paper(c)
    c.model.remat = "save_attention"


def paper_v5p128(c: ConfigDict) -> None:
    """The paper's model on a v5p-128: 64 chips, the batch in four parts.

    python -m jpeglm_jax.compile --config=configs/jpeg.py:7b_v5p128 --topology=v5p:4x4x4
    """
    paper(c)
    c.optimizer.grad_accum_steps = 4
    c.model.remat = "minimal_with_attention"


def paper_v6e256(c: ConfigDict) -> None:
    """The paper's model on a v6e-256: one sequence per chip.

    python -m jpeglm_jax.compile --config=configs/jpeg.py:7b_v6e256 --topology=v6e:16x16
    """
    paper(c)
    c.model.remat = "save_qkv_attention"


def paper_h100x8(c: ConfigDict) -> None:
    """The paper's model on a machine of eight H100: a row per GPU, the batch in 32 parts.

    python -m jpeglm_jax.compile --config=configs/jpeg.py:7b --topology=h100:8 --search

    What is kept was chosen by that command and its like, see docs/parallelism.md.
    """
    paper(c)
    c.optimizer.grad_accum_steps = 32
    c.model.remat = "minimal_with_attention"


def paper_h100x32(c: ConfigDict) -> None:
    """The paper's model on four machines of eight H100: a row per GPU, the batch in 8 parts.

    python -m jpeglm_jax.compile --config=configs/jpeg.py:7b --topology=h100:4x8 --search
    """
    paper(c)
    c.optimizer.grad_accum_steps = 8
    c.model.remat = "minimal_with_attention"


def paper_h200x8(c: ConfigDict) -> None:
    """The paper's model on a machine of eight H200: two rows per GPU, the batch in 16 parts.

    python -m jpeglm_jax.compile --config=configs/jpeg.py:7b --topology=h200:8 --search
    """
    paper(c)
    c.optimizer.grad_accum_steps = 16
    c.model.remat = "minimal_with_attention"


PRESETS = {
    "digits": digits,
    "cifar10": cifar10,
    "imagenet64": imagenet64,
    "7b": paper,
    "7b_codewords": paper_codewords,
    "7b_v5e256": paper_v5e256,
    "7b_v5p128": paper_v5p128,
    "7b_v6e256": paper_v6e256,
    "7b_h100x8": paper_h100x8,
    "7b_h100x32": paper_h100x32,
    "7b_h200x8": paper_h200x8,
}
