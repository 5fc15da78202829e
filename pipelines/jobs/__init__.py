"""The jobs of a command, and who does them: processes of this machine, Ray or SLURM."""
