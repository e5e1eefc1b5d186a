"""Running the code of HeteroFL's authors on the job and data of a run, for comparison."""
