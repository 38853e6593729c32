"""Samples of generated text in TensorBoard, at each validation."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_app.generation.generate import generate_text
from lightning_app.generation.sampling import GenerateOptions


class TextSamples(Callback):
    """At each validation, what the model writes after two fixed prompts, to TensorBoard: nothing at
    all, and the first line of the validation text."""

    options = GenerateOptions(max_new_tokens=200)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        boards = [x for x in trainer.loggers if isinstance(x, TensorBoardLogger)]
        sharded = pl_module.device_mesh is not None  # no process has a network to write with
        if not boards or trainer.state.fn != "fit" or sharded:
            return
        head = trainer.datamodule.split("val")[: min(40, pl_module.hparams.block_size)]
        line = pl_module.tokenizer.whole(pl_module.tokenizer.decode(head)).split("\n")[0]
        prompts = ["", line + "\n" if "\n" in pl_module.tokenizer.ids else line]
        texts = generate_text(
            pl_module.gpt,
            pl_module.tokenizer,
            prompts,
            self.options,
            seed=0,
            unigram=pl_module.unigram,
        )
        for name, prompt, text in zip(("unprompted", "prompted"), prompts, texts, strict=True):
            block = "".join(f"    {row}\n" for row in (prompt + text).split("\n"))  # Markdown code
            for board in boards:
                board.experiment.add_text(f"samples/{name}", block, trainer.global_step)
