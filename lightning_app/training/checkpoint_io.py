"""Lightning's checkpoint reading and writing, by the functions of `runs.checkpoint`."""

from pathlib import Path

from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_app.runs.checkpoint import PREVIOUS_NAME, read_checkpoint, write_checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint reading and writing, by way of `checkpoints`: whole or not at all."""

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        path = Path(path)
        previous = path.with_name(PREVIOUS_NAME) if path.name == "last.ckpt" else None
        write_checkpoint(checkpoint, path, previous)

    def load_checkpoint(self, path, map_location=None, weights_only=None) -> dict:
        return read_checkpoint(Path(path))
