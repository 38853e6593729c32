"""Train on a text of your own with Lightning's Trainer; then the same without Lightning.

python examples/own_trainer.py my.txt --steps 200
"""

import argparse

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_app import GPT, CharDataModule, CharGPT, GPTConfig, load
from lightning_app.model.gpt import loss_per_character

SIZES = {"block_size": 64, "n_layer": 2, "n_head": 2, "n_embd": 64}


def with_lightning(path: str, steps: int) -> None:
    """CharGPT and CharDataModule in a Trainer with Lightning's own callbacks."""
    data = CharDataModule(path, block_size=64, batch_size=16)
    model = CharGPT(alphabet=data.alphabet, counts=data.counts(), **SIZES)
    best = ModelCheckpoint(monitor="val/loss", save_last=True)
    trainer = L.Trainer(
        max_steps=steps,
        val_check_interval=max(1, steps // 4),
        check_val_every_n_epoch=None,  # validate by steps; the default is after each epoch
        callbacks=[best, EarlyStopping("val/loss")],
    )
    trainer.fit(model, data)
    print(model.generate("", max_new_tokens=100, temperature=0.8, seed=1))

    trained = load(best.best_model_path)  # needs no Lightning
    print(f"\nval/loss of the best checkpoint: {trained.info['val_loss']:.3f}")
    print(trained.generate("", max_new_tokens=100, seed=2))


def without_lightning(path: str, steps: int) -> None:
    """The network and the batches in a training loop of plain PyTorch."""
    data = CharDataModule(path, block_size=64, batch_size=16)
    gpt = GPT(GPTConfig(vocab_size=len(data.alphabet), **SIZES))
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=3e-3)
    batches, step = data.train_dataloader(), 0
    while step < steps:
        for idx, targets in batches:  # one pass over the text; each pass has another order
            loss = loss_per_character(gpt(idx), targets).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % 50 == 0 or step == steps:
                print(f"step {step}: loss {loss.item():.3f}")
            if step == steps:
                break


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text", help="a text file in UTF-8")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps")
    arguments = parser.parse_args()
    with_lightning(arguments.text, arguments.steps)
    without_lightning(arguments.text, arguments.steps)
