"""Laws of fine-tuning: the network is the source's, and each character keeps its weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from jsonargparse import Namespace

from lightning_app.data.tokenizer import Tokenizer
from lightning_app.runs.checkpoint import TrainedModel, load
from lightning_app.runs.finetuning import inherit, take_network
from tests.helpers import (
    ALPHABET,
    SIZES,
    checkpoint,
    is_error,
    random_network,
    save_run,
    sentences,
    small_checkpoint,
)

OTHER = "\nacdeg天"  # b, é and the space are gone, d, e and g are new


@pytest.fixture
def source(tmp_path, monkeypatch) -> TrainedModel:
    monkeypatch.chdir(tmp_path)
    return load(save_run("source"))


def logits_of(gpt, text: str, alphabet: str) -> dict[str, torch.Tensor]:
    """The logits (T,) of each character after each of a text's."""
    idx = torch.from_numpy(Tokenizer(alphabet).encode(text)).long()[None]
    return dict(zip(alphabet, gpt.eval()(idx)[0].T, strict=True))


def test_known_characters_have_the_same_logits_in_their_new_places(source):
    gpt = random_network(2, OTHER)
    inherit(gpt, Tokenizer(OTHER), source)
    before, after = logits_of(source.gpt, "ca天\n", ALPHABET), logits_of(gpt, "ca天\n", OTHER)
    for c in set(ALPHABET) & set(OTHER):
        assert torch.equal(after[c], before[c]), c


def test_new_characters_keep_their_initial_rows(source):
    gpt, initial = random_network(2, OTHER), random_network(2, OTHER)
    inherit(gpt, Tokenizer(OTHER), source)
    rows = [i for i, c in enumerate(OTHER) if c not in ALPHABET]
    for name in ("embedding.weight", "lm_head.weight"):
        assert torch.equal(gpt.state_dict()[name][rows], initial.state_dict()[name][rows])


def test_it_is_reported_which_characters_are_known_new_and_gone(source):
    assert inherit(random_network(2, OTHER), Tokenizer(OTHER), source) == [
        "--init_from: 4 of 7 characters known",
        "  new characters, to be learned: 'deg'",
        "  no longer in the alphabet: ' bé'",
    ]
    same = inherit(random_network(2), Tokenizer(ALPHABET), source)
    assert same == ["--init_from: 7 of 7 characters known"]


def test_n_gram_tables_keep_the_new_texts_counts_and_take_the_vectors_of_known_characters(source):
    tables = {"ngram_rows": (20, 50)}
    old, new = random_network(1, ALPHABET, **tables), random_network(2, OTHER, **tables)
    new.ngrams.count(np.array([0, 1, 2, 0, 1]))
    initial = {name: w.clone() for name, w in new.ngrams.state_dict().items()}
    inherit(new, Tokenizer(OTHER), replace(source, gpt=old))
    for name in ("codes", "starts", "characters", "counts"):
        assert torch.equal(new.ngrams.state_dict()[name], initial[name])
    for n in range(2):
        for i, c in enumerate(OTHER):
            j = ALPHABET.find(c)
            vectors, place = (old.ngrams.weight, n * len(ALPHABET) + j)
            if j < 0:
                vectors, place = initial["weight"], n * len(OTHER) + i
            assert torch.equal(new.ngrams.weight[n * len(OTHER) + i], vectors[place])


def test_a_tied_matrix_stays_one_matrix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = load(save_run("tied", small_checkpoint(tie_embeddings=True)))
    gpt = random_network(2, OTHER, tie_embeddings=True)
    inherit(gpt, Tokenizer(OTHER), source)
    assert gpt.lm_head.weight is gpt.embedding.weight
    kept = gpt.embedding.weight[OTHER.index("a")]
    assert torch.equal(kept, source.gpt.embedding.weight[ALPHABET.index("a")])


def test_the_networks_sizes_are_the_sources_but_block_size_and_dropout_are_asked_for():
    sizes = {k: v for k, v in SIZES.items() if k != "block_size"}
    options = Namespace(**sizes | {"n_layer": 3, "dropout": 0.5})
    arguments = {"alphabet": "ab", "unit": "byte", **SIZES, "n_layer": 2}
    assert take_network(options, arguments) == ["--init_from: model.n_layer is 2"]
    assert vars(options) == sizes | {"n_layer": 2, "dropout": 0.5}
    assert take_network(options, arguments) == []


# The command.


def test_fine_tuning_starts_better_and_is_resumed_by_the_same_command(folder, main):
    source = folder / "logs/tiny/checkpoints/best.ckpt"
    assert main("fit", "--config", "tiny.yaml").code == 0
    (folder / "new.txt").write_text(sentences(100).replace("night", "née"))
    new = ("fit", "--config", "tiny.yaml", "--data.corpus", "new.txt", "--trainer.max_steps", 5)
    tune = (*new, "--run", "tuned", "--init_from", source, "--model.n_embd", 32)
    done = main(*tune)
    assert done.code == 0, done.err
    assert "new characters, to be learned: 'é'" in done.err
    assert "--init_from: model.n_embd is 16" in done.err
    assert main(*new, "--run", "scratch").code == 0
    tuned, untuned = (
        checkpoint(folder, run)["lightning_app"]["best"]["loss"] for run in ("tuned", "scratch")
    )
    assert tuned < untuned
    source.unlink()
    done = main(*tune, "--trainer.max_steps", 7)
    assert done.code == 0, done.err
    assert "resuming tuned at step 5 of 7" in done.err
    elsewhere = main(*new, "--run", "tuned", "--init_from", "nope.ckpt")
    is_error(elsewhere, "run tuned", "not started from nope.ckpt", "--run OTHER", "--fresh true")
