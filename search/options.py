"""How a sweep runs, as opposed to what it asks."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """None of this changes a result.

    max_concurrent: trials at once, or None for as many as fit. address: of a Ray cluster, or None for this machine.
    epoch_timeout: seconds after which an epoch that has not ended counts as hanging: its worker is killed.
    storage: URI of the sweep's own place for checkpoints, students and records, or None for the run folder.
    time_budget: seconds after which the search makes room for the confirmation, or None. cost_per_gpu_hour: in any
    currency, or None.
    """

    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    max_concurrent: int | None = None
    address: str | None = None
    verbose: bool = False
    epoch_timeout: float = 3600.0
    storage: str | None = None
    time_budget: float | None = None
    cost_per_gpu_hour: float | None = None

    @property
    def attempts(self) -> int:
        """At what is lost through no fault of its own: on a cluster machines come and go, here it is the machine."""
        return 10 if self.address else 3
