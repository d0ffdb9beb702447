"""Templates: strict, sandboxed, rendered once, blind to titles."""

import time

import pytest

from llmrec.errors import RecipeError
from llmrec.recipe import shipped
from llmrec.text.templates import PromptTemplate, Span

GOOD = (
    "{% block prompt %}Seen:\n{% for t in history %}\n{{ t }}\n{% endfor %}\nNext:\n{% endblock %}"
    "{% block completion %}{{ target }}{% endblock %}"
)


def test_titles_come_back_as_spans_of_their_own():
    spans = PromptTemplate(GOOD).prompt(["A", "B"])
    assert [s for s in spans if s.title is not None] == [Span("A", 0), Span("B", 1)]
    assert spans[0] == Span("Seen:\n")


UNQUOTED = [name for name in shipped.prompt_names() if not name.startswith("next_item_quoted/")]


def test_the_quoted_template_says_a_sentence_with_titles_in_quotes():
    template = PromptTemplate(shipped.prompt_text("next_item_quoted/movie"), "quoted")
    text = "".join(s.text for s in template.prompt(["First", "Second"]))
    assert text.splitlines()[0].endswith(' watched these movies: "First", "Second".')
    assert text.endswith("\n")
    assert "".join(s.text for s in template.completion("Third")) == '"Third"'


@pytest.mark.parametrize("name", UNQUOTED)
def test_every_shipped_template_keeps_titles_on_lines_of_their_own(name):
    template = PromptTemplate(shipped.prompt_text(name), name)
    text = "".join(s.text for s in template.prompt(["First", "Second"]))
    assert "\nFirst\nSecond\n" in text
    assert text.endswith("\n")
    assert template.completion("Third") == (Span("Third", 0),)


@pytest.mark.parametrize(
    "title", ["{{ 7*7 }}", "{% for x in y %}", "{{ history }}", "{% raw %}", "<b>&amp;</b>", "\\n"]
)
def test_a_title_is_never_template_code(title):
    template = PromptTemplate(GOOD)
    assert [s.text for s in template.prompt([title]) if s.title == 0] == [title]
    assert template.completion(title) == (Span(title, 0),)


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ history.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ self._TemplateReference__context }}{{ undefined_name }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ history.append('x') }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxxxx{% endfor %}{% endfor %}",
        "{{ missing }}",
        "{{ 1 / 0 }}",
        "\ue0000\ue001",
        "{% for t in history",
    ],
)
def test_a_hostile_or_broken_template_is_refused(prompt):
    source = GOOD.replace("Seen:", prompt)
    with pytest.raises(RecipeError):
        PromptTemplate(source, "mine.jinja").check()


# What could run long, grow, read or draw by chance, alone and inside what a template may say.
BEYOND = [
    "range(9)",
    "lipsum()",
    "history|random",
    "dict(a=1)",
    "cycler('a', 'b')",
    "joiner(',')",
    "namespace(a=1)",
    "'x' * 99999999",
    "9 ** 99999",
    "'%99999999d' % 1",
    "'{:>99999999}'.format(1)",
    "'x'|center(99999999)",
    "'x'|indent(99999999)",
    "history|batch(1)",
    "history|map('upper')",
    "history|tojson",
    "history.__class__",
    "[1, 2, 3]",
    "{'a': 1}",
    "'a' ~ 'b'",
    "9 // 2",
    "self.prompt()",
    "super()",
    "caller()",
]
AROUND = [
    "{{ %s }}",
    "{% if %s %}x{% endif %}",
    "{% for t in history %}{{ %s }}{% endfor %}",
    "{% for t in %s %}{{ t }}{% endfor %}",
    "{{ 'a' if %s else 'b' }}",
]
STATEMENTS = [
    "{% set x = 'a' %}",
    "{% macro m() %}{{ m() }}{% endmacro %}",
    "{% for a in history recursive %}{{ loop(history) }}{% endfor %}",
    "{% filter upper %}x{% endfilter %}",
    "{% call m() %}x{% endcall %}",
    "{% with a = 1 %}x{% endwith %}",
    "{% extends 'other' %}",
    "{% from 'os' import path %}",
    "{% for a in history %}{% for b in history %}{% for c in history %}{% endfor %}{% endfor %}"
    "{% endfor %}",
]


@pytest.mark.parametrize(
    "prompt", [around.replace("%s", said) for said in BEYOND for around in AROUND] + STATEMENTS
)
def test_whatever_could_run_long_is_no_part_of_the_grammar(prompt):
    source = GOOD.replace("Seen:", prompt)
    begun = time.monotonic()
    with pytest.raises(RecipeError, match=r"mine\.jinja:1: "):
        PromptTemplate(source, "mine.jinja").check()
    assert time.monotonic() - begun < 1


def test_a_template_deeper_than_python_goes_or_longer_than_any_is_told():
    deep = GOOD.replace("Seen:", "{% if history %}" * 3000 + "{% endif %}" * 3000)
    with pytest.raises(RecipeError):
        PromptTemplate(deep).check()
    with pytest.raises(RecipeError, match="is longer than"):
        PromptTemplate(GOOD.replace("Seen:", "x" * 300_000)).check()


def test_what_the_grammar_holds():
    source = GOOD.replace(
        "Seen:",
        "{% if history|length > 2 and not candidates %}{{ 'many' if history else 'none' }}"
        "{% endif %}{% for t in history[-0:] %}{{ loop.index + 1 }}{% endfor %}"
        "{% if demonstrations is defined %}:{% endif %}",
    )
    text = "".join(span.text for span in PromptTemplate(source).prompt(["A", "B", "C"]))
    assert text.startswith("many234:")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% block prompt %}{% endblock %}", "shows the titles"),
        (GOOD.replace("{{ t }}", "{{ t }}{{ t }}"), "each once"),
        (GOOD.replace("in history", "in history|reverse"), "in order"),
        (GOOD.replace("{{ target }}", "It"), "must show"),
        (GOOD.replace("block completion", "block answer"), "no block 'completion'"),
        ("hello", "no block 'prompt'"),
    ],
)
def test_a_template_that_cannot_train_says_why(source, message):
    with pytest.raises(RecipeError, match=message):
        PromptTemplate(source).check()


def test_a_missing_file_is_named():
    with pytest.raises(RecipeError, match=r"nowhere\.jinja"):
        PromptTemplate.from_file("nowhere.jinja")
