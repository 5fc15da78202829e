"""Notes a moved local store's artifacts where they are now, and says what it changed.

python -m pipelines.mend_store
python -m pipelines.mend_store tracking.uri=sqlite:///copied/mlflow.db
"""

from collections import Counter

import hydra
from omegaconf import DictConfig

from dfolora.errors import UserError
from dfolora.record import Store
from dfolora.record.moved import FOLDER
from dfolora.validation import text
from pipelines.command import reported, run


@hydra.main(version_base="1.3", config_path="../conf", config_name="mend_store")
def main(config: DictConfig) -> None:
    """Mend the store at ``tracking.uri``."""
    with reported():
        print(mended(text(config.tracking.uri, "tracking.uri")))


def mended(uri: str) -> str:
    """Mend a store; what was changed, a line for each folder that it was in."""
    if not (file := Store.file_of(uri)) or not file.exists():
        raise UserError(f"There is no tracking store {uri}; set tracking.uri to a SQLite file's.")
    changed = Store(uri).mend()
    if not changed:
        return f"Nothing to change: {uri} notes its artifacts where they are."
    moves = Counter(tuple(_above(place) for place in (each.old, each.new)) for each in changed)
    return "\n".join(f"{count} places: {old} -> {new}" for (old, new), count in moves.items())


def _above(place: str) -> str:
    """The folder of artifacts that a place is in."""
    return place[: place.rindex(f"/{FOLDER}") + len(FOLDER) + 1]


if __name__ == "__main__":
    run(main)
