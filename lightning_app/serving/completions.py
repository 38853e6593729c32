"""OpenAI's completions: from the JSON of a request to texts, and from what is written to JSON.

The fields are those of OpenAI's legacy completions, and the sampling options of `predict`. As in
other servers with this interface, fields that are not known are ignored.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jsonargparse.typing import NonNegativeInt, PositiveInt

from lightning_app.data.tokenizer import Tokenizer
from lightning_app.errors import UserError
from lightning_app.generation.generate import sample_rng
from lightning_app.generation.sampling import SAMPLING_OPTIONS, GenerateOptions
from lightning_app.serving.batch import FinishReason, Text, TokenLogprob, Written

MAX_STOPS = 4
MAX_LOGPROBS = 20
MAX_SEED = 2**63 - 1
# Values of limits that turn them off, in OpenAI's interface and in other servers with it.
OFF: dict[str, tuple[float, ...]] = {"top_k": (0, -1), "top_p": (1,), "min_p": (0,)}
# Fields of OpenAI's interface that this server lacks, with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "suffix": (None, ""),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
}


class RequestError(Exception):
    """An answer that is an error, in the form of OpenAI's interface."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers
        self.param, self.code = param, code

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message, "type": kind, "param": self.param, "code": self.code
            }
        }  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may ask for.

    Args:
        max_batch: Texts that are written together; each takes memory for one context.
        max_queue: Texts that wait for their turn; when there are more, requests get status 503.
        max_prompt: Characters of one prompt.
        max_tokens: Characters of one text.
        max_body: Bytes of one request.
    """

    max_batch: PositiveInt = 64
    max_queue: NonNegativeInt = 256
    max_prompt: NonNegativeInt = 100_000
    max_tokens: NonNegativeInt = 10_000
    max_body: PositiveInt = 1_000_000

    @property
    def texts(self) -> int:
        return self.max_batch + self.max_queue


@dataclass(frozen=True)
class CompletionRequest:
    """A request whose fields have been checked."""

    prompts: list[str]
    encoded: list[list[int]]
    n: int
    seed: int
    options: GenerateOptions  # resolved; max_new_tokens is max_tokens
    stops: tuple[str, ...]
    logprobs: int | None
    echo: bool
    stream: bool
    include_usage: bool

    def texts(self, tokenizer: Tokenizer, deliver: Callable[[int, Written], None]) -> list[Text]:
        """The texts to write. Text j of prompt i is that of `predict` with this seed, and number
        i * n + j; `deliver` is called with this number."""

        def receiver(number: int) -> Callable[[Written], None]:
            return lambda written: deliver(number, written)

        return [
            Text(
                tokenizer,
                ids,
                sample_rng(self.seed, i, j),
                self.options,
                self.stops,
                self.logprobs,
                self.echo and self.logprobs is not None,
                receiver(i * self.n + j),
            )
            for i, ids in enumerate(self.encoded)
            for j in range(self.n)
        ]


def parse_request(
    body: Any, tokenizer: Tokenizer, defaults: GenerateOptions, limits: Limits, model: str
) -> CompletionRequest:
    """Check the JSON of a request. Raises RequestError."""
    if not isinstance(body, dict):
        raise RequestError(400, "the body is not a JSON object")
    if body.get("model") not in (None, model):
        raise RequestError(
            404, f"there is no model {body['model']!r}; this server has {model!r}",
            "model", "model_not_found",
        )  # fmt: skip
    for name, neutral in UNSUPPORTED.items():
        if body.get(name) not in neutral:
            raise RequestError(400, f"{name} is not supported; leave it out", name)
    prompts = read_prompts(body, limits)
    n = whole_number(body, "n", 1, 1, limits.texts)
    if len(prompts) * n > limits.texts:
        raise RequestError(
            400, f"{len(prompts)} prompts of {n} texts each are more than {limits.texts}", "n"
        )
    if body.get("best_of") not in (None, n):
        raise RequestError(400, "best_of is not supported; leave it out", "best_of")
    stops = read_stops(body, defaults)
    logprobs = None
    if body.get("logprobs") is not None:
        logprobs = whole_number(body, "logprobs", 0, 0, MAX_LOGPROBS)
    stream_options = body.get("stream_options") or {}
    if not isinstance(stream_options, dict):
        raise RequestError(400, "stream_options is not an object", "stream_options")
    return CompletionRequest(
        prompts,
        [encode(tokenizer, prompt, i, len(prompts)) for i, prompt in enumerate(prompts)],
        n,
        whole_number(body, "seed", secrets.randbelow(2**32), 0, MAX_SEED),
        read_options(body, defaults, limits),
        stops,
        logprobs,
        boolean(body, "echo"),
        boolean(body, "stream"),
        boolean(stream_options, "include_usage"),
    )


def read_prompts(body: dict[str, Any], limits: Limits) -> list[str]:
    prompt = body.get("prompt")
    if prompt is None:
        hint = "; this network continues texts, it has no chat" if "messages" in body else ""
        raise RequestError(400, f'prompt is missing; give a text, such as ""{hint}', "prompt")
    prompts = prompt if isinstance(prompt, list) else [prompt]
    if not prompts or not all(isinstance(p, str) for p in prompts):
        raise RequestError(400, "prompt is not a text or a list of texts", "prompt")
    if (longest := max(map(len, prompts))) > limits.max_prompt:
        raise RequestError(
            400,
            f"a prompt has {longest:,} characters; this server takes up to {limits.max_prompt:,}",
            "prompt",
            "context_length_exceeded",
        )
    return prompts


def encode(tokenizer: Tokenizer, prompt: str, i: int, count: int) -> list[int]:
    what = "the prompt" if count == 1 else f"prompt {i}"
    try:
        return tokenizer.encode(prompt, what).tolist()
    except UserError as error:
        raise RequestError(400, str(error), "prompt") from None
    except UnicodeEncodeError as error:
        code = ord(prompt[error.start])
        raise RequestError(
            400, f"{what} has half of a surrogate pair, U+{code:04X}; write the character", "prompt"
        ) from None


def read_stops(body: dict[str, Any], defaults: GenerateOptions) -> tuple[str, ...]:
    if (stop := body.get("stop", defaults.stop)) is None:
        return ()
    stops = stop if isinstance(stop, list) else [stop]
    if len(stops) > MAX_STOPS or not all(isinstance(s, str) for s in stops):
        raise RequestError(400, f"stop is not a text or a list of up to {MAX_STOPS}", "stop")
    if "" in stops:
        raise RequestError(400, "stop has an empty text; leave it out", "stop")
    return tuple(stops)


def read_options(
    body: dict[str, Any], defaults: GenerateOptions, limits: Limits
) -> GenerateOptions:
    """The options of sampling. A limit with a value that turns it off is not a limit; a request
    with such limits only draws from all characters."""
    given: dict[str, Any] = {}
    for name in ("temperature", "repetition_penalty", "sampling", *OFF):
        value = body.get(name)
        if isinstance(value, bool) or (isinstance(value, str) and name != "sampling"):
            raise RequestError(400, f"{name} is {value!r}; give a number", name)
        if value is not None:
            given[name] = value
    off = [name for name, values in OFF.items() if name in given and given[name] in values]
    given = {name: value for name, value in given.items() if name not in off}
    if off and not given.keys() & SAMPLING_OPTIONS:
        given["sampling"] = "prob"
    default = min(defaults.max_new_tokens, limits.max_tokens)
    length = whole_number(body, "max_tokens", default, 0, limits.max_tokens)
    try:
        return defaults.updated(**given, max_new_tokens=length).resolve()
    except UserError as error:
        message = str(error).replace("--", "")  # fields, not options of the command line
        param = next((name for name in (*given,) if name in message), None)
        raise RequestError(400, message, param) from None


def whole_number(body: dict[str, Any], name: str, default: int, lowest: int, highest: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        shown = repr(value)[:40]
        raise RequestError(
            400, f"{name} is {shown}; give a whole number from {lowest} to {highest}", name
        )
    return value


def boolean(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if not isinstance(value, bool | None):
        raise RequestError(400, f"{name} is {value!r}; give true or false", name)
    return bool(value)


@dataclass
class Choice:
    """One text of an answer: what is not sent yet, and what is known of it."""

    prompt: str  # what echo puts before the text
    characters: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)
    offset: int = 0  # of the prompt's end
    ids: int = 0
    finish_reason: FinishReason | None = None
    changed: bool = False

    def __post_init__(self) -> None:
        self.characters, self.offset = self.prompt, len(self.prompt)

    def add(self, written: Written) -> None:
        self.characters += written.characters
        self.tokens += written.prompt_tokens
        self.tokens += [t._replace(offset=t.offset + self.offset) for t in written.tokens]
        self.ids, self.finish_reason = written.ids, written.finish_reason
        if written.characters or written.tokens or written.prompt_tokens or written.finish_reason:
            self.changed = True

    def take(self, index: int, with_logprobs: bool) -> dict[str, Any]:
        """The JSON of what has not been sent."""
        characters, self.characters = self.characters, ""
        tokens, self.tokens, self.changed = self.tokens, [], False
        logprobs = {
            "tokens": [t.token for t in tokens],
            "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": [t.top for t in tokens],
            "text_offset": [t.offset for t in tokens],
        }
        return {
            "index": index,
            "text": characters,
            "logprobs": logprobs if with_logprobs else None,
            "finish_reason": self.finish_reason,
        }


def usage(request: CompletionRequest, choices: list[Choice]) -> dict[str, int]:
    prompt = sum(map(len, request.encoded))
    written = sum(choice.ids for choice in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
    }
