"""Jobs: train into a run's folder, evaluate, save, and go on after a kill."""

from sorl.jobs.job import Job
from sorl.jobs.milestones import restore_policies
from sorl.jobs.work import resume, start

__all__ = ["Job", "restore_policies", "resume", "start"]
