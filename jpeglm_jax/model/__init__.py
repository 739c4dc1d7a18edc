"""The Llama and its kernels."""
