"""Builds a table or figure from the runs in the store.

python -m pipelines.report table=table1 profile=mini
"""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf


@hydra.main(version_base="1.3", config_path="../conf", config_name="report")
def main(config: DictConfig) -> None:
    """Write ``<folder>/<table>`` in every format, and print the Markdown."""
    # Imported late, so that --help and configuration errors come at once.
    from dfolora.errors import UserError
    from dfolora.plain import file_name
    from dfolora.report import Published, TableSpec, build_table
    from dfolora.report.write import write_item
    from dfolora.tracking import Store

    spec = TableSpec.from_mapping(
        OmegaConf.to_container(config.table, resolve=True),
        profile=HydraConfig.get().runtime.choices.profile,
        seeds=list(config.sweep.seeds),
        note=config.sweep.note,
    )
    folder = Path(config.folder)
    try:
        file_name(spec.name, "table.name")
        published = Published()
        if config.sweep.published is not None:
            published = Published.read(Path(config.sweep.published), spec.name)
        store = Store(config.tracking.uri)
        table = build_table(store.tagged(spec.item), spec)
        print(write_item(folder, table, published, store))
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"Written to {folder / spec.name} .md, .csv, .tex and .html")


if __name__ == "__main__":
    main()
