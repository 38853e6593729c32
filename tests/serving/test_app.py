"""Laws of the HTTP interface, over real connections."""

import json
import socket
import threading

import pytest

from lightning_app.data.tokenizer import Tokenizer
from lightning_app.generation.generate import generate_text
from lightning_app.serving.app import host_name
from lightning_app.serving.batch import make_batch
from lightning_app.serving.completions import Limits
from tests.helpers import TOKENIZER, UNIGRAM, writing_network
from tests.serving.running import DEFAULTS, Running, events, running, wait_until


@pytest.fixture(scope="module")
def server():
    with running() as server:
        yield server


def expected(prompts: list[str], seed: int, n: int = 1, **given) -> list[str]:
    o = DEFAULTS.updated(**given)
    return list(generate_text(writing_network(), TOKENIZER, prompts, o, seed, n, UNIGRAM))


def test_an_answer_has_the_texts_that_predict_writes_with_this_seed(server):
    prompts = ["ab", "", "cabbage"]
    status, body = server.complete(prompt=prompts, n=2, seed=7, max_tokens=30)
    assert status == 200
    assert body["object"] == "text_completion"
    assert (body["model"], body["seed"]) == ("mine", 7)
    texts = expected(prompts, 7, 2, max_new_tokens=30)
    assert [c["text"] for c in body["choices"]] == texts
    assert [c["index"] for c in body["choices"]] == list(range(6))
    assert {c["finish_reason"] for c in body["choices"]} == {"length"}
    assert {c["logprobs"] for c in body["choices"]} == {None}
    totals = {"prompt_tokens": 9, "completion_tokens": 180, "total_tokens": 189}
    assert body["usage"] == totals


def test_the_seed_of_an_answer_gives_it_again(server):
    _, first = server.complete()
    _, again = server.complete(seed=first["seed"])
    assert first["choices"] == again["choices"]


