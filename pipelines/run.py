"""Runs one configured method on one few-shot problem, or with ``-m`` a sweep of them.

python -m pipelines.run task=sst2 model.path=DIR data.root=DIR
python -m pipelines.run -m optimizer=cma,fwa rank=2,4
"""

import os
import sys
import traceback
import uuid
from datetime import UTC, datetime

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from pipelines.progress import Jobs

SWEEP_ID = "DFOLORA_SWEEP_ID"
MISTAKE, DEFECT = 2, 1
_statuses: list[int] = []
_jobs = Jobs()


def _as_choices(values: ListConfig) -> str:
    """A list as Hydra's sweeper wants it: ``[8, 13] -> "8,13"``."""
    return ",".join(map(str, values))


OmegaConf.register_new_resolver("choices", _as_choices)


@hydra.main(version_base="1.3", config_path="../conf", config_name="run")
def job(config: DictConfig) -> None:
    """Hydra's entry: one run; its failure leaves the rest of a sweep going."""
    # Imported late, so that --help and configuration errors come at once.
    from dfolora.errors import UserError
    from pipelines.execute import execute

    hydra_config = HydraConfig.get()
    chosen = hydra_config.runtime.choices
    choices = {group: option for group, option in chosen.items() if option is not None}
    _jobs.begin(getattr(hydra_config.job, "total", 1))
    try:
        outcome = execute(config, choices, sweep_id=os.environ[SWEEP_ID], show=_jobs.run)
    except UserError as error:
        _jobs.end("failed", f"error: {error}", sys.stderr)
        _statuses.append(MISTAKE)
    except Exception:  # Hydra would keep it, and with it the model, until the sweep is over
        _jobs.end("failed", traceback.format_exc(), sys.stderr)
        _statuses.append(DEFECT)
    else:
        _jobs.end("done" if outcome.new else "in the store already", outcome.line)


def main() -> None:
    """Run; exit status 0 if all is well, 2 if something given was wrong, 1 for a defect of ours."""
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    os.environ.setdefault(SWEEP_ID, f"{now}-{uuid.uuid4().hex[:6]}")
    with _jobs:
        job()
    sys.exit(min(_statuses, default=0))


if __name__ == "__main__":
    main()
