"""The parts of `data_pipelines.prepare`, in the order in which they run.

job                 settings checked, set-up done once
  listing           which image belongs to which shard
  tokenizer_training
process             `process_shard`: one shard, a pure function of the set-up folder
launchers, worker   many of them: processes here, array jobs, Beam
finish              the manifest, when the last shard is there
  duplicates        which documents the index leaves out
"""
