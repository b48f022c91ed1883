"""Tokenizers and templates that are wrong: a coded error each time, and never anything else."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isobit.errors import DamagedError, InputError, IsobitError, NotSupportedError
from isobit.launch.tokenizer.tokenizer import Tokenizer

from ...made_tokenizers import KINDS, byte_level, save, unigram

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] | trim }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
JUNK: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e400, "", "x", "\x00", "\ufffd", "▁", [], [1],
    [[]], {}, {"type": "x"}, {"type": "Sequence"}, [["a", "b"]], {"a": 0}, {"a": -1}, {"a": "b"},
]  # fmt: skip
MUTATED_PER_SEED = 25
CODES = ("E-TOKENIZER", "E-CHAT-TEMPLATE")


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a JSON value; of long lists and objects the first few alone."""
    inner = (
        list(value.items())[:12]
        if isinstance(value, dict)
        else list(enumerate(value))[:6]
        if isinstance(value, list)
        else []
    )
    return [path, *(place for key, each in inner for place in _places(each, (*path, key)))]


def _mutated(fields: dict[str, Any], rng: random.Random) -> str:
    """A JSON text with one to three values replaced, removed or renamed, or the text itself cut."""
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(_places(fields)[1:])
        holder = fields
        for key in path[:-1]:
            holder = holder[key]
        change = rng.random()
        if change < 0.2:
            del holder[path[-1]]
        elif change < 0.3 and isinstance(holder, dict):
            holder[f"{path[-1]}_"] = holder.pop(path[-1])
        else:
            holder[path[-1]] = rng.choice(JUNK)
        if not fields:
            break
    text = json.dumps(fields)
    return text[: rng.randrange(len(text))] if rng.random() < 0.1 else text


def _tried(folder: Path) -> str:
    """Load, encode, render and decode; what came of it."""
    try:
        tokenizer = Tokenizer(folder)
        ids = tokenizer.encode("the quick 🦀 fox")
        if tokenizer.chat_template:
            ids = tokenizer.encode_chat("hello")
        stream = tokenizer.stream(ids[:1])
        text = stream.add(ids[1:]) + stream.finish()
    except IsobitError as error:
        assert error.code in CODES, error
        assert str(folder.name) in error.message or "token by token" in error.message
        return error.code
    assert isinstance(text, str)
    return "works"


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("kind", ["byte level", "byte fallback", "word piece", "unigram"])
def test_mutated_files_end_in_a_coded_error(kind, file, tmp_path):
    made = KINDS[kind]()
    rng = random.Random(f"{kind} {file}")
    settings = {
        "eos_token": "<|end|>",
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {"0": {"content": "a", "special": True}},
        "model_max_length": 512,
    }
    seen = set()
    for number in range(MUTATED_PER_SEED):
        folder = save(tmp_path / str(number), made, **settings)
        path = folder / file
        path.write_text(_mutated(json.loads(path.read_text()), rng))
        seen.add(_tried(folder))
    assert "E-TOKENIZER" in seen


def test_mutated_templates_end_in_a_coded_error(tmp_path):
    made, rng, seen = byte_level(), random.Random("template"), set()
    pieces = [
        "{%",
        "%}",
        "{{",
        "}}",
        " endfor ",
        " if ",
        "messages",
        "[0]",
        "|",
        "join",
        "'",
        "(",
        ".",
    ]
    for number in range(2 * MUTATED_PER_SEED):
        template = list(TEMPLATE)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(template))
            template[place : place + rng.randrange(8)] = rng.choice(pieces)
        folder = save(tmp_path / str(number), made, chat_template="".join(template))
        seen.add(_tried(folder))
    assert seen == {"works", "E-CHAT-TEMPLATE"}


@pytest.mark.parametrize(
    ("template", "kind", "named"),
    [
        ("{{ raise_exception('no system role') }}", InputError, "no system role"),
        ("line one\n{% for %}", DamagedError, r"line 2 .*'\{% for %\}'"),
        ("{{ messages[5].content }}", DamagedError, "UndefinedError"),
        ("{{ messages | map('x') | list }}", DamagedError, "No filter named 'x'"),
        ("{{ ''.__class__.__mro__ }}", NotSupportedError, "what no template may"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", DamagedError, "RecursionError"),
        ("{{ 1 // 0 }}", DamagedError, "ZeroDivisionError"),
        ("{{ 'ab' * 4000000000 }}", NotSupportedError, "MiB of memory"),
        (r"{{ raise_exception('\ud800') }}", InputError, "\ud800"),
        ({"a": "x", "b": "y"}, NotSupportedError, "called a, b"),
        ("{% include 'other.jinja' %}", NotSupportedError, "takes another template from a file"),
        ("{% from 'x' import y %}{{ y() }}", NotSupportedError, "takes another template"),
    ],
)
def test_what_a_template_does_wrong_is_told(template, kind, named, tmp_path):
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    tokenizer = Tokenizer(save(tmp_path / "m", byte_level(), chat_template=template))
    with pytest.raises(IsobitError, match=named) as refused:
        tokenizer.encode_chat("hello")
    assert type(refused.value) is kind
    assert refused.value.code == "E-CHAT-TEMPLATE"


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("tokenizer_config.json", "[1]", r"\[1\] where an object is expected"),
        ("tokenizer_config.json", "{", "no JSON"),
        ("tokenizer_config.json", '{"chat_template": 5}', "chat_template 5"),
        ("tokenizer_config.json", '{"tokenizer_class": []}', r"tokenizer_class \[\]"),
        ("tokenizer.json", "[" * 100_000, "nested too deeply"),
        ("tokenizer.json", '{"model": 5}', "tokenizer.json"),
        ("tokenizer.json", "\udce4", "no JSON"),
        ("config.json", "5", "config.json: 5 where"),
        ("special_tokens_map.json", "null", "None where an object"),
        ("chat_template.jinja", "\udcff", "chat_template.jinja: no text in UTF-8"),
        ("tokenizer_config.json", r'{"padding_side": "\ud800"}', "\ud800"),
    ],
)
def test_the_file_that_is_wrong_is_named(file, content, named, tmp_path):
    folder = save(tmp_path / "m", byte_level())
    (folder / file).write_text(content, errors="surrogateescape")
    with pytest.raises(DamagedError, match=named) as refused:
        Tokenizer(folder)
    assert refused.value.code == "E-TOKENIZER"