def test_a_stream_joins_to_the_answer_without_one(server):
    given = {"prompt": ["ab", "a"], "seed": 3, "logprobs": 2, "echo": True, "max_tokens": 25}
    given |= {"stop": ["k", "j"], "n": 2}
    _, whole = server.complete(**given)
    answer = server.stream(**given, stream_options={"include_usage": True})
    assert answer.getheader("content-type") == "text/event-stream; charset=utf-8"
    parts = list(events(answer))
    assert parts[-1]["choices"] == []
    assert parts[-1]["usage"] == whole["usage"]
    assert len({part["id"] for part in parts}) == 1
    for choice in whole["choices"]:
        own = [p["choices"][0] for p in parts[:-1] if p["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in own) == choice["text"]
        reasons = [part["finish_reason"] for part in own]
        assert reasons == [None] * (len(own) - 1) + [choice["finish_reason"]]
        for name, values in choice["logprobs"].items():
            assert [x for part in own for x in part["logprobs"][name]] == values
        offsets = choice["logprobs"]["text_offset"]
        assert offsets == list(range(len(choice["text"])))
        assert "".join(choice["logprobs"]["tokens"]) == choice["text"]


def test_many_clients_at_once_each_get_their_own_text(server):
    answers: dict[int, str] = {}

    def ask(seed: int) -> None:
        if seed % 2:
            parts = events(server.stream(seed=seed, max_tokens=20))
            answers[seed] = "".join(part["choices"][0]["text"] for part in parts)
        else:
            answers[seed] = server.complete(seed=seed, max_tokens=20)[1]["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 64
    for seed in range(0, 64, 9):
        assert [answers[seed]] == expected(["ab"], seed, max_new_tokens=20), seed


def test_addresses_and_methods(server):
    status, page, headers = server.ask("GET", "/")
    assert (status, page.decode()) == (200, "<h1>é</h1>")
    assert "access-control-allow-origin" not in headers
    assert server.ask("HEAD", "/")[:2] == (200, b"")
    model = {"id": "mine", "object": "model", "created": 5, "owned_by": "user"}
    assert server.ask("GET", "/v1/models")[1] == {"object": "list", "data": [model]}
    assert server.ask("GET", "/v1/models/mine")[1] == model
    assert server.ask("GET", "/health")[:2] == (200, {"status": "ok", "unfinished_texts": 0})
    assert server.ask("GET", "/v1/models/other")[0] == 404
    status, body, headers = server.ask("GET", "/v1/completions")
    assert (status, headers["allow"]) == (405, "POST")
    assert body["error"]["type"] == "invalid_request_error"
    status, body, _ = server.ask("POST", "/v1/chat/completions", {"messages": []})
    assert status == 404
    assert "use /v1/completions" in body["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"prompt": "a", "temperature": NaN}', b"\xff\xfe\x00", b"[" * 100_000,
     b'{"prompt": "a", "n": ' + b"1" * 5000 + b"}", b'"a"', b'{"prompt": "\\ud83d"}'],
)  # fmt: skip
def test_a_malformed_body_is_an_error_of_the_client(server, body):
    status, answer, _ = server.ask("POST", "/v1/completions", body)
    assert status == 400
    assert answer["error"]["message"]


def test_an_unknown_character_is_named(server):
    status, body = server.complete(prompt="ab é")
    assert (status, body["error"]["param"]) == (400, "prompt")
    assert "'é' (U+00E9" in body["error"]["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_long_body_is_refused_before_all_of_it_is_read(server, chunked):
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.settimeout(60)
    size = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {10**8}"
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n{size}\r\n\r\n"
    connection.sendall(head.encode())
    part = b"10000\r\n" + b"x" * 65536 + b"\r\n" if chunked else b"x" * 1000
    try:
        for _ in range(40 if chunked else 1):  # never all that was announced
            connection.sendall(part)
    except ConnectionError:
        pass  # the server has closed the connection
    with connection, connection.makefile("rb") as answer:
        try:
            assert answer.readline().startswith(b"HTTP/1.1 413 ")
        except ConnectionResetError:  # it comes before the answer where much was sent in vain
            assert chunked
    assert server.complete()[0] == 200


def test_requests_of_other_web_pages_are_refused(server):
    own = f"127.0.0.1:{server.port}"
    assert server.ask("GET", "/v1/models", Host="localhost:1")[0] == 200
    assert server.ask("GET", "/v1/models", Host=own, Origin=f"http://{own}")[0] == 200
    for headers in (
        {"Host": "evil.example"},
        {"Host": f"evil.example:{server.port}"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "[::1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ):
        status, body, _ = server.ask("POST", "/v1/completions", {"prompt": "a"}, **headers)
        assert status == 403, headers
        assert body["error"]["message"]


@pytest.mark.parametrize(
    ("host", "name"), [("a:1", "a"), ("[::1]:80", "::1"), ("A", "a"), ("", ""), ("[", "")]
)
def test_a_host_header_has_a_name(host, name):
    assert host_name(host) == name


def test_with_a_token_every_request_needs_it():
    with running(token="s3cret", local=False) as server:
        for headers in ({}, {"Authorization": "s3cret"}, {"Authorization": "Bearer é"}):
            status, body, answer = server.ask("GET", "/v1/models", **headers)
            assert (status, answer["www-authenticate"]) == (401, "Bearer")
            assert body["error"]["code"] == "invalid_api_key"
        assert server.ask("GET", "/v1/models", Authorization="Bearer s3cret")[0] == 200
        assert server.ask("GET", "/v1/models?token=s3cret")[0] == 401
        assert server.ask("GET", "/?token=s3cret")[0] == 200
        assert server.ask("GET", "/?token=wrong")[0] == server.ask("GET", "/")[0] == 401
        assert server.ask("GET", "/health", Host="some.name")[0] == 200  # the token protects it


@pytest.mark.parametrize("stream", [False, True])
def test_the_rows_of_a_client_that_hangs_up_are_free(stream):
    with running(limits=Limits(max_batch=2, max_queue=4, max_tokens=10**9)) as server:
        for _ in range(3):
            connection = server.connect()
            body = {"prompt": "ab", "n": 3, "max_tokens": 10**9, "stream": stream}
            connection.request("POST", "/v1/completions", json.dumps(body))
            if stream:
                answer = connection.getresponse()
                assert answer.readline()
            wait_until(lambda: server.unfinished() == 3)
            connection.close()
            if stream:
                answer.close()  # it keeps the socket open
            wait_until(lambda: server.unfinished() == 0)
        assert server.complete(seed=1)[1]["choices"][0]["text"] == expected(["ab"], 1)[0]


def test_when_the_queue_is_full_clients_are_told_to_try_again():
    with running(limits=Limits(max_batch=1, max_queue=2, max_tokens=10**9)) as server:
        waiting = [server.stream(max_tokens=10**9, n=2)]
        wait_until(lambda: server.unfinished() == 2)
        status, body, headers = server.ask("POST", "/v1/completions", {"prompt": "a", "n": 2})
        assert (status, headers["retry-after"]) == (503, "1")
        assert body["error"]["code"] == "overloaded"
        assert server.complete(n=4)[0] == 400  # never possible
        for answer in waiting:
            answer.close()
        wait_until(lambda: server.unfinished() == 0)
        assert server.complete(n=3)[0] == 200


def test_a_stream_ends_with_an_error_when_the_server_stops():
    with running(limits=Limits(max_tokens=10**9)) as server:
        answer = server.stream(max_tokens=10**9)
        whole: list[tuple[int, dict]] = []
        thread = threading.Thread(target=lambda: whole.append(server.complete(max_tokens=10**9)))
        thread.start()
        wait_until(lambda: server.unfinished() == 2)
        server.server.handle_exit(15, None)
        *_, last = events(answer)
        assert last["error"]["code"] == "stopping"
        thread.join()
        status, body = whole[0]
        assert (status, body["error"]["code"]) == (503, "stopping")


def test_characters_outside_ascii_arrive_whole_with_an_alphabet_of_bytes():
    alphabet = "".join(map(chr, sorted({*"aé天".encode()})))
    gpt = writing_network()
    gpt = type(gpt)(type(gpt.config)(vocab_size=len(alphabet), block_size=8, n_layer=1, n_head=1,
                                     n_embd=8, mlp_size=8)).eval()  # fmt: skip
    tokenizer = Tokenizer(alphabet, "byte")
    with running(lambda: make_batch(gpt, 2), tokenizer=tokenizer) as server:
        _, body = server.complete(prompt="é天", seed=1, max_tokens=60, echo=True)
        texts = generate_text(gpt, tokenizer, ["é天"], DEFAULTS.updated(max_new_tokens=60), 1)
        assert body["choices"][0]["text"] == "é天" + next(texts)
        assert body["usage"]["prompt_tokens"] == 5


def test_a_defect_is_an_error_of_the_server_and_not_the_end_of_it(server: Running, monkeypatch):
    monkeypatch.setattr("lightning_app.serving.app.parse_request", lambda *a: 1 / 0)
    status, body = server.complete()
    assert (status, body["error"]["type"]) == (500, "server_error")
    monkeypatch.undo()
    assert server.complete()[0] == 200
