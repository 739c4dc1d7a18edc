"""The model: Llama in Flax NNX, its operations, attention kernels and FLOPs."""
