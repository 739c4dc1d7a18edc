"""Attention kernels, one a file; `jpeglm_jax.attention` chooses between them."""
