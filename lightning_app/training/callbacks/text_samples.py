"""Samples of generated text in TensorBoard, at each validation."""

from collections.abc import Sequence

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from lightning_app.generation.sampling import GenerateOptions
from lightning_app.training.module import CharGPT

NAMES = ("prompted", "unprompted")  # in this order, all loops are compiled for the first


class TextSamples(Callback):
    """Writes to TensorBoard, at each validation, a text generated without a prompt and one with a
    fixed prompt."""

    def __init__(self, prompt: str, max_new_tokens: int = 200) -> None:
        self.prompts: Sequence[str] = (prompt, "")
        self.options = GenerateOptions(max_new_tokens=max_new_tokens)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        boards = [x for x in trainer.loggers if isinstance(x, TensorBoardLogger)]
        sharded = pl_module.device_mesh is not None  # no process has the complete network
        if not boards or trainer.state.fn != TrainerFn.FITTING or sharded:
            return
        assert isinstance(pl_module, CharGPT)
        for name, prompt in zip(NAMES, self.prompts, strict=True):
            # One by one: the loops for several texts would have to be compiled first.
            (text,) = pl_module.generate_texts([prompt], self.options, seed=0)
            block = "".join(f"    {row}\n" for row in text.split("\n"))  # code, in Markdown
            for board in boards:
                board.experiment.add_text(f"samples/{name}", block, trainer.global_step)
