"""Attention kernels, one a file; `jpeglm_jax.model.attention` chooses between them."""
