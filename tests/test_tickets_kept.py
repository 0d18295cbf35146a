"""Where tickets are kept: in the memory of a process, or in a store, where every replica knows them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator

import pytest

from eventmux import Principal
from eventmux.errors import PluginError, StoreAwayError
from eventmux.local_tickets import LocalTickets
from eventmux.seal import MAX_BYTES, Sealed, seal, unseal
from eventmux.shared_tickets import KEPT, LOOKED_AT, RENEWAL, SharedTickets
from eventmux.tickets import MAX_TICKETS, MAX_UNUSED, REMEMBERED, Grant, Ticket, Tickets, TooManyTicketsError, new_text
from eventsource import wait_until
from replicas import LEASE, Site, sites, until
from virtual_time import loop, run

BOTH = pytest.mark.parametrize("kind", ["memory", "store"])
SLACK = {"memory": 0.0, "store": KEPT - REMEMBERED}  # seconds that it may be remembered for longer

DASHER = Principal("dash", "token", read=["*"])
LIFETIME = 30.0


class Opened:
    """Something that is open until nobody holds it."""


def tickets_at(site: Site) -> SharedTickets:
    return SharedTickets(site.replica, lambda: loop().now)


@contextlib.asynccontextmanager
async def keeping(kind: str) -> AsyncIterator[LocalTickets | SharedTickets]:
    if kind == "memory":
        yield LocalTickets(lambda: loop().now)
        return
    async with sites(1) as (site,):
        tickets = tickets_at(site)
        yield tickets
        tickets.close()


async def issued(tickets: Tickets, principal: Principal = DASHER) -> str:
    return await tickets.issue(principal, b"", LIFETIME)


async def found(tickets: Tickets, text: str, proof: str | None = None) -> Ticket:
    ticket = await tickets.find(text, proof)
    assert ticket
    return ticket


async def opened(tickets: Tickets, text: str, stream: object, proof: str | None = None) -> str:
    """Returns the proof by which it opens another."""
    ticket = await found(tickets, text, proof)
    assert await ticket.claim()
    ticket.open(stream)
    ticket.give_back()  # which is nothing, for a stream has it
    return ticket.grant.proof


async def is_good(tickets: Tickets, text: str, proof: str | None) -> bool:
    return await tickets.find(text, proof) is not None


async def is_used(site: Site) -> bool:
    """Whether the ticket there is has just been claimed. One turn of the loop passes."""
    await asyncio.sleep(0)
    ((_, until),) = site.store.shelf.values.values()
    return until > loop().now + LIFETIME


# What holds for both


@BOTH
def test_a_stream_may_be_open_for_long_and_away_for_an_hour(kind: str) -> None:
    async def main() -> None:
        async with keeping(kind) as tickets:
            text, stream = await issued(tickets), Opened()
            proof = await opened(tickets, text, stream)
            await asyncio.sleep(3 * REMEMBERED)
            assert await is_good(tickets, text, proof)
            for other in (None, "", "AAAAAAAA"):
                assert not await is_good(tickets, text, other)
            del stream
            await asyncio.sleep(REMEMBERED - 1)
            assert await is_good(tickets, text, proof)
            await asyncio.sleep(1 + SLACK[kind])
            assert not await is_good(tickets, text, proof)
            await is_good(tickets, await issued(tickets), None)
            assert len(tickets) == 1, "what is over takes no memory"

    run(main())


@BOTH
def test_two_streams_of_one_ticket_are_both_waited_for(kind: str) -> None:
    async def main() -> None:
        async with keeping(kind) as tickets:
            text, first, second = await issued(tickets), Opened(), Opened()
            proof = await opened(tickets, text, first)
            assert proof == await opened(tickets, text, second, proof)
            del first
            await asyncio.sleep(2 * REMEMBERED)
            assert await is_good(tickets, text, proof)
            del second
            await asyncio.sleep(REMEMBERED + SLACK[kind])
            assert not await is_good(tickets, text, proof)

    run(main())


@BOTH
def test_a_ticket_that_is_not_used_in_time_is_gone(kind: str) -> None:
    async def main() -> None:
        async with keeping(kind) as tickets:
            text = await issued(tickets)
            ticket = await found(tickets, text)
            await asyncio.sleep(LIFETIME)
            assert not await ticket.claim()
            assert not await is_good(tickets, text, None)

    run(main())


@BOTH
def test_a_ticket_does_not_outlive_its_principals_token(kind: str) -> None:
    async def main() -> None:
        async with keeping(kind) as tickets:
            ends = time.time() + 0.2
            principal = Principal("a", "jwt", read=["*"], expires=ends)
            unused, used, stream = await issued(tickets, principal), await issued(tickets, principal), Opened()
            proof = await opened(tickets, used, stream)
            assert (await found(tickets, used, proof)).grant.principal.expires == ends
            wait_until(lambda: time.time() > ends, "the token to expire")
            assert not await is_good(tickets, unused, None)
            assert not await is_good(tickets, used, proof)

    run(main())


@BOTH
def test_of_two_that_bring_one_unused_ticket_at_once_one_has_it(kind: str) -> None:
    async def main() -> None:
        async with keeping(kind) as tickets:
            text = await issued(tickets)
            both = [await found(tickets, text) for _ in range(2)]
            stream = Opened()

            async def open_by(ticket: Ticket) -> bool:
                if is_mine := await ticket.claim():
                    ticket.open(stream)
                return is_mine

            assert sorted(await asyncio.gather(*map(open_by, both))) == [False, True]

    run(main())


@BOTH
def test_a_ticket_that_is_given_back_is_as_it_was(kind: str) -> None:
    async def main() -> None:
        async with keeping(kind) as tickets:
            text, stream = await issued(tickets), Opened()
            for _ in range(3):
                ticket = await found(tickets, text)
                assert await ticket.claim()
                ticket.give_back()
                await asyncio.sleep(0.1)
            proof = await opened(tickets, text, stream)
            assert not await is_good(tickets, text, None)
            again = await found(tickets, text, proof)
            assert await again.claim()
            again.give_back()
            await asyncio.sleep(0.1)
            assert not await is_good(tickets, text, None), "one that was used stays so"
            assert await is_good(tickets, text, proof)
            text = await issued(tickets)
            ticket = await found(tickets, text)
            await ticket.claim()
            ticket.give_back()
            await asyncio.sleep(LIFETIME)
            assert not await is_good(tickets, text, None), "and it lives no longer by that"

    run(main())


@BOTH
def test_a_principal_has_so_many_unused_tickets_and_no_more(kind: str) -> None:
    async def main() -> None:
        async with keeping(kind) as tickets:
            texts = [await issued(tickets) for _ in range(MAX_UNUSED)]
            with pytest.raises(TooManyTicketsError) as refused:
                await issued(tickets)
            assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "31")
            await issued(tickets, Principal("other", "token"))
            stream = Opened()
            await opened(tickets, texts[0], stream)
            await issued(tickets)
            await asyncio.sleep(LIFETIME)
            await issued(tickets)
            assert len(tickets) == 2, "that is the used one and the last: old ones take no memory"

    run(main())


@BOTH
def test_tickets_in_all_are_bounded_and_who_wants_more_gives_its_own(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with keeping(kind) as tickets:
            other, held = Principal("other", "token"), Opened()
            theirs, own = await issued(tickets, other), await issued(tickets)
            proofs = [await opened(tickets, text, Opened()) for text in (theirs, own)]
            texts = [theirs, own, await issued(tickets)]
            proofs.append(await opened(tickets, texts[2], held))
            gc.collect()
            await issued(tickets)
            await issued(tickets)  # gives `own`, which is away
            await asyncio.sleep(0.1)
            assert [await is_good(tickets, *pair) for pair in zip(texts, proofs, strict=True)] == [True, False, True]
            await issued(tickets)  # it has none away any more
            await asyncio.sleep(0.1)
            assert not await is_good(tickets, theirs, proofs[0])
            with pytest.raises(TooManyTicketsError):
                await issued(tickets)
            assert len(tickets) == 4

    assert MAX_TICKETS == 100_000
    monkeypatch.setattr("eventmux.tickets.MAX_TICKETS", 4)
    run(main())


@BOTH
@pytest.mark.parametrize("text", ["", "x", "x" * 32, "x" * 10_000, "\0", "é" * 32])
def test_what_is_no_ticket_is_none(kind: str, text: str) -> None:
    async def main() -> None:
        async with keeping(kind) as tickets:
            assert await tickets.find(text, None) is None

    run(main())


# What holds for several replicas


def test_a_ticket_of_one_replica_opens_a_stream_on_another_and_that_comes_back_to_any() -> None:
    async def main() -> None:
        async with sites(3) as all_sites:
            a, b, c = map(tickets_at, all_sites)
            principal = Principal("ann", "jwt", ["*"], ["news"], time.time() + 1e6)
            text, stream = await a.issue(principal, b"rules", LIFETIME), Opened()
            proof = await opened(b, text, stream)
            for tickets in (a, b, c):
                assert not await is_good(tickets, text, None)
                assert (await found(tickets, text, proof)).grant == Grant(principal, b"rules", proof)
            del stream
            await asyncio.sleep(REMEMBERED / 2)
            stream = Opened()
            await opened(c, text, stream, proof)
            await asyncio.sleep(2 * REMEMBERED)
            assert await is_good(a, text, proof)
            for tickets in (a, b, c):
                tickets.close()

    run(main())


def test_of_many_replicas_that_get_one_ticket_at_once_one_opens_a_stream() -> None:
    async def main() -> None:
        async with sites(4) as all_sites:
            replicas = [tickets_at(site) for site in all_sites]
            text = await issued(replicas[0])
            tickets = [await found(one, text) for one in replicas]
            assert sorted(await asyncio.gather(*(ticket.claim() for ticket in tickets))) == [False, False, False, True]

    run(main())


def test_when_the_replica_of_a_stream_has_died_its_ticket_is_good_for_an_hour_on_others() -> None:
    async def main() -> None:
        async with sites(2) as (site, other):
            a, b = tickets_at(site), tickets_at(other)
            text, stream = await issued(a), Opened()
            proof = await opened(a, text, stream)
            await asyncio.sleep(REMEMBERED)
            site.store.cut()
            await asyncio.sleep(REMEMBERED)
            assert await is_good(b, text, proof)
            await asyncio.sleep(KEPT - REMEMBERED)
            assert not await is_good(b, text, proof)
            site.store.mend()
            await asyncio.sleep(RENEWAL)
            assert await is_good(b, text, proof), "it was not dead"
            a.close()

    run(main())


def test_where_the_store_has_lost_all_tickets_those_with_streams_are_soon_there_again() -> None:
    async def main() -> None:
        async with sites(1) as (site,):
            tickets = tickets_at(site)
            text, unused, stream = await issued(tickets), await issued(tickets), Opened()
            proof = await opened(tickets, text, stream)
            site.store.shelf.values.clear()
            assert not await is_good(tickets, text, proof)
            await asyncio.sleep(RENEWAL + 1)
            assert await is_good(tickets, text, proof)
            assert not await is_good(tickets, unused, None)
            tickets.close()

    run(main())


def test_while_the_store_is_away_no_ticket_is_called_bad_and_none_is_issued() -> None:
    async def main() -> None:
        async with sites(1) as (site,):
            tickets = tickets_at(site)
            text = await issued(tickets)
            ticket = await found(tickets, text)
            site.store.cut()
            for attempt in (issued(tickets), tickets.find(text, None), tickets.find("x" * 32, None), ticket.claim()):
                with pytest.raises(StoreAwayError):
                    await attempt
            assert not await is_good(tickets, "garbage", None), "which needs no store to tell"
            assert len(tickets) == 1
            site.store.mend()
            await until(lambda: not tickets._returning)
            stream = Opened()
            await opened(tickets, text, stream)
            tickets.close()

    run(main())


def test_a_ticket_of_which_nobody_knows_whether_it_was_claimed_is_unused_when_the_store_is_back() -> None:
    async def main() -> None:
        async with sites(2) as (site, other):
            a, b = tickets_at(site), tickets_at(other)
            text = await issued(a)
            claiming = asyncio.create_task((await found(a, text)).claim())
            while not await is_used(site):
                pass
            site.store.cut()
            with pytest.raises(StoreAwayError):
                await claiming
            assert not await is_good(b, text, None), "it was claimed"
            site.store.mend()
            with pytest.raises(StoreAwayError, match="is being given back"):
                await a.find(text, None)
            await until(lambda: not a._returning)
            stream = Opened()
            await opened(b, text, stream)
            b.close()

    run(main())


def test_a_claim_that_arrives_after_it_was_given_up_does_nothing() -> None:
    async def main() -> None:
        async with sites(2) as (site, other):
            a, b = tickets_at(site), tickets_at(other)
            text = await issued(a)
            ticket = await found(a, text)
            site.store.cut()
            with pytest.raises(StoreAwayError):
                await ticket.claim()
            late = site.store.swaps[-1]
            site.store.mend()
            await until(lambda: not a._returning)
            assert not await other.store.swap(*late)
            assert await is_good(b, text, None)

    run(main())


def test_a_ticket_that_waited_too_long_for_the_store_is_not_given_back() -> None:
    async def main() -> None:
        async with sites(1) as (site,):
            tickets = tickets_at(site)
            text = await issued(tickets)
            ticket = await found(tickets, text)
            site.store.cut()
            with pytest.raises(StoreAwayError):
                await ticket.claim()
            await asyncio.sleep(LIFETIME + LEASE)
            assert not tickets._returning
            site.store.mend()
            assert not await is_good(tickets, text, None)

    run(main())


def test_a_client_that_goes_while_its_ticket_is_claimed_leaves_it_unused() -> None:
    async def main() -> None:
        async with sites(1) as (site,):
            tickets = tickets_at(site)
            text = await issued(tickets)
            claiming = asyncio.create_task((await found(tickets, text)).claim())
            while not await is_used(site):
                pass
            claiming.cancel()
            with pytest.raises(asyncio.CancelledError):
                await claiming
            assert tickets._returning
            await until(lambda: not tickets._returning)
            assert await is_good(tickets, text, None)

    run(main())


def test_tickets_that_were_used_on_another_replica_are_not_held_against_their_principal() -> None:
    async def main() -> None:
        async with sites(2) as (site, other):
            a, b = tickets_at(site), tickets_at(other)
            texts, stream = [await issued(a) for _ in range(MAX_UNUSED)], Opened()
            for text in texts[: LOOKED_AT + 1]:
                await opened(b, text, stream)
            for _ in range(LOOKED_AT + 1):
                await issued(a)
            with pytest.raises(TooManyTicketsError):
                await issued(a)
            b.close()

    run(main())


def test_a_replica_keeps_no_more_tickets_in_the_store_than_it_may_wherever_they_were_issued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with sites(2) as (site, other):
            a, b = tickets_at(site), tickets_at(other)
            for _ in range(10):
                text = await issued(a)
                await opened(b, text, Opened())
                gc.collect()
                await asyncio.sleep(LIFETIME)
            assert len(b) == 4
            assert len(site.store.shelf.values) == 4
            b.close()

    monkeypatch.setattr("eventmux.tickets.MAX_TICKETS", 4)
    run(main())


# What lies in the store


ANN = Principal("ann-the-operator", "jwt", ["secret-*"], ["news"], 1e10)


@pytest.mark.parametrize("principal", [ANN, Principal("éa\u4e2d", "hook", ["*"])], ids=["jwt", "hook"])
@pytest.mark.parametrize("is_used", [False, True])
def test_what_was_sealed_by_a_ticket_is_read_by_that_ticket(principal: Principal, is_used: bool) -> None:
    text, content = new_text(), Sealed(Grant(principal, b"\0rules", "proof---"), 1.25, is_used)
    assert unseal(text, seal(text, content)) == content


def test_what_a_token_may_do_is_not_in_its_ticket_but_in_the_settings_of_each_replica() -> None:
    text, proof = new_text(), "proof---"
    sealed = seal(text, Sealed(Grant(Principal("dash", "token", ["*"] * 1_000), b"d", proof), 1.0))
    assert unseal(text, sealed) == Sealed(Grant(Principal("dash", "token"), b"d", proof), 1.0)
    assert len(sealed) < 300


def test_who_has_not_the_ticket_reads_nothing_and_changes_nothing() -> None:
    text, content = new_text(), Sealed(Grant(ANN, b"digest-of-a-token", "proof---"), 1.0)
    sealed = seal(text, content)
    for word in (b"ann", b"secret", b"news", b"digest", b"proof", text.encode()):
        assert word not in sealed
    assert seal(text, content) != sealed, "not even that it is the same"
    assert unseal(new_text(), sealed) is None
    for index in range(len(sealed)):
        assert unseal(text, sealed[:index] + bytes([sealed[index] ^ 1]) + sealed[index + 1 :]) is None
    for size in range(len(sealed)):
        assert unseal(text, sealed[:size]) is None


def test_a_principal_that_is_too_large_for_the_store_gets_no_ticket() -> None:
    async def main() -> None:
        async with sites(1) as (site,):
            tickets = tickets_at(site)
            with pytest.raises(PluginError, match="too long for a ticket: use fewer patterns, with"):
                await issued(tickets, Principal("ann", "hook", [f"{i:060}" for i in range(MAX_BYTES // 60)]))
            assert len(tickets) == len(site.store.shelf.values) == 0

    run(main())
