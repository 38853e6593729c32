"""Laws of sampling: the options, the distribution of the next character, the draw from it."""

from dataclasses import fields
from typing import get_args, get_type_hints

import numpy as np
import pytest

from lightning_app.errors import UserError
from lightning_app.generation.sampling import (
    LIMITS,
    SAMPLING_METHODS,
    SAMPLING_OPTIONS,
    GenerateOptions,
    distribution,
    draw,
    sampler_args,
)
from tests.helpers import V, distribution_by_definition, options


def test_the_table_the_option_and_the_limits_name_the_same_methods():
    sampling = get_args(get_type_hints(GenerateOptions)["sampling"])
    named = {name for literal in sampling for name in get_args(literal)}
    assert named == {*SAMPLING_METHODS, "top5"}
    names = [f.name for f in fields(GenerateOptions)]
    assert set(LIMITS) <= set(names)
    assert {"sampling", *LIMITS} == SAMPLING_OPTIONS
    assert set(LIMITS) == {n for n in SAMPLING_METHODS if n in names}


@pytest.mark.parametrize("method", SAMPLING_METHODS)
def test_a_method_alone_takes_the_tables_limit_and_no_other(method):
    resolved = options(sampling=method)
    assert resolved.sampling == method
    limits = {name: getattr(resolved, name) for name in LIMITS}
    expected = dict.fromkeys(LIMITS)
    if method in LIMITS:
        expected[method] = SAMPLING_METHODS[method]
    assert limits == expected
    number, limit, *_ = sampler_args(resolved)
    assert list(SAMPLING_METHODS)[number] == method
    assert limit == (SAMPLING_METHODS[method] or 0)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"top_k": 3, "top_p": 0.5}, "--top_k and --top_p"),
        ({"top_p": 0.5, "min_p": 0.1}, "--top_p and --min_p"),
        ({"top_k": 3, "top_p": 0.5, "min_p": 0.1}, "--top_k and --top_p and --min_p"),
        ({"sampling": "top_k", "top_p": 0.5}, "--sampling top_k contradicts --top_p"),
        ({"sampling": "min_p", "top_k": 3}, "--sampling min_p contradicts --top_k"),
        ({"sampling": "top_p", "min_p": 0.0}, "--sampling top_p contradicts --min_p"),
        ({"sampling": "prob", "top_k": 3}, "--sampling prob contradicts --top_k"),
        ({"sampling": "argmax", "top_p": 0.5}, "--sampling argmax contradicts --top_p"),
        ({"sampling": "top5", "top_k": 4}, "--sampling top5 contradicts --top_k 4"),
        ({"sampling": "top5", "min_p": 0.1}, "contradicts --min_p"),
        ({"top_k": 0}, "--top_k is 0"),
        ({"top_p": 0.0}, "--top_p is 0"),
        ({"stop": ""}, "--stop is empty"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused_by_name(given, named):
    with pytest.raises(UserError, match=named):
        options(**given)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"temperature": "hot"}, "temperature is 'hot'; give a number, 0 or more"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 1.5}, "top_p is 1.5; give a number, from 0 to 1"),
        ({"top_k": 2.5}, "top_k is 2.5; give a whole number, 0 or more"),
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5; give a whole number"),
        ({"stop": 5}, "stop is 5; give a text"),
    ],
    ids=str,
)
def test_values_of_the_wrong_type_or_size_are_refused_by_name(given, named):
    with pytest.raises(UserError, match=named):
        options(**given)


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({}, {"sampling": "top_p", "top_p": 0.9}),
        ({"sampling": "top_p"}, {"sampling": "top_p", "top_p": 0.9}),
        ({"sampling": "top_k"}, {"sampling": "top_k", "top_k": 5}),
        ({"sampling": "top5"}, {"sampling": "top_k", "top_k": 5}),
        ({"sampling": "top5", "top_k": 5}, {"sampling": "top_k", "top_k": 5}),
        ({"sampling": "min_p"}, {"sampling": "min_p", "min_p": 0.05}),
        ({"sampling": "min_p", "min_p": 0.0}, {"sampling": "min_p", "min_p": 0.0}),
        ({"top_k": 3}, {"sampling": "top_k", "top_k": 3}),
        ({"top_p": 0.5}, {"sampling": "top_p", "top_p": 0.5}),
        ({"min_p": 0.1}, {"sampling": "min_p", "min_p": 0.1}),
    ],
    ids=str,
)
def test_unset_options_are_filled_in_from_what_is_named(given, same):
    assert options(**given) == GenerateOptions(**same)


