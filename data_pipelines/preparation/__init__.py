"""The steps of `data_pipelines.prepare`, in the order in which they run.

job                   checks the settings and sets up the folder, once
  listing             lists the source and assigns each item to a shard
  artifact_training   trains a BPE tokenizer or colour clusters on a sample
process               `process_shard` makes one shard, a pure function of the set-up folder
  read_ahead          reads the next items while one is encoded
launchers, worker     run `process_shard` in local processes, array jobs or Beam
finish                writes the manifest when the last shard is done
  duplicates          finds documents that the index drops
"""
