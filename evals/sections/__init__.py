"""The sections of the report page: what each kind of result shows, listed in `kinds.KINDS`.

`evals.report` assembles them from the building blocks in `evals.reporting`.
"""
