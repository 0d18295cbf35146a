"""What the service says of itself: OpenAPI 3.2, the catalog, its state."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field, SecretStr
from sse_starlette import ServerSentEvent

from eventmux import ConfigOnly, Event, EventOf, source
from eventmux.catalog import EnabledSource
from service import Service, serving, settings_of


class Item(BaseModel):
    name: str
    at: float = Field(serialization_alias="atTime")


class Moved(Event, name="moved.v2"):
    items: list[Item]


class Query(BaseModel):
    text: str


@source(shared=True)
async def moves(
    query: Query, names: list[str], speed: Annotated[float, Field(gt=0, description="Metres a second.")] = 1.0
) -> AsyncIterator[Moved | EventOf[Item]]:
    """What moves.

    And more of it.
    """
    yield Moved(items=[Item(name=names[0], at=speed)])
    yield EventOf(Item(name=query.text, at=0))


@source
async def relay(token: Annotated[SecretStr, ConfigOnly] = SecretStr("s3cret")) -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent("x")


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    slow = EnabledSource(
        "slow-moves", moves, "test", fixed={"names": ["fixed"]}, defaults={"speed": 0.5}, policy=moves.policy
    )
    away = EnabledSource("away", relay, "test", unavailable="it is away")
    with serving(settings_of(moves, relay, slow, away, streams={"all": ["moves", "relay"]})) as service:
        yield service


@pytest.fixture(scope="module")
def document(service: Service) -> dict[str, Any]:
    response = service.get("/openapi.json")
    assert response.status_code == 200
    return dict(response.json())


def parameters(document: dict[str, Any], path: str) -> dict[str, dict[str, Any]]:
    return {p["name"]: p for p in document["paths"][path]["get"]["parameters"]}


def test_it_is_openapi_3_2_with_one_typed_path_per_source_and_stream(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.2.0"
    for path in ("/sse", "/sse/moves", "/sse/relay", "/sse/slow-moves", "/sse/all"):
        assert {"get", "post"} <= document["paths"][path].keys()
    assert "/sse/{name}" not in document["paths"]


def test_every_parameter_of_a_source_is_listed_with_its_type_and_default(document: dict[str, Any]) -> None:
    found = parameters(document, "/sse/moves")
    assert found["speed"]["schema"]["exclusiveMinimum"] == 0
    assert found["speed"]["description"] == "Metres a second."
    assert found["names"]["required"] is True
    assert found["query"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/moves.Query"}
    slow = parameters(document, "/sse/slow-moves")
    assert "names" not in slow
    assert slow["speed"]["schema"]["default"] == 0.5
    assert "token" not in parameters(document, "/sse/relay")
    assert "moves.speed" in parameters(document, "/sse/all")
    assert "slow-moves.speed" in parameters(document, "/sse")
    assert {"limit", "events", "qualify", "last_event_id", "Last-Event-ID"} <= found.keys()


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for part in value.values():
                yield from references(part)
        elif isinstance(value, list):
            for part in value:
                yield from references(part)

    found = set(references(document))
    assert found
    for reference in found:
        target: Any = document
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
        Draft202012Validator.check_schema(target)


def test_the_events_of_a_source_are_its_item_schema(service: Service, document: dict[str, Any]) -> None:
    response = document["paths"]["/sse/moves"]["get"]["responses"]["200"]["content"]
    items = response["text/event-stream"]["itemSchema"]["anyOf"]
    own = [["moved.v2", "moves/moved.v2"], ["item", "moves/item"]]
    control = [["stream.gap"], ["stream.error"], ["stream.end"]]
    assert own + control == [item["properties"]["event"]["enum"] for item in items]
    lines = {**response["application/json"]["schema"], "components": document["components"]}
    found = service.get('/sse/moves?query={"text":"q"}&names=n', headers={"accept": "application/json"}).json()
    assert [line["event"] for line in found] == ["moved.v2", "item", "stream.end"]
    assert found[0]["data"] == {"items": [{"name": "n", "atTime": 1.0}]}
    Draft202012Validator(lines).validate(found)
    qualified = '/sse/moves?query={"text":"q"}&names=n&qualify=true'
    Draft202012Validator(lines).validate(service.get(qualified, headers={"accept": "application/json"}).json())
    found[0]["data"] = {"items": 3}
    assert not Draft202012Validator(lines).is_valid(found)


def test_an_event_that_two_sources_describe_is_what_the_document_says(
    service: Service, document: dict[str, Any]
) -> None:
    response = document["paths"]["/sse"]["get"]["responses"]["200"]["content"]["application/json"]
    lines = {**response["schema"], "components": document["components"]}
    path = '/sse?sources=moves,slow-moves&query={"text":"q"}&moves.names=n'
    found = service.get(path, headers={"accept": "application/json"}).json()
    assert ["moved.v2"] * 2 == [line["event"] for line in found if line["event"] == "moved.v2"]
    Draft202012Validator(lines).validate(found)


def test_the_catalog_describes_every_source_and_stream(service: Service) -> None:
    catalog = service.get("/sources").json()
    rows = {row["name"]: row for row in catalog["sources"]}
    assert rows["moves"]["description"].startswith("What moves.")
    assert rows["moves"]["plugin"] == "test"
    assert (rows["moves"]["shared"], rows["relay"]["shared"]) == (True, False)
    assert rows["moves"]["events"].keys() == {"moved.v2", "item"}
    assert (rows["away"]["state"], rows["away"]["reason"]) == ("unavailable", "it is away")
    assert catalog["streams"] == [{"name": "all", "sources": ["moves", "relay"], "url": "/sse/all"}]
    for row in rows.values():
        Draft202012Validator.check_schema(row["parameters"])
    assert "s3cret" not in str(catalog)


def test_the_state_of_a_source_is_running_while_somebody_listens(service: Service) -> None:
    assert service.get("/healthz").json() == {"status": "ok"}
    ready = service.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert ready.json()["sources"]["away"] == {"state": "unavailable", "reason": "it is away"}


def test_the_page_at_the_root_loads_nothing_from_elsewhere(service: Service) -> None:
    page = service.get("/")
    assert page.status_code == 200
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert "http://" not in page.text.replace("http://127.0.0.1", "")
    assert "https://" not in page.text
