"""Templates: strict, sandboxed, rendered once, blind to titles."""

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


@pytest.mark.parametrize("name", shipped.prompt_names())
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
