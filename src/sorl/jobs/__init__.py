"""Jobs: train into a run's folder or fine-tune it, evaluate, save, go on after a kill."""

from sorl.jobs.finetuning import Finetuning
from sorl.jobs.job import Job
from sorl.jobs.milestones import restore_policies
from sorl.jobs.online_work import finetune
from sorl.jobs.work import resume, start

__all__ = ["Finetuning", "Job", "finetune", "restore_policies", "resume", "start"]
