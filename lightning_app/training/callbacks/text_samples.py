"""Samples of generated text in TensorBoard, at each validation."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_app.data.datamodule import CharDataModule
from lightning_app.generation.generate import generate_text
from lightning_app.generation.options import GenerateOptions
from lightning_app.training.module import CharGPT


class TextSamples(Callback):
    """Writes two texts to TensorBoard at each validation of a fit.

    `samples/unprompted` starts from nothing, `samples/prompted` from the first line of the
    validation text. The seed is fixed, so the texts show how the network changes. Does nothing
    without a TensorBoard logger, and for a network that is sharded over processes.
    """

    options = GenerateOptions(max_new_tokens=200)
    prompt_size = 40  # characters of the validation text's first line, at most

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, CharGPT)
        boards = [x for x in trainer.loggers if isinstance(x, TensorBoardLogger)]
        sharded = pl_module.device_mesh is not None
        if not boards or trainer.state.fn != "fit" or sharded:
            return
        data: CharDataModule = trainer.datamodule  # type: ignore[attr-defined]  # set by fit
        head = data.split("val")[: min(self.prompt_size, pl_module.gpt.config.block_size)]
        tokenizer = pl_module.tokenizer
        line = tokenizer.whole(tokenizer.decode(head)).split("\n")[0]
        prompts = ["", line + "\n" if "\n" in tokenizer.ids else line]
        texts = generate_text(
            pl_module.gpt, tokenizer, prompts, self.options, seed=0, unigram=pl_module.unigram
        )
        for name, prompt, text in zip(("unprompted", "prompted"), prompts, texts, strict=True):
            block = "".join(f"    {row}\n" for row in (prompt + text).split("\n"))  # Markdown code
            for board in boards:
                board.experiment.add_text(f"samples/{name}", block, trainer.global_step)
