"""A run over HTTP gives the lists that it gives in Python, within its limits."""

import math
import threading
import time

import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from llmrec import Recommender
from llmrec.server import app as app_module
from llmrec.server.app import Limits, application


@pytest.fixture
def client_of(answers):
    """A function from limits to a client of the run."""
    made = []

    def make(limits=None, hosts=()):
        app = application(answers, limits or Limits(), hosts)
        made.append(app)
        return TestClient(app, base_url="http://127.0.0.1")

    yield make
    for app in made:
        app.state.batcher.close()


@pytest.fixture
def client(client_of):
    return client_of()


def listed(table, user):
    return [
        (r["rank"], r["item_id"], r["title"], pytest.approx(r["score"], abs=1e-6))
        for r in table.to_pylist()
        if r["user"] == user
    ]


def served(result):
    return [(i["rank"], i["item_id"], i["title"], i["score"]) for i in result["items"]]


def test_answers_are_those_of_python(client, answers):
    histories = [["i0", "The Man II"], [{"id": "i3"}, {"title": "Love"}], []]
    for system in answers.systems:
        said = client.post(
            "/recommend", json={"histories": histories, "system": system, "top_k": 4}
        ).json()
        recommender = Recommender.from_pretrained(answers.folder.root, system)
        table = recommender.recommend(histories, 4)
        assert said["system"] == system
        assert 0 < said["computed"] <= said["seconds"]
        assert said["score_is"] == recommender.system.scored_by
        for number, result in enumerate(said["results"]):
            assert served(result) == listed(table, str(number))
            assert not result["notices"]


def test_the_system_trained_furthest_answers_where_none_is_named(client):
    assert client.post("/recommend", json={"histories": [["i1"]]}).json()["system"] == "tuned"
    refused = client.post("/recommend", json={"histories": [["i1"]], "system": "best"})
    assert refused.status_code == 422
    assert "there are tuned, popularity, markov, untuned, tuned_guided" in refused.json()["detail"]


def test_requests_at_once_are_answered_as_they_are_alone(client, answers):
    alone = {
        n: client.post("/recommend", json={"histories": [[f"i{n}"]], "top_k": 3}).json()["results"]
        for n in range(12)
    }
    together = {}

    def ask(n):
        request = {"histories": [[f"i{n}"]], "top_k": 3}
        together[n] = client.post("/recommend", json=request).json()["results"]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(12):
        ours, theirs = alone[n][0]["items"], together[n][0]["items"]
        assert [i["item_id"] for i in ours] == [i["item_id"] for i in theirs]
        scores = [i["score"] for i in theirs]
        assert scores == pytest.approx([i["score"] for i in ours], abs=1e-4)


def test_stock_exclusions_and_unknown_entries(client):
    asked = {"histories": [["i0", "Nothing like it", "Last Sumer"]], "system": "popularity"}
    said = client.post("/recommend", json={**asked, "candidates": ["i3", "i4"], "exclude": ["i4"]})
    [result] = said.json()["results"]
    assert [i["item_id"] for i in result["items"]] == ["i3"]
    assert [(n["entry"], n["how"], n["title"]) for n in result["notices"]] == [
        ("Nothing like it", "unknown", result["notices"][0]["title"]),
        ("Last Sumer", "fuzzy", "Last Summer"),
    ]
    strict = client.post("/recommend", json={**asked, "unknown": "raise"})
    assert strict.status_code == 422
    assert "'Nothing like it' is neither an item id nor a title" in strict.json()["detail"]
    nothing = client.post("/recommend", json={**asked, "candidates": ["nope"]})
    assert nothing.status_code == 422


@pytest.mark.parametrize(
    "request_",
    [
        {"histories": []},
        {"histories": [["i1"]] * (app_module.HISTORIES + 1)},
        {"histories": [["i1"] * (app_module.ENTRIES + 1)]},
        {"histories": [["x" * (app_module.LETTERS + 1)]]},
        {"histories": [["i1"]], "top_k": 0},
        {"histories": [["i1"]], "top_k": app_module.TOP_K + 1},
        {"histories": [["i1"]], "topk": 3},
        {"histories": "i1"},
        {"histories": ["i1"]},
        {"histories": [[["i1"]]]},
        {"histories": [[True]]},
        {"histories": [[{"id": "i1", "title": "Love"}]]},
        {"histories": [[None]]},
        {"histories": [["i1"]], "unknown": "drop"},
    ],
)
def test_what_is_no_request_is_refused(client, request_):
    assert client.post("/recommend", json=request_).status_code == 422


def test_mistakes_are_told_without_what_was_sent(client):
    wrong = client.post("/recommend", json={"histories": [["i1"]], "top_k": 0, "topk": 3}).json()
    assert wrong["detail"] == (
        "body.top_k: Input should be greater than or equal to 1; "
        "body.topk: Extra inputs are not permitted"
    )
    many = client.post("/recommend", json={"histories": [[None] * 50]}).json()["detail"]
    assert many.endswith("more")
    assert len(many) < 800
    for body in (b"\xff\xfe", b"{", b"[]", b"[" * 50_000, b'"text"'):
        refused = client.post("/recommend", content=body)
        assert refused.status_code == 422
        assert "the body must be JSON of an object" in refused.json()["detail"]
        json = {"content-type": "application/json"}
        assert client.post("/recommend", content=body, headers=json).status_code in (400, 422)


