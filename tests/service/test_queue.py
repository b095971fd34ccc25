"""Who runs a pair: the queue and its workers on a real database."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import text

from syncd.state import lease, pairs
from syncd.tenants import Tenants
from syncd.worker import SILENT_SECONDS, Queue, Worker
from tests.cli.test_cli import Desk, desk, folder, in_step, syncd
from tests.faults.harness import Pair, mark, meanwhile, writes

__all__ = ["desk", "folder"]

pytestmark = pytest.mark.long

PAIR = "nordhaus/hubspot"


def until(is_so: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for what other threads do; how long they take is no matter."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.05)):
        if is_so():
            return
        pause.wait(0.05)
    raise AssertionError("waited in vain")


def jobs(desk: Desk) -> list[tuple[str, str]]:
    with desk.service.engine.connect() as tx:
        return [tuple(row) for row in tx.execute(text("SELECT task_name, status FROM procrastinate_jobs ORDER BY id"))]


def left_by_a_dead_worker(desk: Desk) -> None:
    """What stands in the queue is in the hands of a worker that is silent for long."""
    silent = {"seconds": 10 * SILENT_SECONDS}
    with desk.service.engine.begin() as tx:
        worker = tx.execute(
            text(
                "INSERT INTO procrastinate_workers (last_heartbeat) "
                "VALUES (now() - make_interval(secs => :seconds)) RETURNING id"
            ),
            silent,
        ).scalar()
        tx.execute(text("UPDATE procrastinate_jobs SET status = 'doing', worker_id = :id"), {"id": worker})


@pytest.fixture
def pair(desk: Desk) -> Pair:
    """A tenant that is in step."""
    made = desk.tenant("hubspot")
    made.seed(contacts=2, deals=1)
    in_step(made)
    return made


def last_run(desk: Desk) -> object:
    with desk.service.engine.connect() as tx:
        return tx.execute(text("SELECT max(started_at) FROM run WHERE pair = :pair"), {"pair": PAIR}).scalar()


def test_asked_by_several_replicas_a_pair_waits_in_the_queue_once(desk: Desk) -> None:
    """Whoever comes first is heard; another pair, and what a person ordered, wait beside it."""
    one, other = Queue(desk.service.engine), Queue(desk.service.engine)
    assert (one.wake(PAIR), other.wake(PAIR), one.wake(PAIR)) == (True, False, False)
    assert (one.heed(PAIR), other.heed(PAIR)) == (True, False)
    assert other.wake("nordhaus/salesforce")
    assert (one.order(PAIR, "apply", plan_id="p1"), other.order(PAIR, "apply", plan_id="p1")) == (True, False)
    assert other.order(PAIR, "apply", plan_id="p2")
    assert [status for _, status in jobs(desk)] == ["todo"] * 5


def test_a_worker_does_what_was_asked_and_leaves_nothing_in_the_queue(desk: Desk, pair: Pair) -> None:
    """An edit travels with the next run that is asked for; work for a pair that no file names is dropped."""
    pair.hub_rename("hub1@example.com", "Renamed")
    queue, worker = Queue(desk.service.engine), Worker(desk.service, Tenants(desk.folder))
    assert queue.wake("gone/hubspot") and queue.wake(PAIR) and queue.heed(PAIR)
    worker.start()
    until(lambda: not jobs(desk))
    assert worker.stop(60)
    pair.assert_in_step()


def test_a_run_whose_vendor_does_not_answer_takes_no_worker_from_the_others(desk: Desk, pair: Pair) -> None:
    """It steps aside, is not begun a second time meanwhile, and goes on under its lease when the answer comes."""
    other = desk.tenant("salesforce", "granit")
    other.seed(contacts=2, deals=1)
    in_step(other)
    pair.hub_rename("hub1@example.com", "Late")
    other.hub_rename("hub1@example.com", "Renamed")
    answers = threading.Event()
    meanwhile(pair.crm, "*", ".*", answers.wait)
    before = last_run(desk)
    desk.service.workers = 1
    queue, worker = Queue(desk.service.engine), Worker(desk.service, Tenants(desk.folder), patience_seconds=0.0)
    assert queue.wake(PAIR)
    worker.start()
    until(lambda: not jobs(desk))
    begun = last_run(desk)
    assert begun != before
    assert queue.wake("granit/salesforce") and queue.wake(PAIR)
    until(lambda: not jobs(desk) and other.crm_last("hub1@example.com") == "Renamed")
    assert (last_run(desk), pairs.find(desk.service.engine, PAIR).holder is None) == (begun, False)
    answers.set()
    until(lambda: pairs.find(desk.service.engine, PAIR).holder is None)
    assert worker.stop(60)
    for each in (pair, other):
        each.assert_in_step()


def test_what_a_dead_worker_had_in_hand_is_done_by_another(desk: Desk, pair: Pair) -> None:
    """Its job is asked for again, once, whether or not it was asked for anew meanwhile; its lease is waited for."""
    before = last_run(desk)
    queue = Queue(desk.service.engine)
    queue.wake(PAIR)
    left_by_a_dead_worker(desk)
    assert queue.wake(PAIR)
    held = lease.acquire(desk.service.engine, PAIR, "dead", desk.service.now())
    assert held is not None
    worker = Worker(desk.service, Tenants(desk.folder))
    worker.start()
    until(lambda: not jobs(desk))
    assert worker.stop(60)
    assert last_run(desk) != before
    with desk.service.engine.connect() as tx:
        assert tx.execute(text("SELECT count(*) FROM run WHERE state = 'running'")).scalar() == 0


def test_a_lease_that_is_renewed_by_its_holder_is_left_alone(desk: Desk, pair: Pair) -> None:
    """Whatever the queue believes: who holds the lease runs the pair, and nobody else writes."""
    pair.hub_rename("hub1@example.com", "Renamed")
    engine, now = desk.service.engine, desk.service.now
    held = lease.acquire(engine, PAIR, "alive", now())
    assert held is not None
    place, before = mark(pair.crm), last_run(desk)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(1.0):
            lease.renew(engine, held, now())

    beating = threading.Thread(target=beat)
    beating.start()
    Worker(desk.service, Tenants(desk.folder)).run(PAIR)
    over.set()
    beating.join()
    assert (writes(pair.crm, place), last_run(desk)) == ([], before)
    lease.release(engine, held)


def test_a_plan_that_a_person_approved_is_carried_out_by_a_worker(desk: Desk) -> None:
    """And a run is taken back as a plan that waits for its approval."""
    pair = desk.tenant("hubspot")
    pair.seed(contacts=2, deals=1)
    assert syncd("run", "nordhaus").code == 4
    halted = pairs.find(desk.service.engine, PAIR)
    worker = Worker(desk.service, Tenants(desk.folder))
    worker.order(PAIR, "apply", plan_id=halted.halted_plan)
    worker.run(PAIR)
    pair.assert_in_step()
    pair.hub_rename("hub1@example.com", "Renamed")
    worker.run(PAIR)
    place = mark(pair.crm)
    (newest, *_) = syncd("runs", "nordhaus", "--json").json()
    worker.order(PAIR, "undo", run_id=str(newest["run"]))
    assert writes(pair.crm, place) == []
    with desk.service.engine.connect() as tx:
        assert tx.execute(text("SELECT count(*) FROM plan WHERE state = 'open'")).scalar() == 1
