"""Patterns out of files: RE2 where Python's `re` could hang, and the same answers."""

from __future__ import annotations

import re
import string
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isobit.errors import DamagedError, InputError, NotSupportedError
from isobit.shard.model.spec import spec_from_config
from isobit.shard.patterns import MOST_CHARACTERS, check_pattern, found_in, matches

from ..configs import config, pack_quantized

NAMES = [
    f"model.layers.{n}.{end}"
    for n in (0, 1, 10, 21)
    for end in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj", "mlp.gate_proj")
] + ["lm_head", "model.embed_tokens", "A_1", "."]
OTHER_NAMES = st.text(string.ascii_letters + string.digits + "_.", min_size=1, max_size=30)
ATOMS = st.sampled_from(
    [
        "a", "_", "proj", "model", "layers", "q", "1", "\\.", ".", "[a-z]", "[^.]", "\\d", "\\w",
        "\\W", "\\S", "\\b", "\\B", "^", "$", "[0-9a]", "[]a]", "[^]a-]", "[\\w.]", "(?i)", "{",
        "\\A", "\\Z", "(?:x|)", "\\x61", "\\n", "[\\d-]", "-", "(?i:M)", "(?s:.)", "{,2}", "\\1",
        "[[:alpha:]]", "\\07", "\\_", "[a||b]", "(?P<n>a)",
    ]
)  # fmt: skip
REPEATS = st.sampled_from(["", "", "", "*", "+", "?", "*?", "+?", "??", "{2}", "{1,3}", "{0,}"])


def combine(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    group = st.sampled_from(["(", "(?:"])
    repeated = st.tuples(group, children, REPEATS).map(lambda t: f"{t[0]}{t[1]}){t[2]}")
    joined = st.lists(children, min_size=1, max_size=4).map("".join)
    either = st.tuples(children, children).map("|".join)
    return st.one_of(repeated, joined, either)


EXPRESSIONS = st.recursive(st.tuples(ATOMS, REPEATS).map("".join), combine, max_leaves=8)


@settings(max_examples=600, deadline=None)
@given(EXPRESSIONS, st.one_of(st.sampled_from(NAMES), OTHER_NAMES))
def test_what_both_accept_matches_alike(expression, name):
    try:
        check_pattern("here", expression)
    except InputError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        assert matches(expression, name) == (re.match(expression, name) is not None)
        assert found_in(expression, name) == (re.search(expression, name) is not None)


@pytest.mark.parametrize(
    "expression",
    [
        r".*\.layers\.(\d+)\.mlp\..*down_proj$",
        r"^model\.layers\.0\.mlp\.up_proj$",
        r".*\.(?:[1-9]|1[0-9]|2[0-1])\..*",
        "model.layers.1",
        r"model\.layers\.1",
        "(?i).*Q_PROJ",
        r".*(gate|up|down)_proj",
    ],
)
def test_patterns_of_model_cards_match_as_in_python(expression):
    check_pattern("here", expression)
    for name in NAMES:
        assert matches(expression, name) == (re.match(expression, name) is not None), name


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        (r"^(?!.*down).*$", "Lookarounds, conditions and backreferences need an engine that can"),
        (r".*(?<!q)_proj", "Lookarounds"),
        (r"(a)\1", "backreferences"),
        ("(?P<n>a)(?P=n)", "backreferences"),
        ("(?>a)", "Lookarounds"),
        ("a*+", "bad repetition operator"),
        ("a{1001}", "invalid repetition size"),
        ("a{,5}", "read '{,' in two ways"),
        ("[[:alpha:]]", "read '[:' in two ways"),
        ("é", "ASCII"),
        ("(?:(?:(?:[a-z]{30}){30}){30})", "invalid repetition size"),
        ("a" * (MOST_CHARACTERS + 1), f"of {MOST_CHARACTERS + 1} characters"),
    ],
)
def test_what_is_not_matched_is_not_supported_by_name(expression, words):
    with pytest.raises(NotSupportedError) as raised:
        check_pattern("gptq: dynamic", expression)
    assert raised.value.code == "E-QUANT-PATTERN"
    assert raised.value.message.startswith("gptq: dynamic: ")
    assert words in raised.value.message
    assert len(raised.value.message) < 500


@pytest.mark.parametrize("expression", ["(", "*", "a{99999999999}", "[z-a]", "(" * 2000, r"\p{L}"])
def test_what_python_does_not_compile_is_damage(expression):
    with pytest.raises(DamagedError, match="is not a regular expression"):
        check_pattern("here", expression)


@pytest.mark.timeout(20)
def test_patterns_that_hang_python_are_decided_at_once():
    settings = {**pack_quantized(), "ignore": ["re:(.*.*)*z$", "re:(.*)*(.*)*(.*)*q$"]}
    spec = spec_from_config(config(quantization_config=settings), None)
    for name in NAMES[:16]:
        assert spec.scheme(name) is not None
