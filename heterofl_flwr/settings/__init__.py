"""Every setting of a run: its groups, the run config that names them, and what ``auto`` stands for."""
