"""Laws of a GGUF file: it holds the network's weights and alphabet, and llama.cpp computes the same
with it. The package xllamacpp contains llama.cpp; without it, those tests are skipped."""

import importlib
import json
import math
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from lightning_app.data.tokenizer import Tokenizer
from lightning_app.errors import UserError
from lightning_app.export.gguf import WEIGHT_FORMATS, export_gguf, llama_cpp_name
from lightning_app.export.transformers import qwen3_name
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.model.gpt import GPT
from tests.helpers import distribution_by_definition, random_network, refusal

ASCII = "\n !\"$'(),-.:;?\\abcdefghix"
UNICODE = "".join(sorted(set("\x00\t\n\r \\abxé\u0301ä\x85\u2028\ufeff天地🙂\U0010ffff</s>[UNK]")))
# unit, alphabet, sizes
KINDS: dict[str, tuple[str, str, dict]] = {
    "ascii": ("char", ASCII, {}),
    "unicode": ("char", UNICODE, {"tie_embeddings": True}),
    "bytes": ("byte", "".join(map(chr, range(256))), {"n_kv_head": 1}),
    "no_newline": ("char", " abé", {"n_kv_head": 2, "tie_embeddings": True}),
    "one_layer": ("char", ASCII, {"n_layer": 1, "rope_theta": 100.0, "n_embd": 48}),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def network(kind: str) -> GPT:
    """Not too large weights: the logits of the characters differ by about 10."""
    _, alphabet, given = KINDS[kind]
    sizes = {"block_size": 40, "n_layer": 2, "n_head": 4, "n_embd": 64, "mlp_size": 96}
    gpt = random_network(3, alphabet, **sizes | given).eval()
    for p in gpt.parameters():
        torch.nn.init.normal_(p, std=1.0 if p.ndim == 1 else 0.2)
    return gpt


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Each kind in float32."""
    folder = tmp_path_factory.mktemp("gguf")
    for kind, (unit, alphabet, _) in KINDS.items():
        export_gguf(network(kind), alphabet, folder / f"{kind}.gguf", unit, "f32")
    return {kind: folder / f"{kind}.gguf" for kind in KINDS}


def read(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """The metadata and the weights of a file; weights in 8 bits are read by the definition."""
    reader = gguf.GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    weights = {}
    for tensor in reader.tensors:
        data, shape = tensor.data, [int(n) for n in reversed(tensor.shape)]
        if tensor.tensor_type.name == "Q8_0":  # blocks of a scale and 32 numbers
            blocks = data.reshape(-1, 34)
            data = blocks[:, :2].copy().view(np.float16).astype(float) * blocks[:, 2:].view(np.int8)
        weights[tensor.name] = np.array(data, dtype=np.float64).reshape(shape)
    return metadata, weights


@every_kind
def test_a_file_holds_every_weight_once_under_the_name_of_qwen3(kind, files):
    gpt = network(kind)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, gpt.config.n_layer)
    expected = {
        names.get_name(qwen3_name(name), [".weight"]): weight.numpy()
        for name, weight in gpt.state_dict().items()
        if not (gpt.config.tie_embeddings and name == "lm_head.weight")
    }
    _, weights = read(files[kind])
    assert weights.keys() == expected.keys()
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("weights", ["f16", "q8_0"])
def test_smaller_weights_differ_by_rounding_only(weights, tmp_path):
    gpt = network("one_layer")  # rows of 48 numbers are not blocks of 32, rows of 96 are
    export_gguf(gpt, ASCII, tmp_path / "small.gguf", weights=weights)
    metadata, stored = read(tmp_path / "small.gguf")
    assert gguf.LlamaFileType(metadata["general.file_type"]).name == f"MOSTLY_{weights.upper()}"
    for name, weight in gpt.state_dict().items():
        ours, theirs = weight.double().numpy(), stored[llama_cpp_name(name)]
        if ours.ndim == 1:
            assert np.array_equal(ours, theirs)
        elif weights == "f16" or ours.shape[1] % 32:
            assert np.array_equal(ours.astype(np.float16), theirs)
        else:
            blocks, difference = (x.reshape(-1, 32) for x in (ours, theirs - ours))
            largest = abs(blocks).max(axis=1, keepdims=True)  # of a block is 127 steps; float16
            assert (abs(difference) <= largest * (0.5 / 127 + 2**-11)).all()


def unescaped(token: str) -> bytes:
    data = re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes.fromhex(m[1].decode()), token.encode())
    assert re.fullmatch(r"(?:[ -\[\]-~]|\\x[0-9a-f]{2})+", token)
    return data


@every_kind
def test_the_tokens_are_the_alphabet_in_its_order(kind, files):
    unit, alphabet, _ = KINDS[kind]
    metadata, _ = read(files[kind])
    tokens = [unescaped(token) for token in metadata["tokenizer.ggml.tokens"]]
    assert tokens == [c.encode("latin-1" if unit == "byte" else "utf-8") for c in alphabet]
    assert metadata["tokenizer.ggml.model"] == "rwkv"
    assert not [name for name in metadata if name.endswith("_token_id")]


def test_the_metadata_are_the_sizes_of_the_network(files):
    c, (metadata, _) = network("bytes").config, read(files["bytes"])
    assert metadata["general.architecture"] == "qwen3"
    assert metadata["general.name"] == "bytes"
    expected = {
        "context_length": c.block_size,
        "embedding_length": c.n_embd,
        "block_count": c.n_layer,
        "feed_forward_length": c.mlp_size,
        "vocab_size": c.vocab_size,
        "attention.head_count": c.n_head,
        "attention.head_count_kv": c.n_kv_head,
        "attention.key_length": c.head_dim,
        "rope.freq_base": c.rope_theta,
    }
    assert {name: metadata[f"qwen3.{name}"] for name in expected} == expected


def test_what_exists_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for name in ("mine", "link", "."):
        message = refusal(export_gguf, network("ascii"), ASCII, tmp_path / name)
        assert str(tmp_path / name) in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "mine"]
    assert (tmp_path / "mine").read_text() == "mine"


def test_missing_folders_are_created(tmp_path):
    export_gguf(network("ascii"), ASCII, tmp_path / "a" / "b" / "c.gguf")
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["c.gguf"]


def test_n_gram_tables_are_refused_with_the_format_that_holds_them(tmp_path):
    gpt = random_network(0, ASCII, ngram_rows=[8])
    message = refusal(export_gguf, gpt, ASCII, tmp_path / "x.gguf")
    assert "--format transformers" in message
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="pip install"):
        export_gguf(network("ascii"), ASCII, tmp_path / "folder" / "x.gguf")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("size", [100, 20_000])  # the metadata fit into the second
def test_a_full_disk_leaves_nothing_and_says_so(size, tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(OSError) as error:  # noqa: PT011 - the attribute is what matters
            export_gguf(network("bytes"), KINDS["bytes"][1], tmp_path / "x.gguf", "byte")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.strerror
    assert not list(tmp_path.iterdir())


# llama.cpp itself


class LlamaCpp:
    """llama.cpp's server on a file; it computes in float32, as our network does."""

    def __init__(self, path: Path, **given) -> None:
        llama = importlib.import_module("xllamacpp")
        params = llama.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel = str(path), 0, 1
        params.cpuparams.n_threads, params.verbosity = 1, -1
        params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        for name, value in given.items():
            setattr(params, name, value)
        self.server = llama.Server(params)

    def ask(self, what: str, **body) -> dict:
        request = urllib.request.Request(
            f"{self.server.listening_address}/{what}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return json.load(error)

    def next_character(self, prompt: str | list[int], **given) -> dict[int, float]:
        """The log-probability of each character after a prompt, by id, or its probability under the
        sampling options if `post_sampling_probs` is given."""
        given = {"cache_prompt": False, "n_probs": 300, "n_predict": 1} | given
        (made,) = self.ask("completion", prompt=prompt, **given)["completion_probabilities"]
        pairs = made.get("top_logprobs") or made["top_probs"]
        return {p["id"]: p.get("logprob", p.get("prob")) for p in pairs}


@contextmanager
def running(path: Path, **given) -> Iterator[LlamaCpp]:
    pytest.importorskip("xllamacpp")
    llama = LlamaCpp(path, **given)
    try:
        yield llama
    finally:
        del llama.server


@pytest.fixture(scope="module")
def ascii_file(files):
    with running(files["ascii"]) as llama:
        yield llama


@every_kind
@torch.no_grad()
def test_llama_cpp_has_our_tokens_and_log_probabilities(kind, files):
    gpt, (unit, alphabet, _) = network(kind), KINDS[kind]
    ids = torch.randint(len(alphabet), (30,), generator=torch.Generator().manual_seed(1)).tolist()
    text = "é天 a\\x41\n🙂\x00" if unit == "byte" else alphabet + alphabet[::-1]
    ours = gpt(torch.tensor(ids)[None])[0].double().log_softmax(dim=-1).numpy()
    # the server gives no probabilities with a byte that is not a character: let it choose an "a"
    choose = [[alphabet.index("a"), 1000.0]]
    with running(files[kind]) as llama:
        tokens = llama.ask("tokenize", content=text)["tokens"]
        assert tokens == Tokenizer(alphabet, unit).encode(text).tolist()
        assert llama.ask("detokenize", tokens=tokens)["content"] == text
        for n in (1, 2, 7, 30):
            theirs = llama.next_character(ids[:n], logit_bias=choose)
            assert sorted(theirs) == list(range(len(alphabet)))
            theirs = np.array([theirs[i] for i in range(len(alphabet))])
            np.testing.assert_allclose(theirs, ours[n - 1], atol=2e-5)


@pytest.mark.parametrize("weights", WEIGHT_FORMATS)
@torch.no_grad()
def test_llama_cpp_computes_nearly_the_same_with_smaller_weights(weights, tmp_path):
    gpt = network("ascii")
    export_gguf(gpt, ASCII, tmp_path / "small.gguf", weights=weights)
    ours = gpt(torch.tensor([[1, 2, 3]]))[0, -1].double().log_softmax(dim=-1).tolist()
    with running(tmp_path / "small.gguf") as llama:
        theirs = llama.next_character([1, 2, 3])
    atol = {"f32": 2e-5, "f16": 1e-2, "q8_0": 0.15}[weights]
    np.testing.assert_allclose([theirs[i] for i in range(len(ASCII))], ours, atol=atol)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"top_k": 3, "temperature": 1.5},
        {"top_p": 0.6, "temperature": 1.7},  # predict applies the temperature first
        {"min_p": 0.2, "temperature": 0.5},
        {"sampling": "prob", "repetition_penalty": 1.3},
    ],
    ids=str,
)
@torch.no_grad()
def test_llama_cpp_draws_from_the_distribution_of_predict_by_default(given, tmp_path):
    gpt, options = network("ascii"), GenerateOptions(**given).resolve()
    export_gguf(gpt, ASCII, tmp_path / "x.gguf", weights="f32", options=options)
    prompt = "abc, ab"
    logits = gpt(torch.from_numpy(Tokenizer(ASCII).encode(prompt))[None])[0, -1].tolist()
    expected = distribution_by_definition(logits, [c in prompt for c in ASCII], options)
    with running(tmp_path / "x.gguf") as llama:
        theirs = llama.next_character(prompt, post_sampling_probs=True)
    np.testing.assert_allclose([theirs.get(i, 0.0) for i in range(len(ASCII))], expected, atol=1e-4)