def test_a_large_request_is_refused_whatever_it_says_of_itself(client_of):
    client = client_of(Limits(body=200))

    def in_pieces():
        yield from [b" " * 90] * 3

    assert client.post("/recommend", content=b" " * 201).status_code == 413
    assert client.post("/recommend", content=in_pieces()).status_code == 413
    assert client.post("/recommend", json={"histories": [["i1"]]}).status_code == 200


def test_a_busy_server_says_so_and_a_slow_answer_is_given_up(client_of, answers, monkeypatch):
    real, begun = answers.answer, threading.Event()

    def slow(ask, histories):
        begun.set()
        time.sleep(0.5)
        return real(ask, histories)

    monkeypatch.setattr(answers, "answer", slow)
    client = client_of(Limits(seconds=0.1, waiting=1))
    asked = {"histories": [["i1"]], "system": "popularity"}
    late = {}
    thread = threading.Thread(target=lambda: late.update(one=client.post("/recommend", json=asked)))
    thread.start()
    assert begun.wait(10)
    two = client.post("/recommend", json={"histories": [["i1"], ["i2"]], "system": "popularity"})
    assert two.status_code == 503
    assert two.headers["retry-after"] == "1"
    thread.join()
    assert late["one"].status_code == 504


def test_items_are_found_by_id_and_by_words(client):
    def found(words):
        return [i["title"] for i in client.get("/items", params={"q": words}).json()]

    assert found("man") == ["The Man", "The Man II"]
    assert found("star")[:2] == ["Dark Star", "A Star"]
    assert found("a")[0] == "A Star"
    assert found("i7") == ["Love"]
    assert found("sumer") == ["Last Summer"]
    assert "Dark Star" not in found("dark city")
    assert found("  ") == []
    assert len(client.get("/items", params={"q": "e", "limit": 2}).json()) == 2
    assert client.get("/items", params={"q": "e" * 501}).status_code == 422


def test_how_a_list_came_about(client, answers):
    asked = {"history": ["i0", "Love"], "system": "tuned", "top_k": 4}
    explained = client.post("/explain", json=asked).json()["explained"]
    text = "".join(token["text"] for token in explained["tokens"])
    assert "The Man" in text
    assert text.index("The Man") < text.index("Love")
    titles = [t["title"] for t in explained["tokens"] if t["kind"] == "title"]
    assert list(dict.fromkeys(titles)) == ["The Man", "Love"]
    listed = client.post("/recommend", json={"histories": [asked["history"]], "top_k": 4}).json()
    expected = {i["title"]: i["score"] for i in listed["results"][0]["items"]}
    ends = {}

    def walk(node, above):
        assert node["p"] == pytest.approx(math.exp(node["log_p"] - above), abs=1e-6)
        for item in node["items"]:
            if node["listed"]:
                ends[item["title"]] = node["log_p"]
        if node["children"]:
            total = sum(child["p"] for child in node["children"]) + node["rest"]["p"]
            assert total == pytest.approx(1, abs=1e-6)
            below = sum(child["open"] for child in node["children"])
            assert node["rest"]["count"] or below == node["open"]
        for child in node["children"]:
            walk(child, node["log_p"])

    assert explained["tree"]["open"] == 10
    walk(explained["tree"], 0.0)
    assert ends == {title: pytest.approx(score, abs=1e-3) for title, score in expected.items()}
    guided = client.post("/explain", json={**asked, "system": "tuned_guided"}).json()["explained"]
    assert guided["tree"]["children"] != explained["tree"]["children"]
    assert client.post("/explain", json={**asked, "system": "markov"}).json()["explained"] is None


def test_health_metrics_openapi_and_the_page(client, answers):
    health = client.get("/health").json()
    assert (health["status"], health["items"], health["systems"]) == ("ok", 12, answers.systems)
    client.post("/recommend", json={"histories": [["i1"]], "system": "popularity"})
    client.get("/nowhere")
    measures = client.get("/metrics")
    assert measures.headers["content-type"].startswith("text/plain")
    assert 'llmrec_requests_total{path="/recommend",status="200"} 1' in measures.text
    assert 'llmrec_requests_total{path="other",status="404"} 1' in measures.text
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/recommend", "/explain", "/items", "/health", "/metrics"}
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    for name in ("style.css", "script.js"):
        assert client.get(f"/{name}").status_code == 200


def test_another_sites_name_for_this_machine_is_refused(client_of):
    client = client_of(hosts=["127.0.0.1"])
    assert client.get("/health").status_code == 200
    assert client.get("/health", headers={"host": "evil.example"}).status_code == 400