def test_files_that_are_none_are_not_opened(tmp_path):
    import os

    folder = save(tmp_path / "m", byte_level())
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    (folder / "added_tokens.json").symlink_to("added_tokens.json")
    with (folder / "vocab.json").open("wb") as large:
        large.truncate(1 << 30)
    with pytest.raises(DamagedError) as refused:
        Tokenizer(folder)
    assert all(
        part in refused.value.message
        for part in ("tokenizer.json: no regular file", "added_tokens.json: ", "1073741824 bytes")
    )


def test_a_path_that_is_no_utf8_is_not_called_damaged(tmp_path):
    with pytest.raises(NotSupportedError, match="no path that is no UTF-8"):
        Tokenizer(save(tmp_path / "m\udcff", byte_level()))


def test_code_of_its_own_is_never_run(tmp_path):
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    folder = save(tmp_path / "m", byte_level(), **own)
    (folder / "own.py").write_text("raise SystemExit")
    with pytest.raises(NotSupportedError, match="code of its own"):
        Tokenizer(folder)


@pytest.mark.parametrize("text", ["\ud800", "a\udcff"])
def test_half_a_character_is_no_text(text, tmp_path):
    tokenizer = Tokenizer(save(tmp_path / "m", byte_level(), chat_template=TEMPLATE))
    for encode, code in ((tokenizer.encode, CODES[0]), (tokenizer.encode_chat, CODES[1])):
        with pytest.raises(InputError, match="half of a character") as refused:
            encode(text)
        assert refused.value.code == code


def test_a_text_without_a_token_is_told(tmp_path):
    made = unigram()
    fields = json.loads(made.to_str())
    fields["model"]["unk_id"] = None
    folder = save(tmp_path / "m", made)
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match="cannot encode") as refused:
        Tokenizer(folder).encode("ЖЖЖ")
    assert refused.value.code == "E-TOKENIZER"


def test_no_template_and_no_tokenizer_are_told(tmp_path):
    with pytest.raises(InputError, match="no chat template") as refused:
        Tokenizer(save(tmp_path / "m", byte_level())).encode_chat("hello")
    assert refused.value.code == "E-CHAT-TEMPLATE"
    (tmp_path / "n").mkdir()
    with pytest.raises(InputError, match=r"no tokenizer in this folder\. some"):
        Tokenizer(tmp_path / "n", "some way out")


def _bounded(monkeypatch: pytest.MonkeyPatch, name: str, value: int) -> None:
    monkeypatch.setattr(f"isobit.launch.tokenizer.tokenizer.{name}", value)


def test_a_template_that_does_not_end_is_ended(tmp_path, monkeypatch):
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}"
    template = loop + "{% endfor %}{% endfor %}"
    _bounded(monkeypatch, "TEMPLATE_CPU_S", 1)
    tokenizer = Tokenizer(save(tmp_path / "m", byte_level(), chat_template=template))
    with pytest.raises(NotSupportedError, match="did not end within 1 s of CPU time") as refused:
        tokenizer.encode_chat("hello")
    assert refused.value.code == "E-CHAT-TEMPLATE"
    assert tokenizer.encode("the fox") == byte_level().encode("the fox").ids


def _hostile(change: Callable[[dict[str, Any]], None], folder: Path) -> Tokenizer:
    fields = json.loads(byte_level().to_str())
    change(fields)
    save(folder, byte_level())
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    return Tokenizer(folder)


def test_an_encoding_that_grows_is_ended(tmp_path):
    def grow(fields: dict[str, Any]) -> None:
        double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
        fields["normalizer"] = {"type": "Sequence", "normalizers": [double] * 40}
        fields["added_tokens"] = []

    with pytest.raises(NotSupportedError, match="within") as refused:
        _hostile(grow, tmp_path / "m").encode("a")
    assert refused.value.code == "E-TOKENIZER"
