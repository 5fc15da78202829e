"""Builds a table or figure from the runs in the store.

python -m pipelines.report table=table1 profile=mini
"""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from pipelines.command import reported, run


@hydra.main(version_base="1.3", config_path="../conf", config_name="report")
def main(config: DictConfig) -> None:
    """Write the table to the folder in every format, and print the Markdown."""
    with reported():
        print(report(config, HydraConfig.get().runtime.choices["profile"]))


def report(config: DictConfig, profile: str) -> str:
    """Write the table and return the text to print.

    Args:
        config: What ``conf/report.yaml`` composes.
        profile: The option that it was composed with.

    Raises:
        UserError: Something given is wrong, or the store holds no run of the table.
    """
    # Imported late, so that --help and configuration errors come at once.
    from dfolora.errors import UserError
    from dfolora.record import Store
    from dfolora.report import Published, TableSpec, build_table
    from dfolora.report.write import write_item
    from dfolora.resources import check_folder
    from dfolora.validation import file_name, mapping, text, text_or_none

    plain = mapping(OmegaConf.to_container(config, resolve=True), "the configuration")
    sweep = mapping(plain.get("sweep"), "sweep")
    spec = TableSpec.from_mapping(
        mapping(plain.get("table"), "table"),
        profile=profile,
        seeds=sweep.get("seeds"),
        note=text(sweep.get("note"), "sweep.note"),
        suffix=text(sweep.get("suffix"), "sweep.suffix", empty=True),
    )
    file_name(spec.name, "table.name")
    file_name(spec.stem, "table.name and sweep.suffix")
    folder = Path(text(plain.get("folder"), "folder"))
    check_folder(folder, "folder")
    beside = text_or_none(sweep.get("published"), "sweep.published")
    published = Published() if beside is None else Published.read(Path(beside), spec.name)
    uri = text(mapping(plain.get("tracking"), "tracking").get("uri"), "tracking.uri")
    store = Store(uri)
    runs = store.tagged(spec.item)
    if runs.empty:
        raise UserError(
            f"The store {uri} holds no run of {spec.name} with profile={profile}; make some: "
            f"python -m pipelines.run experiment={spec.name} profile={profile}."
        )
    written = write_item(folder, build_table(runs, spec), published, store)
    return f"{written}\nWritten to {folder / spec.stem} .md, .csv, .tex and .html"


if __name__ == "__main__":
    run(main)
