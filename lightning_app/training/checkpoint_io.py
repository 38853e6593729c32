"""How the Trainer reads and writes checkpoint files: by the functions of `runs.checkpoint`."""

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_app.runs.checkpoint import PREVIOUS_NAME, read_checkpoint, write_checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint completely or not at all, and reads it as data that may be hostile.

    A plugin for the Trainer. The last.ckpt that is replaced remains as previous.ckpt. Raises
    UserError for a file that is no checkpoint, OSError for one that cannot be written.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        path = Path(path)
        previous = path.with_name(PREVIOUS_NAME) if path.name == "last.ckpt" else None
        write_checkpoint(checkpoint, path, previous)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path))
