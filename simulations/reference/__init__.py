"""The HeteroFL authors' own code, run beside ours on the same job and data."""
