import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from livefire_shadow import (
    AUDIT,
    PRODUCTION,
    Context,
    IsolationViolation,
    LostContext,
    Marker,
    Stress,
    bind,
    carry,
    current,
    is_stress,
    outside_request,
    run_id,
    shadow_setup,
)

STRESS = Stress(Marker("run-7", 1_800_000_000, "k1"), "value")


@pytest.fixture(autouse=True)
def _fresh_audit() -> Iterator[None]:
    AUDIT.reset()
    yield
    AUDIT.reset()


def test_unset_raises_and_is_counted_with_its_place() -> None:
    for ask in (current, is_stress, run_id):
        with pytest.raises(LostContext, match="test_unset_raises"):
            ask()
    snapshot = AUDIT.snapshot()
    assert snapshot["lost_context"] == 3
    assert any("test_livefire_shadow_context.py" in place for place in snapshot["lost_places"])


def test_production_and_stress_and_nothing_after_the_block() -> None:
    with bind(PRODUCTION):
        assert (is_stress(), run_id()) == (False, "")
    with bind(STRESS):
        assert (is_stress(), run_id()) == (True, "run-7")
    with pytest.raises(LostContext):
        current()


def test_outside_request_is_no_way_out_of_stress() -> None:
    with outside_request():
        assert not is_stress()
    with shadow_setup():
        assert is_stress()
    for escape in (outside_request, shadow_setup):
        with bind(STRESS), pytest.raises(IsolationViolation), escape():
            pass


async def check_tasks_and_threads() -> None:
    loop = asyncio.get_running_loop()
    with bind(STRESS):
        async with asyncio.TaskGroup() as group:
            task = group.create_task(asyncio.to_thread(run_id))
        assert task.result() == "run-7"
        with pytest.raises(LostContext):
            await loop.run_in_executor(None, run_id)
        assert await loop.run_in_executor(None, carry(run_id)) == "run-7"
        with ThreadPoolExecutor(4) as pool:
            with pytest.raises(LostContext):
                pool.submit(run_id).result()
            # The same carried function in several threads at once.
            assert list(pool.map(carry(lambda _: run_id()), range(50))) == ["run-7"] * 50
            # And the threads are clean afterwards.
            with pytest.raises(LostContext):
                pool.submit(run_id).result()


def test_executors_lose_the_context_and_carry_keeps_it() -> None:
    asyncio.run(check_tasks_and_threads())


def test_carry_raises_where_it_is_called_and_refuses_coroutines() -> None:
    with pytest.raises(LostContext):
        carry(run_id)

    async def coroutine() -> None: ...

    with bind(PRODUCTION), pytest.raises(TypeError):
        carry(coroutine)


def test_where_threads_inherit_the_context_nothing_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool's thread would be production for ever, and stress work in it would write to production."""
    from types import SimpleNamespace

    from livefire_shadow import Settings, context
    from livefire_shadow.aiohttp_server import shadow_middleware
    from livefire_shadow.asgi import ShadowASGI
    from livefire_shadow.sqlalchemy_routing import Routing

    async def app(scope: object, receive: object, send: object) -> None: ...

    settings = Settings("shop")
    set_ups = (lambda: shadow_middleware(settings), lambda: ShadowASGI(app, settings), lambda: Routing([]).remove())
    for flags in (SimpleNamespace(), SimpleNamespace(thread_inherit_context=0)):
        monkeypatch.setattr(context, "sys", SimpleNamespace(flags=flags))
        for set_up in set_ups:
            set_up()
    monkeypatch.setattr(context, "sys", SimpleNamespace(flags=SimpleNamespace(thread_inherit_context=1)))
    for set_up in set_ups:
        with pytest.raises(RuntimeError, match="-X thread_inherit_context=0"):
            set_up()


def test_a_consumer_binds_each_piece_of_work_to_the_request_that_it_is_of() -> None:
    """It was started by a request of production, whose state it has; without `bind` all its work would be production's."""

    async def main() -> list[str]:
        done: list[str] = []
        queue: asyncio.Queue[tuple[Context, bool]] = asyncio.Queue()

        async def consume() -> None:
            while True:
                context, bound = await queue.get()
                with bind(context) if bound else contextlib.nullcontext():
                    done.append(run_id())
                queue.task_done()

        with bind(PRODUCTION):
            consumer = asyncio.create_task(consume())
            await asyncio.sleep(0)
        for bound in (True, False):
            with bind(STRESS):
                queue.put_nowait((current(), bound))
        await queue.join()
        consumer.cancel()
        return done

    assert asyncio.run(main()) == ["run-7", ""]
