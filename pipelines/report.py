"""Builds a table from the finished runs in the store.

python -m pipelines.report table=table1 profile=mini
"""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf


@hydra.main(version_base="1.3", config_path="../conf", config_name="report")
def main(config: DictConfig) -> None:
    """Write ``<folder>/<table>.md`` and ``.csv``, and print the former."""
    # Imported late, so that --help and configuration errors come at once.
    from dfolora.errors import UserError
    from dfolora.report import Groups, Row, TableSpec, build_table
    from dfolora.tracking import Store

    layout = OmegaConf.to_container(config.table, resolve=True)
    groups = layout.pop("groups", None)
    spec = TableSpec(
        **layout | {"rows": [Row(**row) for row in layout["rows"]]},
        groups=Groups(**groups) if groups else None,
        profile=HydraConfig.get().runtime.choices.profile,
        seeds=list(config.sweep.seeds),
        note=config.sweep.note,
    )
    try:
        table = build_table(Store(config.tracking.uri).runs(), spec)
    except UserError as error:
        sys.exit(f"error: {error}")
    folder = Path(config.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{spec.name}.md").write_text(table.markdown(), encoding="utf-8")
    table.frame().to_csv(folder / f"{spec.name}.csv", index=False)
    print(table.markdown())
    print(f"Written to {folder / spec.name}.md and .csv")


if __name__ == "__main__":
    main()
