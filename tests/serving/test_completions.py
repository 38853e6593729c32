"""Laws of requests: which are accepted, what they mean, and what the others are told."""

import pytest

from lightning_app.data.tokenizer import Tokenizer
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.serving.batch import TokenLogprob, Written
from lightning_app.serving.completions import (
    Choice,
    CompletionRequest,
    Limits,
    RequestError,
    parse_request,
    usage,
)
from tests.helpers import ALPHABET

TOKENIZER = Tokenizer(ALPHABET)
DEFAULTS = GenerateOptions(top_k=3, temperature=0.7, max_new_tokens=40, stop="c")


def parse(given: object, tokenizer: Tokenizer = TOKENIZER, **limits) -> CompletionRequest:
    body = {"prompt": "a"} | given if isinstance(given, dict) else given
    return parse_request(body, tokenizer, DEFAULTS, Limits(**limits), "mine")


def test_what_a_request_does_not_say_is_as_predict_does_it():
    request = parse({})
    assert request.options == DEFAULTS.resolve()
    assert (request.prompts, request.encoded) == (["a"], [[2]])
    assert (request.n, request.stops, request.logprobs) == (1, ("c",), None)
    assert (request.echo, request.stream) == (False, False)
    assert parse({}).seed != parse({}).seed


def test_fields_of_openai_and_of_predict_are_read():
    given = {"prompt": ["a", ""], "n": 2, "seed": 5, "logprobs": 0, "echo": True, "stream": True}
    given |= {"max_tokens": 3, "temperature": 0.1, "repetition_penalty": 2, "min_p": 0.5}
    given |= {"stop": ["x", "\n"], "stream_options": {"include_usage": True}, "model": "mine"}
    request = parse(given | {"user": "me", "metadata": {}, "unknown": [1]})
    assert request == CompletionRequest(
        ["a", ""],
        [[2], []],
        2,
        5,
        GenerateOptions(
            sampling="min_p", min_p=0.5, temperature=0.1, repetition_penalty=2, max_new_tokens=3,
            stop="c",
        ),
        ("x", "\n"),
        0,
        True,
        True,
        True,
    )  # fmt: skip
    assert parse({"stop": None, "n": None, "seed": None, "temperature": None}).stops == ()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"top_p": 1}, ("prob", None)),
        ({"top_p": 1.0, "top_k": 0, "min_p": 0}, ("prob", None)),
        ({"top_p": 1, "top_k": 4}, ("top_k", 4)),
        ({"top_k": -1, "top_p": 0.5}, ("top_p", 0.5)),
        ({"temperature": 0}, ("argmax", None)),
        ({"sampling": "argmax", "top_p": 1}, ("argmax", None)),
        ({"temperature": 0.5}, ("top_k", 3)),
    ],
)
def test_limits_that_are_off_are_no_limits(given, expected):
    options = parse(given).options
    method = options.sampling
    assert (method, getattr(options, method, None)) == expected


