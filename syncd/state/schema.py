"""The tables, and every invariant that the database can hold by itself.

Values are kept as tagged JSON (``core.mapping.freeze``). A pair is called ``tenant/pair``.
``sighting`` is the inbox: a record as last seen that its link's base does not tell yet, because
it has no link, or has moved, or could not be settled. A record in step has no sighting.
"""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _at(name: str, *, nullable: bool = True) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable)


def _json(name: str, *, nullable: bool = False) -> Column[object]:
    return Column(name, JSONB(none_as_null=True), nullable=nullable, server_default=None if nullable else text("'{}'"))


_SIDES = "side IN ('left', 'right')"

tenant = Table(
    "tenant",
    metadata,
    Column("name", Text, primary_key=True),
    Column("config_hash", Text, nullable=False),
    _at("seen_at", nullable=False),
)

pair = Table(
    "pair",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, ForeignKey("tenant.name"), nullable=False),
    Column("name", Text, nullable=False),
    Column("connector", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("config_hash", Text, nullable=False),
    _at("approved_at"),
    Column("halted_reason", Text),
    Column("halted_plan", Text),
    Column("is_waived", Boolean, nullable=False, server_default=text("false")),
    _at("paused_at"),
    _json("mapping", nullable=True),
    Column("holder", Text),
    Column("fence", BigInteger, nullable=False, server_default="0"),
    _at("leased_until"),
    UniqueConstraint("tenant", "name"),
    UniqueConstraint("tenant", "namespace"),
)

tick = Table(
    "tick",
    metadata,
    Column("pair", Text, primary_key=True),
    _at("asked_at", nullable=False),
)

connection = Table(
    "connection",
    metadata,
    Column("pair", Text, ForeignKey("pair.id"), primary_key=True),
    Column("side", Text, primary_key=True),
    Column("connector", Text, nullable=False),
    Column("account_id", Text, nullable=False),
    _at("resting_until"),
    CheckConstraint(_SIDES, name="side"),
)