@pytest.mark.parametrize(
    "given",
    [
        *({"sampling": s} for s in ("argmax", "prob", "top_k", "top_p", "min_p", "top5")),
        {"temperature": 0.0},
        {"temperature": 0.0, "top_k": 3},
        {"temperature": 0.0, "sampling": "top5"},
        {"min_p": 0.0},
    ],
    ids=str,
)
def test_resolved_options_are_resolved_to_themselves(given):
    # `predict` resolves, and so does `generate_text`: --temperature 0 contradicted its own default
    assert options(**given).resolve() == options(**given)


SAMPLINGS = [
    {"sampling": "argmax"},
    {"sampling": "prob"},
    *({"top_k": k} for k in (1, 2, 5, V, V + 7)),
    *({"top_p": p} for p in (1e-6, 0.3, 0.77, 0.95, 1.0)),
    *({"min_p": p} for p in (0.0, 0.013, 0.21, 1.0)),
]


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.7])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 1.7])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_the_distribution_is_that_of_the_definitions(sampling, temperature, penalty):
    o = options(**sampling, temperature=temperature, repetition_penalty=penalty)
    random = np.random.default_rng(0)
    logits = random.normal(scale=2, size=(20, V)).astype(np.float32)
    logits[::2] = np.round(logits[::2])  # ties
    seen = random.random((20, V)) < 0.3
    p = distribution(logits, seen, o)
    expected = [
        distribution_by_definition(x, s, o)
        for x, s in zip(logits.tolist(), seen.tolist(), strict=True)
    ]
    np.testing.assert_allclose(p, expected, rtol=1e-12, atol=0)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)


def test_ties_go_to_the_lower_id():
    logits = np.array([[0.0, 2, 1, 2, 2, 1]])
    seen = np.zeros_like(logits, dtype=bool)
    support = [
        np.flatnonzero(distribution(logits, seen, options(**given))[0]).tolist()
        for given in ({"sampling": "argmax"}, {"top_k": 2}, {"top_k": 4}, {"top_p": 0.3})
    ]
    assert support == [[1], [1, 3], [1, 2, 3, 4], [1, 3]]


def test_the_distribution_keeps_its_argument_and_survives_extreme_logits():
    logits = np.array([[1e4, -1e4, 0, 9999]], dtype=np.float32)
    before = logits.copy()
    seen = np.array([[True, True, False, False]])
    for sampling in SAMPLINGS:
        p = distribution(logits, seen, options(**sampling, repetition_penalty=1.1))
        assert np.isfinite(p).all()
        assert p[0, 3] == 1
    assert np.array_equal(logits, before)


def test_a_draw_is_the_inverse_of_the_cdf():
    random = np.random.default_rng(1)
    for _ in range(50):
        counts = random.multinomial(64, random.dirichlet([0.3] * V))
        u = np.arange(64) / 64  # every boundary of the CDF among them, and exact in binary
        p = np.broadcast_to(counts / 64, (64, V))
        assert draw(p, u).tolist() == [i for i, n in enumerate(counts) for _ in range(n)]


def test_a_draw_takes_each_row_for_itself():
    p = np.array([[1.0, 0, 0], [0, 0, 1.0], [0.5, 0.5, 0], [0.5, 0.5, 0]])
    assert draw(p, np.array([0.9, 0.0, 0.4, 0.6])).tolist() == [0, 2, 0, 1]


@pytest.mark.parametrize("u", [0.0, 5e-324, 0.1, 0.7, 0.9999, np.nextafter(1, 0)])
def test_an_impossible_character_is_never_drawn(u):
    random = np.random.default_rng(2)
    p = random.random((500, V)) * (random.random((500, V)) < 0.4)
    p = p[p.any(axis=1)]
    p /= p.sum(axis=1, keepdims=True)  # sums to 1 only up to rounding
    ids = draw(p, np.full(len(p), u))
    assert (p[np.arange(len(p)), ids] > 0).all()
    if u == 0:
        assert ids.tolist() == (p > 0).argmax(axis=1).tolist()
    if u > 0.99999:
        assert ids.tolist() == (V - 1 - (p[:, ::-1] > 0).argmax(axis=1)).tolist()
