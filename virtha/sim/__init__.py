"""A world under virtual time: hosts with the real decision cores, fakes for everything else."""
