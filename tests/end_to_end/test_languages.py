"""Any language, script and kind of text trains, is scored, and is written, end to end."""

import json
import random

import pytest

LINES = {
    "chinese": ["床前明月光，疑是地上霜。", "举头望明月，低头思故乡。", "白日依山尽，黄河入海流。"],
    "arabic": ["قِفَا نَبْكِ مِنْ ذِكْرَى حَبِيبٍ وَمَنْزِلِ", "بِسِقْطِ اللِّوَى بَيْنَ الدَّخُولِ فَحَوْمَلِ"],
    "emoji": ["👩‍👩‍👧‍👦 at home 🏳️‍🌈", "👍🏽 and 👍🏿, é and é", "🇫🇷🇯🇵 ❤️‍🔥"],
    "source_code": [
        "def f(x):\n\treturn {x: [y**2 for y in x]}",
        'if a != b:\n    print(f"{a!r}")',
    ],
    "dna": ["ACGTTGCAACGGT", "GGATCCTTAGACG", "TTTAAACCCGGGN"],
    "music": ["X:1\nT:Air\nM:6/8\nK:D", "|: A2d fed | B2G G2B :|", "[1 c>BA ^G_E=F z2 |]"],
    "astral": ["𝔄𝔅𝔇 𐍈𐌰𐌹𐌻𐌰", "𝄞𝄢 \U0010fffd end"],
}


@pytest.mark.parametrize("kind", LINES)
def test_a_text_of_any_kind_trains_is_scored_and_is_written(folder, main, kind):
    choose = random.Random(1)
    text = "\n".join(choose.choices(LINES[kind], k=400)) + "\n"
    (folder / "text.txt").write_text(text, encoding="utf-8", newline="\n")
    assert main("fit", "--config", "tiny.yaml", "--trainer.max_steps", 2).code == 0
    done = main("validate", "--run", "tiny")
    assert done.code == 0
    seen = main("inspect", "--data.corpus", "text.txt", "--baselines", "false", "--json").out
    assert len(json.loads(seen)["alphabet"]) == len(set(text))
    prompt = LINES[kind][0]
    done = main("predict", "--run", "tiny", "--prompt", prompt, "--max_new_tokens", 50)
    assert done.out.startswith(prompt)
    assert done.out.endswith("\n")
    assert len(done.out) == len(prompt) + 50 + 1
    assert set(done.out) <= set(text)
