"""Launch many runs: on this machine, on a Ray cluster, or as a SLURM array.

Each is a `sorl.launch.work.Work` with a folder of its own, done by the same process wherever it
runs, so that it gives the same scores; done again, it goes on where it was.

Nothing is imported here: a worker chooses its cores before JAX starts.
"""
