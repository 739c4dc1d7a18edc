"""Plans of rows: which documents, or parts of them, each row of an epoch holds.

permutation   hashes and permutations without state, which every order comes from
base          what a plan is: rows by number
bins          which lengths share a row
pack, concat  the two ways to lay documents into rows
mixture       several plans, each with its share

`data_pipelines.packing.plan` makes them.
"""