def test_greedy_options_make_llama_cpp_greedy(tmp_path):
    export_gguf(
        network("ascii"),
        ASCII,
        tmp_path / "x.gguf",
        weights="f32",
        options=GenerateOptions("argmax"),
    )
    with running(tmp_path / "x.gguf") as llama:
        texts = {llama.ask("completion", prompt="ab", n_predict=30)["content"] for _ in range(3)}
    assert len(texts) == 1


@torch.no_grad()
def test_a_greedy_text_is_ours_and_ends_where_the_context_ends(ascii_file):
    gpt, prompt = network("ascii"), "ab"
    made = ascii_file.ask("completion", prompt=prompt, n_predict=100, temperature=0)
    idx = torch.from_numpy(Tokenizer(ASCII).encode(prompt))[None]
    while idx.size(1) < gpt.config.block_size:
        idx = torch.cat((idx, gpt(idx)[:, -1:].argmax(dim=-1)), dim=1)
    text = Tokenizer(ASCII).decode(idx[0])
    assert len(set(text)) > 3
    assert (prompt + made["content"])[: len(text)] == text
    assert len(prompt + made["content"]) <= gpt.config.block_size + 1
    assert made["truncated"]


def test_messages_of_a_chat_are_one_text_without_marks(ascii_file):
    messages = [
        {"role": "user", "content": " ab\n"},
        {"role": "assistant", "content": "c "},
        {"role": "user", "content": "d "},
    ]
    assert ascii_file.ask("apply-template", messages=messages)["prompt"] == " ab\nc d "


def test_an_unknown_character_is_an_error_in_llama_cpp(ascii_file):
    answer = ascii_file.ask("completion", prompt="abZ", n_predict=1)
    assert "invalid tokens" in answer["error"]["message"]
    assert not any(math.isnan(x) for x in ascii_file.next_character("ab").values())
