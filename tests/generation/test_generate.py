"""Laws of generated texts: what they depend on, where they begin and end."""

import numpy as np
import pytest
import torch

from lightning_app.errors import UserError
from lightning_app.generation import generate as generate_module
from lightning_app.generation.generate import generate_text, sample_rng
from lightning_app.generation.sampling import GenerateOptions, draw
from tests.helpers import TOKENIZER, UNIGRAM, V
from tests.helpers import writing_network as network


def written(prompts=("cab",), seed=7, num_samples=1, gpt=None, **given) -> list[str]:
    o = GenerateOptions(**({"max_new_tokens": 40, "temperature": 1.0} | given))
    return list(generate_text(gpt or network(), TOKENIZER, prompts, o, seed, num_samples, UNIGRAM))


def test_the_same_seed_gives_the_same_text_and_another_seed_another():
    assert written() == written()
    assert written(seed=8) != written()
    assert len(written()[0]) == 40


def test_a_sample_does_not_depend_on_how_many_there_are():
    five = written(num_samples=5)
    assert len(set(five)) == 5
    for n in (1, 2, 4):
        assert written(num_samples=n) == five[:n]


def test_a_text_does_not_depend_on_the_other_prompts():
    alone = written(["cab"], num_samples=2)
    for others in (["d"], ["", "bagdad" * 5], ["k" * 8] * 3):
        texts = written(["cab", *others], num_samples=2)
        assert texts[:2] == alone
        assert len(texts) == 2 + 2 * len(others)


def test_a_text_does_not_depend_on_how_long_it_is_to_become():
    assert written(max_new_tokens=13)[0] == written(max_new_tokens=40)[0][:13]


def test_equal_prompts_are_continued_differently():
    assert len(set(written(["cab"] * 3))) == 3


def test_greedy_is_temperature_0_is_top_k_1_whatever_the_seed():
    prompts = ["cab", "d", "fade" * 6]
    greedy = written(prompts, sampling="argmax")
    assert len(set(greedy[0])) > 3
    for given in ({"temperature": 0.0}, {"top_k": 1}, {"temperature": 0.0, "top_k": 5}):
        assert written(prompts, seed=99, **given) == greedy
    assert written(prompts, min_p=1.0) == greedy


def test_top5_is_top_k_5():
    assert written(sampling="top5") == written(top_k=5) == written(sampling="top_k")
    assert written(sampling="top5") != written(top_k=4)


def test_an_empty_prompt_starts_from_the_unigram_distribution():
    texts = written([""], num_samples=200, max_new_tokens=1)
    expected = [
        TOKENIZER.decode(draw(UNIGRAM[None], np.array([sample_rng(7, 0, i).random()])))
        for i in range(200)
    ]
    assert texts == expected
    assert "a" not in texts  # impossible here, not for the network


@pytest.mark.parametrize("others", [[], ["cab"]], ids=["alone", "among_others"])
@pytest.mark.parametrize("bfloat16", [False, True], ids=["compiled", "torch"])
def test_an_empty_prompt_without_character_counts_starts_evenly_from_the_alphabet(others, bfloat16):
    o, samples = GenerateOptions(max_new_tokens=1), 30 * V // (1 + 29 * bool(others))
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        texts = list(generate_text(network(), TOKENIZER, ["", *others], o, 7, samples))
    uniform = np.array([sample_rng(7, 0, i).random() for i in range(samples)])
    assert texts[:samples] == list(TOKENIZER.decode(np.floor(uniform * V).astype(int)))


def test_a_prompt_outside_the_alphabet_is_refused():
    with pytest.raises(UserError, match=r"the prompt has characters .* 'z'"):
        written(["cab", "zab"])


def test_a_stop_text_ends_its_own_row_and_is_included():
    prompts = ["cab", "d", "bad", "fee"]
    whole = written(prompts)
    stop = whole[0][10:12]
    expected = [text[: text.index(stop) + 2] if stop in text else text for text in whole]
    assert len(expected[0]) <= 12
    assert any(len(text) == 40 for text in expected)
    assert written(prompts, stop=stop) == expected


def test_a_stop_text_that_overlaps_itself_or_the_prompt_ends_at_its_first_full_occurrence():
    gpt = network()  # greedy, and made to say d again and again
    torch.nn.init.zeros_(gpt.lm_head.weight)
    torch.nn.init.ones_(gpt.norm.weight)
    for block in gpt.blocks:
        torch.nn.init.zeros_(block.attention.o_proj.weight)
        torch.nn.init.zeros_(block.mlp.down_proj.weight)
    torch.nn.init.ones_(gpt.embedding.weight)
    torch.nn.init.ones_(gpt.lm_head.weight[3])
    assert written(["ddd"], gpt=gpt, temperature=0.0, stop="ddddd") == ["d" * 5]


def test_writing_ends_when_every_row_has_stopped():
    calls = []
    prompts, whole = ["cab", "d"], written(["cab", "d"])
    stop = next(c for c in whole[0] if c in whole[1])
    needed = max(text.index(stop) for text in whole) + 1
    o = GenerateOptions(max_new_tokens=40, temperature=1.0, stop=stop)
    list(generate_text(network(), TOKENIZER, prompts, o, 7, on_characters=calls.append))
    assert len(calls) == needed < 40


def test_characters_are_handed_out_as_they_are_made():
    received = []
    o = GenerateOptions(max_new_tokens=40, temperature=1.0, stop="b")
    prompts = ["cab", "d", ""]
    texts = list(generate_text(network(), TOKENIZER, prompts, o, 7, 2, UNIGRAM, received.append))
    assert ["".join(row) for row in zip(*received, strict=True)] == texts
    assert {len(part) for row in received for part in row} == {0, 1}


def test_more_texts_than_are_written_at_once_are_the_same_texts(monkeypatch):
    prompts = ["cab", "", "d"]
    whole = written(prompts, num_samples=3)
    monkeypatch.setattr(generate_module, "MAX_BATCH", 2)
    assert written(prompts, num_samples=3) == whole


def test_no_new_characters_are_no_text():
    assert written(["cab", ""], num_samples=2, max_new_tokens=0) == [""] * 4