ERRORS: list[tuple[object, str | None, tuple[str, ...]]] = [
    ([], None, ("not a JSON object",)),
    ({"prompt": None}, "prompt", ("missing",)),
    ({"prompt": None, "messages": []}, "prompt", ("no chat",)),
    ({"prompt": 5}, "prompt", ("not a text",)),
    ({"prompt": []}, "prompt", ("not a text",)),
    ({"prompt": ["a", 5]}, "prompt", ("not a text",)),
    ({"prompt": "axb"}, "prompt", ("'x'", "U+0078", "position 1")),
    ({"prompt": ["a", "É"]}, "prompt", ("prompt 1", "'É'", "position 0")),
    ({"prompt": "\ud800"}, "prompt", ("U+D800",)),
    ({"prompt": "a" * 11}, "prompt", ("11 characters", "up to 10")),
    ({"n": 0}, "n", ("n is 0", "from 1 to 5")),
    ({"n": 6}, "n", ("n is 6",)),
    ({"n": 3, "prompt": ["a", "b"]}, "n", ("2 prompts of 3 texts", "5")),
    ({"n": True}, "n", ("n is True",)),
    ({"n": 1.5}, "n", ("n is 1.5",)),
    ({"seed": -1}, "seed", ("seed is -1",)),
    ({"seed": 2**63}, "seed", ("seed",)),
    ({"seed": "7"}, "seed", ("seed is '7'",)),
    ({"max_tokens": 21}, "max_tokens", ("21", "from 0 to 20")),
    ({"max_tokens": 10**400}, "max_tokens", ("max_tokens",)),
    ({"logprobs": True}, "logprobs", ("logprobs is True",)),
    ({"logprobs": 21}, "logprobs", ("0 to 20",)),
    ({"echo": 1}, "echo", ("echo is 1", "true or false")),
    ({"stream": "yes"}, "stream", ("true or false",)),
    ({"stream_options": 3}, "stream_options", ("not an object",)),
    ({"temperature": "hot"}, "temperature", ("temperature is 'hot'",)),
    ({"temperature": -1}, "temperature", ("temperature is -1",)),
    ({"temperature": [1]}, "temperature", ("temperature is [1]",)),
    ({"top_p": 1.5}, "top_p", ("top_p is 1.5", "from 0 to 1")),
    ({"top_p": 0}, "top_p", ("top_p is 0",)),
    ({"top_k": 2.5}, "top_k", ("top_k is 2.5", "whole number")),
    ({"top_k": True}, "top_k", ("top_k is True",)),
    ({"top_k": 2, "min_p": 0.5}, "top_k", ("contradict",)),
    ({"repetition_penalty": 0}, "repetition_penalty", ("above 0",)),
    ({"sampling": "best"}, "sampling", ("'best'", "min_p")),
    ({"sampling": 3}, "sampling", ("sampling is 3",)),
    ({"sampling": ["prob"]}, "sampling", ("sampling is",)),
    ({"stop": 5}, "stop", ("stop is not",)),
    ({"stop": ["a"] * 5}, "stop", ("up to 4",)),
    ({"stop": ["a", None]}, "stop", ("stop is not",)),
    ({"stop": ""}, "stop", ("empty",)),
    ({"suffix": "b"}, "suffix", ("not supported",)),
    ({"best_of": 3}, "best_of", ("not supported",)),
    ({"frequency_penalty": 0.5}, "frequency_penalty", ("not supported",)),
    ({"logit_bias": {"5": 1}}, "logit_bias", ("not supported",)),
]


@pytest.mark.parametrize(("given", "param", "words"), ERRORS, ids=lambda x: str(x)[:30])
def test_a_wrong_request_is_told_which_field_is_wrong_and_why(given, param, words):
    with pytest.raises(RequestError) as error:
        parse(given, max_batch=2, max_queue=3, max_prompt=10, max_tokens=20)
    assert (error.value.status, error.value.param) == (400, param)
    body = error.value.body()["error"]
    assert body.keys() == {"message", "type", "param", "code"}
    assert body["type"] == "invalid_request_error"
    for word in words:
        assert word in body["message"], body
    assert "--" not in body["message"]


def test_another_model_is_not_found():
    with pytest.raises(RequestError) as error:
        parse({"model": "gpt-4"})
    assert (error.value.status, error.value.code) == (404, "model_not_found")


def test_half_of_a_surrogate_pair_is_refused_for_bytes_too():
    tokenizer = Tokenizer("abc", "byte")
    assert parse({"prompt": "ab"}, tokenizer).encoded == [[0, 1]]
    with pytest.raises(RequestError, match="U\\+DC00"):
        parse({"prompt": "a\udc00"}, tokenizer)


def test_an_answers_parts_join_to_the_text_with_offsets_into_it():
    request = parse({"prompt": ["ab", "a"], "n": 2, "echo": True, "logprobs": 1})
    choice = Choice("ab")
    choice.add(Written(prompt_tokens=[TokenLogprob("a", None, None, 0)]))
    first = choice.take(3, True)
    assert (first["text"], first["index"], first["finish_reason"]) == ("ab", 3, None)
    choice.add(Written("c", [TokenLogprob("c", -1.0, {"c": -1.0}, 0)], [], 1))
    choice.add(Written("", [], [], 2, "stop"))
    second = choice.take(3, True)
    assert second["text"] == "c"
    assert second["logprobs"] == {
        "tokens": ["c"], "token_logprobs": [-1.0], "top_logprobs": [{"c": -1.0}], "text_offset": [2]
    }  # fmt: skip
    assert second["finish_reason"] == "stop"
    totals = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert usage(request, [choice]) == totals
