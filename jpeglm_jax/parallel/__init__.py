"""Parallelism: the mesh and its shardings, `jit` on a mesh, and the processes of a run."""