feed = Table(
    "feed",
    metadata,
    Column("pair", Text, ForeignKey("pair.id"), primary_key=True),
    Column("side", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("parent", Text, primary_key=True, server_default=""),
    Column("watermark", Text),
    _at("watermark_at"),
    _at("visited_at"),
    _at("swept_at"),
    _at("listed_at"),
    _at("deep_at"),
    Column("cost", Integer, nullable=False, server_default="0"),
    # How often a webhook said that something moved here, and up to which of these words the feed was read.
    Column("hints", Integer, nullable=False, server_default="0"),
    Column("heard", Integer, nullable=False, server_default="0"),
    CheckConstraint(_SIDES, name="side"),
)

link = Table(
    "link",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("pair", Text, ForeignKey("pair.id"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("left_id", Text, nullable=False),
    Column("left_parent", Text),
    Column("right_id", Text, nullable=False),
    Column("right_parent", Text),
    _json("left_base"),
    _json("right_base"),
    _json("left_facts"),
    _json("right_facts"),
    Column("left_version", Text),
    Column("right_version", Text),
    _at("left_modified_at"),
    _at("right_modified_at"),
    Column("left_keys", ARRAY(Text), nullable=False, server_default="{}"),
    Column("right_keys", ARRAY(Text), nullable=False, server_default="{}"),
    Column("is_marked", Boolean, nullable=False, server_default=text("false")),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False, server_default=""),
    Column("attempts", Integer, nullable=False, server_default="0"),
    _at("next_attempt_at"),
    _json("settled"),
    Column("why", Text, nullable=False),
    _at("linked_at", nullable=False),
    UniqueConstraint("pair", "kind", "left_id"),
    UniqueConstraint("pair", "kind", "right_id"),
    CheckConstraint("state IN ('in_step', 'pending', 'conflict', 'excluded', 'dead')", name="state"),
    Index("ix_link_left_keys", "left_keys", postgresql_using="gin"),
    Index("ix_link_right_keys", "right_keys", postgresql_using="gin"),
    Index("ix_link_left_parent", "pair", "kind", "left_parent"),
    Index("ix_link_right_parent", "pair", "kind", "right_parent"),
    Index("ix_link_unmarked", "pair", "kind", "id", postgresql_where=text("NOT is_marked")),
    Index("ix_link_state", "pair", "state", postgresql_where=text("state <> 'in_step'")),
)

sighting = Table(
    "sighting",
    metadata,
    Column("pair", Text, ForeignKey("pair.id"), primary_key=True),
    Column("side", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("parent", Text),
    _json("values"),
    _json("facts"),
    Column("mark", Text),
    Column("keys", ARRAY(Text), nullable=False, server_default="{}"),
    Column("version", Text),
    _at("modified_at"),
    Column("is_deleted", Boolean, nullable=False, server_default=text("false")),
    Column("is_linked", Boolean, nullable=False, server_default=text("false")),
    Column("state", Text, nullable=False, server_default="new"),
    Column("reason", Text, nullable=False, server_default=""),
    Column("attempts", Integer, nullable=False, server_default="0"),
    _at("next_attempt_at"),
    _at("seen_at", nullable=False),
    CheckConstraint(_SIDES, name="side"),
    CheckConstraint("state IN ('new', 'waiting', 'excluded', 'review', 'dead', 'retired')", name="state"),
    Index("ix_sighting_keys", "keys", postgresql_using="gin"),
    Index("ix_sighting_mark", "pair", "kind", "side", "mark", postgresql_where=text("mark IS NOT NULL")),
    Index("ix_sighting_open", "pair", "kind", "side", "is_linked", "state", "id"),
    Index("ix_sighting_parent", "pair", "kind", "side", "parent"),
)

match_review = Table(
    "match_review",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("pair", Text, ForeignKey("pair.id"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("side", Text, nullable=False),
    Column("record_id", Text, nullable=False),
    Column("candidates", JSONB, nullable=False),
    _at("opened_at", nullable=False),
    _at("answered_at"),
    Column("answer", Text),
    Column("answered_with", Text),
    CheckConstraint(_SIDES, name="side"),
    CheckConstraint("answer IN ('same', 'never', 'create', 'apart')", name="answer"),
    Index(
        "uq_match_review_open", "pair", "kind", "side", "record_id", unique=True,
        postgresql_where=text("answered_at IS NULL"),
    ),
    Index("ix_match_review_answered", "pair", "kind", "record_id", postgresql_where=text("answered_at IS NOT NULL")),
)  # fmt: skip

run = Table(
    "run",
    metadata,
    Column("id", Text, primary_key=True),
    Column("pair", Text, ForeignKey("pair.id"), nullable=False),
    Column("reason", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("fence", BigInteger, nullable=False),
    _at("started_at", nullable=False),
    _at("finished_at"),
    _json("counts"),
    _json("cost"),
    Column("message", Text, nullable=False, server_default=""),
    # Which of the errors of ``errors.py`` ended it, or that a bug did.
    Column("error", Text),
    CheckConstraint("state IN ('running', 'done', 'halted', 'failed', 'abandoned')", name="state"),
    Index("uq_run_running", "pair", unique=True, postgresql_where=text("state = 'running'")),
    Index("ix_run_pair_started_at", "pair", "started_at"),
)

plan = Table(
    "plan",
    metadata,
    Column("id", Text, primary_key=True),
    Column("pair", Text, ForeignKey("pair.id"), nullable=False),
    Column("run", Text, ForeignKey("run.id")),
    Column("hash", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reasons", JSONB, nullable=False, server_default=text("'[]'")),
    Column("counts", JSONB, nullable=False, server_default=text("'{}'")),
    _at("made_at", nullable=False),
    _at("ended_at"),
    CheckConstraint("state IN ('open', 'applying', 'applied', 'discarded', 'refused')", name="state"),
    Index("ix_plan_pair_state", "pair", "state"),
)

operation = Table(
    "operation",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("plan", Text, ForeignKey("plan.id", ondelete="CASCADE"), nullable=False),
    Column("pair", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("verb", Text, nullable=False),
    Column("side", Text, nullable=False),
    Column("source_id", Text),
    Column("target_id", Text),
    Column("target_parent", Text),
    Column("group_key", Text, nullable=False, server_default=""),
    _json("steps"),
    _json("refs"),
    _json("before"),
    _json("source"),
    Column("conflicts", JSONB, nullable=False, server_default=text("'[]'")),
    _json("because"),
    Column("why", Text, nullable=False, server_default=""),
    Column("precondition", Text),
    Column("idempotency_key", Text, nullable=False, unique=True),
    Column("state", Text, nullable=False, server_default="planned"),
    Column("outcome", Text, nullable=False, server_default=""),
    _at("sent_at"),
    _at("settled_at"),
    CheckConstraint(_SIDES, name="side"),
    CheckConstraint("verb IN ('create', 'update', 'delete', 'mark')", name="verb"),
    CheckConstraint("state IN ('planned', 'intended', 'sent', 'done', 'failed', 'dropped')", name="state"),
    Index("ix_operation_plan", "plan", "state", "kind", "verb", "side", "group_key", "id"),
    Index("ix_operation_source", "plan", "kind", "source_id"),
    Index(
        "uq_operation_open", "pair", "kind", "side", "target_id", unique=True,
        postgresql_where=text("state IN ('intended', 'sent') AND target_id IS NOT NULL"),
    ),
    Index(
        "uq_operation_open_create", "pair", "kind", "side", "source_id", unique=True,
        postgresql_where=text("state IN ('intended', 'sent') AND verb = 'create'"),
    ),
)  # fmt: skip

change_log = Table(
    "change_log",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("pair", Text, nullable=False),
    Column("run", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("left_id", Text),
    Column("right_id", Text),
    Column("side", Text, nullable=False),
    Column("verb", Text, nullable=False),
    Column("field", Text, nullable=False),
    Column("old", JSONB),
    Column("new", JSONB),
    Column("stored", JSONB),
    Column("rule", Text, nullable=False),
    _json("because", nullable=True),
    Column("call", Text),
    Column("person", Text),
    _at("at", nullable=False),
    Index("ix_change_log_run", "run"),
    Index("ix_change_log_person", "pair", "person", postgresql_where=text("person IS NOT NULL")),
    Index("ix_change_log_left", "pair", "kind", "left_id"),
    Index("ix_change_log_right", "pair", "kind", "right_id"),
    Index("ix_change_log_at", "at"),
)

conflict = Table(
    "conflict",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("pair", Text, nullable=False),
    Column("run", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("left_id", Text, nullable=False),
    Column("right_id", Text, nullable=False),
    Column("field", Text, nullable=False),
    Column("base", JSONB),
    Column("left_value", JSONB),
    Column("right_value", JSONB),
    _at("left_at"),
    _at("right_at"),
    Column("left_by", Text),
    Column("right_by", Text),
    Column("decided", Text),
    Column("winner", Text),
    Column("chosen", JSONB),
    _at("opened_at", nullable=False),
    _at("settled_at"),
    Index(
        "uq_conflict_open", "pair", "kind", "left_id", "right_id", "field", unique=True,
        postgresql_where=text("settled_at IS NULL"),
    ),
)  # fmt: skip

hold = Table(
    "hold",
    metadata,
    Column("pair", Text, ForeignKey("pair.id"), primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("side", Text, primary_key=True),
    Column("record_id", Text, primary_key=True),
    Column("reason", Text, nullable=False),
    _at("held_at", nullable=False),
    CheckConstraint(_SIDES, name="side"),
)

# Deliveries of webhooks by a digest of what each is known by, so that one that comes again is known.
delivery = Table(
    "delivery",
    metadata,
    Column("id", Text, primary_key=True),
    _at("heard_at", nullable=False),
    Index("ix_delivery_heard_at", "heard_at"),
)

# Records that a webhook spoke of and that no listing may show yet: read by id, once, by the next run.
dirty = Table(
    "dirty",
    metadata,
    Column("pair", Text, ForeignKey("pair.id"), primary_key=True),
    Column("side", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("hints", Integer, nullable=False, server_default="1"),
    _at("heard_at", nullable=False),
    CheckConstraint(_SIDES, name="side"),
)

budget = Table(
    "budget",
    metadata,
    Column("credential", Text, primary_key=True),
    Column("bucket", Text, primary_key=True),
    Column("holder", Text, primary_key=True),
    Column("slice", Integer, nullable=False),
    _at("leased_until", nullable=False),
)

#: Which migrations of the queue's library this database has seen; its tables are named procrastinate_*.
queue_migration = Table("queue_migration", metadata, Column("name", Text, primary_key=True))

# What people were told of, or are about to be: one row per thing that is the matter, gone when its end was told.
notice = Table(
    "notice",
    metadata,
    Column("subject", Text, primary_key=True),
    Column("what", Text, primary_key=True),
    Column("is_on", Boolean, nullable=False),
    _at("since", nullable=False),
    _json("facts"),
    # By the name of each receiver: what it knows, and how often it was tried to tell it more.
    _json("told"),
)
